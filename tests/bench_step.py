"""What a STARFISH step costs beside the student's own forward, backward and optimiser step.

    python tests/bench_step.py [timm name] [batch size] [steps] [depth]

The healing loop itself is timed, teacher cached. Before each of its steps the plain one is timed on a copy,
so that both see the same busy machine.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from starfish_lab.healing.heal import heal
from starfish_lab.models.network import Network, prunable
from starfish_lab.progress import Reporter
from starfish_lab.pruning.masks import apply
from starfish_lab.recipe import HealingChoice


class Interleaved(Reporter):
    """Runs and times a plain training step before every healing step, and times the healing step."""

    def __init__(self, module: torch.nn.Module, masks: dict, images: torch.Tensor, clock: Callable[[], float]):
        self.module, self.images, self.clock = module.train(), images, clock
        self.plain, self.healing = [], []
        module.requires_grad_(False)
        weights = [module.get_submodule(name).weight.requires_grad_(True) for name in masks]
        self.optimiser = torch.optim.Adam(weights, lr=1e-6, fused=True)

    def check(self) -> None:
        began = self.clock()
        self.module(self.images).sum().backward()
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.began = self.clock()
        self.plain.append(self.began - began)

    def progress(self, step: int, steps: int) -> None:
        self.healing.append(self.clock() - self.began)


def step_times(network: Network, *, batch_size: int, steps: int, clock: Callable[[], float] = time.perf_counter) -> tuple[list[float], list[float]]:
    """Seconds of each plain and of each healing step, the first two left out: caching and warm-up."""
    masks = {name: layer.weight.abs() > layer.weight.abs().median() for name, layer in prunable(network).items()}
    images = torch.randn(batch_size, *network.preprocessing.input_size)
    student, plain = network.copy(), network.copy()
    apply(plain.module, masks)
    reporter = Interleaved(plain.module, masks, images, clock)
    choice = HealingChoice(steps=steps + 2, batch_size=batch_size)
    heal(network, student, masks, images, choice, reporter=reporter, teacher_memory_gb=64)
    return reporter.plain[2:], reporter.healing[2:]


def main(name: str = "deit_tiny_patch16_224", batch_size: str = "8", steps: str = "20", depth: str = "12") -> None:
    import timm

    from starfish_lab.models.loading import wrap

    network = wrap(timm.create_model(name, depth=int(depth)).eval(), name=name)
    plain, healing = step_times(network, batch_size=int(batch_size), steps=int(steps))
    ratios = [h / p for h, p in zip(healing, plain)]
    print(f"{name}, batch {batch_size}, {torch.get_num_threads()} threads, {len(plain)} interleaved steps")
    print(f"plain step   median {statistics.median(plain) * 1e3:.0f} ms, least {min(plain) * 1e3:.0f} ms")
    print(f"healing step median {statistics.median(healing) * 1e3:.0f} ms, least {min(healing) * 1e3:.0f} ms")
    print(f"ratio {statistics.median(ratios):.3f} (median of pairs), {min(healing) / min(plain):.3f} (of least)")


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Block-local reconstruction: every attention and every MLP answers as the dense network's, each for itself.

    L = mean over blocks of mean over a block's parts p of  ‖ f_p(x_p) − t_p ‖² / ‖ t_p ‖²

f_p is the pruned part, t_p what the dense part makes of the dense network's activations. x_p, its input, is the dense
network's too ('dense'), or the pruned network's own ('pruned'), so that a part can make up for the errors before it. No
gradient leaves a part: this is what layer-by-layer compensation optimises, by gradient descent.

A transformer block has two parts, attention and MLP; the sums around them hold no weights. A block that has no such children,
as of a convolutional network, or weights outside them is one part. Norms in front of a part belong to none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from starfish_lab import checks
from starfish_lab.healing.session import Batch, Loss, Session
from starfish_lab.healing.teacher import Teacher
from starfish_lab.models.network import Network
from starfish_lab.models.states import BlockStates

NEEDS_LABELS = False
DEFAULTS = {}


def objective(session: Session, *, inputs: str = "dense") -> Callable[[Batch], Loss]:
    """The loss of a batch, with a part for each block."""
    checks.one_of("healing.options.inputs", inputs, ("dense", "pruned"))
    session.check_same_tokens("Block-local reconstruction")
    parts = [parts_of(session.student, block) for block in session.student.blocks]
    names = [name for block in parts for name in block]

    def targets(module: nn.Module, images: Tensor) -> list[Tensor]:
        """Outputs of all parts; behind them their inputs, where the pruned parts get those."""
        with BlockStates(module, names) as outputs, _heard(module, names) as met:
            module(images)
        found = outputs.values if inputs == "pruned" else outputs.values + [met[name] for name in names]
        return [each.unflatten(0, (len(images), -1)) for each in found]  # (B, windows, ...): attention in windows has more rows than images

    teacher = Teacher(session, targets)

    def loss(batch: Batch) -> Loss:
        wanted = [target.flatten(0, 1) for target in teacher(batch)]
        module, fed = session.student.module, dict(zip(names, wanted[len(names) :]))
        with BlockStates(module, names) as outputs, _apart(module, names, fed):
            module(batch.images)
        errors = iter([_relative_error(found.float(), target.float()) for found, target in zip(outputs.values, wanted)])
        blocks = torch.stack([sum(next(errors) for _ in block) / len(block) for block in parts])  # (blocks,)
        return Loss(blocks.mean(), blocks.detach())

    return loss


def parts_of(network: Network, block: str) -> tuple[str, ...]:
    """Names of a block's parts: attention and MLP where they hold all of its weights, else the block itself."""
    module = network.module.get_submodule(block)
    layers = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    halves = ("attn", "mlp")
    if all(hasattr(module, half) for half in halves) and all(name.startswith(("attn.", "mlp.")) for name in layers):
        return tuple(f"{block}.{half}" for half in halves)
    return (block,)


def _relative_error(found: Tensor, target: Tensor) -> Tensor:
    return F.mse_loss(found, target) / target.square().mean().clamp_min(1e-12)


@contextmanager
def _heard(module: nn.Module, names: list[str]) -> Iterator[dict[str, Tensor]]:
    """Inside, yields {part: its input} of the last forward pass."""
    met: dict[str, Tensor] = {}

    def hear(name: str):
        return lambda part, given: met.__setitem__(name, given[0])

    with _removed([module.get_submodule(name).register_forward_pre_hook(hear(name)) for name in names]):
        yield met


@contextmanager
def _apart(module: nn.Module, names: list[str], fed: dict[str, Tensor]) -> Iterator[None]:
    """Inside, every part gets what it is fed, or else its own input, and hands on its output: both without a gradient."""

    def feed(name: str):
        return lambda part, given: (fed.get(name, given[0]).detach(), *given[1:])

    parts = {name: module.get_submodule(name) for name in names}
    handles = [part.register_forward_pre_hook(feed(name)) for name, part in parts.items()]
    with _removed(handles + [part.register_forward_hook(lambda part, given, output: output.detach()) for part in parts.values()]):
        yield


@contextmanager
def _removed(handles: list) -> Iterator[None]:
    """Hooks that are gone afterwards."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

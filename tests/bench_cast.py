"""What CAST at 8:16 costs on the layers of a DeiT-B, beside a plain Python loop over all patterns.

    python tests/bench_cast.py [threads] [keep] [group] [blocks] [device]

All layers of its 12 blocks, or of as many as asked for, go through the solver: random weights, moments of random correlated
inputs. The loop tries one pattern after the other on all rows and groups of a part of one layer; its time for all layers is that
of the part in proportion to the groups.
"""

from __future__ import annotations

import itertools
import resource
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from starfish_lab.pruning.solvers import cast
from starfish_lab.recipe import PruningChoice

LAYERS = {"qkv": (2304, 768), "proj": (768, 768), "fc1": (3072, 768), "fc2": (768, 3072)}  # of each of 12 blocks


def loop(weight: Tensor, moments: Tensor, keep: int) -> Tensor:
    """Masks (out, G, n) of least cost by trying every pattern in turn."""
    out, n = len(weight), moments.shape[1]
    u = weight.view(out, -1, n)
    best, found = torch.full(u.shape[:2], torch.inf), torch.zeros(u.shape, dtype=torch.bool)
    for kept in itertools.combinations(range(n), keep):
        mask = torch.zeros(n, dtype=torch.bool)
        mask[list(kept)] = True
        r = (u * ~mask).transpose(0, 1)  # (G, out, n)
        cost = ((r @ moments) * r).sum(-1).T
        better = cost < best
        best, found = torch.where(better, cost, best), torch.where(better.unsqueeze(-1), mask, found)
    return found


def problem(out: int, cols: int, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x = torch.randn(cols // n, 256, n, generator=generator) @ torch.randn(cols // n, n, n, generator=generator)
    return torch.randn(out, cols, generator=generator), x.transpose(1, 2) @ x / 256


def main(threads: str = "2", keep: str = "8", group: str = "16", blocks: str = "12", device: str = "cpu") -> None:
    torch.set_num_threads(int(threads))
    k, n = int(keep), int(group)
    generator = torch.Generator().manual_seed(0)
    choice = PruningChoice(score="cast", pattern="n_m", keep=k, group=n)

    def solved(weight: Tensor, moments: Tensor) -> tuple[Tensor, float]:
        weight, moments = weight.to(device), moments.to(device)
        started = time.perf_counter()
        mask = cast.solve(weight, moments, choice=choice, count=None, dense=weight, mask=weight != 0)[0]  # its facts are numbers: it is done
        return mask.cpu(), time.perf_counter() - started

    weight, moments = problem(64, 768, n, generator)
    started = time.perf_counter()
    plain = loop(weight, moments, k)
    a_group = (time.perf_counter() - started) / plain[:, :, 0].numel()
    same = float((solved(weight, moments)[0].view_as(plain) == plain).all(-1).float().mean())
    print(f"loop over patterns: {1e6 * a_group:.0f} us a group, on {plain[:, :, 0].numel()} groups; solver alike on {same:.2%} of them", flush=True)

    seconds, groups = 0.0, 0
    for block in range(int(blocks)):
        for shape in LAYERS.values():
            seconds += solved(*problem(*shape, n, generator))[1]
            groups += shape[0] * shape[1] // n
        print(f"block {block}: {seconds:.1f} s, {1e6 * seconds / groups:.2f} us a group", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{k}:{n}, {4 * int(blocks)} layers, {groups} groups, {device}, {threads} threads: {seconds:.1f} s")
    print(f"The loop would take {a_group * groups:.0f} s, {a_group * groups / seconds:.1f} times as long. Peak memory of the process {peak:.2f} GB.")


if __name__ == "__main__":
    main(*sys.argv[1:])

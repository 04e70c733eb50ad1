"""A network run again and again from the block at hand on: what comes before it gives what it gave the first time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from starfish_lab import settings
from starfish_lab.measure.divergence import kl
from starfish_lab.models.network import Network
from starfish_lab.models.states import BlockStates


@dataclass(frozen=True)
class Answers:
    """What came out at the end: `log` probabilities (n, classes) on the CPU, and the mean cosine distance of the last block's states."""

    log: Tensor
    cosine_distance: float

    def kl(self, dense: Answers) -> float:
        """Mean KL( dense ‖ these ) in nats."""
        return max(0.0, kl(dense.log, self.log))


class Tail:
    """Runs the part of `network` that starts with a block, over `images` (n, C, H, W), as often as asked.

    In the first pass the output of every block is kept for as many batches as the teacher's memory holds; in later ones the blocks in
    front return these, whatever stands between blocks still runs, and the answers are those of a whole pass. Batches for which there
    was no room run whole. The network must merge no tokens; it is moved to the device, and its weights may change between passes.
    """

    def __init__(self, network: Network, images: Tensor, *, device: str = "cpu", batch_size: int = 32):
        self._module = network.module.to(device).eval()
        self._names = network.blocks
        self._blocks = [self._module.get_submodule(name) for name in network.blocks]
        self._batches = images.split(batch_size)
        self._device, self._states = device, []  # of every batch that there is room for, those of all blocks
        self._per_image = network.states == "image"  # one cosine an image, else one a token
        self._ends: list[Tensor] = []  # the last block's states
        room = _room(device)
        with BlockStates(self._module, self._names) as states:
            logs = []
            for batch in self._batches:
                logs.append(self._log(batch))
                found = states.values
                self._ends.append(found[-1])
                room -= sum(state.numel() * state.element_size() for state in found)
                if room >= 0:
                    self._states.append(list(found))
        self.dense = Answers(torch.cat(logs), 0.0)

    def answers(self, block: int) -> Answers:
        """The network's answers now, where nothing in front of the block of this index has changed since the first pass."""
        logs, distance, count = [], 0.0, 0
        with BlockStates(self._module, self._names[-1:]) as last:
            for i, batch in enumerate(self._batches):
                with self._skipping(self._states[i][:block] if i < len(self._states) else []):
                    logs.append(self._log(batch))
                d = self._distances(self._ends[i], last.values[0])
                distance, count = distance + d.sum().item(), count + d.numel()
        return Answers(torch.cat(logs), distance / count)

    def _log(self, batch: Tensor) -> Tensor:
        return F.log_softmax(self._module(batch.to(self._device)).float(), dim=-1).cpu()

    def _distances(self, dense: Tensor, found: Tensor) -> Tensor:
        """1 − cos = ½ |u − v|² of unit vectors, a figure a token or an image, as `measure.drift` counts it."""
        a, b = (dense.flatten(1), found.flatten(1)) if self._per_image else (dense, found)
        return 0.5 * (F.normalize(a.float(), dim=-1) - F.normalize(b.float(), dim=-1)).square().sum(-1)

    @contextmanager
    def _skipping(self, states: list[Tensor]) -> Iterator[None]:
        """Inside, the first blocks return these states instead of computing them."""
        skipped = self._blocks[: len(states)]
        for block, state in zip(skipped, states):
            block.forward = lambda *_, state=state, **__: state.clone()  # what follows may work in place
        try:
            yield
        finally:
            for block in skipped:
                del block.forward  # the class's own again


def _room(device: str) -> float:
    """Bytes that states may take."""
    room = 1e9 * settings.number(settings.TEACHER_MEMORY_GB, float)
    return min(room, torch.cuda.mem_get_info(device)[0] / 4) if device.startswith("cuda") else room

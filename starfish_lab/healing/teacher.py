"""The dense network as a teacher: what it says of each batch, remembered within a memory budget."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from starfish_lab.healing.session import Batch, Session


class Teacher:
    """`teacher(batch)` gives the targets of a batch: a list of tensors on the session's device.

    Batches that are the same in every epoch have an index: their targets are computed when first met and
    kept for as many batches as the budget holds; all others are computed anew each time. Targets are the
    same either way, bit for bit on a CPU: the budget decides speed, never the result.

    `targets(module, images)` computes them; it runs in eval mode without gradients.
    """

    def __init__(self, session: Session, targets: Callable[[nn.Module, Tensor], list[Tensor]]):
        self._session, self._targets = session, targets
        self._kept: dict[int, list[Tensor]] = {}
        self._room: int | None = None  # batches to keep, known once the first is measured

    @torch.no_grad()
    def __call__(self, batch: Batch) -> list[Tensor]:
        if batch.index is not None and batch.index in self._kept:
            return self._kept[batch.index]
        targets = self._targets(self._session.dense.module, batch.images)
        if batch.index is None:
            return targets
        if self._room is None:
            self._room = self._plan(sum(t.numel() * t.element_size() for t in targets) / len(batch.images), len(batch.images))
        if len(self._kept) < self._room:
            self._kept[batch.index] = targets
        return targets

    def _plan(self, bytes_per_image: float, batch_size: int) -> int:
        """How many batches to keep; tells the person."""
        session = self._session
        budget = session.teacher_memory
        if session.device.type == "cuda":
            budget = min(budget, torch.cuda.mem_get_info(session.device)[0] / 2)  # the other half is the student's
        batches, images = session.batches.per_epoch, session.batches.count
        needed = bytes_per_image * images
        room = batches if needed <= budget else int(budget / (bytes_per_image * batch_size))
        if room == batches:
            session.reporter.note(f"Teacher targets of {images} images are cached ({_size(needed)}).")
        else:
            session.reporter.note(
                f"Teacher targets of {images} images need {_size(needed)}, the memory for them is {_size(budget)}: "
                f"{room} of {batches} batches are cached, the others recomputed at each step."
            )
        return room


def _size(count: float) -> str:
    return f"{count / 1e9:.2g} GB" if count >= 1e8 else f"{count / 1e6:.2g} MB"

"""The dense network as a teacher: what it says of each batch, remembered within a memory budget."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from starfish_lab.healing.session import Batch, Session


class Teacher:
    """`teacher(batch)` gives the targets of a batch: a list of tensors (B, ...) on the session's device.

    Batches that are the same in every epoch have an index: their targets are computed when first met and
    kept for as many batches as the budget holds; all others are computed anew each time. Targets are the
    same either way, bit for bit on a CPU: the budget decides speed, never the result.

    Where the order changes but the images do not, targets are kept image by image if all of them fit, computed at the
    first call for the images in their own order; they equal those of a batch but for the last bit.

    `targets(module, images)` computes them; it runs in eval mode without gradients. Where the session says
    `teacher_half` they are rounded to float16, kept so and given back in float32, kept or not.
    """

    def __init__(self, session: Session, targets: Callable[[nn.Module, Tensor], list[Tensor]]):
        self._session, self._targets = session, targets
        self._kept: dict[int, list[Tensor]] = {}
        self._of_images: list[Tensor] | None = None  # (n, ...) each
        self._room: int | None = None  # batches to keep, known once the first is measured

    @torch.no_grad()
    def __call__(self, batch: Batch) -> list[Tensor]:
        return [target.float() if target.dtype == torch.half else target for target in self._rounded(batch)]

    def _rounded(self, batch: Batch) -> list[Tensor]:
        if batch.index in self._kept:
            return self._kept[batch.index]
        if self._of_images is not None:
            rows = batch.rows.to(self._session.device)
            return [targets[rows] for targets in self._of_images]
        targets = self._compute(batch.images)
        if batch.index is None and batch.rows is None:  # images that never come again
            return targets
        if self._room is None:
            self._room = self._plan(sum(t.numel() * t.element_size() for t in targets) / len(batch.images), batch)
            if batch.index is None and self._room:
                self._keep_images()
                return self._rounded(batch)
        if batch.index is not None and len(self._kept) < self._room:
            self._kept[batch.index] = targets
        return targets

    def _compute(self, images: Tensor) -> list[Tensor]:
        found = self._targets(self._session.dense.module, images)
        return [target.half() if target.is_floating_point() else target for target in found] if self._session.teacher_half else found

    def _keep_images(self) -> None:
        """The targets of all images, computed in their own order."""
        batches, device = self._session.batches, self._session.device
        for rows in torch.arange(batches.count).split(batches.size):
            found = self._compute(batches.prepared[rows].to(device, torch.float32))
            self._of_images = self._of_images or [target.new_empty(batches.count, *target.shape[1:]) for target in found]
            for place, target in zip(self._of_images, found):
                place[rows.to(device)] = target

    def _plan(self, bytes_per_image: float, batch: Batch) -> int:
        """How many batches to keep, all or none where the order changes; tells the person."""
        session = self._session
        budget = session.teacher_memory
        if session.device.type == "cuda":
            budget = min(budget, torch.cuda.mem_get_info(session.device)[0] / 2)  # the other half is the student's
        batches, images = session.batches.per_epoch, session.batches.count
        needed = bytes_per_image * images
        room = batches if needed <= budget else int(budget / (bytes_per_image * len(batch.images))) if batch.index is not None else 0
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

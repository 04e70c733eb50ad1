"""Cross-entropy on the labels of the images: plain fine-tuning of the surviving weights."""

from __future__ import annotations

from collections.abc import Callable

from torch.nn import functional as F

from starfish_lab.healing.session import Batch, Loss, Session

NEEDS_LABELS = True
DEFAULTS = {}


def objective(session: Session) -> Callable[[Batch], Loss]:
    """The loss of a batch. Labels are class indices of the network's outputs."""
    session.check_labels()

    def loss(batch: Batch) -> Loss:
        return Loss(F.cross_entropy(session.student.module(batch.images).float(), batch.labels))

    return loss

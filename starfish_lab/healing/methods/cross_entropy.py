"""Cross-entropy on the labels of the calibration images: plain fine-tuning of the surviving weights."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

from starfish_lab.errors import ImagesError
from starfish_lab.healing.session import Loss, Session

NEEDS_LABELS = True


def objective(session: Session) -> Callable[[int, Tensor], Loss]:
    """The loss of a batch: (batch index, images (B, C, H, W)) → Loss. Labels are class indices of the network's outputs."""
    lowest, highest = min(int(part.min()) for part in session.labels), max(int(part.max()) for part in session.labels)
    classes = session.student.num_classes
    if lowest < 0 or (classes and highest >= classes):
        raise ImagesError(
            f"Labels run from {lowest} to {highest}; {session.student.name} knows classes 0 to {classes - 1}. Give the class order of the network."
        )

    def loss(index: int, images: Tensor) -> Loss:
        return Loss(F.cross_entropy(session.student.module(images), session.labels[index].to(session.device)))

    return loss

"""Pseudo-labels: cross-entropy on the dense network's own answers, so that no labels are needed (Lee, ICML workshop 2013).

    L = mean over images of CE( softmax(s), argmax t )

t and s are the logits of the dense and the pruned network. Where the dense network errs, its error is what is taught.
"""

from __future__ import annotations

from collections.abc import Callable

from torch.nn import functional as F

from starfish_lab.healing.session import Batch, Loss, Session
from starfish_lab.healing.teacher import Teacher

NEEDS_LABELS = False
DEFAULTS = {}


def objective(session: Session) -> Callable[[Batch], Loss]:
    """The loss of a batch."""
    teacher = Teacher(session, lambda module, images: [module(images).argmax(-1)])

    def loss(batch: Batch) -> Loss:
        (answers,) = teacher(batch)  # (B,), class indices
        return Loss(F.cross_entropy(session.student.module(batch.images).float(), answers))

    return loss

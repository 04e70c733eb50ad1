"""Logit distillation: match the dense network's softened class probabilities (Hinton et al., arXiv 1503.02531).

    L = T² · mean over images of KL( softmax(t / T) ‖ softmax(s / T) )

t and s are the logits of the dense and the pruned network, T the temperature; T² keeps gradients comparable
across temperatures. No labels.
"""

from __future__ import annotations

from collections.abc import Callable

from torch.nn import functional as F

from starfish_lab.errors import RecipeError
from starfish_lab.healing.session import Batch, Loss, Session
from starfish_lab.healing.teacher import Teacher

NEEDS_LABELS = False
DEFAULTS = {}


def objective(session: Session, *, temperature: float = 2.0) -> Callable[[Batch], Loss]:
    """The loss of a batch."""
    if isinstance(temperature, bool) or not isinstance(temperature, int | float) or not 0 < temperature < float("inf"):
        raise RecipeError(f"healing.options.temperature is {temperature!r}: give a number above 0, such as 2.")
    teacher = Teacher(session, lambda module, images: [F.log_softmax(module(images).float() / temperature, dim=-1)])

    def loss(batch: Batch) -> Loss:
        (target,) = teacher(batch)  # (B, classes), log probabilities
        answer = F.log_softmax(session.student.module(batch.images).float() / temperature, dim=-1)
        return Loss(temperature**2 * F.kl_div(answer, target, reduction="batchmean", log_target=True))

    return loss

"""Distillation with labels: cross-entropy and the dense network's soft answers, half each (MP pruning, arXiv 2606.02608).

    L = (1 − a) · CE with label smoothing  +  a · T² · mean over images of KL( softmax(t / T) ‖ softmax(s / T) )

t and s are the logits of the dense and the pruned network; a = 0.5, T = 2, smoothing 0.1 (marchenko_pastur §1.7). The
authors train it for three epochs with the zeros frozen and every other parameter free (`trains` 'all'), on augmented
training images. Batch-norm statistics of the pruned network follow the batches, as in the authors' code.

The pruned network may merge tokens while the dense one keeps them all: the loss compares logits only. Whether the authors'
merging network weighs merged tokens by their size during this training is not known (marchenko_pastur §7, row 11); here it
merges in training as it does everywhere else (`tokens.proportional`). Their learning rate and batch size for ViT-B 6:12
appear in two versions (row 9): neither is a default of this method, both belong to the recipe.
"""

from __future__ import annotations

from collections.abc import Callable

from torch.nn import functional as F

from starfish_lab import checks
from starfish_lab.healing.session import Batch, Loss, Session
from starfish_lab.healing.teacher import Teacher

NEEDS_LABELS = True
DEFAULTS = {}


def objective(session: Session, *, alpha: float = 0.5, temperature: float = 2.0, smoothing: float = 0.1) -> Callable[[Batch], Loss]:
    """The loss of a batch. Labels are class indices of the network's outputs."""
    checks.number("healing.options.alpha", alpha, 0, 1)
    checks.number("healing.options.smoothing", smoothing, 0, 1)
    checks.number("healing.options.temperature", temperature, 1e-3, 1e3)
    session.check_labels()
    teacher = Teacher(session, lambda module, images: [F.log_softmax(module(images).float() / temperature, dim=-1)])

    def loss(batch: Batch) -> Loss:
        (target,) = teacher(batch)  # (B, classes), log probabilities
        logits = session.student.module(batch.images).float()
        answer = F.log_softmax(logits / temperature, dim=-1)
        soft = temperature**2 * F.kl_div(answer, target, reduction="batchmean", log_target=True)
        return Loss((1 - alpha) * F.cross_entropy(logits, batch.labels, label_smoothing=smoothing) + alpha * soft)

    return loss

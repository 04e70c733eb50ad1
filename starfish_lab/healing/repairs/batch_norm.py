"""Batch-norm recalibration: running means and variances estimated anew, from the pruned network's own activations.

    mean ← average over batches of the batch's mean,   variance ← the same of its variance

Pruning shifts what every norm sees, while its running statistics are still the dense network's. The batch norms alone run as
in training, so that each is estimated on what the ones before it now give; weights, biases and everything else stay.
"""

from __future__ import annotations

import math

import torch

from starfish_lab.errors import RecipeError
from starfish_lab.healing.session import Session
from starfish_lab.models.norms import batch_norms

DEFAULTS = {}

BATCH = 64  # images: the variance within a batch leaves out that between batches, so batches should not be small


def repair(session: Session) -> None:
    """Raises RecipeError for a network without running statistics."""
    if not batch_norms(session.student.module):
        raise RecipeError(
            f"{session.student.name} has no batch norm with running statistics, so there is nothing to recalibrate. Choose another repair."
        )
    recalibrate(session)


@torch.no_grad()
def recalibrate(session: Session) -> None:
    """Estimate the student's running statistics over the calibration images, in batches of about equal size; its mode stays."""
    found = batch_norms(session.student.module)
    momenta = [norm.momentum for norm in found]
    count = len(session.calibration)
    try:
        for norm in found:
            norm.reset_running_stats()
            norm.momentum = None  # torch's word for an average in which all batches count the same
            norm.train()
        for images in session.chunks(math.ceil(count / math.ceil(count / BATCH))):
            session.student.module(images)
    finally:
        for norm, momentum in zip(found, momenta):
            norm.momentum = momentum
            norm.eval()

"""STARFISH: align every block's output with the dense network's, without labels (arXiv 2606.01126).

    L = 1/L_blocks · Σ_l mean over tokens of ( 1 − ⟨s_l, t_l⟩ / (‖s_l‖ ‖t_l‖) )

s_l is the pruned network's output of block l, t_l the dense network's, each network fed by its own
activations. Tokens: one cosine a token over the embedding, all tokens alike, class token included. Images:
one cosine an image over C·H·W. Every block counts the same, and the term of block l trains all blocks up to l.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from starfish_lab.healing.session import Batch, Loss, Session
from starfish_lab.healing.teacher import Teacher
from starfish_lab.models.states import BlockStates

NEEDS_LABELS = False


def objective(session: Session) -> Callable[[Batch], Loss]:
    """The loss of a batch, with a part for each block."""
    blocks = session.student.blocks
    per_image = session.student.states == "image"

    def states(module: nn.Module, images: Tensor) -> list[Tensor]:
        with BlockStates(module, blocks) as caught:
            module(images)
        return [(state.flatten(1) if per_image else state).float() for state in caught.values]  # (B, C·H·W) or (B, N, D)

    # Directions are all the cosine needs of the teacher, so they are what is cached.
    teacher = Teacher(session, lambda module, images: [F.normalize(state, dim=-1) for state in states(module, images)])

    def loss(batch: Batch) -> Loss:
        directions = teacher(batch)
        drift = torch.stack([cosine_distance(s, t) for s, t in zip(states(session.student.module, batch.images), directions)])  # (blocks,)
        return Loss(drift.mean(), drift.detach())

    return loss


def cosine_distance(state: Tensor, direction: Tensor) -> Tensor:
    """Mean of 1 − cosine over all but the last dimension; `direction` has unit norm along it."""
    norm = torch.linalg.vector_norm(state, dim=-1).clamp_min(1e-12)  # F.normalize's epsilon
    return 1 - ((state * direction).sum(-1) / norm).mean()

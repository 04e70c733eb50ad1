"""STARFISH: align every block's output with the dense network's, without labels (arXiv 2606.01126).

    L = 1/L_blocks · Σ_l mean over tokens of ( 1 − ⟨s_l, t_l⟩ / (‖s_l‖ ‖t_l‖) )

s_l is the pruned network's output of block l, t_l the dense network's, each network fed by its own
activations. Tokens: one cosine a token over the embedding, all tokens alike, class token included. Images:
one cosine an image over C·H·W. Every block counts the same, and the term of block l trains all blocks up to l.

The defaults are the paper's. The options take it apart; none of them is the paper's:

    loss     'relative_l2': mean of ‖s_l − t_l‖² / ‖t_l‖², which sees lengths too; 'both': cosine + weight · relative_l2
    blocks   'last', or k: every k-th block, counted so that the last is in; the mean is over those used
    tokens   'class': the first token alone, for networks that have a class token
    class_weight   the class token's part once more, so many times: it is one token among many, and the head reads it alone
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from starfish_lab import checks
from starfish_lab.errors import RecipeError
from starfish_lab.healing.session import Batch, Loss, Session
from starfish_lab.healing.teacher import Teacher
from starfish_lab.models.network import Network
from starfish_lab.models.states import BlockStates

NEEDS_LABELS = False
DEFAULTS = {}  # a recipe's own defaults are this method's

LOSSES = ("cosine", "relative_l2", "both")
TINY = 1e-12  # F.normalize's epsilon


def objective(
    session: Session, *, loss: str = "cosine", weight: float = 1.0, blocks: str | int = "all", tokens: str = "all", class_weight: float = 0.0
) -> Callable[[Batch], Loss]:  # fmt: skip
    """The loss of a batch, with a part for each block where all take part."""
    checks.one_of("healing.options.loss", loss, LOSSES)
    checks.number("healing.options.weight", weight, 0)
    network = session.student
    used, vectors = chosen_blocks(network.blocks, blocks), _vectors(network, tokens)
    checks.number("healing.options.class_weight", class_weight, 0)
    if class_weight and (tokens == "class" or not network.has_class_token):
        raise RecipeError(
            f"healing.options.class_weight is {class_weight:g}, and there is no class token among others to weigh. Take 0, or a network "
            "with a class token and tokens 'all'."
        )

    def states(module: nn.Module, images: Tensor) -> list[Tensor]:
        with BlockStates(module, used) as caught:
            module(images)
        return [vectors(state).float() for state in caught.values]  # (B, C·H·W), (B, N, D) or (B, D)

    def targets(module: nn.Module, images: Tensor) -> list[Tensor]:
        """Directions are all the cosine needs of the teacher, so they are what is cached; behind them lengths, where those count."""
        found = states(module, images)
        directions = [F.normalize(state, dim=-1) for state in found]
        return directions if loss == "cosine" else directions + [torch.linalg.vector_norm(state, dim=-1, keepdim=True) for state in found]

    teacher = Teacher(session, targets)

    def part(state: Tensor, direction: Tensor, length: Tensor | None) -> Tensor:
        if loss == "cosine":
            return cosine_distance(state, direction)
        if loss == "relative_l2":
            return relative_error(state, direction, length)
        return cosine_distance(state, direction) + weight * relative_error(state, direction, length)

    def aligned(batch: Batch) -> Loss:
        wanted = teacher(batch)
        directions, lengths = wanted[: len(used)], wanted[len(used) :] or [None] * len(used)
        parts = []
        for state, direction, length in zip(states(session.student.module, batch.images), directions, lengths):
            one = part(state, direction, length)
            if class_weight:
                one = one + class_weight * part(state[:, 0], direction[:, 0], None if length is None else length[:, 0])
            parts.append(one)
        drift = torch.stack(parts)  # (blocks used,)
        return Loss(drift.mean(), drift.detach() if used == network.blocks else None)

    return aligned


def cosine_distance(state: Tensor, direction: Tensor) -> Tensor:
    """Mean of 1 − cosine over all but the last dimension; `direction` has unit norm along it."""
    norm = torch.linalg.vector_norm(state, dim=-1).clamp_min(TINY)
    return 1 - ((state * direction).sum(-1) / norm).mean()


def relative_error(state: Tensor, direction: Tensor, length: Tensor) -> Tensor:
    """Mean of ‖s − t‖² / ‖t‖² over all but the last dimension, where t = length · direction; `length` is (…, 1)."""
    return (state / length.clamp_min(TINY) - direction).square().sum(-1).mean()


def chosen_blocks(blocks: tuple[str, ...], choice: str | int) -> tuple[str, ...]:
    """'all' blocks, the 'last', or every k-th: of each k consecutive ones the last, counted from the end.

    >>> chosen_blocks(("0", "1", "2", "3", "4"), 2)
    ('0', '2', '4')
    """
    if choice == "all":
        return blocks
    if choice == "last":
        return blocks[-1:]
    if isinstance(choice, bool) or not isinstance(choice, int) or choice < 1:
        raise RecipeError(f"healing.options.blocks is {choice!r}: give 'all', 'last', or a whole number k of at least 1 for every k-th block.")
    return blocks[(len(blocks) - 1) % choice :: choice]


def _vectors(network: Network, tokens: str) -> Callable[[Tensor], Tensor]:
    """From a block's state to the vectors that are compared, along the last dimension."""
    checks.one_of("healing.options.tokens", tokens, ("all", "class"))
    if tokens == "class":
        if not network.has_class_token:
            raise RecipeError(f"healing.options.tokens is 'class', and {network.name} has no class token. Choose 'all'.")
        return lambda state: state[:, 0]  # (B, N, D) → (B, D)
    return (lambda state: state.flatten(1)) if network.states == "image" else (lambda state: state)

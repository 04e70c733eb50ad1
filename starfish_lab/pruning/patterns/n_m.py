"""N:M: of every group of consecutive input weights the same number stays, the ones with the largest scores.

`keep`:`group`, e.g. 2:4, along a Linear's inputs; a convolution's weight is unfolded to (C_out, C_in · kh · kw), C_in-major
(arXiv 2606.02608, Online Resource 2). It fits where the inputs are divisible by `group` and the convolution is not grouped.
"""

from __future__ import annotations

import torch
from torch import Tensor

from starfish_lab.models.network import Network
from starfish_lab.pruning import rules
from starfish_lab.pruning.patterns import MaskResult
from starfish_lab.recipe import PruningChoice


def masks(network: Network, scores: dict[str, Tensor], choice: PruningChoice, counts: dict[str, int]) -> MaskResult:
    """The pattern alone says how many go; `counts` plays no part. Raises RecipeError where the pattern does not fit."""
    found, misfits = {}, {}
    for layer, score in scores.items():
        conv_groups = getattr(network.module.get_submodule(layer), "groups", 1)
        reason = rules.n_m_misfit(score.shape[1], conv_groups, choice.group)
        if reason:
            misfits[layer] = reason
    rules.refuse_misfits(misfits, len(scores), choice)
    for layer, score in scores.items():
        found[layer] = torch.ones(score.shape, dtype=torch.bool) if layer in misfits else _largest(score, choice.keep, choice.group)
    return MaskResult(found, misfits)


def _largest(score: Tensor, keep: int, group: int) -> Tensor:
    """True at the `keep` largest of every `group` consecutive scores; the first wins a tie."""
    groups = score.reshape(-1, group)
    order = groups.argsort(dim=1, descending=True, stable=True)
    return torch.zeros(groups.shape, dtype=torch.bool).scatter_(1, order[:, :keep], True).view_as(score)

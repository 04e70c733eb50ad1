"""N:M: of every group of consecutive input weights the same number stays, the ones with the largest scores.

`keep`:`group`, e.g. 2:4, along a Linear's inputs; a convolution's weight is unfolded to (C_out, C_in · kh · kw), C_in-major
(arXiv 2606.02608, Online Resource 2). It fits where the inputs are divisible by `group` and the convolution is not grouped.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from starfish_lab.models.network import Network
from starfish_lab.pruning import rules
from starfish_lab.pruning.patterns import MaskResult
from starfish_lab.recipe import PruningChoice


def masks(
    network: Network, scores: dict[str, Tensor], choice: PruningChoice, counts: dict[str, int], units: dict[str, Tensor] | None = None
) -> MaskResult:
    """The pattern alone says how many go; `counts` and `units` play no part. Raises RecipeError where the pattern does not fit."""
    left = misfits({layer: network.module.get_submodule(layer) for layer in scores}, choice)
    found = {}
    for layer, score in scores.items():
        found[layer] = torch.ones(score.shape, dtype=torch.bool) if layer in left else largest_of_group(score, choice.keep, choice.group)
    return MaskResult(found, left)


def misfits(layers: dict[str, nn.Module], choice: PruningChoice) -> dict[str, str]:
    """The layers that stay dense, each with the reason. Raises RecipeError where they may not, or where no layer is left."""
    reasons = {}
    for layer, module in layers.items():
        outputs, inputs = module.weight.shape[:2]
        reasons[layer] = rules.n_m_misfit(inputs, getattr(module, "groups", 1), choice.group, outputs)
    found = {layer: reason for layer, reason in reasons.items() if reason}
    rules.refuse_misfits(found, len(layers), choice)
    return found


def largest_of_group(score: Tensor, keep: int, group: int) -> Tensor:
    """True at the `keep` largest of every `group` consecutive scores; the first wins a tie."""
    groups = score.reshape(-1, group)
    order = groups.argsort(dim=1, descending=True, stable=True)
    return torch.zeros_like(groups, dtype=torch.bool).scatter_(1, order[:, :keep], True).view_as(score)

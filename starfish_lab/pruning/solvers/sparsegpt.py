"""SparseGPT: weights go one input after another, and each time those not yet reached make up for the error.

Frantar and Alistarh, 'SparseGPT: Massive language models can be accurately pruned in one-shot' (arXiv 2301.00774). With the
second moments H = E[x xᵀ] of the layer's inputs, damped, and the upper Cholesky factor U of H⁻¹, weight w_j of a row costs
w_j² / U_jj² (U_jj² is entry j of the inverse for the inputs from j on). Masks are chosen for a block of columns at a time from
the values as they stand then; a removed weight's error w_j / U_jj is spread over the row's later weights along U_j.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from starfish_lab.errors import LabError, RecipeError
from starfish_lab.pruning.patterns.n_m import largest_of_group
from starfish_lab.pruning.patterns.unstructured import without_smallest
from starfish_lab.recipe import PruningChoice

MOMENTS = "full"
PATTERNS = ("unstructured", "n_m")


@torch.no_grad()
def solve(
    weight: Tensor, moments: Tensor, *, choice: PruningChoice, count: int | None, dense: Tensor, mask: Tensor,
    update: bool = True, damping: float = 0.01, block: int = 128,
) -> tuple[Tensor, Tensor, dict[str, object]]:  # fmt: skip
    """Mask and weights of one layer, unfolded: (out, cols) bool, (out, cols) float32, and facts.

    `weight` (out, cols) are the values to prune, `moments` (cols, cols); `dense` and `mask` play no part. Unstructured: `count` weights
    go in all, each block of `block` columns losing its share, from wherever in the block. n:m: of every `choice.group` columns
    `choice.keep` stay in each row. `damping` of the mean diagonal is added to H's. `update` False chooses by the same costs but
    leaves the values alone. Inputs that are always 0 carry damping alone, so their weights go first.

    Facts: cost and cost_magnitude, tr(R H Rᵀ) with the change R of the weights, here and if the largest |w| had stayed (the expected
    squared change of the outputs); saved = 1 − cost / cost_magnitude.
    """
    if not (math.isfinite(damping) and damping > 0):
        raise RecipeError(f"pruning.score_options.damping is {damping:g}: give a number above 0, such as 0.01.")
    if block < 1:
        raise RecipeError(f"pruning.score_options.block is {block}: give a number of columns of at least 1, such as 128.")
    n_m = choice.pattern == "n_m"
    columns = weight.shape[1]
    stays = torch.ones_like(mask)
    width = max(block // choice.group, 1) * choice.group if n_m else block

    def choose(here: Tensor, u: Tensor, start: int, j: int) -> None:
        if n_m and j % choice.group == 0:
            group = slice(j, j + choice.group)
            costs = (here[:, group] / u.diagonal()[group]).square()
            stays[:, start + j : start + j + choice.group] = largest_of_group(costs, choice.keep, choice.group)
        elif not n_m and j == 0:
            end = start + here.shape[1]
            share = count * end // columns - count * start // columns
            stays[:, start:end] = without_smallest((here / u.diagonal()).square().cpu(), share).to(mask.device)

    left = sweep(weight, inverse_factor(moments, damping).to(weight), stays, width=width, update=update, choose=choose)
    return stays, left, against_magnitude(weight, left, moments, choice=choice, count=count)


def against_magnitude(weight: Tensor, left: Tensor, moments: Tensor, *, choice: PruningChoice, count: int | None) -> dict[str, object]:
    """What `weight` → `left` costs, what it would cost if the largest |w| stayed, and the share of that which is saved."""
    n_m = choice.pattern == "n_m"
    magnitude = largest_of_group(weight.abs(), choice.keep, choice.group) if n_m else without_smallest(weight.abs().cpu(), count).to(weight.device)
    cost, cost_magnitude = _change(left - weight, moments), _change(weight * ~magnitude, moments)
    return {"cost": cost, "cost_magnitude": cost_magnitude, "saved": 1 - cost / cost_magnitude if cost_magnitude > 0 else 0.0}


Choose = Callable[[Tensor, Tensor, int, int], None]


def sweep(weight: Tensor, factor: Tensor, stays: Tensor, *, width: int, update: bool = True, choose: Choose | None = None) -> Tensor:
    """New values (out, cols) of the weights: zero where `stays` (out, cols) is False, the others made up for it.

    `factor` (cols, cols) is the upper Cholesky factor of the inverse moments, `width` columns make a block. `choose(here, u, start, j)`
    comes before column start + j, with the block's values as they stand and its part of the factor, and may write to `stays` from
    that column on. Without `update` nothing makes up for anything.
    """
    by_cost, columns = weight.clone(), weight.shape[1]
    for start in range(0, columns, width):
        end = min(start + width, columns)
        here, u = by_cost[:, start:end], factor[start:end, start:end]  # `here` is a view: what is spread shows in it
        errors = torch.zeros_like(here)
        for j in range(end - start):
            if choose is not None:
                choose(here, u, start, j)
            if update:
                errors[:, j] = torch.where(stays[:, start + j], 0.0, here[:, j] / u[j, j])
                here[:, j:] -= errors[:, j : j + 1] * u[j, j:]
        if update:
            by_cost[:, end:] -= errors @ factor[start:end, end:]
    return torch.where(stays, by_cost, 0.0)


def inverse_factor(moments: Tensor, damping: float) -> Tensor:
    """Upper triangular U with Uᵀ U = (H + damping · mean diagonal)⁻¹, float64 on the CPU where the device has none."""
    h = moments.to(dtype=torch.float64, device=moments.device if moments.device.type == "cuda" else "cpu")
    mean = h.diagonal().mean()
    h = h + torch.eye(len(h), dtype=h.dtype, device=h.device) * (damping * mean if mean > 0 else 1.0)
    lower, failed = torch.linalg.cholesky_ex(h)
    if not failed:
        upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
    if failed:
        raise LabError(
            "The second moments of a layer's inputs cannot be inverted, even damped. Give more calibration images, or raise the option damping."
        )
    return upper


def _change(difference: Tensor, moments: Tensor) -> float:
    """tr(R H Rᵀ): what the expected squared outputs change by."""
    return float(((difference @ moments) * difference).sum())

"""ALPS: which weights stay is found together with their values, by the alternating direction method of multipliers.

Meng, Behdin, Wang and Mazumder, 'ALPS: Improved optimization for highly sparse one-shot pruning for large language models' (arXiv
2406.07831). With the second moments H = E[x xᵀ] of a layer's inputs, damped, and both scaled so that H has ones on its diagonal,

    min over W and D of ½ tr((W − Ŵ)ᵀ H (W − Ŵ)),    W = D,    D as sparse as asked:

    W ← (H + ρI)⁻¹ (H Ŵ − V + ρD),    D ← the entries of W + V/ρ that stay,    V ← V + ρ (W − D)

ρ grows every third round, the faster the more of the support still changes, until nothing does. Least squares on that support ends
it, exactly, where the authors take a few steps of conjugate gradients. Unlike SparseGPT's sweep no column is decided before another.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from starfish_lab.calibration import supports
from starfish_lab.errors import LabError, RecipeError
from starfish_lab.pruning.patterns.n_m import largest_of_group
from starfish_lab.pruning.patterns.unstructured import without_smallest
from starfish_lab.pruning.solvers.sparsegpt import against_magnitude
from starfish_lab.recipe import PruningChoice

MOMENTS = "full"
PATTERNS = ("unstructured", "n_m")
FIRST_RHO = 0.1
GROWTH = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))  # of ρ, where more than this share of the surviving weights changed places


@torch.no_grad()
def solve(
    weight: Tensor, moments: Tensor, *, choice: PruningChoice, count: int | None, dense: Tensor, mask: Tensor,
    damping: float = 0.01, rounds: int = 300,
) -> tuple[Tensor, Tensor, dict[str, object]]:  # fmt: skip
    """Mask and weights of one layer, unfolded: (out, cols) bool, (out, cols) float32, and facts.

    `weight` (out, cols) are the values to prune, `moments` (cols, cols), `mask` (out, cols) what may stay; `dense` plays no part.
    Unstructured: `count` weights go in all, from wherever in the layer. n:m: of every `choice.group` columns `choice.keep` stay in each
    row. `damping` of the mean diagonal is added to H's; no more than `rounds` rounds.

    Facts: cost, cost_magnitude and saved, as in `sparsegpt`.
    """
    stays = choose(weight, moments, choice=choice, count=count, may=mask, damping=damping, rounds=rounds)
    h = damped(moments, damping)
    left = supports.solve(h, weight.to(h) @ h, stays.to(h.device)).to(weight)
    return stays, left, against_magnitude(weight, left, moments, choice=choice, count=count)


@torch.no_grad()
def choose(weight: Tensor, moments: Tensor, *, choice: PruningChoice, count: int | None, may: Tensor, damping: float, rounds: int = 300) -> Tensor:
    """The mask alone, (out, cols) bool on the weight's device; entries where `may` is False go first."""
    if not (math.isfinite(damping) and damping > 0):
        raise RecipeError(f"pruning.score_options.damping is {damping:g}: give a number above 0, such as 0.01.")
    if rounds < 1:
        raise RecipeError(f"pruning.score_options.rounds is {rounds}: give a whole number of at least 1, such as 300.")
    h = damped(moments, damping)
    scale = h.diagonal().sqrt()
    h = h / torch.outer(scale, scale)
    values, vectors = (found.float() for found in torch.linalg.eigh(h))
    wanted, may = (weight.to(h) * scale).float().T, may.to(h.device).T  # (cols, out)
    target = h.float() @ wanted

    def stays(entries: Tensor) -> Tensor:
        sizes = (entries * may).abs().T.contiguous()  # (out, cols)
        if choice.pattern == "n_m":
            return largest_of_group(sizes, choice.keep, choice.group).T
        return without_smallest(sizes.cpu(), count).to(sizes.device).T

    support = settled = stays(wanted)
    sparse, dual, rho = wanted * support, torch.zeros_like(wanted), FIRST_RHO
    for number in range(1, rounds + 1):
        whole = vectors @ ((vectors.T @ (target - dual + rho * sparse)) / (values + rho).unsqueeze(1))
        entries = whole + dual / rho
        support = stays(entries)
        sparse = entries * support
        dual += rho * (whole - sparse)
        if number % 3 == 0:
            moved = int((support != settled).sum()) / max(1, int(support.sum()))
            if moved == 0:
                break
            rho *= next(growth for share, growth in GROWTH if moved > share)
            settled = support
    return support.T.contiguous().to(weight.device)


def damped(moments: Tensor, damping: float) -> Tensor:
    """H with `damping` of its mean diagonal added, float64, on the CPU where the device has none. Raises LabError where H is no number."""
    h = moments.to(dtype=torch.float64, device=moments.device if moments.device.type == "cuda" else "cpu")
    mean = h.diagonal().mean()
    if not torch.isfinite(mean):
        raise LabError("The second moments of a layer's inputs are no numbers. Check the weights' file and the images.")
    return h + torch.eye(len(h)).to(h) * (damping * mean if mean > 0 else 1.0)

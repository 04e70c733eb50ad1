"""CAST: in every row, of every group of consecutive inputs, those weights stay whose choice costs the layer's output least.

Certificate-Aware Sparse-Token conversion and its k:n and convolutional forms (arXiv 2606.02608, Online Resource 2). With the
source weights u of a row in a group of n inputs h, their uncentred second moments C = E[h hᵀ] and a mask m of k ones,

    cost(m) = rᵀ C r + α · c · ‖m − M‖₁        r = (1 − m) ∘ u,    M = the source's nonzeros

is least over all C(n, k) masks, each row choosing its own; the new weights are m ∘ u. No gradients, no change of what stays.

The cost is a quadratic form in the dropped positions x = 1 − m, so all patterns of many groups are one matrix product: of a fixed
matrix (pattern × pairs of positions: 1 on the diagonal, 2 off it, 0 where not both are dropped) with u_a u_b C_ab (pairs × groups).
Beyond 8 inputs a group is cut in halves A and B: f(x) = f_A(x_A) + f_B(x_B) + 2 x_Aᵀ Q_AB x_B takes 8 products a pattern
instead of 136 at 8:16, and finds the same least cost.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from starfish_lab.errors import RecipeError
from starfish_lab.recipe import PruningChoice

MOMENTS = "group"
PATTERNS = ("n_m",)
SOURCES = ("start", "dense")
PRIORS = ("mean_cost", "mean_energy")
EXACT = 16  # up to so many inputs a group every pattern is tried
AT_ONCE, AT_ONCE_CPU = 1 << 16, 1 << 10  # groups whose patterns are tried together; few enough for a processor's cache


@torch.no_grad()
def solve(
    weight: Tensor, moments: Tensor, *, choice: PruningChoice, count: int | None, dense: Tensor, mask: Tensor,
    source: str = "start", free_restoration: bool = True, alpha: float = 0.0, prior: str = "mean_cost", candidates: int = 10_000,
) -> tuple[Tensor, Tensor, dict[str, object]]:  # fmt: skip
    """Mask and weights of one layer, unfolded: (out, cols) bool, (out, cols) float32, and facts.

    `weight` (out, cols) are the source's values, `mask` its nonzeros, `dense` the dense values, `moments` (G, n, n) those of each
    group; all on one device. `choice` says keep, group and seed; `count` plays no part. Source 'dense' takes u from the dense weights
    with M all ones. `free_restoration` gives positions where the source is zero their dense value (else 0). `alpha` weighs the distance
    to the source's mask: times the mean cost over all patterns of this row and group (prior 'mean_cost', the authors' code), or times
    the mean over rows and inputs of u² E[h²] (prior 'mean_energy', their text). Equal costs go to the pattern that keeps the earlier
    inputs. Groups of more than 16 inputs try `candidates` patterns drawn by seed, and the largest |u|.

    Facts: cost and cost_magnitude, Σ rᵀ C r over all rows and groups, here and if the largest |u| had stayed (the expected squared
    change of the outputs as far as moments within groups tell); saved = 1 − cost / cost_magnitude; patterns tried for each group.
    """
    _check(source, prior, alpha, candidates)
    if source == "dense":
        weight, mask = dense, torch.ones_like(mask)
    elif free_restoration:
        weight = torch.where(mask, weight, dense)
    out, n = len(weight), choice.group
    u = weight.reshape(out, -1, n)  # (out, G, n)
    kept = mask.reshape(out, -1, n)
    groups = u.shape[1]
    c = moments.permute(1, 2, 0).unsqueeze(2)  # (n, n, 1, G)
    energy = (u.square().mean(0) * moments.diagonal(dim1=1, dim2=2)).mean(1)  # (G,)
    patterns = _patterns(n, choice.keep, candidates, choice.seed, weight.device)
    rows = max(1, (AT_ONCE_CPU if weight.device.type == "cpu" else AT_ONCE) // groups)

    found, cost, cost_magnitude = torch.empty_like(kept), 0.0, 0.0
    for some in torch.arange(out).split(rows):
        at = slice(int(some[0]), int(some[-1]) + 1)
        x = u[at].permute(2, 0, 1)  # (n, rows, G)
        q = (x.unsqueeze(1) * x.unsqueeze(0) * c).reshape(n, n, -1)  # (n, n, g): Q_ab of every row and group
        scale = energy.expand(len(some), -1).reshape(-1) if prior == "mean_energy" else _mean_cost(q, n - choice.keep)
        # ‖m − M‖₁ = const + Σ_a x_a (2 M_a − 1): a part of the diagonal
        towards = alpha * scale * (2.0 * kept[at].permute(2, 0, 1).reshape(n, -1) - 1)
        largest = _drop_smallest(x.abs().reshape(n, -1), n - choice.keep)
        dropped = _least(_with_diagonal(q, towards), n - choice.keep, patterns, largest)  # (n, g)
        found[at] = ~dropped.view(n, len(some), -1).permute(1, 2, 0)
        cost += float(_cost(q, dropped).sum())
        cost_magnitude += float(_cost(q, largest).sum())

    stays = found.view(out, -1)
    saved = 1 - cost / cost_magnitude if cost_magnitude > 0 else 0.0
    tried = math.comb(n, choice.keep) if patterns is None else len(patterns)
    return stays, weight * stays, {"cost": cost, "cost_magnitude": cost_magnitude, "saved": saved, "patterns": tried}


def _check(source: object, prior: object, alpha: float, candidates: int) -> None:
    for name, value, allowed in (("source", source, SOURCES), ("prior", prior, PRIORS)):
        if value not in allowed:
            raise RecipeError(f"pruning.score_options.{name} is {value!r}. Choose one of: {', '.join(allowed)}.")
    if not (math.isfinite(alpha) and alpha >= 0):
        raise RecipeError(f"pruning.score_options.alpha is {alpha:g}: give a number of at least 0.")
    if candidates < 1:
        raise RecipeError(f"pruning.score_options.candidates is {candidates}: give a whole number of at least 1.")


def _patterns(n: int, keep: int, candidates: int, seed: int, device: torch.device) -> Tensor | None:
    """Dropped positions of the patterns to try (patterns, n), or None where halves try them all.

    Every pattern stands as a binary number, ascending, so that the first of equals keeps the earlier inputs.
    """
    if n <= EXACT // 2 or math.comb(n, keep) <= candidates and n > EXACT:
        dropped = sorted(itertools.combinations(range(n), n - keep), reverse=True)
        return torch.zeros(len(dropped), n).scatter_(1, torch.tensor(dropped), 1.0).to(device)
    if n <= EXACT:
        return None
    drawn = torch.rand(candidates, n, generator=torch.Generator().manual_seed(seed)).argsort(dim=1)[:, : n - keep]
    return torch.zeros(candidates, n).scatter_(1, drawn, 1.0).to(device)


def _least(q: Tensor, drop: int, patterns: Tensor | None, largest: Tensor) -> Tensor:
    """Dropped positions (n, g) bool of least f(x) = xᵀ Q x with Σ x = drop, for each of the g forms `q` (n, n, g).

    Among `patterns` and, where these are a draw, `largest` (the choice by magnitude); None means among all.
    """
    if patterns is None:
        return by_halves(q, drop)
    best = patterns.bool().T[:, (_pairs(patterns) @ _features(q)).argmin(0)]
    if len(patterns) == math.comb(len(q), drop):
        return best
    return torch.where(_cost(q, largest) < _cost(q, best), largest, best)


def by_halves(q: Tensor, drop: int) -> Tensor:
    """`_least` over all patterns: for each choice x_A in the first half the best x_B is found, then the best x_A."""
    n, _, groups = q.shape
    half = n // 2
    a, b = (torch.tensor(list(itertools.product((0.0, 1.0), repeat=size)), device=q.device) for size in (half, n - half))
    ones_a, ones_b = a.sum(1).long(), b.sum(1).long()
    inside_a, inside_b = _pairs(a) @ _features(q[:half, :half]), _pairs(b) @ _features(q[half:, half:])  # (2^half, g)
    across = (2 * a @ q[:half, half:].reshape(half, -1)).view(len(a), n - half, groups)  # 2 x_Aᵀ Q_AB

    least = torch.full_like(inside_a, torch.inf)
    for ones in range(max(0, drop - (n - half)), min(half, drop) + 1):
        fitting = (ones_b == drop - ones).nonzero().flatten()
        b_fitting, alone = b[fitting], inside_b[fitting]
        for i in (ones_a == ones).nonzero().flatten().tolist():
            least[i] = torch.addmm(alone, b_fitting, across[i]).amin(0)
    best_a = (least + inside_a).argmin(0)  # (g,)

    # the winners' second halves once more, now each group with its own number of ones
    chosen = across.gather(0, best_a.expand(1, n - half, -1))[0]  # (n - half, g)
    total = torch.addmm(inside_b, b, chosen).masked_fill(ones_b.unsqueeze(1) != drop - ones_a[best_a], torch.inf)
    return torch.cat([a[best_a].T, b[total.argmin(0)].T]).bool()


def _features(q: Tensor) -> Tensor:
    """Upper triangle with diagonal of (n, n, g), row by row: (n (n + 1) / 2, g)."""
    rows, cols = torch.triu_indices(len(q), len(q), device=q.device)
    return q[rows, cols]


def _pairs(patterns: Tensor) -> Tensor:
    """The fixed matrix (patterns, n (n + 1) / 2): 1 on the diagonal and 2 off it where both positions are dropped, else 0."""
    rows, cols = torch.triu_indices(patterns.shape[1], patterns.shape[1], device=patterns.device)
    return patterns[:, rows] * patterns[:, cols] * torch.where(rows == cols, 1.0, 2.0)


def _cost(q: Tensor, dropped: Tensor) -> Tensor:
    """xᵀ Q x (g,) of the dropped positions (n, g)."""
    x = dropped.to(q.dtype)
    return (x.unsqueeze(1) * x * q).sum((0, 1))


def _mean_cost(q: Tensor, drop: int) -> Tensor:
    """Mean (g,) of xᵀ Q x over all patterns: a position is dropped in drop/n of them, two together in drop (drop − 1) / (n (n − 1))."""
    n = len(q)
    diagonal = q.diagonal().sum(1)
    return diagonal * (drop / n) + (q.sum((0, 1)) - diagonal) * (drop * (drop - 1) / (n * (n - 1)))


def _with_diagonal(q: Tensor, more: Tensor) -> Tensor:
    """`q` (n, n, g) with `more` (n, g) added to its diagonal."""
    q = q.clone()
    q.diagonal().add_(more.T)
    return q


def _drop_smallest(values: Tensor, drop: int) -> Tensor:
    """True (n, g) at the `drop` smallest of each column; of equals the later go, as in the pattern n_m."""
    order = values.argsort(dim=0, descending=True, stable=True)
    return torch.zeros_like(values, dtype=torch.bool).scatter_(0, order[len(values) - drop :], True)

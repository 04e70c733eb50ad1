"""Along sensitivity curves: the next weight goes where it is missed least.

D_l(s) is the damage when layer l alone loses the share s of its n_l weights (see `starfish_lab.sensitivity`): 0 at 0 and never falling.
Damages of several layers are taken to add up, which they do only roughly, and

    minimise Σ_l D_l(s_l)   subject to   Σ_l n_l s_l = s Σ_l n_l,   0 ≤ s_l ≤ 1

By Lagrange the marginal damage per weight, D_l'(s_l) / n_l, is the same in every layer that loses some of its weights and keeps others.
So pieces of 1 % of each curve's greatest convex minorant go in the order of their damage per weight until enough have gone. That is
exact for convex curves; of others one layer at most is left inside a stretch where its curve lies above the minorant. Beyond the last
level nothing was measured, so what lies there goes last of all.

With costs c_l the order is that of D_l'(s_l) / c_l: of all budgets that save as much cost, the one with the least damage. With the
multiply-adds of layers as costs, layers whose weights are multiplied more often lose more.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy.interpolate import PchipInterpolator
from scipy.optimize import isotonic_regression

from starfish_lab.errors import RecipeError
from starfish_lab.pruning.rules import apportion, removed_in_all

NEEDS_EDGES = False
PIECES = 100  # of each curve
GRID = np.linspace(0, 1, PIECES + 1)


def allocate(
    scores: Mapping[str, np.ndarray], sizes: Mapping[str, int], sparsity: float, signals: pd.DataFrame | None = None, total: int | None = None, *,
    levels: list | None = None, curves: dict | None = None, costs: dict | None = None,
) -> dict[str, int]:  # fmt: skip
    """Weights each layer loses: {layer: count}, `total` in all (None: the share `sparsity`). Signals play no part.

    levels : the sparsities at which `curves` were measured, rising
    curves : {layer: its damage at every level}; without them a layer's damage is the share of its squared scores that goes
    costs : {layer: what it costs}, such as its multiply-adds; without them a weight costs the same everywhere

    Raises RecipeError where a layer has no curve or no cost, or a curve makes no sense.
    """
    total = removed_in_all(sizes.values(), sparsity) if total is None else total
    weights = np.array(list(sizes.values()), dtype=float)
    damages = np.array([_of_scores(scores[layer]) if curves is None else _curve(layer, levels, curves) for layer in sizes])
    price = weights if costs is None else np.array([_cost(layer, costs) for layer in sizes])
    shares = spend(damages, price, weights, total, most=1.0 if curves is None else levels[-1])
    return dict(zip(sizes, apportion(shares * weights, total).tolist(), strict=True))


def spend(damages: np.ndarray, prices: np.ndarray, amounts: np.ndarray, total: float, *, most: float = 1.0) -> np.ndarray:
    """The share (L,) that each layer loses: pieces in the order of their damage per price, until `total` of the amounts has gone.

    Pieces beyond the share `most` of a layer go after all others.

    damages : (L, PIECES + 1) on GRID, prices, amounts : (L,) of whole layers, above 0

    >>> convex = np.stack([GRID**2, 3 * GRID**2])  # 2 s₁ = 6 s₂
    >>> spend(convex, np.ones(2), np.ones(2), 1.0).round(2).tolist()
    [0.75, 0.25]
    """
    slopes = np.array([isotonic_regression(steps).x for steps in np.diff(damages, axis=1)])  # of the greatest convex minorant
    each = np.where(GRID[1:] > most + 1e-9, np.inf, slopes / prices[:, None])
    order = np.argsort(each.ravel(), kind="stable")  # a layer's own pieces stay in their order
    layers = order // PIECES
    taken = np.cumsum(amounts[layers] / PIECES)
    part = np.clip(1 - (taken - total) / (amounts[layers] / PIECES), 0, 1)  # of each piece: 1 but for the last one, then 0
    return np.clip(np.bincount(layers, weights=part, minlength=len(amounts)) / PIECES, 0, 1)


def on_grid(levels: list[float], damages: list[float]) -> np.ndarray:
    """A measured curve on GRID: through 0, made monotone, smooth between levels without overshoot (PCHIP), straight on beyond the last."""
    x, y = np.array([0.0, *levels]), np.maximum.accumulate([0.0, *damages])
    if x[-1] < 1:
        slope = (y[-1] - y[-2]) / (x[-1] - x[-2])
        x, y = np.append(x, 1.0), np.append(y, y[-1] + slope * (1 - x[-1]))
    return np.maximum.accumulate(PchipInterpolator(x, y)(GRID))


def _curve(layer: str, levels: object, curves: Mapping[str, object]) -> np.ndarray:
    if not isinstance(curves, Mapping) or layer not in curves:
        raise RecipeError(f"pruning.options.curves has no curve of {layer}. Measure the sensitivity of these layers, or exclude it.")
    numbers = [*(levels if isinstance(levels, list | tuple) else [None]), *(curves[layer] if isinstance(curves[layer], list | tuple) else [None])]
    sound = all(isinstance(value, int | float) and np.isfinite(value) and value >= 0 for value in numbers)
    if not sound or len(levels) != len(curves[layer]) or not levels or min(np.diff([0, *levels, 1.000001])) <= 0:
        raise RecipeError(
            f"The curve of {layer} makes no sense: pruning.options.levels lists rising sparsities above 0 and up to 1, and every curve in "
            "pruning.options.curves a damage of at least 0 for each of them."
        )
    return on_grid(levels, curves[layer])


def _cost(layer: str, costs: Mapping[str, object]) -> float:
    value = costs.get(layer) if isinstance(costs, Mapping) else None
    if not isinstance(value, int | float) or not np.isfinite(value) or value <= 0:
        raise RecipeError(f"pruning.options.costs says {value!r} of {layer}: give a number above 0, such as its multiply-adds.")
    return float(value)


def _of_scores(scores: np.ndarray) -> np.ndarray:
    """On GRID, the share of the squared scores that goes with the smallest of them."""
    gone = np.append(0.0, np.cumsum(np.sort(np.square(np.ravel(scores).astype(float)))))
    return np.interp(GRID, np.linspace(0, 1, len(gone)), gone / (gone[-1] or 1.0))

"""One threshold for all layers, scaled in each by its Marchenko–Pastur edge: a higher edge loses more.

Spectral Edge Budgeting (arXiv 2606.02608, Online Resource 2): with the z-score z_l of layer l's signal over all prunable layers,

    d(s) = max(0, 1 − s / s_d)        w_l = max(0.1, 1 + β · d(s) · z_l)

and the smallest |W| / w_l go. Signal, β and s_d depend on the sparsity s (the authors' four regimes); from s = 0.85 on
d is 0 and the budget is the global one. Layers that a recipe sets by hand keep their part in the mean and the spread of z.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from starfish_lab.checks import is_number
from starfish_lab.errors import RecipeError
from starfish_lab.pruning.rules import apportion_by_threshold, by_layer, removed_in_all

NEEDS_EDGES = True
SIGNALS = ("sigma_plus", "hill_alpha")
FLOOR = 0.1

# up to this sparsity: signal, β (one, or one a kind of layer), s_d
REGIMES = (
    (0.20, "hill_alpha", 0.50, 0.30),
    (0.40, "sigma_plus", 1.00, 0.50),
    (0.55, "sigma_plus", 1.25, 0.70),
    (1.00, "sigma_plus", {"attention": 1.00, "mlp": 2.00, "other": 1.50}, 0.85),
)


def allocate(
    scores: Mapping[str, np.ndarray], sizes: Mapping[str, int], sparsity: float, signals: pd.DataFrame | None = None, total: int | None = None, *,
    signal: str | None = None, beta: float | None = None, s_d: float | None = None, edges: Mapping[str, float] | None = None,
) -> dict[str, int]:  # fmt: skip
    """Weights each layer loses: {layer: count}, `total` in all (None: the share `sparsity`).

    `signals` has one row a prunable layer (its index) and the columns kind, sigma_plus and hill_alpha; it may know more layers than
    `sizes`. `signal`, `beta` and `s_d` replace the regime's; β = 0 is the global budget. `edges` ({layer or glob: σ₊, a singular
    value}) take the place of fitted ones; they move nothing where the signal is Hill's α.
    """
    widths = weights(signals, sparsity, signal=signal, beta=beta, s_d=s_d, edges=edges)
    return apportion_by_threshold(scores, sizes, removed_in_all(sizes.values(), sparsity) if total is None else total, widths)


def weights(
    signals: pd.DataFrame, sparsity: float, *,
    signal: str | None = None, beta: float | None = None, s_d: float | None = None, edges: Mapping[str, float] | None = None,
) -> dict[str, float]:  # fmt: skip
    """w_l of every layer in `signals`. A layer whose signal is not finite counts as the average one."""
    acting = regime(sparsity, signal=signal, beta=beta, s_d=s_d)
    values = signals[acting.signal].to_numpy(dtype=float, copy=True)
    moved = _moved(edges, signals.index)
    if acting.signal == "sigma_plus":
        values[signals.index.get_indexer(list(moved))] = list(moved.values())
    finite = np.isfinite(values)
    spread = values[finite].std() if finite.any() else 0.0  # population std, as the authors'
    z = np.where(finite, values - values[finite].mean(), 0.0) / spread if spread > 0 else np.zeros(len(values))
    betas = np.array([acting.beta[kind] if isinstance(acting.beta, dict) else acting.beta for kind in signals["kind"]])
    return dict(zip(signals.index, np.maximum(FLOOR, 1 + betas * acting.decay * z).tolist(), strict=True))


class Regime(NamedTuple):
    """What makes the weights w_l at a sparsity. `decay` is d(s): 0 where the edges no longer matter."""

    signal: str
    beta: float | dict[str, float]  # one, or one a kind of layer
    s_d: float
    decay: float


def regime(sparsity: float, *, signal: str | None = None, beta: float | None = None, s_d: float | None = None) -> Regime:
    """The authors' regime at a sparsity, with what is given in place of its own. Raises RecipeError for what makes no sense."""
    _check(signal, beta, s_d)
    _, usual_signal, usual_beta, usual_s_d = next(found for found in REGIMES if sparsity <= found[0])
    s_d = s_d or usual_s_d
    return Regime(signal or usual_signal, usual_beta if beta is None else beta, s_d, max(0.0, 1 - sparsity / s_d))


def _moved(edges: object, layers: pd.Index) -> dict[str, float]:
    """{layer: σ₊} of the edges moved by hand. Raises RecipeError for what names no layer or is no edge."""
    if edges is None:
        return {}
    if not isinstance(edges, Mapping) or not all(is_number(edge) and 0 < edge < np.inf for edge in edges.values()):
        raise RecipeError(f"pruning.options.edges is {edges!r}: give layers or globs, each with its edge σ₊, a number above 0.")
    return by_layer("pruning.options.edges", edges, layers)


def _check(signal: object, beta: object, s_d: object) -> None:
    if signal is not None and signal not in SIGNALS:
        raise RecipeError(f"pruning.options.signal is {signal!r}. Choose one of: {', '.join(SIGNALS)}.")
    for name, value in (("beta", beta), ("s_d", s_d)):
        if value is not None and not (isinstance(value, int | float) and np.isfinite(value) and value >= 0):
            raise RecipeError(f"pruning.options.{name} is {value!r}: give a number of at least 0.")
    if s_d == 0:
        raise RecipeError("pruning.options.s_d is 0: give the sparsity, above 0, from which the edges stop mattering.")

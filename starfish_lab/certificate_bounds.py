"""Bounds that follow from measured figures of a layer, after arXiv 2606.02608: elastic-net slack and Gaussian budget. NumPy only.

A layer A, whose output goes through the rest of the network ψ₂ to the logits, is replaced by S = A − R; ψ₁(s) is what the layer
gets to see of image s. If L bounds the Lipschitz constant of ψ₂ from ‖·‖_∞ to ‖·‖_∞, cross-entropy over the images T changes by
at most

    B_T(R) = (2/|T|) Σ_s L ‖R ψ₁(s)‖_∞.

For the classifier's head L = 1, and B_T is a number. Elsewhere L is not known, and everything here is per unit L.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from starfish_lab.errors import LabError

BOUND = "bound"
PER_UNIT_L = "bound per unit L"


def elastic_net_slack(budget: ArrayLike, frobenius2: ArrayLike, l1: ArrayLike, lambda1: ArrayLike, lambda2: ArrayLike) -> NDArray:
    """λ₂‖R‖_F² + λ₁‖R‖₁ − B_T(R): by how much at least the objective CE + λ₂‖·‖_F² + λ₁‖·‖₁ falls when R is removed.

    Above 0 the removal is certified not to raise the objective. It holds where R and what stays have no entry in common.
    Arrays broadcast; nan gives nan.

    >>> float(elastic_net_slack(budget=0.5, frobenius2=100, l1=400, lambda1=1e-3, lambda2=2e-3).round(3))
    0.1
    """
    budget, frobenius2, l1 = (np.asarray(values, dtype=float) for values in (budget, frobenius2, l1))
    return np.asarray(lambda2, dtype=float) * frobenius2 + np.asarray(lambda1, dtype=float) * l1 - budget


def smallest_lambda2(budget: ArrayLike, frobenius2: ArrayLike, l1: ArrayLike, lambda1: ArrayLike) -> NDArray:
    """The λ₂ at which the slack changes its sign: above it the removal is certified.

    0 where λ₁ alone covers the budget, inf where it does not and R is zero, so that no λ₂ can.
    """
    missing = -elastic_net_slack(budget, frobenius2, l1, lambda1, 0.0)
    frobenius2 = np.broadcast_to(np.asarray(frobenius2, dtype=float), missing.shape)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(missing <= 0, 0.0, missing / frobenius2)


def gaussian_budget(sigma: ArrayLike, rows: ArrayLike, images: ArrayLike, mean_norm: ArrayLike, delta: float, *, positions: ArrayLike = 1) -> NDArray:
    """What B_T(R) per unit L stays under with probability 1 − δ, if R were Gaussian noise that knows nothing of the images.

    sigma : standard deviation of R's entries; `MarchenkoPastur.sigma_` for R as noisy as the layer's bulk
    rows : n, outputs of the layer
    images, positions : |T|, and how many vectors the layer sees of each image: tokens, or places of a kernel
    mean_norm : mean over images of the largest ‖v‖₂ among an image's vectors v

    R has n rows and m columns, entries N(0, σ²). Each entry of R v is N(0, σ²‖v‖₂²), so a union bound over n · positions · |T|
    of them gives ‖R v‖_∞ ≤ σ‖v‖₂ √(2 ln(2 n · positions · |T| / δ)) for all at once. In the paper's terms σ = σ₊/(√n + √m), and
    2σ√2 is its [2σ₊/(1 + √(m/n))]·√(2/n); there positions is 1.

    >>> float(gaussian_budget(sigma=0.1, rows=50, images=20, mean_norm=3.0, delta=0.05).round(3))
    2.762
    """
    if not 0 < delta < 1:
        raise LabError(f"δ is the probability that the bound fails: it must lie between 0 and 1, got {delta:g}.")
    vectors = np.asarray(rows, dtype=float) * np.asarray(images, dtype=float) * np.asarray(positions, dtype=float)
    return 2 * np.asarray(sigma, dtype=float) * np.asarray(mean_norm, dtype=float) * np.sqrt(2 * np.log(2 * vectors / delta))

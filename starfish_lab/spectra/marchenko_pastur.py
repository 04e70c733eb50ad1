"""The Marchenko–Pastur law and the Tracy–Widom law of its largest eigenvalue. NumPy and SciPy only.

A p × n matrix W of independent entries with variance σ² has eigenvalues λ = s²/n, s its singular values.
With γ = p/n fixed and p → ∞ they follow the Marchenko–Pastur law on [σ²(1−√γ)², σ²(1+√γ)²]. A matrix taller than
wide has γ > 1: then a share 1 − 1/γ of the p eigenvalues is zero.

All functions share one substitution, x = σ²(1 + γ + 2√γ cos t) with t from 0 (upper edge) to π (lower edge), in which

    f(x) |dx| = 2 sin²t / (π x/σ²) dt

is smooth at both edges and has a closed integral.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import gamma as gamma_distribution

Array = NDArray[np.float64]
_GRID = np.linspace(np.pi, 0.0, 8193)  # t over the whole support; quantiles interpolate in it, exact to 1e-6


def edges(gamma: float, sigma2: float = 1.0) -> tuple[float, float]:
    """Lower and upper edge of the bulk, σ²(1 ∓ √γ)².

    >>> edges(0.25)
    (0.25, 2.25)
    """
    root = np.sqrt(gamma)
    return float(sigma2 * (1 - root) ** 2), float(sigma2 * (1 + root) ** 2)


def density(x: ArrayLike, gamma: float, sigma2: float = 1.0) -> Array:
    """f(x) = √((l₊ − x)(x − l₋)) / (2π γ σ² x) inside the bulk, 0 outside. The atom at 0 of γ > 1 is left out."""
    x = np.asarray(x, dtype=np.float64)
    lower, upper = edges(gamma, sigma2)
    inside = (x > lower) & (x < upper)
    safe = np.where(inside, x, upper)
    return np.where(inside, np.sqrt(np.abs((upper - safe) * (safe - lower))) / (2 * np.pi * gamma * sigma2 * safe), 0.0)


def cdf(x: ArrayLike, gamma: float, sigma2: float = 1.0) -> Array:
    """P(λ ≤ x), the atom at 0 of γ > 1 included."""
    x = np.asarray(x, dtype=np.float64)
    cosine = (x / sigma2 - 1 - gamma) / (2 * np.sqrt(gamma))
    return np.where(x < 0, 0.0, 1 - _mass_above(np.arccos(np.clip(cosine, -1, 1)), gamma))


def quantile(probability: ArrayLike, gamma: float, sigma2: float = 1.0) -> Array:
    """The inverse of `cdf`. Probabilities inside the atom of γ > 1 give 0.

    >>> round(float(quantile(0.5, 1.0)), 4)  # the median of a square matrix
    0.6528
    """
    probability = np.asarray(probability, dtype=np.float64)
    bulk = 1 + gamma + 2 * np.sqrt(gamma) * np.cos(_GRID)
    inside = np.interp(probability, 1 - _mass_above(_GRID, gamma), bulk)
    return sigma2 * np.where(probability < 1 - 1 / gamma, 0.0, inside)


def tracy_widom_quantile(probability: ArrayLike) -> Array:
    """Quantile of the Tracy–Widom law for real matrices (β = 1), within 0.02 between 0.05 and 0.99.

    A gamma law with the first three moments of Tracy–Widom (Chiani, arXiv 1209.3394).
    """
    return gamma_distribution.ppf(np.asarray(probability, dtype=np.float64), 46.446, scale=0.186054) - 9.84801


def largest_quantile(probability: float, p: int, n: int, sigma2: float = 1.0, *, authors_tw_bug: bool = False) -> float:
    """Quantile of the largest eigenvalue λ = s²/n of p × n noise, p ≤ n (arXiv 2606.02608, Online Resource 2).

        T = σ² [(1+√γ)² + t · n^(−2/3) γ^(−1/6) (1+√γ)^(4/3)],  t the Tracy–Widom quantile.

    `authors_tw_bug` is for comparing with the authors' figures only: their code writes the last power
    (1+√γ)**4/3, which Python reads as ((1+√γ)⁴)/3, 2.1 times too large for a square matrix.
    """
    root = np.sqrt(p / n)
    power = (1 + root) ** 4 / 3 if authors_tw_bug else (1 + root) ** (4 / 3)
    correction = tracy_widom_quantile(probability) * n ** (-2 / 3) * root ** (-1 / 3) * power
    return float(sigma2 * ((1 + root) ** 2 + correction))


def _mass_above(t: Array, gamma: float) -> Array:
    """∫₀ᵗ 2 sin²u / (π(1 + γ + 2√γ cos u)) du: the mass between x(t) and the upper edge; min(1, 1/γ) at t = π."""
    root = np.sqrt(gamma)
    angle = np.arctan(abs(1 - root) / (1 + root) * np.tan(t / 2))
    return (2 / np.pi) * ((1 + gamma) * t / (4 * gamma) - np.sin(t) / (2 * root) - abs(1 - gamma) / (2 * gamma) * angle)

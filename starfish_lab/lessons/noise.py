"""A matrix of pure noise and its eigenvalues, to hold against the Marchenko–Pastur law."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from starfish_lab.checks import one_of
from starfish_lab.spectra import marchenko_pastur as mp

Array = NDArray[np.float64]

# How one entry is drawn, with mean 0 and variance 1: the law sees nothing else of it.
ENTRIES = {
    "gaussian": lambda rng, shape: rng.standard_normal(shape),
    "signs": lambda rng, shape: rng.choice((-1.0, 1.0), size=shape),
    "uniform": lambda rng, shape: rng.uniform(-np.sqrt(3), np.sqrt(3), size=shape),
}


def eigenvalues(p: int, n: int, *, sigma: float = 1.0, entries: str = "gaussian", seed: int = 0) -> Array:
    """The p eigenvalues λ = s²/n, ascending, of a p × n matrix of independent entries with variance σ², p ≤ n; s are its singular values.

    >>> values = eigenvalues(100, 400, seed=1)
    >>> len(values), bool(abs(values.mean() - 1) < 0.02)  # the mean is the variance of the entries
    (100, True)
    """
    one_of("entries", entries, tuple(ENTRIES))
    matrix = ENTRIES[entries](np.random.default_rng(seed), (p, n))  # (p, n)
    return sigma**2 * np.maximum(np.linalg.eigvalsh(matrix @ matrix.T / n), 0)


def distance(values: Array, gamma: float, sigma: float = 1.0) -> float:
    """Kolmogorov's distance max |F_measured − F_MP| of ascending eigenvalues from the law of aspect ratio γ = p/n and variance σ²."""
    law, p = mp.cdf(values, gamma, sigma**2), len(values)
    return float(max(np.max(np.arange(1, p + 1) / p - law), np.max(law - np.arange(p) / p)))

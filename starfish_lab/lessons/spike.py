"""One planted signal in noise, and when its eigenvalue leaves the bulk: the transition of Baik, Ben Arous and Péché (2005).

Normalisation: X = W + θ√n u vᵀ with W p × n of independent entries of variance 1, u and v of length 1, γ = p/n ≤ 1, and eigenvalues
λ = s²/n of X's singular values s. As p → ∞ (Benaych-Georges & Nadakuditi, arXiv 1103.2221) the largest goes to

    (1 + θ²)(γ + θ²) / θ²    where θ > γ^(1/4),    else to the bulk's own edge (1 + √γ)²,

and the squared cosine between u and the matching singular vector to 1 − γ(1 + θ²) / (θ²(θ² + γ)), else to 0.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

from starfish_lab.spectra import marchenko_pastur as mp

Array = NDArray[np.float64]
LEVEL = 0.001  # the share of noise matrices whose largest eigenvalue would be taken for a spike


class Largest(NamedTuple):
    """The largest eigenvalue and how much its vector knows of the planted one: the squared cosine, 0 to 1."""

    value: float
    overlap: float


def threshold(gamma: float) -> float:
    """The strength θ = γ^(1/4) that a signal must exceed to be seen at all.

    >>> threshold(0.0625)
    0.5
    """
    return float(gamma**0.25)


def expected(theta: float, gamma: float) -> Largest:
    """Where theory puts the largest eigenvalue, and its overlap.

    >>> expected(2.0, 0.5), expected(0.5, 0.25).overlap
    (Largest(value=5.625, overlap=0.8611111111111112), 0.0)
    """
    if theta <= threshold(gamma):
        return Largest(mp.edges(gamma)[1], 0.0)
    t = theta**2
    return Largest((1 + t) * (gamma + t) / t, 1 - gamma * (1 + t) / (t * (t + gamma)))


def clear_of_noise(p: int, n: int) -> float:
    """The λ that the largest eigenvalue of pure p × n noise exceeds once in a thousand matrices (Tracy–Widom)."""
    return mp.largest_quantile(1 - LEVEL, p, n)


class Planted:
    """One draw of noise and directions, the same for every strength θ, so that moving θ moves nothing else."""

    def __init__(self, p: int, n: int, *, seed: int = 0):
        rng = np.random.default_rng(seed)
        noise = rng.standard_normal((p, n)) / np.sqrt(n)  # (p, n)
        u, v = (vector / np.linalg.norm(vector) for vector in (rng.standard_normal(p), rng.standard_normal(n)))
        across = np.outer(noise @ v, u)
        self._gram, self._across, self._own, self._u = noise @ noise.T, across + across.T, np.outer(u, u), u

    def eigenvalues(self, theta: float) -> Array:
        """All p eigenvalues, ascending."""
        return np.maximum(np.linalg.eigvalsh(self._at(theta)), 0)

    def largest(self, theta: float) -> Largest:
        """The largest alone, with its overlap."""
        p = len(self._u)
        values, vectors = eigh(self._at(theta), subset_by_index=[p - 1, p - 1])
        return Largest(float(values[0]), float((vectors[:, 0] @ self._u) ** 2))

    def _at(self, theta: float) -> Array:
        """X Xᵀ / n, (p, p)."""
        return self._gram + theta * self._across + theta**2 * self._own

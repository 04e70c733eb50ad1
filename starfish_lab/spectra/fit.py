"""Fit the Marchenko–Pastur bulk to a spectrum and say whether it describes it. NumPy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from starfish_lab.errors import LabError
from starfish_lab.spectra import marchenko_pastur as mp

SMALLEST = 8  # with fewer eigenvalues the middle half holds three or less: any law would fit
CLOSE = 0.03  # a fit error that practice forgives a bulk which is not noise to the last digit, as no trained one is …
FEW_SPIKES = 0.05  # … where at most this share are spikes: Student t with 2 degrees, 768 × 768, is off by 0.01 only, but has 9 %
MOST_ZEROS = 0.05  # noise has no singular value of zero
MOST_SPIKES = 1 / 3  # more spikes than this share are no exceptions to a bulk any more
ZERO = 1e-12  # of the largest eigenvalue: below this a Gram matrix in float64 holds rounding errors only


def chance(p: int) -> float:
    """The fit error that p eigenvalues of pure noise stay under, but for about one matrix in a thousand.

    Measured, not derived: eigenvalues repel each other, so Kolmogorov's tables (∝ 1/√p) do not hold. Over Gaussian
    matrices with n/p = 1, 2, 4, 9, 50 the error times p hardly depends on n/p and grows with ln p: its 99 % quantile
    was 1.4, 1.9, 2.7, 2.9 at p = 8, 32, 128, 768. 1 + ½ ln p stays above. Of 25,000 further matrices
    with p = 8 … 768, fitted as below, none came past 0.96 of it; of 1,000 layers of untrained DeiT-S networks one did.

    >>> float(round(chance(64), 3))
    0.048
    """
    return (1 + 0.5 * np.log(p)) / p


class MarchenkoPastur:
    """The bulk of a weight matrix: BEMA fit, edge with Tracy–Widom term, spikes beyond it, and a verdict.

    Parameters
    ----------
    alpha : share of the eigenvalues left out at each end of the fit, in [0, 0.5).
    beta : the edge σ₊ is the value that the largest of pure noise exceeds with this probability.
    spike_level : a spike exceeds what the largest of pure noise exceeds with this probability. It is stricter than
        beta on purpose: at beta = 0.8 four of five noise matrices would show a spike.
    authors_tw_bug : the exponent of the authors' code, for comparing with their figures only;
        see `marchenko_pastur.largest_quantile`.

    Attributes
    ----------
    sigma_ : standard deviation of the noise entries.
    edge_, lower_edge_ : upper edge σ₊ and lower edge σ(√n − √p) of the bulk, as singular values.
    fit_error_ : max |F_empirical − F_MP| over the middle of the bulk; nan where there is nothing to fit.
    chance_ : the error that pure noise of this size stays under; see `chance`.
    spikes_ : singular values beyond the bulk, largest first.
    bulk_fraction_ : share of the singular values that are no spikes.
    spike_energy_ : share of Σs² that the spikes hold.
    applies_ : whether noise with spikes describes the matrix: its bulk differs from the law no more than chance lets noise of
        this size differ (then up to a third may be spikes), or by at most 0.03 with at most 5 % of spikes.
    verdict_ : the same in words.

    Notes
    -----
    BEMA (Ke, Ma & Lin, arXiv 2006.00436) as in arXiv 2606.02608: with λ ascending and q_k the quantile of the law at
    σ = 1, σ̂² = Σ q_k λ_k / Σ q_k² over the middle of the spectrum. Two points differ. Quantiles stand at (k + ½)/p, not
    k/p: over 470 Gaussian matrices of 64 × 576 the mean error of σ̂ was 0.00 % instead of +0.43 % (one such matrix
    scatters by 0.41 %; the best possible estimate by 0.37 %). And spikes shift the ranks of the bulk, so the k found are
    taken out and the other p − k fitted as (p − k) × (n − k) noise, until no further one is found. That holds with 20
    spikes in 64 × 576, where the plain fit is a third too large. If noise with spikes turns out not to describe the
    matrix, σ_, edge_ and spikes_ are those of the plain fit: an edge for budgets, not a description.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> noise = 0.02 * rng.standard_normal((256, 512))
    >>> signal = 2.0 * np.outer(rng.standard_normal(256) / 16, rng.standard_normal(512) / 22.6)
    >>> singular = np.linalg.svd(noise + signal, compute_uv=False)
    >>> bulk = MarchenkoPastur().fit(singular**2 / 512, shape=(256, 512))
    >>> round(bulk.sigma_, 3), len(bulk.spikes_), bulk.verdict_
    (0.02, 1, 'noise with 1 spike')
    """

    def __init__(self, *, alpha: float = 0.25, beta: float = 0.8, spike_level: float = 0.001, authors_tw_bug: bool = False):
        if not 0 <= alpha < 0.5 or not 0 < beta < 1 or not 0 < spike_level < 1:
            raise LabError(f"alpha must lie in [0, 0.5), beta and spike_level in (0, 1); got {alpha}, {beta}, {spike_level}.")
        self.alpha = alpha
        self.beta = beta
        self.spike_level = spike_level
        self.authors_tw_bug = authors_tw_bug

    def fit(self, eigenvalues: ArrayLike, shape: tuple[int, int]) -> MarchenkoPastur:
        """Fit to the p = min(shape) eigenvalues λ = s²/n, n = max(shape), in any order. Never raises for odd values."""
        p, n = min(shape), max(shape)
        values = np.sort(np.asarray(eigenvalues, dtype=np.float64))
        if values.shape != (p,):
            raise LabError(f"A {shape[0]} × {shape[1]} matrix has {p} eigenvalues λ = s²/n; got an array of shape {values.shape}.")
        self.chance_ = float(chance(p))
        if not np.isfinite(values).all():
            return self._set(np.zeros(0), n, np.nan, np.nan, 0, "its weights hold NaN or infinity")
        values = np.maximum(values, 0)
        top = values[-1]
        if top == 0:
            return self._set(values, n, 0.0, np.nan, 0, "all its weights are zero")

        sigma2, error = self._bema(values, n, 0)
        if sigma2 <= ZERO * top:
            rank = int((values > ZERO * top).sum())
            return self._set(values, n, 0.0, np.nan, rank, f"its rank is only {rank} of {p}")
        spikes = self._beyond(values, n, sigma2)
        if p < SMALLEST:
            return self._set(values, n, sigma2, error, spikes, f"too few singular values to judge, {p} where {SMALLEST} are needed")

        bulk_sigma2, bulk_error, bulk_spikes = self._without_spikes(values, n, sigma2, error, spikes)
        reason = self._reason(values, bulk_error, bulk_spikes)
        if reason:
            return self._set(values, n, sigma2, error, spikes, reason)
        # Spikes do not move the edge: it stays that of p × n noise, which the bulk of p − k values cannot exceed.
        self.chance_ = float(chance(p - bulk_spikes))
        return self._set(values, n, bulk_sigma2, bulk_error, bulk_spikes, "")

    def _bema(self, values: NDArray, n: int, spikes: int) -> tuple[float, float]:
        """σ̂² of all but the largest `spikes` of the ascending eigenvalues, and its fit error."""
        p = len(values) - spikes
        columns = n - spikes
        bulk = values[:p] * n / columns
        ranks = (np.arange(p) + 0.5) / p
        middle = (ranks >= self.alpha) & (ranks <= 1 - self.alpha)
        quantiles = mp.quantile(ranks[middle], p / columns)
        sigma2 = float(quantiles @ bulk[middle] / (quantiles @ quantiles))
        if sigma2 <= ZERO * values[-1]:
            return 0.0, np.nan
        return sigma2, float(np.abs(ranks[middle] - mp.cdf(bulk[middle], p / columns, sigma2)).max())

    def _without_spikes(self, values: NDArray, n: int, sigma2: float, error: float, spikes: int) -> tuple[float, float, int]:
        """Take spikes out and fit the rest, until no further one is found or they are too many."""
        removed = 0
        while removed < spikes <= MOST_SPIKES * len(values):
            removed = spikes
            sigma2, error = self._bema(values, n, removed)
            if sigma2 == 0:
                break
            spikes = max(removed, self._beyond(values, n, sigma2))
        return sigma2, error, spikes

    def _beyond(self, values: NDArray, n: int, sigma2: float) -> int:
        return int((values > mp.largest_quantile(1 - self.spike_level, len(values), n, sigma2)).sum())

    def _reason(self, values: NDArray, error: float, spikes: int) -> str:
        """Why the law does not describe the matrix; '' where it does."""
        p = len(values)
        zeros = int((values <= ZERO * values[-1]).sum())
        if zeros > MOST_ZEROS * p:
            return f"its rank is only {p - zeros} of {p}"
        if spikes > MOST_SPIKES * p:
            return "its tail is heavy: taking spikes out uncovers ever more of them"
        allowed = chance(p - spikes)
        if error <= allowed or (error <= CLOSE and spikes <= FEW_SPIKES * p):
            return ""
        tail = ", and its tail is heavy" if spikes > FEW_SPIKES * p else ""
        return f"its bulk is off by {error:.3f} where chance allows {allowed:.3f}{tail}"

    def _set(self, values: NDArray, n: int, sigma2: float, error: float, spikes: int, reason: str) -> MarchenkoPastur:
        p = len(values)
        energy = values.sum()
        self.sigma_ = float(np.sqrt(sigma2))
        self.fit_error_ = float(error)
        top = mp.largest_quantile(1 - self.beta, p, n, sigma2, authors_tw_bug=self.authors_tw_bug) if p else np.nan
        self.edge_ = float(np.sqrt(n * np.maximum(top, 0)))  # below 0 for the tiniest matrices
        self.lower_edge_ = float(self.sigma_ * (np.sqrt(n) - np.sqrt(p)))
        self.spikes_ = np.sqrt(n * values[p - spikes :][::-1])
        self.bulk_fraction_ = 1 - spikes / p if p else np.nan
        self.spike_energy_ = float(values[p - spikes :].sum() / energy) if energy > 0 else (0.0 if p else np.nan)
        self.applies_ = not reason
        self.verdict_ = f"MP does not describe this layer: {reason}" if reason else self._description()
        return self

    def _description(self) -> str:
        """Noise of some kind, in words."""
        spikes = len(self.spikes_)
        noise = "noise" + (f" with {spikes} spike{'s' * (spikes > 1)}" if spikes else "")
        if self.fit_error_ <= self.chance_:
            return noise
        return f"close to {noise}: the bulk is off by {self.fit_error_:.3f} where chance allows {self.chance_:.3f}"

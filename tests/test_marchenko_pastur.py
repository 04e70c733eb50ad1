"""The Marchenko–Pastur law against integrals and published values, the fit against matrices whose noise is known."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from scipy.integrate import quad

from starfish_lab.errors import LabError
from starfish_lab.spectra import fit as fit_module
from starfish_lab.spectra import marchenko_pastur as mp
from starfish_lab.spectra.fit import MarchenkoPastur, chance


def eigenvalues(matrix: np.ndarray) -> np.ndarray:
    """λ = s²/n by a route of its own."""
    return np.linalg.svd(matrix, compute_uv=False) ** 2 / max(matrix.shape)


def fitted(matrix: np.ndarray, **options) -> MarchenkoPastur:
    return MarchenkoPastur(**options).fit(eigenvalues(matrix), matrix.shape)


def planted(rng: np.random.Generator, p: int, n: int, *, sigma: float, spikes: int) -> np.ndarray:
    """Noise plus orthogonal directions of 1.5 to 4 times the bulk edge."""
    left = np.linalg.qr(rng.standard_normal((p, spikes)))[0]
    right = np.linalg.qr(rng.standard_normal((n, spikes)))[0]
    strengths = np.linspace(1.5, 4, spikes) * (np.sqrt(n) + np.sqrt(p))
    return sigma * (rng.standard_normal((p, n)) + left * strengths @ right.T)


@pytest.mark.parametrize("module", [mp, fit_module])
def test_examples(module):
    assert doctest.testmod(module).failed == 0
    assert doctest.testmod(module).attempted > 0


@pytest.mark.parametrize("sigma2", [1.0, 0.3])
@pytest.mark.parametrize("gamma", [0.02, 0.25, 0.9, 1.0, 4.0])
def test_density_holds_all_mass_but_the_atom(gamma, sigma2):
    lower, upper = mp.edges(gamma, sigma2)
    mass = quad(lambda s: 2 * s * mp.density(s * s, gamma, sigma2), np.sqrt(lower), np.sqrt(upper), limit=200)[0]
    assert mass == pytest.approx(min(1, 1 / gamma), abs=1e-7)
    assert mp.density([lower / 2, upper * 1.01], gamma, sigma2).tolist() == [0, 0]


@pytest.mark.parametrize("gamma", [0.02, 0.25, 0.9, 1.0, 4.0])
def test_cdf_is_the_integral_of_the_density(gamma):
    lower, upper = mp.edges(gamma, 0.7)
    for x in np.linspace(lower, upper, 7)[1:]:
        integral = quad(lambda s: 2 * s * mp.density(s * s, gamma, 0.7), np.sqrt(lower), np.sqrt(x), limit=200)[0]
        assert mp.cdf(x, gamma, 0.7) == pytest.approx(max(0, 1 - 1 / gamma) + integral, abs=1e-7)
    assert mp.cdf([-1.0, upper, 2 * upper], gamma, 0.7) == pytest.approx([0, 1, 1], abs=1e-12)


@pytest.mark.parametrize("gamma", [0.02, 0.25, 0.9, 1.0, 4.0])
def test_quantile_inverts_the_cdf(gamma):
    atom = max(0, 1 - 1 / gamma)
    probability = atom + (1 - atom) * np.linspace(0.001, 0.999, 101)
    assert mp.cdf(mp.quantile(probability, gamma, 2.0), gamma, 2.0) == pytest.approx(probability, abs=5e-6)
    assert mp.quantile(atom / 2, gamma) == pytest.approx(mp.edges(gamma)[0] if atom == 0 else 0, abs=1e-9)


def test_a_tall_matrix_has_the_law_of_the_wide_one_and_zeros():
    # XᵀX and XXᵀ share their non-zero eigenvalues: normalising by n or by p only rescales them
    probability = np.linspace(0.01, 0.99, 9)
    assert mp.quantile(0.75 + 0.25 * probability, 4.0) == pytest.approx(4 * mp.quantile(probability, 0.25), rel=1e-5)


@pytest.mark.parametrize(("gamma", "median"), [(1.0, 0.6528), (0.5, 0.8305), (1 / 3, 0.8877), (0.25, 0.9160)])
def test_medians(gamma, median):
    assert mp.quantile(0.5, gamma) == pytest.approx(median, abs=5e-5)


def test_tracy_widom_quantiles():
    quantiles = mp.tracy_widom_quantile([0.05, 0.1, 0.2, 0.5, 0.8, 0.9, 0.95, 0.99])
    assert quantiles == pytest.approx([-3.181, -2.787, -2.288, -1.268, -0.161, 0.453, 0.979, 2.01], abs=0.015)


@pytest.mark.parametrize(("bug", "pulled_in"), [(False, -0.0087), (True, -0.0184)])
def test_the_authors_exponent_pulls_the_edge_too_far_in(bug, pulled_in):
    edge = np.sqrt(768 * mp.largest_quantile(0.2, 768, 768, authors_tw_bug=bug))
    assert edge / (2 * np.sqrt(768)) - 1 == pytest.approx(pulled_in, abs=1e-4)


def test_the_bug_reaches_the_edge_and_nothing_else():
    values = eigenvalues(np.random.default_rng(3).standard_normal((100, 100)))
    right, wrong = MarchenkoPastur().fit(values, (100, 100)), MarchenkoPastur(authors_tw_bug=True).fit(values, (100, 100))
    assert wrong.edge_ < right.edge_
    assert (wrong.sigma_, wrong.fit_error_, len(wrong.spikes_)) == (right.sigma_, right.fit_error_, len(right.spikes_))


def test_sigma_of_a_large_gaussian_matrix():
    for seed in range(3):
        matrix = 0.02 * np.random.default_rng(seed).standard_normal((768, 768))
        bulk = fitted(matrix)
        assert bulk.sigma_ == pytest.approx(0.02, rel=0.003)
        assert bulk.edge_ == pytest.approx(np.linalg.norm(matrix, 2), rel=0.015)
        assert np.linalg.norm(matrix, 2) == pytest.approx(0.02 * 2 * np.sqrt(768), rel=0.01)
        assert bulk.applies_ and bulk.fit_error_ < 0.0056


def test_sigma_of_small_gaussian_matrices_is_unbiased():
    # one 64 × 576 matrix knows its own σ to 0.37 % only (1/√(2·36864)), so the bar of 0.3 % is for the mean
    sigmas = [fitted(0.02 * np.random.default_rng(seed).standard_normal((64, 576))).sigma_ for seed in range(60)]
    assert np.mean(sigmas) == pytest.approx(0.02, rel=0.0015)
    assert sigmas == pytest.approx([0.02] * 60, rel=0.015)


@pytest.mark.parametrize(("p", "n"), [(768, 768), (64, 576), (576, 64)])
def test_planted_spikes_are_all_found(p, n):
    matrix = planted(np.random.default_rng(4), p, n, sigma=0.02, spikes=20)
    bulk = fitted(matrix)
    assert bulk.sigma_ == pytest.approx(0.02, rel=0.015)
    singular = np.linalg.svd(matrix, compute_uv=False)
    assert bulk.spikes_ == pytest.approx(singular[:20], rel=1e-9)
    assert bulk.spike_energy_ == pytest.approx((singular[:20] ** 2).sum() / (matrix**2).sum(), rel=1e-9)
    assert bulk.bulk_fraction_ == pytest.approx(1 - 20 / min(p, n))
    assert bulk.applies_ and bulk.verdict_ == "noise with 20 spikes"


@pytest.mark.parametrize(("p", "n"), [(8, 8), (16, 144), (32, 64), (64, 64), (128, 256)])
def test_noise_passes_as_noise(p, n):
    rng = np.random.default_rng(5)
    bulks = [fitted(rng.standard_normal((p, n))) for _ in range(150)]
    assert all(bulk.applies_ for bulk in bulks)
    assert sum(len(bulk.spikes_) > 0 for bulk in bulks) <= 5  # 0.1 % asymptotically, up to 1 % at 8 × 8


def bad_matrices() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(6)
    noise = rng.standard_normal((192, 384))
    return {
        "Cauchy": rng.standard_t(1, (192, 384)),
        "Student t, 2 degrees": rng.standard_t(2, (384, 768)),
        "correlated": np.arange(1, 193)[:, None] ** -0.5 * noise,
        "rows of uneven scale": np.exp(0.5 * rng.standard_normal((192, 1))) * noise,
        "orthogonal": np.linalg.qr(noise.T)[0],
        "half the rank": noise[:, :96] @ noise[:96, :],
        "a fifth of the rows zero": noise * (np.arange(192) % 5 > 0)[:, None],
        "constant": np.ones((192, 384)),
    }


@pytest.mark.parametrize("name", bad_matrices())
def test_mp_does_not_describe(name):
    bulk = fitted(bad_matrices()[name])
    assert not bulk.applies_
    assert bulk.verdict_.startswith("MP does not describe this layer: its ")
    assert ("rank" in bulk.verdict_) == (name in ("half the rank", "a fifth of the rows zero", "constant"))
    assert np.isfinite(bulk.edge_)  # budgets get an edge all the same


def test_a_slightly_uneven_bulk_is_close_to_noise():
    rng = np.random.default_rng(7)
    bulk = fitted(np.exp(0.1 * rng.standard_normal((384, 1))) * rng.standard_normal((384, 1536)))
    assert bulk.applies_ and chance(384) < bulk.fit_error_ < 0.03
    assert bulk.verdict_.startswith("close to noise")


def test_no_fit_where_there_is_nothing_to_fit():
    zero = MarchenkoPastur().fit(np.zeros(16), (16, 32))
    assert (zero.sigma_, zero.edge_, len(zero.spikes_), zero.spike_energy_, zero.applies_) == (0, 0, 0, 0, False)
    assert "all its weights are zero" in zero.verdict_
    for value in (np.nan, np.inf):
        odd = MarchenkoPastur().fit(np.r_[np.ones(15), value], (16, 32))
        assert np.isnan([odd.sigma_, odd.edge_, odd.lower_edge_, odd.fit_error_, odd.bulk_fraction_, odd.spike_energy_]).all()
        assert len(odd.spikes_) == 0 and not odd.applies_ and "NaN or infinity" in odd.verdict_
    small = fitted(np.random.default_rng(8).standard_normal((7, 50)))
    assert not small.applies_ and "too few singular values" in small.verdict_
    assert MarchenkoPastur().fit([2.0], (1, 1)).edge_ >= 0


def test_transposing_changes_nothing_and_scaling_scales():
    matrix = planted(np.random.default_rng(9), 48, 96, sigma=1.0, spikes=3)
    bulk, turned, scaled = fitted(matrix), fitted(matrix.T), fitted(1000 * matrix)
    for one in (turned, scaled):
        factor = 1000 if one is scaled else 1
        measures = [one.sigma_ / factor, one.edge_ / factor, one.lower_edge_ / factor, one.fit_error_, one.spike_energy_]
        assert measures == pytest.approx([bulk.sigma_, bulk.edge_, bulk.lower_edge_, bulk.fit_error_, bulk.spike_energy_], rel=1e-6)
        assert (len(one.spikes_), one.verdict_) == (3, bulk.verdict_)


def test_wrong_arguments_are_named():
    with pytest.raises(LabError, match="has 16 eigenvalues"):
        MarchenkoPastur().fit(np.ones(15), (16, 32))
    with pytest.raises(LabError, match="alpha"):
        MarchenkoPastur(alpha=0.5)

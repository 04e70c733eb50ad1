"""What the lessons compute: noise against its law, the transition of a spike, and texts that are whole."""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT
from scipy.stats import kstest

from starfish_lab.errors import LabError
from starfish_lab.lessons import noise, spike
from starfish_lab.spectra import marchenko_pastur as mp


def test_the_arithmetic_of_lessons_needs_no_torch():
    code = "import sys, starfish_lab.lessons.noise, starfish_lab.lessons.spike, app.lessons\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize("gamma, sigma", [(0.1, 1.0), (0.5, 2.0), (0.9, 0.5)])
def test_the_law_integrates_to_one(gamma, sigma):
    low, high = mp.edges(gamma, sigma**2)
    x = np.linspace(low, high, 400_001)
    y = mp.density(x, gamma, sigma**2)
    assert np.sum((y[1:] + y[:-1]) / 2 * np.diff(x)) == pytest.approx(1, abs=2e-4)


@pytest.mark.parametrize("entries", noise.ENTRIES)
@pytest.mark.parametrize("p, n, sigma", [(200, 400, 1.0), (200, 1600, 2.0), (400, 400, 0.5)])
def test_noise_of_any_entries_follows_the_law(p, n, sigma, entries):
    values = noise.eigenvalues(p, n, sigma=sigma, entries=entries, seed=3)
    assert len(values) == p and (np.diff(values) >= 0).all()
    theirs = kstest(values, lambda x: mp.cdf(x, p / n, sigma**2)).statistic
    assert noise.distance(values, p / n, sigma) == pytest.approx(theirs), "Kolmogorov's distance as SciPy computes it"
    assert theirs < 0.03, "eigenvalues repel each other: 200 are closer to their law than 200 independent numbers, which lie 0.06 off"
    assert values.mean() == pytest.approx(sigma**2, rel=0.02), "the mean eigenvalue is the variance of an entry"


def test_the_wrong_law_is_told_from_the_right_one():
    values = noise.eigenvalues(200, 400, seed=3)
    assert noise.distance(values, 0.5) < 0.02 < 0.1 < noise.distance(values, 0.25)


def test_eigenvalues_are_those_of_the_matrix():
    matrix = noise.ENTRIES["gaussian"](np.random.default_rng(5), (20, 50))
    singular = np.linalg.svd(2 * matrix, compute_uv=False)
    assert noise.eigenvalues(20, 50, sigma=2.0, seed=5) == pytest.approx(np.sort(singular**2 / 50))
    with pytest.raises(LabError, match="entries"):
        noise.eigenvalues(2, 4, entries="dice")


@pytest.mark.parametrize("gamma", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("theta", [1.3, 2.0, 3.0])
def test_a_strong_spike_stands_where_theory_says(theta, gamma):
    """λ = (1 + θ²)(γ + θ²)/θ² for X = W + θ√n u vᵀ, λ = s²/n; mean over eight draws."""
    found = [spike.Planted(200, round(200 / gamma), seed=seed).largest(theta) for seed in range(8)]
    place = (1 + theta**2) * (gamma + theta**2) / theta**2
    assert spike.expected(theta, gamma).value == pytest.approx(place)
    assert np.mean([one.value for one in found]) == pytest.approx(place, rel=0.04)
    assert np.mean([one.overlap for one in found]) == pytest.approx(spike.expected(theta, gamma).overlap, abs=0.06)


@pytest.mark.parametrize("gamma", [0.2, 0.5, 1.0])
def test_a_weak_spike_is_absorbed(gamma):
    """Below θ = γ^¼ the largest eigenvalue is noise's own, and its vector knows nothing of the signal."""
    theta, n = 0.6 * gamma**0.25, round(200 / gamma)
    for seed in range(8):
        largest = spike.Planted(200, n, seed=seed).largest(theta)
        assert largest.value < spike.clear_of_noise(200, n) and largest.overlap < 0.25
    assert spike.expected(theta, gamma) == (mp.edges(gamma)[1], 0.0)
    above, below = (spike.expected(gamma**0.25 + by, gamma) for by in (1e-4, -1e-4))
    assert above.value == pytest.approx(below.value, abs=1e-4) and above.overlap < 1e-3, "the transition is continuous"


def test_planting_is_what_it_says():
    """Against the plain construction, written out."""
    rng = np.random.default_rng(7)
    matrix, u, v = rng.standard_normal((30, 60)), rng.standard_normal(30), rng.standard_normal(60)
    u, v = u / np.linalg.norm(u), v / np.linalg.norm(v)
    left, singular, _ = np.linalg.svd(matrix + 1.5 * np.sqrt(60) * np.outer(u, v))
    planted = spike.Planted(30, 60, seed=7)
    assert planted.eigenvalues(1.5) == pytest.approx(np.sort(singular**2 / 60))
    assert planted.largest(1.5) == pytest.approx((singular[0] ** 2 / 60, (left[:, 0] @ u) ** 2))


def test_the_live_lessons_cost_milliseconds():
    """What the web process computes at the largest settings; the bar is ten times what was seen on a slow core."""
    began = time.process_time()
    noise.eigenvalues(400, 4000)
    planted = spike.Planted(300, 3000)
    for theta in np.linspace(0, 3, 31):
        planted.largest(theta)
    assert time.process_time() - began < 3


def test_every_lesson_is_whole():
    from app.lessons import LESSONS

    assert len(LESSONS) == 7 and len({lesson.slug for lesson in LESSONS}) == 7
    names = [value.name for lesson in LESSONS for value in lesson.values]
    assert len(set(names)) == len(names), "values of two lessons would share a place in the address bar"
    for lesson in LESSONS:
        assert lesson.title and len(lesson.questions) == 2
        for heading in ("Idea", "Try", "Remember"):
            assert 40 < len(lesson.text(heading)) < 1500, (lesson.slug, heading)
        for question in lesson.questions:
            assert question.key.startswith(f"{lesson.slug}.") and len(question.options) >= 2
            assert len(question.ask) < 200 and question.ask.endswith(("?", "…"))

"""How much each layer loses: counted against sorting everything, and against the paper's formula by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from starfish_lab.errors import RecipeError
from starfish_lab.pruning import BUDGETS
from starfish_lab.pruning.budgets import mp_edge
from starfish_lab.pruning.rules import apportion, apportion_by_threshold, n_m_misfit, units_removed


def layers(seed: int = 0, ties: bool = False) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    scores = {name: np.abs(random.normal(0, scale, size)).astype(np.float32) for name, scale, size in (("a", 1, 700), ("b", 0.3, 1301), ("c", 2, 90))}
    return {name: np.round(values, 1) for name, values in scores.items()} if ties else scores


def edges(**columns) -> pd.DataFrame:
    kinds = ["attention", "mlp", "other"]
    return pd.DataFrame({"kind": kinds, "sigma_plus": [1.0, 2.0, 6.0], "hill_alpha": [5.0, 3.0, 4.0], **columns}, index=["a", "b", "c"])


def test_apportion_is_exact_and_fair():
    random = np.random.default_rng(0)
    for _ in range(200):
        shares = random.random(9) * 50
        total = int(round(shares.sum()))
        shares *= total / shares.sum()
        counts = apportion(shares, total)
        assert counts.sum() == total and (np.abs(counts - shares) < 1).all()


@pytest.mark.parametrize("total", [0, 1, 17, 700, 1990, 2091])
@pytest.mark.parametrize("ties", [False, True])
def test_threshold_counts_what_sorting_everything_counts(total, ties):
    scores = layers(ties=ties)
    counts = apportion_by_threshold(scores, {name: len(v) for name, v in scores.items()}, total)
    assert sum(counts.values()) == total
    threshold = np.sort(np.concatenate(list(scores.values())))[max(total - 1, 0)]
    for name, values in scores.items():
        assert np.sum(values < threshold) <= counts[name] <= np.sum(values <= threshold)


def test_divisors_scale_the_threshold():
    scores, widths = layers(), {"a": 0.1, "b": 1.0, "c": 3.0}
    counts = apportion_by_threshold(scores, {name: len(v) for name, v in scores.items()}, 1000, widths)
    scaled = {name: values / np.float32(widths[name]) for name, values in scores.items()}
    threshold = np.sort(np.concatenate(list(scaled.values())))[999]
    assert counts == {name: int(np.sum(values <= threshold)) for name, values in scaled.items()}


def test_a_sample_stands_for_its_layer():
    whole = layers()
    sizes = {name: len(values) for name, values in whole.items()}
    sample = {name: np.quantile(values, (np.arange(256) + 0.5) / 256).astype(np.float32) for name, values in whole.items()}
    for total in (200, 1045, 1800):
        exact, estimate = apportion_by_threshold(whole, sizes, total), apportion_by_threshold(sample, sizes, total)
        assert sum(estimate.values()) == total
        assert all(abs(exact[name] - estimate[name]) <= max(0.02 * sizes[name], 2) for name in sizes)


@pytest.mark.parametrize("budget", BUDGETS.names())
@pytest.mark.parametrize("sparsity", [0.1, 0.3, 0.5, 0.7, 0.9, 0.999])
def test_totals_are_exact_and_no_layer_loses_more_than_it_has(budget, sparsity):
    scores = layers()
    sizes = {name: len(v) for name, v in scores.items()}
    counts = BUDGETS.get(budget)(scores, sizes, sparsity, edges())
    assert sum(counts.values()) == round(sparsity * sum(sizes.values()))
    assert list(counts) == list(sizes) and all(0 <= counts[name] <= sizes[name] for name in sizes)


@pytest.mark.parametrize(
    "sparsity, signal, betas, s_d",
    [
        (0.20, "hill_alpha", (0.5, 0.5, 0.5), 0.30),
        (0.40, "sigma_plus", (1.0, 1.0, 1.0), 0.50),
        (0.41, "sigma_plus", (1.25, 1.25, 1.25), 0.70),
        (0.55, "sigma_plus", (1.25, 1.25, 1.25), 0.70),
        (0.60, "sigma_plus", (1.0, 2.0, 1.5), 0.85),
    ],
)
def test_four_regimes(sparsity, signal, betas, s_d):
    values = edges()[signal].to_numpy()
    z = (values - values.mean()) / np.sqrt(np.mean((values - values.mean()) ** 2))
    expected = np.maximum(0.1, 1 + np.array(betas) * (1 - sparsity / s_d) * z)
    np.testing.assert_allclose(list(mp_edge.weights(edges(), sparsity).values()), expected)


def test_floor_options_and_fading():
    assert mp_edge.weights(edges(), 0.5, beta=50.0)["a"] == 0.1
    assert set(mp_edge.weights(edges(), 0.9).values()) == {1.0}
    assert mp_edge.weights(edges(), 0.5, signal="hill_alpha")["a"] > 1 > mp_edge.weights(edges(), 0.5)["a"]
    assert mp_edge.weights(edges(), 0.9, s_d=2.0)["c"] > 1
    assert set(mp_edge.weights(edges(sigma_plus=3.0), 0.5).values()) == {1.0}


def test_a_layer_without_a_signal_counts_as_average():
    widths = mp_edge.weights(edges(sigma_plus=[1.0, np.nan, 3.0]), 0.5)
    assert widths["b"] == 1 and widths["c"] - 1 == pytest.approx(1 - widths["a"])


def test_no_beta_is_the_global_budget_and_a_higher_edge_loses_more():
    same = np.abs(np.random.default_rng(0).normal(size=1000)).astype(np.float32)
    scores, sizes = {name: same for name in "abc"}, dict.fromkeys("abc", 1000)
    assert BUDGETS.get("mp_edge")(scores, sizes, 0.5, edges(), beta=0) == BUDGETS.get("global")(scores, sizes, 0.5)
    counts = BUDGETS.get("mp_edge")(scores, sizes, 0.5, edges())
    assert counts["a"] < counts["b"] < counts["c"]


@pytest.mark.parametrize("options", [{"signal": "rank"}, {"beta": "much"}, {"beta": -1.0}, {"s_d": 0}])
def test_wrong_options_are_named(options):
    with pytest.raises(RecipeError, match=next(iter(options))):
        mp_edge.weights(edges(), 0.5, **options)


def test_units_and_misfits():
    assert [units_removed(n, s) for n, s in ((64, 0.5), (10, 0.37), (4, 0.99), (1, 0.9))] == [32, 4, 3, 0]
    assert n_m_misfit(768, 1, 16) == "" and "768" in n_m_misfit(768, 1, 7) and "grouped" in n_m_misfit(8, 2, 4)


@pytest.mark.parametrize("budget", BUDGETS.names())
@pytest.mark.parametrize("total", [0, 1, 777, 2091])
def test_a_total_of_its_own_takes_the_place_of_the_share(budget, total):
    scores = layers()
    counts = BUDGETS.get(budget)(scores, {name: len(v) for name, v in scores.items()}, 0.5, edges(), total)
    assert sum(counts.values()) == total


def test_layers_that_are_not_asked_for_keep_their_part_in_the_signal():
    scores = layers()
    some = {name: len(scores[name]) for name in ("a", "b")}
    counts = mp_edge.allocate({name: scores[name] for name in some}, some, 0.5, edges())
    widths = mp_edge.weights(edges(), 0.5)
    assert counts == apportion_by_threshold({name: scores[name] for name in some}, some, round(0.5 * sum(some.values())), widths)


def test_a_moved_edge_is_as_if_it_had_been_fitted_there():
    moved = mp_edge.weights(edges(), 0.5, edges={"b": 5.0})
    assert moved == mp_edge.weights(edges(sigma_plus=[1.0, 5.0, 6.0]), 0.5)
    assert mp_edge.weights(edges(), 0.15, edges={"b": 5.0}) == mp_edge.weights(edges(), 0.15), "up to 20 % Hill's α decides"
    for wrong in ({"b": 0}, {"b": "far"}, {"b": float("inf")}, {"z": 1.0}, [1.0]):
        with pytest.raises(RecipeError, match="pruning.options.edges"):
            mp_edge.weights(edges(), 0.5, edges=wrong)

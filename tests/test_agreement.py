"""Drift against accuracy: Spearman's coefficient by its definition, ranks within groups, and what least drift would have chosen."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from starfish_lab.measure.agreement import FEWEST, answer, choices, correlation


def table(drift, top1, group="a"):
    return pd.DataFrame({"drift": drift, "top1": top1, "group": group})


def test_spearman_by_its_definition():
    drift, top1 = [0.1, 0.4, 0.2, 0.9, 0.5], [0.9, 0.6, 0.95, 0.1, 0.5]
    # ranks 1 3 2 5 4 and 4 3 5 1 2; without ties rho = 1 − 6 Σd² / (n (n² − 1))
    d = np.array([1, 3, 2, 5, 4]) - np.array([4, 3, 5, 1, 2])
    found = correlation(table(drift, top1))
    assert found["rho"] == pytest.approx(1 - 6 * (d**2).sum() / (5 * 24)) and found["n"] == 5 and found["groups"] == 1


def test_ties_share_their_rank():
    rng = np.random.default_rng(0)
    drift, top1 = rng.integers(4, size=30), rng.integers(5, size=30)
    assert correlation(table(drift, top1))["rho"] == pytest.approx(spearmanr(drift, top1).statistic)


def test_the_interval_is_the_bootstraps():
    """Against the loop it stands for, with the same draws."""
    rng = np.random.default_rng(5)
    drift = rng.normal(size=12)
    top1 = -drift + rng.normal(size=12)
    draws = np.random.default_rng(7).integers(12, size=(200, 12))
    loop = [spearmanr(drift[places], top1[places]).statistic for places in draws]
    found = correlation(table(drift, top1), samples=200, seed=7)
    assert (found["low"], found["high"]) == pytest.approx(tuple(np.quantile(loop, (0.025, 0.975))))
    assert found["low"] < found["rho"] < found["high"] < 0


def test_only_ranks_within_a_group_count():
    """Within both groups less drift is better; between them it is worse, and that has no say."""
    rows = pd.concat([table([1, 2, 3], [0.3, 0.2, 0.1]), table([11, 12, 13], [0.9, 0.8, 0.7], "b"), table([5], [0.5], "alone")])
    found = correlation(rows)
    assert found["rho"] == pytest.approx(-1) and (found["n"], found["groups"]) == (6, 2)
    assert correlation(rows.assign(group="one"))["rho"] > 0


@pytest.mark.parametrize(
    "rows",
    [
        pd.DataFrame(), table([], []), table([1, 2, 3, 4], [0.4, 0.3, 0.2, 0.1]), table([1] * 6, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]),
        table([1, 2, 3, 4, 5, np.nan, np.nan], [0.5, 0.4, 0.3, 0.2, np.nan, 0.1, 0.2]),
    ],
)  # fmt: skip
def test_few_or_equal_networks_have_no_correlation(rows):
    found = correlation(rows)
    assert found["rho"] is None and found["low"] is None and (found["n"] < FEWEST or rows["drift"].nunique() == 1)


def test_what_least_drift_chooses():
    rows = pd.concat(
        [table([0.1, 0.2, 0.3], [0.8, 0.7, 0.6], "right"), table([0.1, 0.2], [0.5, 0.54], "wrong"), table([0.1], [0.9], "alone")],
        ignore_index=True,
    )
    found = choices(rows).set_index("group")
    assert list(found.index) == ["right", "wrong"]
    right, wrong = found.loc["right"], found.loc["wrong"]
    assert (right["n"], right["least_drift"], right["most_accurate"], right["found"], right["regret_pp"]) == (3, 0, 0, 1, 0)
    assert (wrong["least_drift"], wrong["most_accurate"], wrong["found"]) == (3, 4, 0) and wrong["regret_pp"] == pytest.approx(4)
    assert right["found_by_chance"] == pytest.approx(1 / 3) and right["regret_by_chance_pp"] == pytest.approx(10)
    assert wrong["regret_by_chance_pp"] == pytest.approx(2)
    words = answer(found.reset_index())
    assert "in 1 of 2 groups (5 networks; blindly in 0.8)" in words
    assert "loses 2.0 pp to the best on average and 4.0 pp at worst; a blind choice loses 6.0 pp" in words


def test_equal_drift_counts_in_shares():
    found = choices(table([0.1, 0.1, 0.2], [0.8, 0.6, 0.9])).iloc[0]
    assert found["found"] == 0 and found["regret_pp"] == pytest.approx(20)
    found = choices(table([0.1, 0.1, 0.2], [0.9, 0.7, 0.5])).iloc[0]
    assert found["found"] == 0.5 and found["regret_pp"] == pytest.approx(10)


def test_nothing_to_choose_from_is_said():
    assert answer(choices(pd.DataFrame())).startswith("Not enough runs") and answer(choices(table([1], [0.5]))).startswith("Not enough runs")
    assert "the one group there is (2 networks; blindly in 0.5)" in answer(choices(table([1, 2], [0.5, 0.4])))
    assert "in 0 of 1 group (" in answer(choices(table([1, 2], [0.4, 0.5])))

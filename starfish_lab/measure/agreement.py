"""Does drift tell which network is the more accurate? It needs no labels; accuracy does.

Tables have a row a network and the columns

    drift   distance from the dense network, 0 for none: any figure of `measure.drift` that grows with distance
    top1    accuracy, a fraction
    group   only networks of one group compete: the same dense network, images and weights removed, say

Rows with a missing figure are left out. What is said of few rows is little: `n` stands beside every figure.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.stats import rankdata

FEWEST = 5  # networks below which a rank correlation says nothing: three agree by chance once in six times
SAMPLES = 1000  # of the bootstrap


def correlation(rows: pd.DataFrame, *, samples: int = SAMPLES, seed: int = 0) -> dict[str, float | int | None]:
    """Spearman's rank correlation of drift and top1 within groups, with its 95 % percentile bootstrap interval.

    Ranks (ties share their mean) are taken within each group and centred there, so that what differs between groups,
    such as sparsity, has no say; for one group this is Spearman's coefficient. −1: less drift is always more accurate.
    The bootstrap (Efron 1979) draws networks with replacement within each group.

    Returns n (networks of groups of two and more), groups, and rho, low, high; these are None for fewer than FEWEST
    networks, or where drift or accuracy is the same everywhere.
    """
    parts = [part for _, part in _complete(rows).groupby("group") if len(part) > 1]
    n = sum(map(len, parts))
    nothing = {"rho": None, "low": None, "high": None, "n": n, "groups": len(parts)}
    if n < FEWEST:
        return nothing
    rng = np.random.default_rng(seed)
    found, drawn = np.zeros((3, 1)), np.zeros((3, samples))
    for part in parts:
        drift, top1 = (part[name].to_numpy(float)[None] for name in ("drift", "top1"))  # (1, n)
        found += _rank_products(drift, top1)
        places = rng.integers(len(part), size=(samples, len(part)))
        drawn += _rank_products(drift[0, places], top1[0, places])
    if not found[1:].all():
        return nothing
    drawn = drawn[:, drawn[1:].all(axis=0)]  # a sample in which all are equal has no correlation
    low, high = np.quantile(_ratio(drawn), (0.025, 0.975))
    return {**nothing, "rho": float(_ratio(found)[0]), "low": float(low), "high": float(high)}


def choices(rows: pd.DataFrame) -> pd.DataFrame:
    """What choosing the network of least drift finds, a row a group of two and more networks.

    Columns: group, n, least_drift (index of that row), most_accurate (likewise), found (1.0 where the choice is as accurate as
    the best, a share where several have the least drift), regret_pp (what the choice lost against the best, percent points),
    and found_by_chance, regret_by_chance_pp: the same for a network drawn blindly.
    """
    found = []
    for group, part in _complete(rows).groupby("group"):
        if len(part) < 2:
            continue
        best, chosen = part["top1"].max(), part[part["drift"] == part["drift"].min()]["top1"]
        found.append({
            "group": group, "n": len(part), "least_drift": part["drift"].idxmin(), "most_accurate": part["top1"].idxmax(),
            "found": (chosen == best).mean(), "regret_pp": 100 * (best - chosen.mean()),
            "found_by_chance": (part["top1"] == best).mean(), "regret_by_chance_pp": 100 * (best - part["top1"].mean()),
        })  # fmt: skip
    columns = ["group", "n", "least_drift", "most_accurate", "found", "regret_pp", "found_by_chance", "regret_by_chance_pp"]
    return pd.DataFrame(found, columns=columns)


def answer(found: pd.DataFrame) -> str:
    """`choices` in words: how often least drift finds the best, and what it costs where it does not."""
    if found.empty:
        return "Not enough runs: nowhere do two networks compete on equal terms."
    groups, hits = len(found), found["found"].sum()
    where = f"{hits:.3g} of {groups} groups" if groups > 1 else "the one group there is" if hits == 1 else "0 of 1 group"
    blindly = f"{found['found_by_chance'].sum():.1f}"
    return (
        f"Least drift finds the most accurate of its group in {where} ({found['n'].sum()} networks; blindly in {blindly}). "
        f"It loses {found['regret_pp'].mean():.1f} pp to the best on average and {found['regret_pp'].max():.1f} pp at worst; "
        f"a blind choice loses {found['regret_by_chance_pp'].mean():.1f} pp on average."
    )


def _complete(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.dropna(subset=["drift", "top1"]) if len(rows) else pd.DataFrame(columns=["drift", "top1", "group"])


def _rank_products(drift: np.ndarray, top1: np.ndarray) -> np.ndarray:
    """(samples, n) both → (3, samples): Σab, Σa², Σb² of the centred ranks."""
    middle = (drift.shape[1] + 1) / 2
    a, b = rankdata(drift, axis=1) - middle, rankdata(top1, axis=1) - middle
    return np.stack([(a * b).sum(1), (a * a).sum(1), (b * b).sum(1)])


def _ratio(products: np.ndarray) -> np.ndarray:
    return products[0] / np.sqrt(products[1] * products[2])

"""Figures others have published, with their sources. Shown beside measured ones and never mixed with them."""

from __future__ import annotations

from functools import cache

import pandas as pd

from starfish_lab import settings

FOLDER = settings.ASSETS / "literature"


def latencies() -> pd.DataFrame:
    """Published throughput: gpu, model, variant, batch, execution, images_per_s, source."""
    return _table("published_latency").copy()


def accuracies() -> pd.DataFrame:
    """Published accuracy: model, method, pattern, sparsity, mac_reduction_pct, top1 and dense_top1 (%), of_dense, images_or_epochs, source.

    `of_dense` is top1 / dense_top1; two rows are published as such a fraction alone and have no top1.
    The sparsity of a k:n pattern is 1 − k/n, which its source leaves to the reader.
    """
    table = _table("published_accuracy").copy()
    published = table["top1"].astype(str)
    fraction = pd.to_numeric(published.str.extract(r"^([\d.]+) % of dense$")[0]) / 100
    table["top1"] = pd.to_numeric(published, errors="coerce")
    table["of_dense"] = fraction.fillna(table["top1"] / table["dense_top1"])
    kept = table["pattern"].str.extract(r"^(\d+):(\d+)$").astype(float)
    table["sparsity"] = table["sparsity"].fillna(1 - kept[0] / kept[1])
    return table


@cache
def _table(name: str) -> pd.DataFrame:
    return pd.read_csv(FOLDER / f"{name}.csv")

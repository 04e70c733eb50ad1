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
    """Published accuracy: model, method, pattern, sparsity (fraction), mac_reduction_pct, top1 and dense_top1 (%), images_or_epochs, source."""
    return _table("published_accuracy").copy()


@cache
def _table(name: str) -> pd.DataFrame:
    return pd.read_csv(FOLDER / f"{name}.csv")

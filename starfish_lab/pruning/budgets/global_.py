"""One threshold for all layers: the smallest scores of the whole network go, wherever they are."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from starfish_lab.pruning.rules import apportion_by_threshold, removed_in_all

NEEDS_EDGES = False


def allocate(
    scores: Mapping[str, np.ndarray], sizes: Mapping[str, int], sparsity: float, signals: pd.DataFrame | None = None, total: int | None = None
) -> dict[str, int]:
    """Weights each layer loses: {layer: count}, `total` in all (None: the share `sparsity`). Signals play no part.

    `scores[layer]` are all scores or a sample of them.

    Scores of different layers are compared as they are. Wanda's grow with the inputs a layer sees, so layers with
    large inputs keep more.
    """
    return apportion_by_threshold(scores, sizes, removed_in_all(sizes.values(), sparsity) if total is None else total)

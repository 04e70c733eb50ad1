"""The same share from every layer.

Layer l loses s · size_l weights, rounded so that the total is exact (largest remainder).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from starfish_lab.pruning.rules import apportion, removed_in_all

NEEDS_EDGES = False


def allocate(
    scores: Mapping[str, np.ndarray], sizes: Mapping[str, int], sparsity: float, signals: pd.DataFrame | None = None, total: int | None = None
) -> dict[str, int]:
    """Weights each layer loses: {layer: count}, `total` in all (None: the share `sparsity`). Scores and signals play no part.

    >>> allocate({}, {"a": 10, "b": 30}, 0.5)
    {'a': 5, 'b': 15}
    """
    total = removed_in_all(sizes.values(), sparsity) if total is None else total
    shares = total / sum(sizes.values()) * np.array(list(sizes.values()), dtype=float)
    return dict(zip(sizes, apportion(shares, total).tolist(), strict=True))

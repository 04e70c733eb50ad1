"""Unstructured: the weights with the smallest scores go, wherever they stand in their layer.

How many go from a layer the budget says. Scores that compare within output rows (Wanda) take the same number from every
row, to one weight, under the uniform budget; else the whole layer is one comparison group.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from starfish_lab.models.network import Network
from starfish_lab.pruning import SCORES
from starfish_lab.pruning.patterns import MaskResult
from starfish_lab.recipe import PruningChoice


def masks(
    network: Network, scores: dict[str, Tensor], choice: PruningChoice, counts: dict[str, int], units: dict[str, Tensor] | None = None
) -> MaskResult:
    """Layer l loses its `counts[l]` lowest scores, exactly; `units` play no part."""
    by_row = SCORES.module(choice.score).WITHIN == "row" and choice.budget == "uniform"
    return MaskResult({layer: without_smallest(score, counts[layer], len(score) if by_row else 1) for layer, score in scores.items()})


def without_smallest(score: Tensor, count: int, groups: int = 1) -> Tensor:
    """True but for `count` entries of `score`: the lowest of each of the equal `groups`, whose losses differ by one at most."""
    rows = score.reshape(groups, -1).numpy()
    mask = np.ones(rows.shape, dtype=bool)
    each, extra = divmod(count, groups)
    # positions each-1 and each in their sorted places: before them stands what every row loses, at `each` the next
    order = np.argpartition(rows, [max(each - 1, 0), min(each, rows.shape[1] - 1)], axis=1)
    np.put_along_axis(mask, order[:, :each], False, axis=1)
    unlucky = np.arange(extra) * groups // max(extra, 1)  # the rows that lose one more, spread over the layer
    mask[unlucky, order[unlucky, each] if extra else []] = False
    return torch.from_numpy(mask).view_as(score)

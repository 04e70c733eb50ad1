"""Deals the channels by importance as `deal` does, but every second bucket backwards, so that no group gets the best of all.

Group g receives the ranks g, 2G − 1 − g, 2G + g, 4G − 1 − g …, whose sums are alike for all groups.
"""

from __future__ import annotations

from torch import LongTensor, Tensor

from starfish_lab.pruning import permutations
from starfish_lab.pruning.permutations.deal import deal


def order(importance: Tensor, *, keep: int, group: int, segments: int = 1, taps: int = 1) -> LongTensor:
    """The dealt order, inside each segment."""
    return deal(permutations.ranked(importance, segments=segments, taps=taps), group, turning=True)

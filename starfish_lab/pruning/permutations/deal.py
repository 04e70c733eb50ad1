"""Deals the channels like cards: ranked by importance, every group gets one of each rank bucket (arXiv 2606.02608).

perm[g · n + s] = ranked[s · G + g] with G = channels // n groups; channels left over come last. The sum of a channel's
importance over the rows is what ranks it. Group 0 gets the best of every bucket: `snake` mends that.
"""

from __future__ import annotations

from torch import LongTensor, Tensor

from starfish_lab.pruning import permutations


def order(importance: Tensor, *, keep: int, group: int, segments: int = 1, taps: int = 1) -> LongTensor:
    """The dealt order, inside each segment."""
    return deal(permutations.ranked(importance, segments=segments, taps=taps), group)


def deal(ranked: LongTensor, group: int, *, turning: bool = False) -> LongTensor:
    """(segments, length) ranked channels → (segments · length,) in the order of places.

    turning : every second bucket is dealt backwards
    """
    length = ranked.shape[1]
    dealt = ranked.clone()
    buckets = ranked[:, : length - length % group].unflatten(1, (group, -1)).clone()  # (segments, n, G)
    if turning:
        buckets[:, 1::2] = buckets[:, 1::2].flip(2)
    dealt[:, : length - length % group] = buckets.transpose(1, 2).flatten(1)
    return dealt.flatten()

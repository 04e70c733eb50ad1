"""Exactly so many of the smallest scores, over all layers at once."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from starfish_lab.pruning.masks import Masks
from starfish_lab.pruning.rules import apportion_by_threshold

SMALLEST = 1e-30  # what a weight that is there counts as at least, so that those already gone come first


def smallest(scores: Mapping[str, Tensor], count: int, divisors: Mapping[str, float] | None = None) -> dict[str, Tensor]:
    """{layer: bool tensor like its scores}, True at the `count` smallest of all scores ≥ 0, each divided by its layer's divisor.

    Scores that tie at the threshold are shared out between layers in proportion, so that the count is exact.

    >>> smallest({"a": torch.tensor([1.0, 4.0]), "b": torch.tensor([3.0, 8.0])}, 2, {"a": 1.0, "b": 4.0})
    {'a': tensor([ True, False]), 'b': tensor([ True, False])}
    """
    values = {layer: score.detach().flatten().float().cpu().numpy() for layer, score in scores.items() if score.numel()}
    counts = apportion_by_threshold(values, {layer: len(score) for layer, score in values.items()}, count, divisors) if count else {}
    found = {}
    for layer, score in scores.items():
        chosen = np.zeros(score.numel(), dtype=bool)
        if number := counts.get(layer, 0):
            chosen[np.argpartition(values[layer], number - 1)[:number]] = True
        found[layer] = torch.from_numpy(chosen).view(score.shape)
    return found


def largest(scores: Mapping[str, Tensor], count: int, divisors: Mapping[str, float] | None = None) -> dict[str, Tensor]:
    """As `smallest`, True at the `count` largest."""
    rest = smallest(scores, sum(score.numel() for score in scores.values()) - count, divisors)
    return {layer: ~chosen for layer, chosen in rest.items()}


def without_smallest(weights: Mapping[str, Tensor], masks: Masks, removed: int, divisors: Mapping[str, float] | None = None) -> Masks:
    """Masks with exactly `removed` entries False: those of `masks`, and then the smallest |weight| / divisor.

    `removed` counts all layers together and must be no smaller than what `masks` have removed already.
    """
    sizes = {layer: weight.detach().abs().float().cpu().clamp_min_(SMALLEST).mul_(masks[layer]) for layer, weight in weights.items()}
    return {layer: ~gone for layer, gone in smallest(sizes, removed, divisors).items()}

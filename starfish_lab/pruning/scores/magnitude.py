"""Magnitude: a weight matters as much as it is large, |W|."""

from __future__ import annotations

import torch
from torch import Tensor

NEEDS_ACTIVATIONS = False
WITHIN = "layer"


def score(weight: Tensor, *, activations: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
    """|W|, of the weight's shape."""
    return weight.abs()

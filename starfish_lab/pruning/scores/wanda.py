"""Wanda: a weight matters as much as it and the input it meets are large, |W| · ‖x‖₂.

Sun et al., 'A simple and effective pruning approach for large language models' (arXiv 2306.11695). ‖x‖₂ is the norm of
the weight's input feature over all tokens (or positions) of the calibration images. Under the uniform budget weights
compete within their output row, as in the paper; under any other within the whole layer, whose share the budget sets.
"""

from __future__ import annotations

import torch
from torch import Tensor

NEEDS_ACTIVATIONS = True
WITHIN = "row"


def score(weight: Tensor, *, activations: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
    """|W| · ‖x‖₂, of the weight's shape (out, in…); `activations` (in,) or (out, in) of the unfolded weight."""
    return (weight.abs().flatten(1) * activations).view_as(weight)

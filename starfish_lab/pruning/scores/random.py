"""Random: which weights go is drawn by seed, the control every score must beat."""

from __future__ import annotations

import torch
from torch import Tensor

NEEDS_ACTIVATIONS = False
WITHIN = "layer"


def score(weight: Tensor, *, activations: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
    """Uniform on [0, 1), of the weight's shape."""
    return torch.rand(weight.shape, generator=generator)

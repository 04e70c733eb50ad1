"""No permutation: every layer meets its inputs in the order in which the network has them."""

from __future__ import annotations

import torch
from torch import LongTensor, Tensor


def order(importance: Tensor, *, keep: int, group: int, segments: int = 1, taps: int = 1) -> LongTensor:
    """The channels as they are: 0, 1, 2 …"""
    return torch.arange(importance.shape[1] // taps)

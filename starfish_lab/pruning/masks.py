"""Masks: {layer name: bool tensor of the weight's shape}, True where a weight stays. The one home of sparsity."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

Masks = dict[str, Tensor]


@dataclass(frozen=True)
class Sparsity:
    """How much is gone, counted twice: of the prunable weights and of all parameters."""

    removed: int
    prunable: int
    parameters: int

    @property
    def of_prunable(self) -> float:
        return self.removed / self.prunable if self.prunable else 0.0

    @property
    def of_all(self) -> float:
        return self.removed / self.parameters if self.parameters else 0.0


def sparsity(module: nn.Module, masks: Masks) -> Sparsity:
    """Sparsity that the masks give the module."""
    removed = sum(int((~mask).sum()) for mask in masks.values())
    prunable = sum(mask.numel() for mask in masks.values())
    return Sparsity(removed, prunable, sum(p.numel() for p in module.parameters()))


@torch.no_grad()
def apply(module: nn.Module, masks: Masks) -> None:
    """Zero the removed weights, in place."""
    for name, mask in masks.items():
        weight = module.get_submodule(name).weight
        weight.mul_(mask.to(weight.device))

"""Layers made smaller, in place: outputs of a producer, inputs of its consumer, entries of the norms between them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from starfish_lab.models.gather import GatheredLinear, gather
from starfish_lab.models.network import UnitGroup


def resize_group(module: nn.Module, group: UnitGroup, index: Tensor) -> None:
    """Only the indexed units stay, in producer, companions and consumer."""
    take(module.get_submodule(group.producer), index, axis=0)
    take(module.get_submodule(group.consumer), index, axis=1)
    for name in group.companions:
        take_norm(module.get_submodule(name), index)


@torch.no_grad()
def take(layer: nn.Linear | nn.Conv2d, index: Tensor, *, axis: int) -> None:
    """Keep the indexed outputs (axis 0) or inputs (axis 1) of a layer."""
    index = index.to(layer.weight.device)
    layer.weight = nn.Parameter(layer.weight.index_select(axis, index), requires_grad=layer.weight.requires_grad)
    if axis == 0 and layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias[index], requires_grad=layer.bias.requires_grad)
    names = ("in_features", "out_features") if isinstance(layer, nn.Linear) else ("in_channels", "out_channels")
    setattr(layer, names[1 - axis], len(index))


@torch.no_grad()
def take_norm(norm: nn.Module, index: Tensor) -> None:
    """Keep the indexed channels of a batch norm."""
    for name in ("weight", "bias"):
        old = getattr(norm, name)
        setattr(norm, name, nn.Parameter(old[index.to(old.device)], requires_grad=old.requires_grad))
    for name in ("running_mean", "running_var"):
        old = getattr(norm, name)
        setattr(norm, name, old[index.to(old.device)])
    norm.num_features = len(index)


def empty_like(layer: nn.Linear, *, in_features: int | None = None, out_features: int | None = None) -> nn.Linear:
    """A Linear of another size on the same device, its weights to be filled in; it gathers its inputs where `layer` does."""
    weight, inputs, outputs = layer.weight, in_features or layer.in_features, out_features or layer.out_features
    small = skip_init(nn.Linear, inputs, outputs, bias=layer.bias is not None, device=weight.device, dtype=weight.dtype)
    if isinstance(layer, GatheredLinear):
        gather(small, layer.order)
    return small.requires_grad_(weight.requires_grad)

"""Layers that meet their inputs in another order, for permutations that no earlier layer can absorb.

They are Linear and Conv2d layers to everything that looks at them; a gather of the input channels runs before each, and the
order is a buffer that is saved with the weights. Without it a reloaded network answers by chance.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import LongTensor, Tensor, nn
from torch.nn import functional as F

from starfish_lab.errors import LabError
from starfish_lab.models.network import Network


class GatheredLinear(nn.Linear):
    """A Linear whose weight's column i belongs to input feature order[i]. Made by `gather`."""

    order: LongTensor  # (in_features,)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input.index_select(-1, self.order), self.weight, self.bias)


class GatheredConv2d(nn.Conv2d):
    """An ungrouped Conv2d whose weight's channel i belongs to input channel order[i]. Made by `gather`."""

    order: LongTensor  # (in_channels,)

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input.index_select(1, self.order), self.weight, self.bias)


GATHERED = {nn.Linear: GatheredLinear, nn.Conv2d: GatheredConv2d}


def can_gather(layer: nn.Module) -> bool:
    """True for plain layers: one of another class may do more in its forward than the gathered one would."""
    return type(layer) in (*GATHERED, *GATHERED.values()) and getattr(layer, "groups", 1) == 1


def gather(layer: nn.Module, order: Tensor) -> None:
    """Let the layer meet input channel order[i] where its weight has channel i, in place; the weight is left as it is.

    Of a layer that gathers already, `order` reorders what it gathers. Raises LabError where `can_gather` says no.
    """
    if not can_gather(layer):
        raise LabError(f"The inputs of a {type(layer).__name__} cannot be reordered: only plain, ungrouped Linear and Conv2d layers can.")
    order = order.to(layer.weight.device)
    if isinstance(layer, tuple(GATHERED.values())):
        order = layer.order[order]
    layer.__class__ = GATHERED.get(type(layer), type(layer))  # parameters, hooks and settings stay the layer's own
    layer.register_buffer("order", order)


def met(layer: nn.Module, input: Tensor) -> Tensor:
    """A layer's input as its weight meets it, which is not as it comes where the layer gathers. For hooks."""
    if isinstance(layer, tuple(GATHERED.values())):
        return input.index_select(-1 if isinstance(layer, nn.Linear) else 1, layer.order)
    return input


def gathered(module: nn.Module) -> dict[str, nn.Module]:
    """The layers that gather, by name."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, tuple(GATHERED.values()))}


def is_permutation(order: Tensor, channels: int) -> bool:
    """True for int64 indices that name each of the channels once."""
    return order.dtype == torch.int64 and order.shape == (channels,) and bool((order.sort().values == torch.arange(channels)).all())


def described(network: Network) -> Network:
    """The network with its facts brought up to date: column j of a layer that gathers is not unit j of the layer before it."""
    gathers = gathered(network.module)
    return replace(
        network,
        unit_groups=tuple(group for group in network.unit_groups if group.consumer not in gathers),
        foldable=tuple(fold for fold in network.foldable if fold.consumer not in gathers),
    )

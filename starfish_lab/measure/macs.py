"""Multiply-adds, counted on the meta device: nothing is computed, no weight is copied, attention is not forgotten.

One MAC is one multiply-add of a linear layer, a convolution or a matrix product, for one image; norms, softmax and
activations are left out. For a ViT that is Σ_blocks (12 N D² + 2 N² D) + patches · 768 D + classes · D
(arXiv 2606.02608): 17.56 G for DeiT-B, where a counter that misses fused attention says 16.85 G.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import pandas as pd
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from starfish_lab.execution import slicing
from starfish_lab.models.network import Network, layer_kind
from starfish_lab.pruning.masks import Masks


def layer_macs(network: Network) -> pd.DataFrame:
    """One row for each module that multiplies, in the order of the network: layer, kind, macs (for one image).

    Linear and Conv2d layers go by their names; products of two activations by '<module>.matmul', so QKᵀ and AV of a
    block's attention together are 'blocks.0.attn.matmul'.
    """
    module = on_meta(network).module.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(torch.empty(1, *network.preprocessing.input_size, device="meta"))
    # the counter's names begin with the class of the outermost module, and include what lies inside
    counted = {name.partition(".")[2]: sum(by_operator.values()) // 2 for name, by_operator in counter.get_flop_counts().items() if name != "Global"}
    rows = []
    for name, child in module.named_modules():
        inside = sum(counted.get(f"{name}.{inner}".lstrip("."), 0) for inner, _ in child.named_children())
        macs = counted.get(name, 0) - inside
        if macs:
            layer = name if isinstance(child, nn.Linear | nn.Conv2d) else f"{name}.matmul".lstrip(".")
            rows.append({"layer": layer, "kind": layer_kind(layer), "macs": macs})
    return pd.DataFrame(rows, columns=["layer", "kind", "macs"])


def total_macs(network: Network) -> int:
    """Multiply-adds of the whole network for one image."""
    return int(layer_macs(network)["macs"].sum())


def effective_macs(network: Network, masks: Masks) -> int:
    """Multiply-adds that are left when zero weights cost nothing.

    Structured masks count as the really smaller network, QKᵀ included. All others count each masked layer by its
    share of weights that stay: what a perfect sparse kernel would do, not what this hardware does.
    """
    if slicing.is_sliceable(masks, network):
        return total_macs(slicing.slice_network(on_meta(network), masks))
    table = layer_macs(network)
    density = table["layer"].map({name: mask.float().mean().item() for name, mask in masks.items()}).fillna(1.0)
    return round((table["macs"] * density).sum())


def on_meta(network: Network) -> Network:
    """The network's shapes without its weights; the network itself is left alone."""
    weights = [*network.module.parameters(), *network.module.buffers()]
    shapes = {id(weight): _shape_of(weight) for weight in weights}
    return replace(network, module=copy.deepcopy(network.module, shapes))


def _shape_of(weight: torch.Tensor) -> torch.Tensor:
    shape = torch.empty_like(weight, device="meta")
    return nn.Parameter(shape, requires_grad=weight.requires_grad) if isinstance(weight, nn.Parameter) else shape

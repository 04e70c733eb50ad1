"""What removable units hold while a network runs: activations of MLP units and inner channels, Q and K of heads."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from starfish_lab.errors import LabError
from starfish_lab.models.network import AttentionLayer, Network
from starfish_lab.pruning.gradients import input_of
from starfish_lab.recipe import PruningChoice

BATCH_SIZE = 32


@torch.no_grad()
def look(
    network: Network, choice: PruningChoice, calibration: Tensor, device: str,
    units: Callable[[str, Tensor], None], dimensions: Callable[[str, Tensor, Tensor], None],
) -> None:  # fmt: skip
    """One pass of a copy of the network in eval mode over `calibration` (n, C, H, W), for the kinds of units in `choice.units`.

    For every batch `units(producer, x)` gets what reaches a group's consumer, x (B, …, units), and `dimensions(qkv, q, k)` the
    queries and keys of an attention layer, each (B, N, heads, head_dim); float32. Raises LabError for units that do not run.
    """
    module = copy.deepcopy(network.module).eval().to(device)
    unseen = {}
    for group in network.unit_groups if "mlp" in choice.units else ():
        unseen[group.producer] = None
        conv = isinstance(module.get_submodule(group.consumer), nn.Conv2d)

        def see(x: Tensor, name: str = group.producer, conv: bool = conv) -> None:
            unseen.pop(name, None)
            units(name, x.movedim(1, -1) if conv else x)

        input_of(module, group.consumer, see)
    for attention in network.attentions if "qk" in choice.units else ():
        unseen[attention.qkv] = None

        def split(_, __, rows: Tensor, attention: AttentionLayer = attention) -> None:
            unseen.pop(attention.qkv, None)
            dimensions(attention.qkv, *queries_and_keys(rows, attention))

        module.get_submodule(attention.qkv).register_forward_hook(split)
    for batch in calibration.split(BATCH_SIZE):
        module(batch.to(device))
    if unseen:
        raise LabError(f"The units of {next(iter(unseen))} do not run when the network does, so they cannot be ranked. Exclude the layer.")


def queries_and_keys(rows: Tensor, attention: AttentionLayer) -> tuple[Tensor, Tensor]:
    """Q and K, each (…, heads, head_dim) float32, in the output (…, 3 · heads · head_dim) of a fused qkv layer."""
    q, k, _ = rows.float().unflatten(-1, (3, attention.heads, attention.head_dim)).unbind(-3)
    return q, k

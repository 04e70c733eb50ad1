"""Slicing: units whose every weight is masked leave the network, and it becomes really smaller.

Exact, not approximate, and read from the masks alone: see `kept`. Modules stay timm's own with other sizes where timm has a size to
set; attention with fewer dimensions in Q and K than in V becomes a `SlicedAttention`.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from timm.layers.attention import Attention
from torch import nn

from starfish_lab.errors import WeightsError
from starfish_lab.execution import kept, sliced_attention
from starfish_lab.execution.cutting import resize_group
from starfish_lab.execution.sliced_attention import SlicedAttention
from starfish_lab.execution.sliced_keys import SlicedKeys
from starfish_lab.models.gather import can_gather, described, gather, gathered
from starfish_lab.models.network import AttentionLayer, Network
from starfish_lab.pruning import masks as masking
from starfish_lab.pruning.masks import Masks


def is_sliceable(masks: Masks, network: Network, *, wholly: bool = True) -> bool:
    """True if units can go and their going accounts for every masked weight, so that nothing is left to mask.

    wholly : False asks for the first alone; other zeros then stay in what is left
    """
    explained = {name: torch.ones_like(mask) for name, mask in masks.items()}
    removed = False
    for group in network.unit_groups:
        gone = ~kept.units(masks, group)
        if gone.any():
            removed = True
            explained[group.producer][gone] = False
            explained[group.consumer][:, gone] = False
    for attention in network.attentions:
        module = network.module.get_submodule(attention.name)
        removed |= not kept.attention(masks, attention, module).is_whole(attention)
        qk, v = kept.gone(masks, attention, module)
        if qk.any() or v.any():
            explained[attention.qkv][torch.cat([qk.flatten(), qk.flatten(), v.flatten()])] = False
        if v.any():
            explained[f"{attention.name}.proj"][:, v.flatten()] = False
    return removed and (not wholly or all(torch.equal(mask, explained[name]) for name, mask in masks.items()))


def slice_network(network: Network, masks: Masks) -> Network:
    """A smaller network that answers as the masked one does, to rounding. The given network is left alone."""
    small = network.copy()
    masking.apply(small.module, masks)
    for group in small.unit_groups:
        staying = kept.units(masks, group)
        if not staying.all():
            resize_group(small.module, group, staying.nonzero().flatten())
    for attention in small.attentions:
        module = small.module.get_submodule(attention.name)
        staying = kept.attention(masks, attention, module)
        if not staying.is_whole(attention):
            small.module.set_submodule(attention.name, sliced_attention.cut(module, staying))
    return _described(small)


def shapes(network: Network) -> dict[str, object]:
    """What slicing and reordering changed, as plain data: units of each producer, Q/K dimensions of each sliced attention, heads and
    V dimensions of all attentions, names of the layers that gather their inputs.
    """
    units = {group.producer: network.module.get_submodule(group.producer).weight.shape[0] for group in network.unit_groups}
    sliced = {name: module for name, module in network.module.named_modules() if isinstance(module, SlicedAttention)}
    plain = {name: module for name, module in network.module.named_modules() if type(module) is Attention}
    heads = {name: [module.num_heads, module.head_dim] for name, module in plain.items()}
    found = {
        "units": units, "qk_dims": {name: module.qk_dim for name, module in sliced.items()},
        "heads": heads | {name: [module.heads, module.v_dim] for name, module in sliced.items()}, "gathers": list(gathered(network.module)),
    }  # fmt: skip
    whole = [name for name, module in (plain | sliced).items() if isinstance(module.k_norm, SlicedKeys)]
    return {**found, "whole_keys": whole} if whole else found


def reshape_like(network: Network, shapes: dict[str, object]) -> Network:
    """The network with the shapes that `shapes` told, ready for the sliced weights; its own weights count for nothing.

    Layers that gather leave their inputs as they are until the saved order is loaded. The module is changed in place. Raises
    WeightsError if the shapes are those of another network.
    """
    groups = {group.producer: group for group in network.unit_groups}
    attentions = {attention.name: attention for attention in network.attentions}
    modules = dict(network.module.named_modules())
    heads = {name: sizes for name, sizes in shapes.get("heads", {}).items() if not _as_it_is(modules.get(name), sizes)}  # older files have none
    unknown = (set(shapes["units"]) - set(groups)) | ((set(shapes["qk_dims"]) | set(heads)) - set(attentions))
    if unknown:
        raise WeightsError(f"The saved structure names '{min(unknown)}', which {network.name} has not. Load it into the network it was saved from.")
    for producer, units in shapes["units"].items():
        current = network.module.get_submodule(producer).weight.shape[0]
        _check(producer, units, current)
        if units < current:
            resize_group(network.module, groups[producer], torch.arange(units))
    for name in dict.fromkeys([*shapes["qk_dims"], *heads]):
        whole_keys = name in shapes.get("whole_keys", ())  # it merged tokens when it was sliced
        _reshape_attention(network.module, attentions[name], shapes["qk_dims"].get(name), heads.get(name), whole_keys=whole_keys)
    _let_gather(network, shapes.get("gathers", []))  # older files have none
    return _described(network)


def _as_it_is(module: nn.Module | None, sizes: object) -> bool:
    return type(module) is Attention and sizes == [module.num_heads, module.head_dim]


def _reshape_attention(module: nn.Module, attention: AttentionLayer, qk_dim: object, sizes: object, *, whole_keys: bool) -> None:
    """An attention of the saved sizes in the place of timm's: `qk_dim` None where Q and K are as wide as V, `sizes` [heads, v_dim] or None."""
    name, dense = attention.name, module.get_submodule(attention.name)
    if sizes is not None and (not isinstance(sizes, list) or len(sizes) != 2):
        raise WeightsError(f"The saved structure gives '{name}' the sizes {sizes!r:.100}, not a number of heads and one of dimensions. Export again.")
    heads, v_dim = sizes or (attention.heads, attention.head_dim)
    equally_wide = qk_dim is None
    qk_dim = v_dim if equally_wide else qk_dim
    for size, most in ((heads, attention.heads), (v_dim, attention.head_dim), (qk_dim, attention.head_dim)):
        _check(name, size, most)
    small = sliced_attention.resized(dense, heads, v_dim) if equally_wide else SlicedAttention(dense, qk_dim, heads=heads, v_dim=v_dim)
    if whole_keys:
        small.k_norm = SlicedKeys.blank(heads, attention.head_dim, qk_dim, small.qkv.weight.device)
    module.set_submodule(name, small)


def _check(name: str, size: object, most: int) -> None:
    if not isinstance(size, int) or not 1 <= size <= most:
        raise WeightsError(f"The saved structure gives '{name}' the size {size!r}, not a whole number from 1 to {most}. Export the network again.")


def _let_gather(network: Network, names: object) -> None:
    layers = dict(network.module.named_modules())
    if not isinstance(names, list) or len(names) != len({*map(str, names)}):
        raise WeightsError(f"The saved structure's layers that gather are {names!r:.200}, not a list of names. Export the network again.")
    for name in names:
        if not isinstance(name, str) or name not in layers or not can_gather(layers[name]):
            raise WeightsError(f"The saved structure lets '{name}' gather its inputs, which {network.name} cannot. Load it into its own network.")
        inputs = layers[name].weight.shape[1]
        gather(layers[name], torch.arange(inputs, device=layers[name].weight.device))


def _described(network: Network) -> Network:
    """The network with its facts brought up to date: an attention has the heads it has, and of a sliced one no dimensions can be pruned."""
    layers = ((attention, network.module.get_submodule(attention.name)) for attention in network.attentions)
    prunable = (
        replace(attention, heads=module.num_heads, head_dim=module.head_dim)
        for attention, module in layers
        if not isinstance(module, SlicedAttention) and not isinstance(module.k_norm, SlicedKeys)
    )
    return described(replace(network, attentions=tuple(prunable)))

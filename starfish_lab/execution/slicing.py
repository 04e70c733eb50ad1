"""Slicing: units whose every weight is masked leave the network, and it becomes really smaller.

Exact, not approximate (starfish reference: structured masks expressed as zeros):

* hidden unit or inner channel j: its outgoing weights are zero, so whatever it holds reaches nothing;
* dimension d of Q and of K in a head: what remains of it is bias_q · bias_k, the same for all logits of the
  head, and softmax does not see a constant. The scale stays 1 / √(head_dim of the dense network).

Which units go is read from the masks alone.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import skip_init

from starfish_lab.errors import WeightsError
from starfish_lab.execution.sliced_keys import SlicedKeys
from starfish_lab.models.gather import GatheredLinear, can_gather, described, gather, gathered
from starfish_lab.models.network import AttentionLayer, Network, UnitGroup
from starfish_lab.pruning import masks as masking
from starfish_lab.pruning.masks import Masks


class SlicedAttention(nn.Module):
    """timm's attention with fewer dimensions in Q and K than in V. The fused qkv layer holds the rows of Q, K, V in turn.

    heads, head_dim : of the dense network, and still of V
    qk_dim : dimensions of each head left in Q and in K
    """

    def __init__(self, dense: nn.Module, qk_dim: int):
        super().__init__()
        self.heads, self.head_dim, self.qk_dim, self.scale = dense.num_heads, dense.head_dim, qk_dim, dense.scale
        rows = self.heads * (2 * qk_dim + self.head_dim)
        self.qkv = _empty_like(dense.qkv, out_features=rows)
        self.norm, self.gate, self.proj, self.proj_drop = dense.norm, dense.gate, dense.proj, dense.proj_drop
        self.k_norm = dense.k_norm  # the identity where attention is sliced, or `SlicedKeys`; token merging hears the keys here
        self.dropout = dense.attn_drop.p

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        batch, length, _ = x.shape
        width = self.heads * self.qk_dim
        parts = self.qkv(x).split([width, width, self.heads * self.head_dim], dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)  # (B, heads, N, qk_dim | head_dim)
        k = self.k_norm(k)
        if x.device.type == "cpu":
            # the fused CPU kernel wants Q, K, V equally wide, and with zeros added is still faster than the fallback
            q, k = (F.pad(part, (0, self.head_dim - self.qk_dim)) for part in (q, k))
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, dropout_p=dropout, is_causal=is_causal, scale=self.scale)
        mixed = self.norm(mixed.transpose(1, 2).reshape(batch, length, -1))
        if self.gate is not None:
            mixed = mixed * self.gate(x).sigmoid()
        return self.proj_drop(self.proj(mixed))


def is_sliceable(masks: Masks, network: Network, *, wholly: bool = True) -> bool:
    """True if units can go and their going accounts for every masked weight, so that nothing is left to mask.

    wholly : False asks for the first alone; other zeros then stay in what is left
    """
    explained = {name: torch.ones_like(mask) for name, mask in masks.items()}
    removed = 0
    for group in network.unit_groups:
        gone = ~_kept_units(masks, group)
        removed += int(gone.sum())
        if gone.any():
            explained[group.producer][gone] = False
            explained[group.consumer][:, gone] = False
    for attention in network.attentions:
        kept = _kept_dims(masks, attention)
        removed += attention.head_dim - kept.shape[1]
        if attention.qkv in masks:
            explained[attention.qkv][_both_gone(masks[attention.qkv], attention).flatten().repeat(2).nonzero().flatten()] = False
    return removed > 0 and (not wholly or all(torch.equal(mask, explained[name]) for name, mask in masks.items()))


def slice_network(network: Network, masks: Masks) -> Network:
    """A smaller network that answers as the masked one does, to rounding. The given network is left alone."""
    small = network.copy()
    masking.apply(small.module, masks)
    _cut_units(small, masks)
    _cut_attention(small, masks)
    return _described(small)


def shapes(network: Network) -> dict[str, object]:
    """What slicing and reordering changed, as plain data: units of each producer, Q/K dimensions of each sliced attention, names of
    the layers that gather their inputs.
    """
    units = {group.producer: network.module.get_submodule(group.producer).weight.shape[0] for group in network.unit_groups}
    qk_dims = {name: module.qk_dim for name, module in network.module.named_modules() if isinstance(module, SlicedAttention)}
    found = {"units": units, "qk_dims": qk_dims, "gathers": list(gathered(network.module))}
    whole = [name for name in qk_dims if isinstance(network.module.get_submodule(name).k_norm, SlicedKeys)]
    return {**found, "whole_keys": whole} if whole else found


def reshape_like(network: Network, shapes: dict[str, object]) -> Network:
    """The network with the shapes that `shapes` told, ready for the sliced weights; its own weights count for nothing.

    Layers that gather leave their inputs as they are until the saved order is loaded. The module is changed in place. Raises
    WeightsError if the shapes are those of another network.
    """
    groups = {group.producer: group for group in network.unit_groups}
    attentions = {attention.name: attention for attention in network.attentions}
    unknown = (set(shapes["units"]) - set(groups)) | (set(shapes["qk_dims"]) - set(attentions))
    if unknown:
        raise WeightsError(f"The saved structure names '{min(unknown)}', which {network.name} has not. Load it into the network it was saved from.")
    for producer, units in shapes["units"].items():
        current = network.module.get_submodule(producer).weight.shape[0]
        _check(producer, units, current)
        if units < current:
            _resize_group(network.module, groups[producer], torch.arange(units))
    for name, qk_dim in shapes["qk_dims"].items():
        _check(name, qk_dim, attentions[name].head_dim)
        small = SlicedAttention(network.module.get_submodule(name), qk_dim)
        if name in shapes.get("whole_keys", ()):  # it merged tokens when it was sliced
            small.k_norm = SlicedKeys.blank(small.heads, small.head_dim, qk_dim, small.qkv.weight.device)
        network.module.set_submodule(name, small)
    _let_gather(network, shapes.get("gathers", []))  # older files have none
    return _described(network)


@torch.inference_mode()
def largest_difference(masked: Network, sliced: Network, images: Tensor) -> float:
    """Largest difference between the logits of the two, as a fraction of the largest logit."""
    expected, found = (network.module.eval()(images) for network in (masked, sliced))
    return ((found - expected).abs().max() / expected.abs().max()).item()


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
    """The network with its facts brought up to date: a sliced attention is no longer one whose dimensions can be pruned."""
    whole = tuple(a for a in network.attentions if not isinstance(network.module.get_submodule(a.name), SlicedAttention))
    return described(replace(network, attentions=whole))


# -- which units go ---------------------------------------------------------------------------------------------------


def _kept_units(masks: Masks, group: UnitGroup) -> Tensor:
    """(units,) bool. A unit goes if all its weights in and out are masked; one stays at least."""
    if group.producer not in masks or group.consumer not in masks:
        return torch.ones(1, dtype=torch.bool)
    incoming = masks[group.producer].flatten(1).any(1)
    outgoing = masks[group.consumer].transpose(0, 1).flatten(1).any(1)
    return _not_empty(incoming | outgoing)


def _both_gone(mask: Tensor, attention: AttentionLayer) -> Tensor:
    """(heads, head_dim) bool: row d of Q and of K are masked as a whole."""
    q, k, _ = mask.any(1).cpu().view(3, attention.heads, attention.head_dim)
    return ~q & ~k


def _kept_dims(masks: Masks, attention: AttentionLayer) -> Tensor:
    """(heads, qk_dim) indices of the dimensions that stay, equally many in every head.

    A head that lost more than another keeps some of its masked dimensions: zeros, and so without effect.
    """
    if attention.qkv not in masks:
        return torch.arange(attention.head_dim).expand(attention.heads, -1)
    gone = _both_gone(masks[attention.qkv], attention)
    count = max(1, int((~gone).sum(1).max()))
    return gone.int().argsort(dim=1, stable=True)[:, :count].sort(dim=1).values


def _not_empty(kept: Tensor) -> Tensor:
    if not kept.any():
        kept[0] = True
    return kept.cpu()


# -- cutting ----------------------------------------------------------------------------------------------------------


def _cut_units(network: Network, masks: Masks) -> None:
    for group in network.unit_groups:
        kept = _kept_units(masks, group)
        if not kept.all():
            _resize_group(network.module, group, kept.nonzero().flatten())


def _resize_group(module: nn.Module, group: UnitGroup, index: Tensor) -> None:
    """Only the indexed units stay, in producer, companions and consumer."""
    _take(module.get_submodule(group.producer), index, axis=0)
    _take(module.get_submodule(group.consumer), index, axis=1)
    for name in group.companions:
        _take_norm(module.get_submodule(name), index)


@torch.no_grad()
def _take(layer: nn.Linear | nn.Conv2d, index: Tensor, *, axis: int) -> None:
    """Keep the indexed outputs (axis 0) or inputs (axis 1) of a layer."""
    index = index.to(layer.weight.device)
    layer.weight = nn.Parameter(layer.weight.index_select(axis, index), requires_grad=layer.weight.requires_grad)
    if axis == 0 and layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias[index], requires_grad=layer.bias.requires_grad)
    names = ("in_features", "out_features") if isinstance(layer, nn.Linear) else ("in_channels", "out_channels")
    setattr(layer, names[1 - axis], len(index))


@torch.no_grad()
def _take_norm(norm: nn.Module, index: Tensor) -> None:
    """Keep the indexed channels of a batch norm."""
    for name in ("weight", "bias"):
        old = getattr(norm, name)
        setattr(norm, name, nn.Parameter(old[index.to(old.device)], requires_grad=old.requires_grad))
    for name in ("running_mean", "running_var"):
        old = getattr(norm, name)
        setattr(norm, name, old[index.to(old.device)])
    norm.num_features = len(index)


@torch.no_grad()
def _cut_attention(network: Network, masks: Masks) -> None:
    for attention in network.attentions:
        kept = _kept_dims(masks, attention)  # (heads, qk_dim)
        if kept.shape[1] == attention.head_dim:
            continue
        dense = network.module.get_submodule(attention.name)
        width = attention.heads * attention.head_dim
        in_q = (kept + attention.head_dim * torch.arange(attention.heads)[:, None]).flatten()
        rows = torch.cat([in_q, width + in_q, torch.arange(2 * width, 3 * width)]).to(dense.qkv.weight.device)
        small = SlicedAttention(dense, kept.shape[1])
        small.qkv.weight.copy_(dense.qkv.weight[rows])
        if dense.qkv.bias is not None:
            small.qkv.bias.copy_(dense.qkv.bias[rows])
        if dense.k_norm._forward_hooks:  # token merging listens
            small.k_norm = SlicedKeys.of(dense, kept)
        network.module.set_submodule(attention.name, small.train(dense.training))


def _empty_like(layer: nn.Linear, *, out_features: int) -> nn.Linear:
    weight = layer.weight
    small = skip_init(nn.Linear, layer.in_features, out_features, bias=layer.bias is not None, device=weight.device, dtype=weight.dtype)
    if isinstance(layer, GatheredLinear):
        gather(small, layer.order)
    return small.requires_grad_(weight.requires_grad)

"""What stays of a network when units that are masked as a whole go, read from the masks alone.

Exact, not approximate:

* hidden unit or inner channel j: all its weights in and out are zero, so whatever it holds reaches nothing;
* dimension d of Q and of K in a head: what remains of it is bias_q · bias_k, the same for all logits of the head, and softmax
  does not see a constant;
* dimension d of V in a head: row d of V and the column of the projection that reads it are zero, a hidden unit like any other;
* a head: all its dimensions, those of Q and K and those of V.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import LongTensor, Tensor, nn

from starfish_lab.models.network import AttentionLayer, UnitGroup
from starfish_lab.pruning.masks import Masks


def units(masks: Masks, group: UnitGroup) -> Tensor:
    """(units,) bool. A unit goes if all its weights in and out are masked; one stays at least."""
    if group.producer not in masks or group.consumer not in masks:
        return torch.ones(1, dtype=torch.bool)
    incoming = masks[group.producer].flatten(1).any(1)
    outgoing = masks[group.consumer].transpose(0, 1).flatten(1).any(1)
    return _not_empty((incoming | outgoing).cpu())


@dataclass(frozen=True)
class Kept:
    """What stays of an attention of H heads with D dimensions each, equally much in every head that stays.

    A head that lost more than another keeps some of its masked dimensions: zeros, and so without effect.

    heads : (h,) indices
    qk : (h, q) indices of dimensions in each of them, for Q and K
    v : (h, v) the same for V
    """

    heads: LongTensor
    qk: LongTensor
    v: LongTensor

    def is_whole(self, attention: AttentionLayer) -> bool:
        return (len(self.heads), self.qk.shape[1], self.v.shape[1]) == (attention.heads, attention.head_dim, attention.head_dim)


def attention(masks: Masks, layer: AttentionLayer, module: nn.Module) -> Kept:
    """What stays of timm's Attention `module`."""
    qk, v = gone(masks, layer, module)
    empty = (qk & v).all(1) & (not listened_to(module))  # token merging compares means over the keys of all heads: there all stay
    heads = _not_empty(~empty).nonzero().flatten()
    return Kept(heads, _staying(qk[heads]), _staying(v[heads]))


def gone(masks: Masks, layer: AttentionLayer, module: nn.Module) -> tuple[Tensor, Tensor]:
    """(H, D) bool each: dimensions of Q and K that are masked in both, dimensions of V that nothing writes and nothing reads."""
    none = torch.zeros(layer.heads, layer.head_dim, dtype=torch.bool)
    if layer.qkv not in masks:
        return none, none
    q, k, v = masks[layer.qkv].any(1).cpu().view(3, layer.heads, layer.head_dim)
    read = masks.get(f"{layer.name}.proj")
    if read is None or not _each_for_itself(module):
        return ~q & ~k, none
    return ~q & ~k, ~v & ~read.any(0).cpu().view(layer.heads, layer.head_dim)


def listened_to(module: nn.Module) -> bool:
    """True if token merging hears the keys of this attention."""
    return bool(module.k_norm._forward_hooks)


def _each_for_itself(module: nn.Module) -> bool:
    """True if nothing between V and the projection ties its dimensions together or puts them in another order."""
    return isinstance(module.norm, nn.Identity) and module.gate is None and type(module.proj) is nn.Linear


def _staying(gone: Tensor) -> LongTensor:
    """(h, D) bool → (h, n) indices in order, n of the head that keeps most, one at least."""
    count = max(1, int((~gone).sum(1).max()))
    return gone.int().argsort(dim=1, stable=True)[:, :count].sort(dim=1).values


def _not_empty(kept: Tensor) -> Tensor:
    if not kept.any():
        kept[0] = True
    return kept

"""timm's attention made smaller: timm's own module with other sizes where Q, K and V are equally wide, `SlicedAttention` elsewhere.

Attention divides its logits by √D, D the width of the dense heads. timm's module of width q divides by √q, so there Q's weights
take the factor √(q / D).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from starfish_lab.execution.cutting import empty_like, take
from starfish_lab.execution.kept import Kept, listened_to
from starfish_lab.execution.sliced_keys import SlicedKeys

ALIGNED = 8  # fused CUDA kernels want widths of heads in such multiples, and PyTorch falls back to far slower ones without a word


class SlicedAttention(nn.Module):
    """timm's attention with another number of dimensions in Q and K than in V. The fused qkv layer holds the rows of Q, K, V in turn.

    heads : that are left
    qk_dim : dimensions of each head left in Q and in K
    v_dim : the same in V
    """

    def __init__(self, dense: nn.Module, qk_dim: int, *, heads: int | None = None, v_dim: int | None = None):
        super().__init__()
        self.heads, self.qk_dim, self.v_dim, self.scale = heads or dense.num_heads, qk_dim, v_dim or dense.head_dim, dense.scale
        width = self.heads * self.v_dim
        self.qkv = empty_like(dense.qkv, out_features=2 * self.heads * qk_dim + width)
        self.proj = dense.proj if width == dense.proj.in_features else empty_like(dense.proj, in_features=width)
        self.norm, self.gate, self.proj_drop = dense.norm, dense.gate, dense.proj_drop
        self.k_norm = dense.k_norm  # the identity where attention is sliced, or `SlicedKeys`; token merging hears the keys here
        self.dropout = dense.attn_drop.p

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        batch, length, _ = x.shape
        width = self.heads * self.qk_dim
        parts = self.qkv(x).split([width, width, self.heads * self.v_dim], dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)  # (B, heads, N, qk_dim | v_dim)
        k = self.k_norm(k)
        q, k, v = self._as_kernels_like(q, k, v)
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, dropout_p=dropout, is_causal=is_causal, scale=self.scale)
        mixed = self.norm(mixed[..., : self.v_dim].transpose(1, 2).reshape(batch, length, -1))
        if self.gate is not None:
            mixed = mixed * self.gate(x).sigmoid()
        return self.proj_drop(self.proj(mixed))

    def _as_kernels_like(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Zeros added where the device's fused kernel wants other widths: that is still faster than what it falls back to."""
        widths = {"cpu": (max(self.qk_dim, self.v_dim),) * 2, "cuda": (_aligned(self.qk_dim), _aligned(self.v_dim))}
        of_qk, of_v = widths.get(q.device.type, (self.qk_dim, self.v_dim))
        return _padded(q, of_qk), _padded(k, of_qk), _padded(v, of_v)


def _aligned(width: int) -> int:
    return -(-width // ALIGNED) * ALIGNED


def _padded(part: Tensor, width: int) -> Tensor:
    return F.pad(part, (0, width - part.shape[-1])) if width > part.shape[-1] else part


@torch.no_grad()
def cut(dense: nn.Module, kept: Kept) -> nn.Module:
    """timm's Attention `dense` with what is kept of it, its weights included. It is used up: the result may hold its layers."""
    heads, dim, width = kept.heads[:, None], dense.head_dim, dense.attn_dim
    in_qk, in_v = ((heads * dim + part).flatten() for part in (kept.qk, kept.v))
    rows = torch.cat([in_qk, width + in_qk, 2 * width + in_v])
    keys = SlicedKeys.of(dense, kept.qk) if listened_to(dense) and kept.qk.shape[1] < dim else None
    if kept.qk.shape[1] == kept.v.shape[1]:
        take(dense.qkv, rows, axis=0)
        take(dense.proj, in_v, axis=1)
        small = resized(dense, len(kept.heads), kept.qk.shape[1])
        of_q = slice(0, len(in_qk))
        factor = (kept.qk.shape[1] / dim) ** 0.5
        small.qkv.weight[of_q] *= factor
        if small.qkv.bias is not None:
            small.qkv.bias[of_q] *= factor
    else:
        small = SlicedAttention(dense, kept.qk.shape[1], heads=len(kept.heads), v_dim=kept.v.shape[1]).train(dense.training)
        _fill(small.qkv, dense.qkv, rows, axis=0)
        if small.proj is not dense.proj:
            _fill(small.proj, dense.proj, in_v, axis=1)
    if keys is not None:
        small.k_norm = keys.train(dense.training)
    return small


def resized(attention: nn.Module, heads: int, head_dim: int) -> nn.Module:
    """timm's Attention told how many heads it has and how wide they are, in place; layers of other sizes are replaced by empty ones."""
    width = heads * head_dim
    attention.num_heads, attention.head_dim, attention.attn_dim, attention.scale = heads, head_dim, width, head_dim**-0.5
    if attention.qkv.out_features != 3 * width:
        attention.qkv = empty_like(attention.qkv, out_features=3 * width)
    if attention.proj.in_features != width:
        attention.proj = empty_like(attention.proj, in_features=width)
    return attention


def _fill(small: nn.Linear, dense: nn.Linear, index: Tensor, *, axis: int) -> None:
    small.weight.copy_(dense.weight.index_select(axis, index.to(dense.weight.device)))
    if dense.bias is not None:
        small.bias.copy_(dense.bias[index.to(dense.bias.device)] if axis == 0 else dense.bias)

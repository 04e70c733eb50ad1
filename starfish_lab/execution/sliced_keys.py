"""Keys of a sliced attention as they were before slicing, for token merging, which compares keys."""

from __future__ import annotations

import torch
from torch import LongTensor, Tensor, nn


class SlicedKeys(nn.Module):
    """Stands where a sliced attention norms its keys: they pass, and `whole` tells what they were before slicing.

    Token merging compares means over heads, in which dimension d of all heads belongs together. A removed dimension of K
    holds what its bias says, in every token alike.

    dims : (heads, qk_dim) dimensions of the dense heads that are left
    rest : (heads, head_dim) the biases
    """

    def __init__(self, dims: LongTensor, rest: Tensor):
        super().__init__()
        self.register_buffer("dims", dims)
        self.register_buffer("rest", rest)

    @classmethod
    def of(cls, dense: nn.Module, dims: LongTensor) -> SlicedKeys:
        """Of an attention that keeps `dims`; what listens to the keys of `dense` listens here too."""
        weight, bias, shape = dense.qkv.weight, dense.qkv.bias, (dense.num_heads, dense.head_dim)
        rest = weight.new_zeros(shape) if bias is None else bias.detach().chunk(3)[1].view(shape).clone()
        keys = cls(dims.to(weight.device), rest)
        for hook in dense.k_norm._forward_hooks.values():
            keys.register_forward_hook(hook)
        return keys

    @classmethod
    def blank(cls, heads: int, head_dim: int, qk_dim: int, device: torch.device) -> SlicedKeys:
        """Of the right shapes, to load saved buffers into."""
        return cls(torch.arange(qk_dim, device=device).repeat(heads, 1), torch.zeros(heads, head_dim, device=device))

    def forward(self, k: Tensor) -> Tensor:
        return k

    def whole(self, k: Tensor) -> Tensor:
        """(B, heads, N, qk_dim) → (B, heads, N, head_dim)."""
        rest, dims = (part[None, :, None].expand(len(k), -1, k.shape[2], -1) for part in (self.rest.to(k.dtype), self.dims))
        return rest.scatter(-1, dims, k)

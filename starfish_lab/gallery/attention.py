"""Where a vision transformer looks: the attention of its last block, laid over the patches of a picture.

With a class token it is that token's attention to each patch, the mean over heads: what the answer is read from. Without one it is
the attention that a patch draws from all tokens on average. A merged token's attention is shared out equally among its patches. It is
one block's attention, not what decided the answer: values and later layers matter too (Jain & Wallace, arXiv 1902.10186).
"""

from __future__ import annotations

import torch
from timm.layers.attention import Attention
from torch import LongTensor, Tensor, nn

from starfish_lab.errors import Refused
from starfish_lab.execution.sliced_attention import SlicedAttention
from starfish_lab.models.network import Network

CLASS = "attention of the class token to each patch in the last block, mean over heads"
ALL = "attention that each patch draws in the last block, mean over tokens and heads (this network has no class token)"


def refuse(network: Network) -> None:
    """Raise Refused where there is no attention over patches to show."""
    kind = type(_last(network))
    if kind not in (Attention, SlicedAttention):
        raise Refused(
            f"{network.name} has no attention between all of its patches in its last block: attention is shown of vit_* and deit_* networks, "
            "of others the answers alone."
        )


class Heard:
    """Hears what the last block's attention is given during one forward pass; `over_patches` then tells of it."""

    def __init__(self, network: Network):
        refuse(network)
        self._network, self._attention = network, _last(network)

    def __enter__(self) -> Heard:
        self._handle = self._attention.register_forward_pre_hook(self._hear, with_kwargs=True)
        return self

    def __exit__(self, *exception: object) -> None:
        self._handle.remove()

    def _hear(self, module: nn.Module, inputs: tuple, options: dict) -> None:
        self._tokens = inputs[0]
        self._mask = options.get("attn_mask", inputs[1] if len(inputs) > 1 else None)

    @property
    def how(self) -> str:
        """What the figures are, in words."""
        return CLASS if _has_class_token(self._network) else ALL

    def over_patches(self, source: LongTensor | None = None) -> Tensor:
        """(B, patches), on the CPU. `source` (B, N): which of the tokens entering the block each original one is in, where tokens merged."""
        weights = probabilities(self._attention, self._tokens, self._mask).mean(dim=1).cpu()  # (B, n, n)
        drawn = weights[:, 0] if _has_class_token(self._network) else weights.mean(dim=1)  # (B, n)
        if source is None:
            return drawn[:, self._network.prefix_tokens :]
        sizes = torch.zeros_like(drawn).scatter_add(1, source, torch.ones(source.shape))
        return (drawn / sizes.clamp(min=1)).gather(1, source)[:, self._network.prefix_tokens :]


def probabilities(attention: nn.Module, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """(B, heads, N, N) what each token attends to, rows summing to 1, of tokens (B, N, D); mask is added to the logits."""
    if isinstance(attention, SlicedAttention):
        width = attention.heads * attention.qk_dim
        parts = attention.qkv(tokens)[..., : 2 * width].split(width, dim=-1)
        q, k = (part.unflatten(-1, (attention.heads, -1)).transpose(1, 2) for part in parts)
    else:
        q, k, _ = attention.qkv(tokens).unflatten(-1, (3, attention.num_heads, attention.head_dim)).permute(2, 0, 3, 1, 4)
        q, k = attention.q_norm(q), attention.k_norm(k)
    logits = q @ k.mT * attention.scale
    return (logits if mask is None else logits + mask).softmax(dim=-1)


def _has_class_token(network: Network) -> bool:
    return getattr(network.module, "cls_token", None) is not None


def _last(network: Network) -> nn.Module | None:
    return getattr(network.module.get_submodule(network.blocks[-1]), "attn", None)

"""Vision transformers of timm: vit_*, deit_*, deit3_*."""

from __future__ import annotations

from timm.layers.attention import Attention
from timm.layers.mlp import Mlp
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from starfish_lab.models.network import AttentionLayer, Fold, Residual, UnitGroup

NAMES = ("vit_*", "deit_*", "deit3_*")
TIMM_FILES = ("vision_transformer", "vision_transformer_hybrid", "deit")  # of timm.models, whose networks of these names are of this kind


def describe(module: nn.Module) -> dict[str, object] | None:
    """What a Network needs to know, or None if the module is not of this family."""
    if not isinstance(module, VisionTransformer):
        return None
    names = dict(module.named_modules())
    blocks = tuple(f"blocks.{i}" for i in range(len(module.blocks)))
    groups = tuple(
        UnitGroup(producer=f"{b}.mlp.fc1", consumer=f"{b}.mlp.fc2")
        for b in blocks
        # a gated or normed MLP couples its units, so removing one would change the others
        if isinstance(names.get(f"{b}.mlp.fc1"), nn.Linear) and isinstance(names.get(f"{b}.mlp.norm", nn.Identity()), nn.Identity)
    )
    attentions = tuple(
        AttentionLayer(name=f"{b}.attn", qkv=f"{b}.attn.qkv", heads=names[f"{b}.attn"].num_heads, head_dim=names[f"{b}.attn"].head_dim)
        for b in blocks
        if type(names.get(f"{b}.attn")) is Attention and isinstance(names[f"{b}.attn"].q_norm, nn.Identity)
    )
    return {
        "blocks": blocks, "states": "tokens", "prefix_tokens": module.num_prefix_tokens, "unit_groups": groups, "attentions": attentions,
        "foldable": tuple(fold for b in blocks for fold in _folds(b, names)),
        "residuals": tuple(one for b in blocks for one in _residuals(b, names)), "token_gate": "patch_drop",
    }  # fmt: skip


def _folds(block: str, names: dict[str, nn.Module]) -> list[Fold]:
    """Hidden units of the MLP, and dimensions of V inside each head: attention mixes tokens, never dimensions."""
    mlp, attention, found = names.get(f"{block}.mlp"), names.get(f"{block}.attn"), []
    if type(attention) is Attention and attention.gate is None and isinstance(attention.norm, nn.Identity):
        found.append(Fold(f"{block}.attn.qkv", f"{block}.attn.proj", segments=attention.num_heads, place="head"))
    if type(mlp) is Mlp and isinstance(mlp.norm, nn.Identity):
        found.append(Fold(f"{block}.mlp.fc1", f"{block}.mlp.fc2"))
    return found


def _residuals(block: str, names: dict[str, nn.Module]) -> list[Residual]:
    """x + ls1(attn(norm1(x))), then x + ls2(mlp(norm2(x))): the last layer of each branch."""
    if type(names[block]) is not Block:
        return []
    branches = ((f"{block}.attn.proj", "norm1", "ls1"), (f"{block}.mlp.fc2", "norm2", "ls2"))
    return [
        Residual(layer, f"{block}.{norm}", "" if isinstance(names[f"{block}.{scale}"], nn.Identity) else f"{block}.{scale}")
        for layer, norm, scale in branches
        if layer in names
    ]

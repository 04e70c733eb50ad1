"""Swin transformers of timm: swin_*."""

from __future__ import annotations

from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock
from torch import nn

from starfish_lab.models.network import Fold, UnitGroup

NAMES = ("swin_*",)
TIMM_FILES = ("swin_transformer",)  # of timm.models, whose networks of these names are of this kind


def describe(module: nn.Module) -> dict[str, object] | None:
    """What a Network needs to know, or None if the module is not of this family.

    A block's state is (B, H, W, C): one token a place, no class token. Windows attend through a module of their own, with a
    bias for every relative position, so Q/K dimensions stay; MLP units can go.
    """
    if not isinstance(module, SwinTransformer):
        return None
    blocks = {name: child for name, child in module.named_modules() if isinstance(child, SwinTransformerBlock)}
    groups = tuple(UnitGroup(f"{name}.mlp.fc1", f"{name}.mlp.fc2") for name, block in blocks.items() if isinstance(block.mlp.norm, nn.Identity))
    return {"blocks": tuple(blocks), "states": "tokens", "unit_groups": groups, "foldable": tuple(Fold(g.producer, g.consumer) for g in groups)}

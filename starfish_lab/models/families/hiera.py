"""Hiera networks of timm: hiera_*."""

from __future__ import annotations

from timm.models.hiera import Hiera, HieraBlock
from torch import nn

from starfish_lab.models.network import Fold, UnitGroup

NAMES = ("hiera_*",)
TIMM_FILES = ("hiera",)  # of timm.models, whose networks of these names are of this kind


def describe(module: nn.Module) -> dict[str, object] | None:
    """What a Network needs to know, or None if the module is not of this family.

    A block's state is (B, N, C) without a class token; N falls and C grows where a stage begins, inside its first block.
    Queries are pooled in the attention of such a block, so Q/K dimensions stay; MLP units can go.
    """
    if not isinstance(module, Hiera):
        return None
    blocks = {name: child for name, child in module.named_modules() if isinstance(child, HieraBlock)}
    groups = tuple(UnitGroup(f"{name}.mlp.fc1", f"{name}.mlp.fc2") for name, block in blocks.items() if isinstance(block.mlp.norm, nn.Identity))
    return {"blocks": tuple(blocks), "states": "tokens", "unit_groups": groups, "foldable": tuple(Fold(g.producer, g.consumer) for g in groups)}

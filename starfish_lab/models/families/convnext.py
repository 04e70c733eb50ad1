"""ConvNeXt networks of timm: convnext_*."""

from __future__ import annotations

from timm.layers import GlobalResponseNormMlp
from timm.models.convnext import ConvNeXt, ConvNeXtBlock
from torch import nn

from starfish_lab.models.network import Fold, UnitGroup

NAMES = ("convnext_*",)
TIMM_FILES = ("convnext",)  # of timm.models, whose networks of these names are of this kind


def describe(module: nn.Module) -> dict[str, object] | None:
    """What a Network needs to know, or None if the module is not of this family.

    Pointwise layers are Linear, or 1×1 convolutions in the variants timm builds so; units between them can go. Networks
    with global response norm are ConvNeXt V2.
    """
    if not isinstance(module, ConvNeXt) or any(isinstance(child, GlobalResponseNormMlp) for child in module.modules()):
        return None
    blocks = {name: child for name, child in module.named_modules() if isinstance(child, ConvNeXtBlock)}
    groups = tuple(UnitGroup(f"{name}.mlp.fc1", f"{name}.mlp.fc2") for name, block in blocks.items() if isinstance(block.mlp.norm, nn.Identity))
    return {"blocks": tuple(blocks), "states": "image", "unit_groups": groups, "foldable": tuple(Fold(g.producer, g.consumer) for g in groups)}

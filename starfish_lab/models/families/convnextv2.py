"""ConvNeXt V2 networks of timm: convnextv2_*."""

from __future__ import annotations

from timm.models.convnext import ConvNeXt, ConvNeXtBlock
from torch import nn

NAMES = ("convnextv2_*",)
TIMM_FILES = ("convnext",)  # of timm.models, whose networks of these names are of this kind


def describe(module: nn.Module) -> dict[str, object] | None:
    """What a Network needs to know, or None if the module is not of this family."""
    if not isinstance(module, ConvNeXt):
        return None
    blocks = tuple(name for name, child in module.named_modules() if isinstance(child, ConvNeXtBlock))
    refusal = "ConvNeXt V2 normalises each MLP unit by the mean over all units (GRN), so removing one changes the others"
    return {"blocks": blocks, "states": "image", "structured_refusal": refusal}

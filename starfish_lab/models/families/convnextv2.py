"""ConvNeXt V2 networks of timm: convnextv2_*."""

from __future__ import annotations

from timm.layers import GlobalResponseNormMlp
from timm.models.convnext import ConvNeXt, ConvNeXtBlock
from torch import nn

from starfish_lab.models.network import Fold

NAMES = ("convnextv2_*",)
TIMM_FILES = ("convnext",)  # of timm.models, whose networks of these names are of this kind


def describe(module: nn.Module) -> dict[str, object] | None:
    """What a Network needs to know, or None if the module is not of this family."""
    if not isinstance(module, ConvNeXt) or not any(isinstance(child, GlobalResponseNormMlp) for child in module.modules()):
        return None
    blocks = tuple(name for name, child in module.named_modules() if isinstance(child, ConvNeXtBlock))
    refusal = "ConvNeXt V2 normalises each MLP unit by the mean over all units (GRN), so removing one changes the others"
    foldable = tuple(  # GRN weighs each unit by itself over the mean of all, whatever their order
        Fold(f"{b}.mlp.fc1", f"{b}.mlp.fc2", (f"{b}.mlp.grn",)) for b in blocks if type(module.get_submodule(b).mlp) is GlobalResponseNormMlp
    )
    return {"blocks": blocks, "states": "image", "structured_refusal": refusal, "foldable": foldable}

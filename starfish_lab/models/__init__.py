"""Networks: timm's families by name, any module with named blocks, and what is prunable in them."""

from __future__ import annotations

from starfish_lab.registry import Registry

FAMILIES = Registry("starfish_lab.models.families", provides="describe", kind="model family")

# Those of arXiv 2606.02608, offered first.
PAPER_MODELS = (
    "vit_base_patch16_224.augreg2_in21k_ft_in1k",
    "vit_large_patch16_224.augreg_in21k_ft_in1k",
    "deit_base_patch16_224.fb_in1k",
    "convnextv2_base.fcmae_ft_in22k_in1k",
    "resnet50.tv_in1k",
    "resnet152d.ra2_in1k",
)

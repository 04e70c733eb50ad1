"""Residual networks of timm: resnet*."""

from __future__ import annotations

from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

from starfish_lab.models.network import Fold, UnitGroup

NAMES = ("resnet*",)
TIMM_FILES = ("resnet",)  # of timm.models, whose networks of these names are of this kind


def describe(module: nn.Module) -> dict[str, object] | None:
    """What a Network needs to know, or None if the module is not of this family."""
    if not isinstance(module, ResNet):
        return None
    blocks = {name: child for name, child in module.named_modules() if isinstance(child, BasicBlock | Bottleneck)}
    groups = tuple(g for name, block in blocks.items() for g in _groups(name, block))
    foldable = tuple(Fold(g.producer, g.consumer, g.companions, place="channels") for g in groups if _each_for_itself(module, g))
    return {"blocks": tuple(blocks), "states": "image", "unit_groups": groups, "foldable": foldable}


def _each_for_itself(module: nn.Module, group: UnitGroup) -> bool:
    """True if the norms between two convolutions treat every channel alone: others tie a channel to its place."""
    return all(isinstance(module.get_submodule(name), nn.BatchNorm2d) for name in group.companions)


def _groups(name: str, block: nn.Module) -> list[UnitGroup]:
    """Channels inside the block; those of its output are tied by the residual sum and stay."""
    plain = isinstance(getattr(block, "aa", None), nn.Identity | type(None)) and block.conv2.groups == 1
    if not plain:
        return []
    groups = [UnitGroup(f"{name}.conv1", f"{name}.conv2", (f"{name}.bn1",))]
    if isinstance(block, Bottleneck):
        groups.append(UnitGroup(f"{name}.conv2", f"{name}.conv3", (f"{name}.bn2",)))
    return groups

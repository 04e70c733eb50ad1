"""Convolutions as products of unfolded images: the same answers, by dense products on any device."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from starfish_lab.errors import Refused
from starfish_lab.execution import unfolding
from starfish_lab.execution.build import ready, refusal
from starfish_lab.execution.choice import Execution
from starfish_lab.models.gather import gather
from starfish_lab.pruning.prune import make_masks, pruned
from starfish_lab.recipe import PruningChoice

GEOMETRIES = [
    dict(kernel_size=3, padding=1), dict(kernel_size=3, stride=2, padding=1), dict(kernel_size=1), dict(kernel_size=1, stride=2),
    dict(kernel_size=1, padding=1), dict(kernel_size=(3, 5), padding=(0, 2), dilation=(2, 1)), dict(kernel_size=7, stride=2, padding=3, bias=False),
    dict(kernel_size=3, padding="same", dilation=2), dict(kernel_size=2, padding="valid"),
]  # fmt: skip


def pruned_by(network, **choice):
    masks = make_masks(network, PruningChoice(**choice)).masks
    return pruned(network, masks), masks


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels last"])
def test_an_unfolded_convolution_is_the_convolution(geometry, last):
    torch.manual_seed(0)
    conv, images = nn.Conv2d(6, 8, **geometry), torch.randn(3, 6, 13, 11)
    if last:
        conv, images = conv.to(memory_format=torch.channels_last), images.contiguous(memory_format=torch.channels_last)
    assert unfolding.can_unfold(conv)
    expected, module = conv(images), nn.Sequential(conv)
    layer = unfolding.unfold(module, "0")
    assert module[0] is layer and layer.linear.weight.shape == (8, conv.weight[0].numel())
    found = layer(images)
    assert found.shape == expected.shape and torch.allclose(found, expected, atol=1e-5)


def test_an_unfolded_convolution_gathers_as_it_did():
    conv, images = nn.Conv2d(6, 4, 3, padding=1), torch.randn(2, 6, 5, 5)
    gather(conv, torch.tensor([5, 0, 3, 1, 2, 4]))
    expected = conv(images)
    assert torch.allclose(unfolding.UnfoldedConv2d(conv)(images), expected, atol=1e-5)


@pytest.mark.parametrize("layer", [
    nn.Linear(4, 4), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), nn.Conv2d(4, 4, 2, padding="same"),
    nn.ConvTranspose2d(4, 4, 3), type("Standardised", (nn.Conv2d,), {})(4, 4, 3),
], ids=str)  # fmt: skip
def test_other_layers_cannot_be_unfolded(layer):
    assert not unfolding.can_unfold(layer)


def test_every_pruned_convolution_becomes_a_product_and_the_answers_stay(tiny_resnet):
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    student, masks = pruned_by(tiny_resnet, sparsity=0.5)
    found = ready(tiny_resnet, student, masks, Execution.of("im2col"), images=torch.zeros(2, 3, 32, 32).normal_(generator=torch.Generator()))
    assert torch.rand(1) == expected  # drew no random numbers of anybody's
    lowered = [name for name, layer in found.network.module.named_modules() if isinstance(layer, unfolding.UnfoldedConv2d)]
    assert lowered == list(masks) and f"{len(masks)} of {len(masks)} layers" in found.note
    assert found.proof.largest_difference < 1e-5 and found.proof.top1_agreement == 1
    assert isinstance(found.network.module.conv1, nn.Conv2d)  # the stem is not pruned
    assert isinstance(student.module.get_submodule(lowered[0]), nn.Conv2d)


def test_networks_without_pruned_convolutions_are_refused(tiny_vit, tiny_convnext1):
    student, masks = pruned_by(tiny_vit, sparsity=0.5)
    with pytest.raises(Refused, match="im2col is for convolutions, and tiny_vit has no plain ones among its pruned layers"):
        ready(tiny_vit, student, masks, Execution.of("im2col"))
    student, masks = pruned_by(tiny_convnext1, sparsity=0.5)  # pointwise layers are Linear, depthwise ones are not pruned
    plain = [name for name in masks if isinstance(tiny_convnext1.module.get_submodule(name), nn.Conv2d)]
    assert (refusal(tiny_convnext1, student, masks, Execution.of("im2col"), device="cpu") is None) == bool(plain)

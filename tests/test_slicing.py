"""Sliced networks are really smaller and answer as the masked ones do."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from timm.models.resnet import Bottleneck, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch.nn import functional as F

from starfish_lab.errors import WeightsError
from starfish_lab.execution import proof, slicing
from starfish_lab.models.loading import wrap
from starfish_lab.models.network import Preprocessing, prunable
from starfish_lab.pruning import masks as masking


def full(network):
    return {name: torch.ones_like(layer.weight, dtype=torch.bool) for name, layer in prunable(network).items()}


def structured(network, share=0.5, units=True, qk=True):
    """Random units and Q/K dimensions masked, the same share everywhere."""
    masks, generator = full(network), torch.Generator().manual_seed(3)
    for group in network.unit_groups if units else ():
        count = len(masks[group.producer])
        gone = torch.randperm(count, generator=generator)[: round(share * count)]
        masks[group.producer][gone] = False
        masks[group.consumer][:, gone] = False
    for a in network.attentions if qk else ():
        for head in range(a.heads):
            gone = head * a.head_dim + torch.randperm(a.head_dim, generator=generator)[: round(share * a.head_dim)]
            masks[a.qkv][gone] = False
            masks[a.qkv][gone + a.heads * a.head_dim] = False
    return masks


def masked(network, masks):
    """The masked network, with biases and batch-norm statistics that are not the trivial ones."""
    student = network.copy()
    torch.manual_seed(5)
    for name, tensor in student.module.state_dict().items():
        if "bias" in name or "running_mean" in name:
            tensor.copy_(0.5 * torch.randn_like(tensor))
        if "running_var" in name or name.endswith("bn1.weight"):
            tensor.copy_(0.5 + torch.rand_like(tensor))
        if name.endswith("qkv.weight"):
            tensor.mul_(10)  # attention that is far from uniform, so that a wrong scale would show
    masking.apply(student.module, masks)
    return student


def starter_like():
    torch.manual_seed(0)
    module = VisionTransformer(img_size=32, patch_size=8, embed_dim=192, depth=2, num_heads=6, num_classes=10).eval()
    return wrap(module, name="starter-like", preprocessing=Preprocessing(input_size=(3, 32, 32)))


def bottlenecks():
    torch.manual_seed(0)
    module = ResNet(Bottleneck, [1, 1, 1, 1], num_classes=10, channels=(8, 8, 16, 16)).eval()
    return wrap(module, name="bottlenecks", preprocessing=Preprocessing(input_size=(3, 32, 32)))


@pytest.fixture(params=["tiny_vit", "tiny_resnet", "starter_like", "bottlenecks"])
def network(request):
    made = {"starter_like": starter_like, "bottlenecks": bottlenecks}
    return made[request.param]() if request.param in made else request.getfixturevalue(request.param)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
def test_sliced_equals_masked(network, share):
    masks = structured(network, share)
    student, images = masked(network, masks), torch.randn(4, 3, 32, 32)
    assert slicing.is_sliceable(masks, student)
    small = slicing.slice_network(student, masks)
    with torch.no_grad():
        expected, found = student.module(images), small.module(images)
    assert torch.allclose(found, expected, atol=1e-5, rtol=0)
    assert proof.prove(student, small, images).largest_difference < 1e-5
    assert sum(p.numel() for p in small.module.parameters()) < sum(p.numel() for p in student.module.parameters())


def test_shapes_are_what_is_left(tiny_vit):
    small = slicing.slice_network(tiny_vit, structured(tiny_vit, 0.25))
    block = small.module.blocks[0]
    assert block.mlp.fc1.weight.shape == (96, 32) and block.mlp.fc1.bias.shape == (96,) and block.mlp.fc1.out_features == 96
    assert block.mlp.fc2.weight.shape == (32, 96) and block.mlp.fc2.in_features == 96
    assert block.attn.qkv.weight.shape == (2 * 12 + 2 * 12 + 32, 32) and block.attn.qkv.bias.shape == (80,)
    assert block.attn.scale == 16**-0.5  # of the dense head
    assert small.attentions == () and small.unit_groups == tiny_vit.unit_groups
    assert tiny_vit.module.blocks[0].mlp.fc1.weight.shape == (128, 32)  # untouched


def test_convolutions_take_their_batch_norm_along(tiny_resnet):
    small = slicing.slice_network(tiny_resnet, structured(tiny_resnet, 0.5))
    block = small.module.layer3[0]
    assert block.conv1.weight.shape == (8, 8, 3, 3) and block.conv1.out_channels == 8
    assert block.bn1.weight.shape == block.bn1.running_var.shape == (8,) and block.bn1.num_features == 8
    assert block.conv2.weight.shape == (16, 8, 3, 3) and block.conv2.in_channels == 8


def test_attention_on_the_cpu_and_as_written_down_agree(tiny_vit):
    """softmax(Q Kᵀ / √(dense head_dim)) V with the narrow Q and K, and with an additive mask."""
    masks = structured(tiny_vit, 0.5, units=False)
    attention = slicing.slice_network(masked(tiny_vit, masks), masks).module.blocks[0].attn
    x, bias = torch.randn(3, 17, 32), torch.randn(17, 17)
    q, k, v = attention.qkv(x).split([16, 16, 32], dim=-1)
    q, k, v = (part.reshape(3, 17, 2, -1).transpose(1, 2) for part in (q, k, v))
    expected = F.linear(
        ((q @ k.transpose(-1, -2) / 4 + bias).softmax(-1) @ v).transpose(1, 2).reshape(3, 17, 32), attention.proj.weight, attention.proj.bias
    )
    assert torch.allclose(attention(x, attn_mask=bias), expected, atol=1e-5)


def test_heads_that_lost_unequally_keep_the_largest_number(tiny_vit):
    masks = full(tiny_vit)
    for row in (0, 1, 2, 16):  # three dimensions of the first head, one of the second
        masks["blocks.0.attn.qkv"][[row, 32 + row]] = False
    student = masked(tiny_vit, masks)
    small = slicing.slice_network(student, masks)
    assert small.module.blocks[0].attn.qk_dim == 15
    assert isinstance(small.module.blocks[1].attn, type(tiny_vit.module.blocks[1].attn))
    assert proof.prove(student, small, torch.randn(2, 3, 32, 32)).largest_difference < 1e-5


def test_a_dimension_masked_in_q_alone_stays(tiny_vit):
    """Its Q is the bias then, and bias · k differs from token to token."""
    masks = full(tiny_vit)
    masks["blocks.0.attn.qkv"][0] = False
    assert not slicing.is_sliceable(masks, tiny_vit)
    assert slicing.shapes(slicing.slice_network(tiny_vit, masks))["qk_dims"] == {}


def test_only_masks_made_of_whole_units_are_sliceable(tiny_vit):
    torch.manual_seed(0)
    assert not slicing.is_sliceable({}, tiny_vit)
    assert not slicing.is_sliceable(full(tiny_vit), tiny_vit)
    assert not slicing.is_sliceable({name: torch.rand(mask.shape) > 0.5 for name, mask in full(tiny_vit).items()}, tiny_vit)
    masks = structured(tiny_vit)
    assert slicing.is_sliceable(masks, tiny_vit)
    row = masks["blocks.0.mlp.fc1"].any(1).nonzero()[0]
    masks["blocks.0.mlp.fc1"][row, 0] = False  # one weight more, inside a unit that stays
    assert not slicing.is_sliceable(masks, tiny_vit)


def test_one_unit_and_one_dimension_always_stay(tiny_vit):
    masks = structured(tiny_vit, 1.0)
    student = masked(tiny_vit, masks)
    small = slicing.slice_network(student, masks)
    assert small.module.blocks[0].mlp.fc1.out_features == 1 and small.module.blocks[0].attn.qk_dim == 1
    assert proof.prove(student, small, torch.randn(2, 3, 32, 32)).largest_difference < 1e-5


def test_the_structure_takes_the_sliced_weights_back(network):
    masks = structured(network, 0.5)
    small = slicing.slice_network(masked(network, masks), masks)
    again = slicing.reshape_like(network.copy(), slicing.shapes(small))
    again.module.load_state_dict(small.module.state_dict(), strict=True)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again.module.eval()(images), small.module(images))
    assert slicing.shapes(again) == slicing.shapes(small) and again.attentions == small.attentions


def test_a_network_that_was_not_sliced_keeps_its_shapes(tiny_vit):
    before = {name: tensor.shape for name, tensor in tiny_vit.module.state_dict().items()}
    again = slicing.reshape_like(tiny_vit.copy(), slicing.shapes(tiny_vit))
    assert {name: tensor.shape for name, tensor in again.module.state_dict().items()} == before
    assert again.attentions == tiny_vit.attentions


@pytest.mark.parametrize(
    "damage",
    [
        {"units": {"blocks.9.mlp.fc1": 4}},
        {"units": {"blocks.0.mlp.fc1": 0}},
        {"units": {"blocks.0.mlp.fc1": 129}},
        {"qk_dims": {"blocks.0.attn": 2.5}},
    ],
)
def test_a_structure_of_another_network_is_refused(tiny_vit, damage):
    with pytest.raises(WeightsError):
        slicing.reshape_like(tiny_vit.copy(), {"units": {}, "qk_dims": {}} | damage)


def test_slicing_changes_no_random_numbers_and_keeps_the_mode(tiny_vit):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    tiny_vit.module.train()
    small = slicing.slice_network(tiny_vit, structured(tiny_vit))
    assert torch.rand(1) == expected
    assert all(module.training for module in small.module.modules())


def test_a_sliced_network_still_learns(tiny_vit):
    masks = structured(tiny_vit)
    small = slicing.slice_network(tiny_vit, masks)
    small.module(torch.randn(2, 3, 32, 32)).square().sum().backward()
    for name in ("blocks.0.attn.qkv", "blocks.0.mlp.fc1"):
        gradient = small.module.get_submodule(name).weight.grad
        assert gradient is not None and gradient.abs().max() > 0
    assert dataclasses.replace(small).blocks == tiny_vit.blocks

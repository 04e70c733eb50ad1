"""Every family of networks: blocks, states, prunable layers, masks, drift, healing and slicing hold on a tiny one of each."""

from __future__ import annotations

import pytest
import timm
import torch

from starfish_lab.errors import RecipeError
from starfish_lab.execution import slicing
from starfish_lab.healing.heal import heal
from starfish_lab.measure import macs
from starfish_lab.measure.drift import drift
from starfish_lab.models import FAMILIES
from starfish_lab.models.loading import supported_names, wrap
from starfish_lab.models.network import prunable
from starfish_lab.models.states import BlockStates
from starfish_lab.pruning.prune import make_masks, pruned
from starfish_lab.recipe import HealingChoice, PruningChoice

TINY = {
    "tiny_vit": "vit", "tiny_resnet": "resnet", "tiny_convnext": "convnextv2", "tiny_convnext1": "convnext",
    "tiny_swin": "swin", "tiny_hiera": "hiera",
}  # fmt: skip
PAPER = (
    "vit_base_patch16_224.augreg2_in21k_ft_in1k", "vit_base_patch16_384.augreg_in21k_ft_in1k", "vit_large_patch16_224.augreg_in21k_ft_in1k",
    "deit_tiny_patch16_224.fb_in1k", "deit_small_patch16_224.fb_in1k", "deit_base_patch16_224.fb_in1k", "swin_tiny_patch4_window7_224.ms_in1k",
    "convnext_base.fb_in22k_ft_in1k", "convnextv2_base.fcmae_ft_in22k_in1k", "resnet18.tv_in1k", "resnet34.tv_in1k", "resnet50.tv_in1k",
    "resnet50d.ra2_in1k", "resnet101d.ra2_in1k", "resnet152d.ra2_in1k", "hiera_base_plus_224.mae_in1k_ft_in1k",
)  # fmt: skip


@pytest.fixture(params=TINY)
def network(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def images(network):
    return torch.randn(8, *network.preprocessing.input_size, generator=torch.Generator().manual_seed(1))


def test_every_family_has_a_tiny_network(request):
    assert set(TINY.values()) == set(FAMILIES.names())
    for fixture, family in TINY.items():
        module = request.getfixturevalue(fixture).module
        assert [name for name in FAMILIES.names() if FAMILIES.get(name)(module) is not None] == [family]


def test_all_networks_of_the_paper_can_be_loaded():
    assert set(PAPER) <= set(supported_names())


def test_states_are_those_of_every_block_in_order(network, images):
    with BlockStates(network.module, network.blocks) as states, torch.no_grad():
        network.module(images)
    assert len(states.values) == len(network.blocks) > 1
    for state in states.values:
        assert len(state) == len(images) and torch.isfinite(state).all()
        assert state.ndim == 4 or network.states == "tokens"


def test_prunable_layers_lie_in_the_blocks_and_hold_most_weights(network):
    layers = prunable(network)
    assert all(network.block_of(name) for name in layers)
    assert not any("head" in name or "patch_embed" in name or "conv_dw" in name for name in layers)
    assert len(prunable(network, include=("*",))) > len(layers)


@pytest.mark.parametrize("pattern", ["unstructured", "n_m"])
def test_masks_zero_what_was_asked_and_drift_sees_it(network, images, pattern):
    result = make_masks(network, PruningChoice(pattern=pattern, sparsity=0.5))
    student = pruned(network, result.masks)
    sizes = {name: mask.numel() for name, mask in result.masks.items()}
    fitting = sum(size for name, size in sizes.items() if name not in result.left_dense)
    gone = sum((~mask).sum().item() for mask in result.masks.values())
    assert gone == pytest.approx(0.5 * (fitting if pattern == "n_m" else sum(sizes.values())), abs=1)
    rows = drift(network, student, images)
    assert {row["block"] for row in rows} == set(network.blocks)
    assert all(row["cosine_distance"] > 0 for row in rows if row["tokens"] in ("all", "image"))
    assert all(abs(row["cosine_distance"]) < 1e-6 for row in drift(network, network.copy(), images))


def test_healing_brings_states_back_and_keeps_the_zeros(network, images):
    network.module.train()  # batch norms of an untrained network have yet to see an image
    with torch.no_grad():
        for _ in range(50):
            network.module(images)
    network.module.eval()

    def far(other):
        return sum(row["cosine_distance"] for row in drift(network, other, images) if row["tokens"] in ("all", "image"))

    masks = make_masks(network, PruningChoice(sparsity=0.5)).masks
    student = pruned(network, masks)
    before = far(student)
    healed = student.copy()
    heal(network, healed, masks, images, HealingChoice(steps=20, batch_size=8, learning_rate=3e-3))
    assert far(healed) < 0.9 * before
    for name, mask in masks.items():
        assert not healed.module.get_submodule(name).weight[~mask].any()


def test_units_that_go_leave_the_same_answers(network, images):
    choice = PruningChoice(pattern="structured", sparsity=0.5, units=("mlp",))
    if network.structured_refusal:
        with pytest.raises(RecipeError, match="No units can be removed"):
            make_masks(network, choice)
        return
    masks = make_masks(network, choice).masks
    small = slicing.slice_network(network, masks)
    with torch.no_grad():
        assert torch.allclose(small.module(images), pruned(network, masks).module(images), atol=1e-4)
    assert macs.total_macs(small) < macs.total_macs(network)


def test_multiply_adds_include_attention(tiny_swin, tiny_hiera):
    table = macs.layer_macs(tiny_swin).set_index("layer")["macs"]
    assert table["layers.0.blocks.1.attn.matmul"] == 2 * 256 * 16 * 16  # 256 tokens, windows of 16, 16 wide
    assert table["layers.1.blocks.0.attn.matmul"] == 2 * 64 * 16 * 32
    assert any(name.endswith("attn.matmul") for name in macs.layer_macs(tiny_hiera)["layer"])


@pytest.mark.parametrize(
    ("name", "giga", "blocks"), [("swin_tiny_patch4_window7_224", 4.5, 12), ("convnext_base", 15.4, 36), ("hiera_base_plus_224", 12.7, 24)]
)
def test_networks_of_the_new_families_cost_what_their_papers_say(name, giga, blocks):
    with torch.device("meta"):
        network = wrap(timm.create_model(name), name=name)
    assert len(network.blocks) == blocks and macs.total_macs(network) / 1e9 == pytest.approx(giga, abs=0.06)

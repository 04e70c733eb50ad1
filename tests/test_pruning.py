"""Scores, budgets and patterns: one contract for every combination, and an oracle for each of them."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from starfish_lab.calibration.activations import input_norms
from starfish_lab.errors import LabError, RecipeError
from starfish_lab.models.network import Network, prunable
from starfish_lab.pruning import BUDGETS, PATTERNS, SCORES, rules
from starfish_lab.pruning.masks import sparsity
from starfish_lab.pruning.prune import make_masks, pruned
from starfish_lab.recipe import PruningChoice

NETWORKS = ("tiny_vit", "tiny_resnet", "tiny_convnext")
FIXED = ("n_m", "structured")  # patterns that set each layer's share themselves
TRIPLES = [
    (score, budget, pattern)
    for score, budget, pattern in itertools.product(SCORES.names(), BUDGETS.names(), PATTERNS.names())
    if (pattern not in FIXED or budget == "uniform") and pattern in (rules.patterns_of(score) or PATTERNS.names())
]


def images_for(network: Network, count: int = 6) -> torch.Tensor:
    return torch.randn(count, *network.preprocessing.input_size, generator=torch.Generator().manual_seed(1))


def removed_of(masks) -> dict[str, int]:
    return {layer: int((~mask).sum()) for layer, mask in masks.items()}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("score, budget, pattern", TRIPLES)
def test_contract(score, budget, pattern, name, request):
    network = request.getfixturevalue(name)
    choice = PruningChoice(score=score, budget=budget, pattern=pattern, sparsity=0.37, seed=3)
    images = images_for(network)
    before = {key: value.clone() for key, value in network.module.state_dict().items()}
    if pattern == "structured" and network.structured_refusal:
        with pytest.raises(RecipeError, match="GRN"):
            make_masks(network, choice, calibration=images)
        return

    result = make_masks(network, choice, calibration=images)
    again = make_masks(network, choice, calibration=images)
    student = pruned(network, result.masks)

    layers = prunable(network)
    assert list(result.masks) == list(layers)
    for layer, mask in result.masks.items():
        weight, left = layers[layer].weight, student.module.get_submodule(layer).weight
        assert mask.dtype == torch.bool and mask.shape == weight.shape
        assert torch.equal(mask, again.masks[layer])
        assert torch.equal(left[mask], weight[mask]) and not left[~mask].any()
        assert layer not in result.left_dense or mask.all()
    assert network.module.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in network.module.state_dict().items())
    others = [key for key in before if key.removesuffix(".weight") not in layers]
    assert all(torch.equal(student.module.state_dict()[key], before[key]) for key in others)
    CHECKS[pattern](network, result, choice)


def check_unstructured(network, result, choice):
    gone = sparsity(network.module, result.masks)
    assert gone.removed == round(choice.sparsity * gone.prunable)
    if choice.budget == "uniform":
        for mask in result.masks.values():
            assert abs(int((~mask).sum()) - choice.sparsity * mask.numel()) < 1


def check_n_m(network, result, choice):
    for layer, mask in result.masks.items():
        if layer not in result.left_dense:
            assert (mask.reshape(-1, choice.group).sum(1) == choice.keep).all()


def check_structured(network, result, choice):
    masks = result.masks
    for group in network.unit_groups:
        units = masks[group.producer].shape[0]
        closed = ~masks[group.producer].flatten(1).any(1) & ~masks[group.consumer].transpose(0, 1).flatten(1).any(1)
        assert int(closed.sum()) == round(choice.sparsity * units)
    for attention in network.attentions:
        q, k, v = masks[attention.qkv].view(3, attention.heads, attention.head_dim, -1)
        assert torch.equal(q, k) and v.all()
        assert ((~q.any(-1)).sum(-1) == round(choice.sparsity * attention.head_dim)).all()
    assert all(masks[layer].all() for layer in masks if layer.endswith("attn.proj"))


def check_kept(network, result, choice):
    assert all(mask.all() for mask in result.masks.values()) and len(result.notes) == 1  # the network has no zeros


CHECKS = {"unstructured": check_unstructured, "n_m": check_n_m, "structured": check_structured, "kept": check_kept}


def test_every_pattern_has_its_check():
    assert set(CHECKS) == set(PATTERNS.names())


def test_random_follows_its_seed(tiny_vit):
    masks = [make_masks(tiny_vit, PruningChoice(score="random", seed=seed)).masks for seed in (0, 1)]
    assert any(not torch.equal(masks[0][layer], masks[1][layer]) for layer in masks[0])


@pytest.mark.parametrize("budget", ["uniform", "global"])
def test_magnitude_removes_the_smallest(tiny_resnet, budget):
    masks = make_masks(tiny_resnet, PruningChoice(budget=budget, sparsity=0.6)).masks
    weights = {layer: module.weight.detach().abs() for layer, module in prunable(tiny_resnet).items()}
    if budget == "global":
        everything = torch.cat([w.flatten() for w in weights.values()]).sort().values
        threshold = everything[round(0.6 * len(everything)) - 1]
        assert all(torch.equal(mask, weights[layer] > threshold) for layer, mask in masks.items())
    for layer, mask in masks.items():
        assert weights[layer][~mask].max() <= weights[layer][mask].min()


@pytest.mark.parametrize("score", ["magnitude", "wanda"])
@pytest.mark.parametrize("budget", BUDGETS.names())
def test_ties_do_not_break_exactness(tiny_vit, budget, score):
    for module in prunable(tiny_vit).values():
        module.weight.data = module.weight.data.sign() * 0.5
    masks = make_masks(tiny_vit, PruningChoice(score=score, budget=budget, sparsity=0.301), calibration=images_for(tiny_vit)).masks
    gone = sparsity(tiny_vit.module, masks)
    assert gone.removed == round(0.301 * gone.prunable)


def test_input_norms_by_unfolding():
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Conv2d(4, 6, 3, padding="same", groups=2), nn.Flatten(2), nn.Linear(16, 5)
    ).eval()  # fmt: skip
    images = torch.randn(5, 3, 8, 8)
    network = Network.of(module, blocks=["0", "1", "3"], input_size=(3, 8, 8))
    norms = input_norms(network, prunable(network, include=("*",)), images, batch_size=2)
    inputs = [images, module[0](images), module[:3](images)]

    whole = F.unfold(inputs[0], 3, padding=1, stride=2).pow(2).sum((0, 2)).sqrt()
    torch.testing.assert_close(norms["0"], whole.expand(4, -1))
    grouped = F.unfold(inputs[1], 3, padding=1).pow(2).sum((0, 2)).sqrt()  # 2 groups of 2 channels, 9 columns each
    torch.testing.assert_close(norms["1"], grouped.view(2, 18).repeat_interleave(3, 0))
    torch.testing.assert_close(norms["3"], inputs[2].pow(2).sum((0, 1)).sqrt())


def test_wanda_competes_within_rows_and_weighs_by_inputs(tiny_vit):
    layers, images = prunable(tiny_vit), images_for(tiny_vit)
    norms = input_norms(tiny_vit, layers, images)
    masks = make_masks(tiny_vit, PruningChoice(score="wanda", sparsity=0.37), calibration=images).masks
    for layer, mask in masks.items():
        score = layers[layer].weight.detach().abs() * norms[layer]
        lost = (~mask).sum(1)
        assert int(lost.max() - lost.min()) <= 1
        for row in range(0, len(mask), 7):
            assert torch.equal(score[row].argsort()[: lost[row]].sort().values, (~mask[row]).nonzero().flatten())


def test_wanda_needs_images(tiny_vit):
    with pytest.raises(RecipeError, match="calibration images"):
        make_masks(tiny_vit, PruningChoice(score="wanda"))


def test_n_m_keeps_the_largest_of_each_group(tiny_resnet):
    result = make_masks(tiny_resnet, PruningChoice(pattern="n_m", keep=3, group=8))
    for layer, module in prunable(tiny_resnet).items():
        rows = module.weight.detach().abs().reshape(-1, 8)  # C_in-major unfolding is the weight's own memory order
        for values, mask in itertools.islice(zip(rows, result.masks[layer].view(-1, 8)), 0, None, 37):
            assert set(mask.nonzero().flatten().tolist()) == set(values.argsort(descending=True)[:3].tolist())
    assert not result.left_dense


def test_n_m_names_or_refuses_what_does_not_fit(tiny_resnet, tiny_convnext):
    choice = dict(pattern="n_m", keep=8, group=16)  # the first two stages are 8 wide
    left = make_masks(tiny_resnet, PruningChoice(**choice)).left_dense
    assert left["layer1.0.conv2"] == "its 8 inputs are not divisible by 16" and "layer4.0.conv2" not in left
    with pytest.raises(RecipeError, match="layer1.0.conv2"):
        make_masks(tiny_resnet, PruningChoice(**choice, indivisible="refuse"))
    with pytest.raises(RecipeError, match="fits no prunable layer"):
        make_masks(tiny_resnet, PruningChoice(pattern="n_m", keep=2, group=7))
    depthwise = make_masks(tiny_convnext, PruningChoice(pattern="n_m", include=("stages.*.conv_dw",))).left_dense
    assert len(depthwise) == 4 and all("grouped" in reason for reason in depthwise.values())


@torch.no_grad()
def test_removed_units_leave_no_trace(tiny_vit):
    """Whatever the biases of removed units are, the output is the same: such a network can be sliced."""
    for parameter in tiny_vit.module.parameters():
        parameter.add_(0.3 * torch.randn(parameter.shape))
    masks = make_masks(tiny_vit, PruningChoice(pattern="structured", sparsity=0.5)).masks
    student, images = pruned(tiny_vit, masks), images_for(tiny_vit)
    before = student.module(images)
    for block in student.module.blocks:
        block.mlp.fc1.bias[~block.mlp.fc1.weight.any(1)] += 5
        gone = ~block.attn.qkv.weight.any(1)
        assert gone.sum() == 32 and not gone[64:].any()
        block.attn.qkv.bias[gone] += 5
    torch.testing.assert_close(student.module(images), before)


@torch.no_grad()
def test_lowest_products_of_norms_go(tiny_vit):
    fc1, fc2 = tiny_vit.module.blocks[0].mlp.fc1.weight, tiny_vit.module.blocks[0].mlp.fc2.weight
    fc1[5], fc2[:, 5] = fc1[5] * 100, fc2[:, 5] / 1e5  # a large row does not save a unit that nobody reads
    mask = make_masks(tiny_vit, PruningChoice(pattern="structured", sparsity=0.01, units=("mlp",))).masks["blocks.0.mlp.fc1"]
    products = fc1.norm(dim=1) * fc2.norm(dim=0)
    assert (~mask.any(1)).nonzero().flatten().tolist() == [int(products.argmin())] == [5]


def test_one_unit_at_least_stays(tiny_vit):
    masks = make_masks(tiny_vit, PruningChoice(pattern="structured", sparsity=0.999)).masks
    assert int(masks["blocks.0.mlp.fc1"].any(1).sum()) == 1
    assert int(masks["blocks.0.attn.qkv"][:32].any(1).sum()) == 2  # one in each head


def test_structured_leaves_excluded_partners_alone(tiny_vit):
    result = make_masks(tiny_vit, PruningChoice(pattern="structured", exclude=("blocks.0.mlp.fc2",)))
    assert "blocks.0.mlp.fc2" not in result.masks and result.masks["blocks.0.mlp.fc1"].all()
    assert "blocks.0.mlp.fc2, which is excluded" in result.left_dense["blocks.0.mlp.fc1"]
    assert not result.masks["blocks.1.mlp.fc1"].all() and not result.masks["blocks.0.attn.qkv"].all()
    with pytest.raises(RecipeError, match="excluded"):
        make_masks(tiny_vit, PruningChoice(pattern="structured", exclude=("*.fc2", "*.qkv")))


def test_structured_says_what_a_network_does_not_have(tiny_resnet):
    result = make_masks(tiny_resnet, PruningChoice(pattern="structured", sparsity=0.5))
    assert len(result.notes) == 1 and "Q/K" in result.notes[0]
    with pytest.raises(RecipeError, match="Q/K"):
        make_masks(tiny_resnet, PruningChoice(pattern="structured", units=("qk",)))


@pytest.mark.parametrize("pattern", FIXED)
@pytest.mark.parametrize("budget", [name for name in BUDGETS.names() if name != "uniform"])
def test_fixed_patterns_refuse_other_budgets(tiny_vit, pattern, budget):
    with pytest.raises(RecipeError, match="uniform"):
        make_masks(tiny_vit, PruningChoice(pattern=pattern, budget=budget))


def test_options_are_checked(tiny_vit):
    with pytest.raises(RecipeError, match="no option 'beta'"):
        make_masks(tiny_vit, PruningChoice(budget="global", options={"beta": 1.0}))
    plain, edged = (
        make_masks(tiny_vit, PruningChoice(budget=budget, sparsity=0.5, options=options)).masks
        for budget, options in (("global", {}), ("mp_edge", {"beta": 0.0}))
    )
    assert removed_of(plain) == removed_of(edged)
    assert removed_of(plain) != removed_of(make_masks(tiny_vit, PruningChoice(budget="mp_edge", sparsity=0.5)).masks)


def test_weights_that_are_not_finite_are_named(tiny_vit):
    tiny_vit.module.blocks[1].mlp.fc1.weight.data[0, 0] = float("nan")
    with pytest.raises(LabError, match="blocks.1.mlp.fc1"):
        make_masks(tiny_vit, PruningChoice())

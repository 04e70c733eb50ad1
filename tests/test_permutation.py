"""Reordered inputs change nothing the network computes, keep more under an n:m pattern, and survive saving."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from itertools import combinations

import pytest
import safetensors.torch
import timm
import torch
from timm.models.resnet import Bottleneck, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from starfish_lab import export, profile, tokens
from starfish_lab.calibration.activations import input_magnitudes, input_norms, second_moments
from starfish_lab.errors import LabError, RecipeError, WeightsError
from starfish_lab.execution import proof, slicing
from starfish_lab.measure.macs import effective_macs, layer_macs
from starfish_lab.models.gather import GatheredConv2d, GatheredLinear, gather, gathered, met
from starfish_lab.models.loading import bundled, wrap
from starfish_lab.models.network import Network, Preprocessing, prunable
from starfish_lab.pruning import PERMUTATIONS, permutations
from starfish_lab.pruning.patterns.n_m import largest_of_group
from starfish_lab.pruning.permutation import IMPORTANCES, PermutationResult, find, folds_of, importance_of, permuted
from starfish_lab.pruning.prune import make_masks, pruned
from starfish_lab.recipe import PruningChoice, Recipe, TokensChoice
from starfish_lab.spectra.layers import spectra_table

CHOICE = PruningChoice(pattern="n_m", permutation="snake")
RULES = ("deal", "snake", "search")


def skewed(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    """Importance of a weight whose columns differ in size, as trained ones do."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, columns, generator=generator) * torch.randn(columns, generator=generator).mul(0.7).exp()).square()


def alive(network: Network) -> Network:
    """Weights that matter, and norms with scales, shifts and statistics of their own, so that an entry at a wrong place shows."""
    torch.manual_seed(5)
    for tensor in (*network.module.parameters(), *network.module.buffers()):
        if not tensor.is_floating_point():
            continue
        if tensor.ndim == 1:
            tensor.data.copy_(0.5 + torch.rand_like(tensor))
        elif tensor.ndim:
            tensor.data.copy_(torch.randn_like(tensor) / tensor[0].numel() ** 0.5)
    return network


def images(network: Network, count: int = 2) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(count, *network.preprocessing.input_size)


@torch.inference_mode()
def answers(network: Network) -> torch.Tensor:
    return network.module.eval()(images(network))


def largest_change(first: Network, second: Network) -> float:
    expected = answers(first)
    return ((answers(second) - expected).abs().max() / expected.abs().max()).item()


def built(name: str) -> Network:
    torch.manual_seed(0)
    module = timm.create_model(name).eval()
    return alive(wrap(module, name=name, num_classes=1000, facts={"timm_name": name, "arguments": {"num_classes": 1000}}))


@pytest.fixture
def tiny_bottlenecks():
    torch.manual_seed(0)
    module = ResNet(Bottleneck, [1, 1, 1, 1], num_classes=10, channels=(4, 8, 8, 8)).eval()
    return wrap(module, name="tiny_bottlenecks", num_classes=10, preprocessing=Preprocessing(input_size=(3, 32, 32)))


@pytest.fixture(params=["tiny_vit", "tiny_resnet", "tiny_bottlenecks", "tiny_convnext"])
def tiny(request):
    return alive(request.getfixturevalue(request.param))


# -- rules ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", PERMUTATIONS.names())
@pytest.mark.parametrize("shape, keep, group, segments, taps", [
    ((12, 32), 2, 4, 1, 1), ((12, 48), 8, 16, 1, 1), ((12, 48), 8, 16, 2, 1), ((5, 48), 2, 4, 6, 1), ((6, 16), 8, 16, 1, 1), ((7, 48), 2, 4, 24, 1),
    ((6, 8 * 9), 2, 4, 1, 9), ((6, 32 * 9), 8, 16, 1, 9), ((6, 8 * 4), 2, 4, 1, 4), ((6, 32), 3, 4, 2, 1), ((6, 12), 1, 2, 1, 1),
])  # fmt: skip
def test_orders_are_permutations_inside_segments(rule, shape, keep, group, segments, taps):
    importance = skewed(*shape)
    channels = shape[1] // taps
    order = PERMUTATIONS.get(rule)(importance, keep=keep, group=group, segments=segments, taps=taps)
    assert order.dtype == torch.int64 and order.sort().values.tolist() == list(range(channels))
    length = channels // segments
    assert (order // length).tolist() == [place // length for place in range(channels)]


def test_deal_gives_each_group_one_of_each_bucket():
    importance = torch.tensor([[5.0, 9, 1, 7, 3, 8, 2, 6, 4, 0]])  # ranked: 1 5 3 7 0 8 4 6 2 9
    dealt = PERMUTATIONS.get("deal")(importance, keep=2, group=4)
    assert dealt.tolist() == [1, 3, 0, 4, 5, 7, 8, 6, 2, 9]  # perm[g · 4 + s] = ranked[s · 2 + g]; two are left over
    snaked = PERMUTATIONS.get("snake")(importance, keep=2, group=4)
    assert snaked.tolist() == [1, 7, 0, 6, 5, 3, 8, 4, 2, 9]


def test_ranks_add_up_over_rows_and_taps():
    importance = torch.tensor([[0.0, 4, 5, 5, 1, 1, 9, 0], [0, 4, 0, 0, 1, 1, 0, 0]])  # channels of two taps: 8, 10, 4, 9
    ranked = permutations.ranked(importance, segments=1, taps=2)
    assert ranked.tolist() == [[1, 3, 0, 2]]
    assert permutations.ranked(importance, segments=2, taps=2).tolist() == [[1, 0], [3, 2]]


@pytest.mark.parametrize("keep, group, taps", [(2, 4, 1), (8, 16, 1), (12, 16, 1), (1, 4, 9)])
def test_kept_is_what_the_pattern_keeps(keep, group, taps):
    importance, order = skewed(9, 32 * taps), torch.randperm(32, generator=torch.Generator().manual_seed(3))
    reordered = importance.unflatten(1, (-1, taps))[:, order].flatten(1)
    expected = reordered[largest_of_group(reordered, keep, group)].sum().item()
    assert permutations.kept(importance, order, keep=keep, group=group, taps=taps) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("seed", range(8))
def test_search_reaches_the_optimum_of_two_groups(seed):
    importance = torch.rand(6, 8, generator=torch.Generator().manual_seed(seed)).pow(4)
    pattern = {"keep": 2, "group": 4}
    partitions = [torch.tensor([0, *rest, *(set(range(1, 8)) - set(rest))]) for rest in combinations(range(1, 8), 3)]
    assert len(partitions) == 35
    every = [permutations.kept(importance, order, **pattern) for order in partitions]
    found = permutations.kept(importance, PERMUTATIONS.get("search")(importance, **pattern), **pattern)
    assert found == pytest.approx(max(every), rel=1e-6) and max(every) > 1.001 * min(every)


@pytest.mark.parametrize("shape, keep, group, segments, taps", [
    ((64, 96), 2, 4, 1, 1), ((64, 96), 8, 16, 1, 1), ((64, 96), 2, 4, 3, 1), ((64, 96), 8, 16, 4, 1), ((300, 32), 2, 4, 1, 1),
    ((16, 16 * 9), 2, 4, 1, 9),
])  # fmt: skip
def test_search_keeps_more_than_identity_deal_and_snake(shape, keep, group, segments, taps):
    importance = skewed(*shape)
    pattern = {"keep": keep, "group": group, "taps": taps}
    kept = {n: permutations.kept(importance, PERMUTATIONS.get(n)(importance, segments=segments, **pattern), **pattern) for n in PERMUTATIONS.names()}
    assert kept["search"] > 1.001 * max(kept[name] for name in ("none", "deal", "snake"))


def test_search_never_keeps_less_even_without_effort():
    importance = skewed(64, 96)
    kept = {n: permutations.kept(importance, PERMUTATIONS.get(n)(importance, keep=2, group=4), keep=2, group=4) for n in ("none", "deal", "snake")}
    idle = PERMUTATIONS.get("search")(importance, keep=2, group=4, effort=0.0)
    assert permutations.kept(importance, idle, keep=2, group=4) == max(kept.values())
    assert torch.equal(PERMUTATIONS.get("search")(torch.ones(3, 16), keep=2, group=4), torch.arange(16))  # nothing to gain, nothing moved


def test_equal_searches_end_equally():
    importance = skewed(300, 64)
    orders = [PERMUTATIONS.get("search")(importance, keep=2, group=4, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])


# -- networks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_nothing_changes_before_masking(tiny, rule):
    result = find(tiny, replace(CHOICE, permutation=rule), images(tiny))
    assert result.orders and {row["place"] for row in result.rows} >= {"gather"}
    reordered = permuted(tiny, result.orders)
    assert largest_change(tiny, reordered) < 1e-5
    for layer in result.orders:
        assert not torch.equal(reordered.module.get_submodule(layer).weight, tiny.module.get_submodule(layer).weight), layer


@pytest.mark.parametrize(
    "name", ["deit_tiny_patch16_224", "resnet18", "resnet50", "convnextv2_atto", "convnext_atto", "swin_tiny_patch4_window7_224", "hiera_tiny_224"]
)
def test_nothing_changes_in_networks_of_real_size(name):
    network = built(name)
    result = find(network, replace(CHOICE, permutation_options={"importance": "energy"}))
    assert largest_change(network, permuted(network, result.orders)) < 1e-5
    places = {row["layer"]: row["place"] for row in result.rows}
    folded = {layer for layer, place in places.items() if place not in ("gather", "unchanged")}
    assert folded == set(folds_of(network)) & set(places) and len(folded) >= len(network.blocks)


def test_an_order_of_the_wrong_kind_shows(tiny):
    """The bar above can fail: rows that do not follow, and entries of norms that stay, change the answers."""
    result = find(tiny, CHOICE, images(tiny))
    consumer, fold = next((name, fold) for name, fold in folds_of(tiny).items() if name in result.orders)
    reordered = permuted(tiny, {consumer: result.orders[consumer]})
    assert largest_change(tiny, reordered) < 1e-5 and not gathered(reordered.module)
    producer = reordered.module.get_submodule(fold.producer)
    producer.weight.data.copy_(tiny.module.get_submodule(fold.producer).weight)
    assert largest_change(tiny, reordered) > 1e-3


def test_where_each_layer_is_permuted(tiny_vit, tiny_resnet, tiny_bottlenecks, tiny_convnext):
    def places(network):
        orders = {name: torch.arange(layer.weight.shape[1]).flip(0) for name, layer in prunable(network).items()}
        found = {}
        for name, order in orders.items():
            fold = folds_of(network).get(name)
            if fold and fold.segments > 1:
                order = order.view(fold.segments, -1).flip(0).flatten()
            found[name] = "gather" if gathered(permuted(network, {name: order}).module) else fold.place
        return found

    vit = places(tiny_vit)
    assert vit == {f"blocks.{i}.{name}": place for i in (0, 1) for name, place in (
        ("attn.qkv", "gather"), ("attn.proj", "head"), ("mlp.fc1", "gather"), ("mlp.fc2", "hidden units"),
    )}  # fmt: skip
    basic, bottlenecks, convnext = places(tiny_resnet), places(tiny_bottlenecks), places(tiny_convnext)
    assert {name for name, place in basic.items() if place == "channels"} == {f"layer{i}.0.conv2" for i in (1, 2, 3, 4)}
    assert {name for name, place in bottlenecks.items() if place == "channels"} == {f"layer{i}.0.conv{j}" for i in (1, 2, 3, 4) for j in (2, 3)}
    assert {basic[name] for name in ("layer1.0.conv1", "layer2.0.downsample.0")} == {"gather"}
    assert {place for name, place in convnext.items() if name.endswith("fc2")} == {"hidden units"}
    assert {place for name, place in convnext.items() if name.endswith("fc1")} == {"gather"}


def test_folds_leave_out_what_ties_channels_to_places():
    def folds(**arguments):
        module = VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=1, num_heads=2, num_classes=10, **arguments)
        return {fold.consumer for fold in wrap(module, name="x").foldable}

    assert folds() == {"blocks.0.attn.proj", "blocks.0.mlp.fc2"}
    assert folds(scale_mlp_norm=True) == {"blocks.0.attn.proj"}
    assert folds(scale_attn_norm=True) == {"blocks.0.mlp.fc2"}
    assert folds(qk_norm=True) == folds()  # norms of Q and K leave V alone
    anti_aliased = wrap(timm.create_model("resnetaa50", layers=(1, 1, 1, 1)), name="x")
    assert not any(fold.consumer.startswith(("layer2.0", "layer3.0", "layer4.0")) for fold in anti_aliased.foldable)


def test_an_order_across_heads_gathers(tiny_vit):
    across = torch.arange(32).flip(0)
    reordered = permuted(tiny_vit, {"blocks.0.attn.proj": across})
    assert set(gathered(reordered.module)) == {"blocks.0.attn.proj"}
    assert largest_change(tiny_vit, reordered) < 1e-5


def test_heads_that_no_group_divides(tiny_vit):
    torch.manual_seed(0)
    module = VisionTransformer(img_size=32, patch_size=8, embed_dim=48, depth=1, num_heads=2, num_classes=10).eval()
    network = alive(wrap(module, name="x", preprocessing=Preprocessing(input_size=(3, 32, 32))))
    choice = replace(CHOICE, keep=8, group=16, permutation="search")  # heads of 24
    result = find(network, choice, images(network))
    row = next(row for row in result.rows if row["layer"].endswith("proj"))
    assert row["place"] == "head" and row["kept_after"] > row["kept_before"]
    assert largest_change(network, permuted(network, result.orders)) < 1e-5


def test_permuting_twice_is_permuting(tiny_vit):
    first = find(tiny_vit, CHOICE, images(tiny_vit)).orders
    once = permuted(tiny_vit, first)
    again = find(once, replace(CHOICE, permutation="search"), images(tiny_vit)).orders
    assert largest_change(tiny_vit, permuted(once, again)) < 1e-5


def test_without_gathering_only_folds(tiny_vit):
    result = find(tiny_vit, replace(CHOICE, permutation_options={"gather": False}), images(tiny_vit))
    assert set(result.orders) == {f"blocks.{i}.{name}" for i in (0, 1) for name in ("attn.proj", "mlp.fc2")}
    assert not gathered(permuted(tiny_vit, result.orders).module)
    assert any("4 layers keep the order" in note for note in result.notes)


def test_rows_say_what_is_kept_and_moved(tiny_vit):
    result = find(tiny_vit, replace(CHOICE, permutation="search", permutation_options={"importance": "energy"}))
    rows = {row["layer"]: row for row in result.rows}
    assert list(rows) == list(prunable(tiny_vit))
    for layer, row in rows.items():
        weight = tiny_vit.module.get_submodule(layer).weight.detach()
        energy = weight.square()
        before = energy[largest_of_group(weight.abs(), 2, 4)].sum() / energy.sum()
        moved = weight[:, result.orders[layer]].square()
        after = moved[largest_of_group(moved, 2, 4)].sum() / energy.sum()
        assert row["kept_before"] == pytest.approx(before.item(), rel=1e-5) and row["kept_after"] == pytest.approx(after.item(), rel=1e-5)
        assert row["kept_after"] > row["kept_before"] and row["elements"] == weight.numel()
        gathers = layer.endswith(("qkv", "fc1"))
        assert row["place"] == {"qkv": "gather", "fc1": "gather", "proj": "head", "fc2": "hidden units"}[layer.rpartition(".")[2]]
        assert row["values_moved"] == (17 * 32 if gathers else 0)
    assert any("4 layers gather" in note for note in result.notes)


def test_values_moved_in_a_convolution(tiny_resnet):
    rows = {row["layer"]: row for row in find(tiny_resnet, CHOICE, images(tiny_resnet)).rows}
    assert rows["layer2.0.conv1"]["values_moved"] == 8 * 8 * 8  # 8 channels of 8 × 8 after stem, pooling and the first stage
    assert rows["layer2.0.conv2"]["values_moved"] == 0


def test_layers_that_stay_dense_are_not_permuted(tiny_resnet):
    choice = replace(CHOICE, keep=8, group=16)
    result = find(tiny_resnet, choice, images(tiny_resnet))
    dense = set(make_masks(tiny_resnet, replace(choice, permutation="none")).left_dense)
    assert dense and {row["layer"] for row in result.rows} == set(prunable(tiny_resnet)) - dense
    with pytest.raises(RecipeError, match="does not fit"):
        find(tiny_resnet, replace(choice, indivisible="refuse"), images(tiny_resnet))


def test_nothing_is_found_for_none_and_permuting_by_nothing_copies(tiny_vit):
    result = find(tiny_vit, PruningChoice())
    assert result == PermutationResult({}, [], [])
    copied = permuted(tiny_vit, {})
    assert torch.equal(answers(copied), answers(tiny_vit)) and copied.module is not tiny_vit.module


def test_what_does_not_go_together_is_refused(tiny_vit):
    with pytest.raises(RecipeError, match="n_m"):
        find(tiny_vit, PruningChoice(permutation="search"), images(tiny_vit))
    with pytest.raises(RecipeError, match="calibration images"):
        find(tiny_vit, CHOICE)
    with pytest.raises(RecipeError, match="energy"):
        find(tiny_vit, replace(CHOICE, permutation_options={"importance": "power"}), images(tiny_vit))
    with pytest.raises(RecipeError, match="effort"):
        find(tiny_vit, replace(CHOICE, permutation="search", permutation_options={"efort": 1.0}), images(tiny_vit))
    for order in (torch.zeros(32, dtype=torch.long), torch.arange(31), torch.arange(32.0)):
        with pytest.raises(LabError, match="32 input channels"):
            permuted(tiny_vit, {"blocks.0.mlp.fc1": order})


def test_importances(tiny_vit, tiny_resnet):
    for network, name in ((tiny_vit, "blocks.1.mlp.fc2"), (tiny_resnet, "layer3.0.downsample.0")):
        layer, kept = network.module.get_submodule(name), []
        handle = layer.register_forward_pre_hook(lambda _, inputs, kept=kept: kept.append(inputs[0]))
        answers(network)
        handle.remove()
        h = kept[0].movedim(1, -1)[:, ::2, ::2] if kept[0].ndim == 4 else kept[0]  # the downsample's stride is 2
        h = h.flatten(0, -2)
        weight, x = layer.weight.detach().flatten(1), images(network)
        expected = {"activation": weight**2 * h.square().mean(0), "absolute": weight.abs() * h.abs().mean(0), "energy": weight**2}
        one = {name: layer}
        seen = {"activation": input_norms(network, one, x)[name], "absolute": input_magnitudes(network, one, x)[name], "energy": None}
        assert set(expected) == set(IMPORTANCES)
        for kind in IMPORTANCES:
            found = importance_of(layer.weight, kind, seen[kind])
            torch.testing.assert_close(found / found.sum(), expected[kind] / expected[kind].sum(), rtol=1e-4, atol=1e-9)


def test_the_starters_layers_keep_more_by_search():
    network = bundled()
    x = images(network, 16)
    kept = {}
    for rule in RULES:
        options = {"importance": "energy"} | ({"effort": 2.0, "escapes": 0} if rule == "search" else {})
        rows = find(network, replace(CHOICE, permutation=rule, permutation_options=options), x).rows
        kept[rule] = {row["layer"]: row["kept_after"] for row in rows}
        before = {row["layer"]: row["kept_before"] for row in rows}
    assert len(before) == 24
    for layer in before:
        gains = {rule: kept[rule][layer] - before[layer] for rule in RULES}
        print(f"{layer:20s} {before[layer]:.4f} " + " ".join(f"{rule} {gain:+.4f}" for rule, gain in gains.items()))
        assert gains["search"] > max(gains["deal"], gains["snake"], 0) + 0.001, layer


def test_masks_after_permuting_keep_more(tiny_vit):
    """The whole way: what a 2:4 magnitude mask removes from the weights' energy falls."""
    choice = replace(CHOICE, permutation="search", permutation_options={"importance": "energy"})

    def lost(network):
        masks = make_masks(network, choice).masks
        thin = pruned(network, masks)
        pairs = [(network.module.get_submodule(name).weight, thin.module.get_submodule(name).weight) for name in masks]
        return sum(((first - second) ** 2).sum().item() for first, second in pairs)

    assert lost(permuted(tiny_vit, find(tiny_vit, choice).orders)) < 0.95 * lost(tiny_vit)


# -- layers that gather, seen by the rest of the lab ------------------------------------------------------------------


@pytest.fixture
def gathering(tiny_vit):
    return permuted(alive(tiny_vit), find(tiny_vit, replace(CHOICE, permutation="search"), images(tiny_vit)).orders)


def test_gathering_layers_are_layers(gathering, tiny_vit):
    assert {type(layer) for layer in gathered(gathering.module).values()} == {GatheredLinear}
    assert list(prunable(gathering)) == list(prunable(tiny_vit))
    assert layer_macs(gathering).equals(layer_macs(tiny_vit))
    masks = make_masks(gathering, replace(CHOICE, permutation="none")).masks
    assert effective_macs(gathering, masks) < layer_macs(gathering)["macs"].sum()
    first, second = (spectra_table(network)["sigma_plus"] for network in (gathering, tiny_vit))
    assert first.tolist() == pytest.approx(second.tolist(), rel=1e-3)
    assert len(profile.compute(gathering).layers) == len(profile.compute(tiny_vit).layers)
    copied = gathering.copy()
    assert torch.equal(answers(copied), answers(gathering))
    assert gathered(copied.module)["blocks.0.attn.qkv"].order is not gathered(gathering.module)["blocks.0.attn.qkv"].order


def test_activations_are_seen_as_the_weights_meet_them(tiny):
    orders = find(tiny, CHOICE, images(tiny)).orders
    reordered, x = permuted(tiny, orders), images(tiny)
    before, after = (input_norms(network, prunable(network), x) for network in (tiny, reordered))
    for name, layer in prunable(tiny).items():
        taps = layer.weight[0, 0].numel()
        order = orders.get(name, torch.arange(layer.weight.shape[1]))
        expected = before[name].unflatten(-1, (-1, taps))[..., order, :].flatten(-2)
        torch.testing.assert_close(after[name], expected, rtol=1e-4, atol=1e-4)
    name = next(iter(gathered(reordered.module)))
    moments = [second_moments(n, {name: n.module.get_submodule(name)}, x)[name].diagonal() for n in (tiny, reordered)]
    taps = tiny.module.get_submodule(name).weight[0, 0].numel()
    torch.testing.assert_close(moments[1], moments[0].unflatten(0, (-1, taps))[orders[name]].flatten(), rtol=1e-4, atol=1e-5)


def test_gathering_layers_run_with_merged_tokens(tiny_vit):
    tokens.merge(tiny_vit, TokensChoice(r=(2,)))
    orders = find(tiny_vit, CHOICE, images(tiny_vit)).orders
    assert len(orders) == 8 and largest_change(tiny_vit, permuted(tiny_vit, orders)) < 1e-5


def test_gathering_networks_are_sliced(gathering):
    masks = make_masks(gathering, PruningChoice(pattern="structured", sparsity=0.5)).masks
    thin = pruned(gathering, masks)
    small = slicing.slice_network(thin, masks)
    assert set(gathered(small.module)) == set(gathered(gathering.module))
    assert proof.prove(thin, small, images(gathering)).largest_difference < 1e-5


def test_units_of_a_layer_that_gathers_them_stay(tiny_resnet):
    name = "layer1.0.conv2"
    across = permuted(replace(tiny_resnet, foldable=()), {name: torch.arange(8).flip(0)})
    assert type(across.module.get_submodule(name)) is GatheredConv2d
    assert name not in {group.consumer for group in across.unit_groups} and len(across.unit_groups) == len(tiny_resnet.unit_groups) - 1


def test_only_plain_layers_gather():
    class Louder(nn.Linear):
        def forward(self, input):
            return 2 * super().forward(input)

    for layer in (Louder(4, 4), nn.Conv2d(4, 4, 1, groups=2), nn.LayerNorm(4)):
        with pytest.raises(LabError, match="cannot be reordered"):
            gather(layer, torch.arange(4))
    layer, x = nn.Conv2d(4, 2, 3, padding=1, padding_mode="reflect"), torch.randn(2, 4, 6, 6)
    expected = layer(x)
    order = torch.tensor([2, 0, 3, 1])
    layer.weight.data = layer.weight.data[:, order]
    gather(layer, order)
    torch.testing.assert_close(layer(x), expected)
    assert torch.equal(met(layer, x), x[:, order])


# -- saved and loaded -------------------------------------------------------------------------------------------------


def saved(folder, network):
    return export.save(folder, network, Recipe(), masks={}, facts={})


@pytest.mark.parametrize("name", ["vit", "resnet18"])
def test_reload_answers_bit_for_bit(tmp_path, name):
    if name == "vit":
        arguments = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 10}
        facts, module = {"vit": arguments}, VisionTransformer(**arguments).eval()
    else:
        facts, module = {"timm_name": name, "arguments": {"num_classes": 10}}, timm.create_model(name, num_classes=10).eval()
    network = alive(wrap(module, name=name, num_classes=10, preprocessing=Preprocessing(input_size=(3, 32, 32)), facts=facts))
    reordered = permuted(network, find(network, CHOICE, images(network)).orders)
    assert gathered(reordered.module)
    loaded = export.load_pruned(saved(tmp_path / "n", reordered))
    assert torch.equal(answers(loaded), answers(reordered))
    assert set(gathered(loaded.module)) == set(gathered(reordered.module))
    assert (loaded.unit_groups, loaded.foldable) == (reordered.unit_groups, reordered.foldable)


@pytest.fixture
def exported(tmp_path):
    arguments = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2, "num_classes": 10}
    network = wrap(VisionTransformer(**arguments).eval(), name="x", preprocessing=Preprocessing(input_size=(3, 32, 32)), facts={"vit": arguments})
    return saved(tmp_path / "n", permuted(network, {"blocks.0.attn.qkv": torch.arange(32).flip(0)}))


def tamper(folder, *, weights=None, **structure):
    description = json.loads((folder / "recipe.json").read_text())
    description["structure"] |= structure
    if weights:
        content = safetensors.torch.save(safetensors.torch.load((folder / "network.safetensors").read_bytes()) | weights)
        (folder / "network.safetensors").write_bytes(content)
        description["weights_sha256"] = hashlib.sha256(content).hexdigest()
    (folder / "recipe.json").write_text(json.dumps(description))


@pytest.mark.parametrize("order", [
    torch.zeros(32, dtype=torch.long), torch.arange(1, 33), torch.arange(31), torch.arange(32.0), torch.arange(32, dtype=torch.int32),
    -torch.arange(32),
])  # fmt: skip
def test_an_order_that_is_none_is_refused(exported, order):
    export.load_pruned(exported)
    tamper(exported, weights={"blocks.0.attn.qkv.order": order})
    with pytest.raises(WeightsError):
        export.load_pruned(exported)


@pytest.mark.parametrize("gathers", [
    [], ["blocks.0.attn.qkv", "blocks.0.mlp.fc1"], ["blocks.0.attn.qkv", "blocks.0.norm1"], ["blocks.7.attn.qkv"], ["blocks.0.attn.qkv"] * 2,
    "blocks.0.attn.qkv", [["blocks.0.attn.qkv"]], None, {"blocks.0.attn.qkv": 1}, [7],
])  # fmt: skip
def test_other_layers_that_gather_are_refused(exported, gathers):
    tamper(exported, gathers=gathers)
    with pytest.raises(WeightsError):
        export.load_pruned(exported)


def test_files_from_before_layers_gathered_still_load(tmp_path):
    arguments = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2, "num_classes": 10}
    network = wrap(VisionTransformer(**arguments).eval(), name="x", preprocessing=Preprocessing(input_size=(3, 32, 32)), facts={"vit": arguments})
    folder = saved(tmp_path / "n", network)
    description = json.loads((folder / "recipe.json").read_text())
    assert description["structure"].pop("gathers") == []
    (folder / "recipe.json").write_text(json.dumps(description))
    assert torch.equal(answers(export.load_pruned(folder)), answers(network))

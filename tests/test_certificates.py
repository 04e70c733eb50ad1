"""Certificates by hand on linear heads, on tiny networks of all families, and against chance."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from starfish_lab import certificate_bounds as bounds
from starfish_lab.data import ImageSet
from starfish_lab.errors import ImagesError, LabError
from starfish_lab.measure import certificates as measured
from starfish_lab.measure.certificate_layers import NOT_LINEAR, find_head, head_rows, layer_rows, removed
from starfish_lab.measure.certificates import certify, certify_stages, compare_logits
from starfish_lab.models.network import Network, prunable
from starfish_lab.pruning.prune import make_masks, pruned
from starfish_lab.recipe import PruningChoice
from starfish_lab.report import Report

FAMILIES = ("tiny_vit", "tiny_resnet", "tiny_convnext")


@pytest.fixture(params=FAMILIES)
def network(request):
    return request.getfixturevalue(request.param)


def images_for(network: Network, count: int = 12) -> torch.Tensor:
    return torch.randn(count, *network.preprocessing.input_size, generator=torch.Generator().manual_seed(1))


def linear(weight: list[list[float]]) -> Network:
    """A network that is a head and nothing else."""
    module = nn.Sequential(nn.Linear(len(weight[0]), len(weight)))
    with torch.no_grad():
        module[0].weight.copy_(torch.tensor(weight))
        module[0].bias.copy_(torch.linspace(-0.1, 0.1, len(weight)))
    return Network.of(module, blocks=["0"], input_size=(len(weight[0]),))


def without(network: Network, layer: str, gone: torch.Tensor) -> Network:
    """A copy whose layer lacks the entries marked True."""
    found = network.copy()
    with torch.no_grad():
        found.module.get_submodule(layer).weight[gone] = 0
    return found


def magnitude(network: Network, sparsity: float, **choice) -> tuple[Network, dict]:
    masks = make_masks(network, PruningChoice(sparsity=sparsity, **choice)).masks
    return pruned(network, masks), masks


# logits


def test_three_images_by_hand():
    """Margins 2, 1 and 3 against 2η of 1, 2 and 2: the first and third are certain, the second changes its label."""
    dense = torch.tensor([[3.0, 1.0, 0.0], [2.0, 1.0, -5.0], [0.0, 1.0, 4.0]])
    other = torch.tensor([[2.5, 1.5, 0.5], [1.0, 2.0, -5.0], [1.0, 0.0, 4.0]])
    labels = torch.tensor([0, 0, 1])
    found = compare_logits(dense, other, labels)
    assert found["margin"].tolist() == [2, 1, 3] and found["eta"].tolist() == [0.5, 1, 1]
    assert found["certified"].tolist() == [True, False, True] and found["changed"].tolist() == [False, True, False]
    assert found["true_margin"].tolist() == [2, 1, -3]  # of class 1 in the third: 1 − 4
    assert found["may_change"].tolist() == [False, True, False] and found["right_change"].tolist() == [0, -1, 0]
    expected = F.cross_entropy(other, labels, reduction="none") - F.cross_entropy(dense, labels, reduction="none")
    assert found["ce_change"] == pytest.approx(expected.numpy(), abs=1e-6)
    row = measured.summary_row(found, scope="network", what="")
    assert (row["images"], row["certified"], row["flipped"], row["changed"]) == (3, 2, 0, 1)
    assert row["mean_change"] == pytest.approx(2.5 / 3) and row["budget"] == pytest.approx(5 / 3)
    assert row["accuracy_change"] == pytest.approx(-1 / 3) and row["accuracy_change_bound"] == pytest.approx(1 / 3)
    assert row["ce_change"] == pytest.approx(expected.abs().mean().item(), abs=1e-6)


@pytest.mark.parametrize(
    ("dense", "other"),
    [
        ([1.0, 1.0, 0.0], [1.0, 1.0, 0.0]),  # a tie has no margin, even where nothing changes
        ([1000.0, 999.9995, 0.0], [1000.0, 999.9995, 0.0]),  # nothing changes, but another batch might round it away
        ([3.0, 1.0, 0.0], [3.0, 1.0, math.nan]),
        ([3.0, math.nan, 0.0], [3.0, 1.0, 0.0]),
        ([math.inf, 1.0, 0.0], [math.inf, 1.0, 0.0]),
        ([3.0, 1.0, 0.0], [4.0, 1.0, 0.0]),  # margin 2 is 2η exactly: not more
    ],
)
def test_what_is_never_certified(dense, other):
    found = compare_logits(torch.tensor([dense]), torch.tensor([other]), torch.tensor([0]))
    assert not found["certified"][0] and found["may_change"][0]


def test_cross_entropy_and_labels_stay_within_their_bounds_whatever_the_logits():
    generator = torch.Generator().manual_seed(0)
    dense = 3 * torch.randn(20_000, 10, generator=generator)
    other = dense + torch.rand(20_000, 1, generator=generator) * torch.randn(20_000, 10, generator=generator).sign()  # every logit by ±η
    labels = torch.randint(10, (20_000,), generator=generator)
    found = compare_logits(dense, other, labels)
    assert (np.abs(found["ce_change"]) <= 2 * found["eta"] + 1e-9).all()
    assert (np.abs(found["ce_change"]) / found["eta"]).max() > 1.9  # 2 cannot be replaced by much less
    assert found["certified"].sum() > 1000 and found["changed"].sum() > 1000
    assert not (found["certified"] & found["changed"]).any()
    assert not (~found["may_change"] & (found["right_change"] != 0)).any() and (~found["may_change"]).any()


def test_two_eta_is_what_it_takes():
    """Had η itself been enough, labels certified would have changed."""
    dense, other = torch.tensor([[1.5, 0.0]]), torch.tensor([[0.6, 0.9]])
    found = compare_logits(dense, other)
    assert found["eta"][0] < found["margin"][0] < 2 * found["eta"][0] and found["changed"][0] and not found["certified"][0]


@pytest.mark.parametrize(("dense", "other"), [((4, 1), (4, 1)), ((4, 3), (4, 2)), ((4, 3, 2), (4, 3, 2))])
def test_logits_that_say_nothing_are_refused(dense, other):
    with pytest.raises(LabError, match="two or more classes"):
        compare_logits(torch.zeros(dense), torch.zeros(other))


# whole networks


@pytest.mark.parametrize("sparsity", [0.05, 0.3, 0.8])
def test_no_certified_label_flips_under_any_mask(network, sparsity):
    """Random masks, scaled so that some images are certified and some change."""
    images = images_for(network, 24)
    certified = changed = 0
    for seed in range(12):
        student, _ = magnitude(network, sparsity, score="random", seed=seed)
        (row,) = certify(network, student, images, batch_size=10).summary
        assert row["flipped"] == 0 and row["images"] == 24
        certified, changed = certified + row["certified"], changed + row["changed"]
    assert certified > 0 if sparsity == 0.05 else changed > 0


def test_figures_are_those_of_two_forward_passes(network):
    images, labels = images_for(network), torch.arange(12) % 10
    student, _ = magnitude(network, 0.5)
    found = certify(network, student, ImageSet.of(images, labels), batch_size=5)
    with torch.no_grad():
        z, y = network.module(images), student.module(images)
    assert [row["eta"] for row in found.images] == pytest.approx((z - y).abs().amax(1).tolist(), rel=1e-3, abs=1e-6)
    top = z.topk(2).values
    assert [row["margin"] for row in found.images] == pytest.approx((top[:, 0] - top[:, 1]).tolist(), rel=1e-3, abs=1e-5)
    assert [row["image"] for row in found.images] == list(range(12)) and {row["label"] for row in found.images} == {"bound"}
    (row,) = found.summary
    assert row["ce_change"] <= row["budget"] and abs(row["accuracy_change"]) <= row["accuracy_change_bound"]
    assert row["certified"] == sum(r["certified"] for r in found.images) and (row["scope"], row["label"]) == ("network", "bound")
    report = Report()
    report.add("certificates", found.summary, stage="pruned")
    report.add("certificate_images", found.images, stage="pruned")
    json.dumps(report.tables, allow_nan=False)


def test_the_dense_network_itself_keeps_every_clear_label(network):
    (row,) = certify(network, network.copy(), images_for(network)).summary
    assert row["mean_change"] == 0 and row["changed"] == 0 and row["certified"] >= 11
    assert row["ce_change"] is None and row["accuracy_change_bound"] is None


def test_images_without_labels_and_unreadable_ones(tiny_vit):
    images = images_for(tiny_vit)
    broken = ImageSet([str(i) for i in range(12)], None, lambda i: None if i in (0, 7) else images[i])
    found = certify(tiny_vit, magnitude(tiny_vit, 0.5)[0], broken, batch_size=4)
    assert [row["image"] for row in found.images] == [1, 2, 3, 4, 5, 6, 8, 9, 10, 11]
    assert found.summary[0]["images"] == 10 and found.images[0]["true_margin"] is None
    with pytest.raises(ImagesError, match="No image"):
        certify(tiny_vit, tiny_vit, images[:0])


def test_several_stages_at_once_say_what_each_says_alone(network):
    images, labels = images_for(network), torch.arange(12) % 10
    stages = {name: magnitude(network, sparsity)[0] for name, sparsity in (("pruned", 0.6), ("healed", 0.2))}
    found = certify_stages(network, stages, ImageSet.of(images, labels), batch_size=5)
    assert list(found) == ["pruned", "healed"]
    for name, student in stages.items():
        alone = certify(network, student, images, labels, batch_size=5)
        assert (found[name].summary, found[name].images) == (alone.summary, alone.images)


def test_only_the_first_images_are_kept_but_all_count(tiny_vit, monkeypatch):
    monkeypatch.setattr(measured, "MOST_IMAGES", 5)
    found = certify(tiny_vit, tiny_vit, images_for(tiny_vit), batch_size=4)
    assert len(found.images) == 5 and found.summary[0]["images"] == 12


def test_networks_are_left_as_they_were(tiny_resnet):
    tiny_resnet.module.train()
    before = {name: value.clone() for name, value in tiny_resnet.module.state_dict().items()}
    student = without(tiny_resnet, "layer2.0.conv1", torch.ones(8, 8, 3, 3, dtype=torch.bool))
    certify(tiny_resnet, student, images_for(tiny_resnet))
    layer_rows(tiny_resnet, student, ["layer2.0.conv1"], images_for(tiny_resnet))
    head_rows(tiny_resnet, student, images_for(tiny_resnet), layers=[], sparsity=0.5)
    assert tiny_resnet.module.training and all(torch.equal(value, before[name]) for name, value in tiny_resnet.module.state_dict().items())
    assert not any(module._forward_hooks for module in tiny_resnet.module.modules())


# layers


def test_a_linear_head_by_hand():
    """W = [[1, −2], [0.1, 3]], of which 0.1 and 1 go: R ψ₁ of (x, y) is (x, x / 10)."""
    network = linear([[1.0, -2.0], [0.1, 3.0]])
    gone = torch.tensor([[True, False], [True, False]])
    images = torch.tensor([[2.0, 0.0], [-4.0, 5.0], [1.0, 1.0]])
    student = without(network, "0", gone)
    found = head_rows(network, student, images, torch.tensor([0, 1, 1]), layers=["0"], sparsity=0.9)
    (row,), (layer,) = found.summary, found.layers
    assert row["mean_change"] == pytest.approx(7 / 3) and row["budget"] == pytest.approx(14 / 3)
    assert (layer["mean_change"], layer["max_change"], layer["budget"]) == pytest.approx((7 / 3, 4, 14 / 3))
    assert layer["frobenius2"] == pytest.approx(1.01) and layer["l1"] == pytest.approx(1.1) and layer["disjoint"]
    assert layer["mean_norm"] == pytest.approx((2 + math.sqrt(41) + math.sqrt(2)) / 3)
    assert (layer["label"], layer["what"], row["what"]) == ("bound", "head alone, as pruned", "head alone, as pruned")
    assert (layer["rows"], layer["cols"], layer["positions"], layer["images"]) == (2, 2, 1, 3)
    whole = certify(network, student, images, torch.tensor([0, 1, 1])).summary[0]
    for name in ("certified", "changed", "mean_change", "ce_change", "accuracy_change"):
        assert row[name] == pytest.approx(whole[name], rel=1e-5), name  # the head is all there is: both say the same
    assert row["ce_change"] <= row["budget"]


def test_an_unpruned_head_answers_what_if(network):
    images, labels = images_for(network), torch.arange(12) % 10
    student, masks = magnitude(network, 0.5)
    name = find_head(network, images[:1])
    assert name in ("head", "fc", "head.fc") and name not in masks
    found = head_rows(network, student, images, labels, layers=list(masks), sparsity=0.25)
    (row,), (layer,) = found.summary, found.layers
    weight = network.module.get_submodule(name).weight
    gone = weight.abs() <= weight.abs().flatten().sort().values[round(0.25 * weight.numel()) - 1]
    alone = certify(network, without(network, name, gone), images, labels).summary[0]
    assert row["what"] == layer["what"] == "what if: head alone, 25 % of it pruned by magnitude" and row["scope"] == "head"
    assert row["mean_change"] == pytest.approx(alone["mean_change"], rel=1e-3) and layer["mean_change"] == pytest.approx(row["mean_change"])
    assert row["ce_change"] == pytest.approx(alone["ce_change"], rel=1e-2) and 0 < row["ce_change"] <= row["budget"]
    assert layer["label"] == "bound" and layer["l1"] == pytest.approx(weight[gone].abs().sum().item(), rel=1e-5)


def test_a_network_without_a_linear_head_says_so():
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network = Network.of(module, blocks=["0"], input_size=(1, 8, 8))
    found = head_rows(network, network, torch.randn(3, 1, 8, 8), layers=["0"], sparsity=0.5)
    assert not found.summary and not found.layers and "not the output of one Linear" in found.notes[0]


def test_every_pruned_layer_has_its_row_in_order(network):
    student, masks = magnitude(network, 0.5)
    rows = layer_rows(network, student, list(masks), images_for(network), batch_size=5)
    assert [row["layer"] for row in rows] == list(masks) == list(prunable(network))
    for row in rows:
        assert row["label"] == "bound per unit L" and row["disjoint"] and row["note"] == "" and row["block"]
        assert 0 < row["mean_change"] <= row["max_change"] and row["budget"] == 2 * row["mean_change"] and row["images"] == 12
        assert row["frobenius2"] == pytest.approx(removed(network, student, row["layer"]).square().sum().item(), rel=1e-5)
    json.dumps(rows, allow_nan=False)


def direct(network: Network, layer: str, images: torch.Tensor) -> torch.Tensor:
    """What the layer gets in the dense network."""
    caught = []
    handle = network.module.get_submodule(layer).register_forward_pre_hook(lambda module, inputs: caught.append(inputs[0]))
    with torch.no_grad():
        network.module(images)
    handle.remove()
    return caught[0]


def test_tokens_against_direct_computation(tiny_vit):
    student, masks = magnitude(tiny_vit, 0.5)
    images = images_for(tiny_vit)
    for row in layer_rows(tiny_vit, student, list(masks), images, batch_size=5):
        x = direct(tiny_vit, row["layer"], images)  # (12, 17, cols)
        change = x @ (tiny_vit.module.get_submodule(row["layer"]).weight - student.module.get_submodule(row["layer"]).weight).T
        peaks = change.detach().abs().amax((1, 2))
        assert (row["mean_change"], row["max_change"]) == pytest.approx((peaks.mean().item(), peaks.max().item()), rel=1e-4)
        assert row["mean_norm"] == pytest.approx(x.norm(dim=-1).amax(1).mean().item(), rel=1e-4) and row["positions"] == 17


@pytest.mark.parametrize(
    "options",
    [{}, {"stride": 2, "padding": 1}, {"groups": 2, "padding": 2, "dilation": 2}, {"padding_mode": "reflect", "padding": 1}],
    ids=str,
)
def test_convolutions_against_unfolded_patches(options):
    torch.manual_seed(0)
    network = Network.of(nn.Sequential(nn.Conv2d(4, 6, 3, **options), nn.ReLU()), blocks=["0"], input_size=(4, 9, 9))
    gone = torch.rand(6, 4 // options.get("groups", 1), 3, 3) < 0.5
    images = torch.randn(5, 4, 9, 9)
    (row,) = layer_rows(network, without(network, "0", gone), ["0"], images, batch_size=2)
    layer = network.module[0]
    pad = options.get("padding", 0)
    padded = F.pad(images, (pad,) * 4, mode=options.get("padding_mode", "constant"))
    patches = F.unfold(padded, 3, dilation=layer.dilation, stride=layer.stride)  # (5, 4·9, L)
    groups = patches.unflatten(1, (layer.groups, -1))  # (5, groups, cols, L)
    matrix = (layer.weight.detach() * gone).flatten(1).unflatten(0, (layer.groups, -1))  # (groups, rows, cols)
    peaks = torch.einsum("grc,bgcl->bgrl", matrix, groups).abs().flatten(1).amax(1)
    assert (row["mean_change"], row["max_change"]) == pytest.approx((peaks.mean().item(), peaks.max().item()), rel=1e-5)
    assert row["mean_norm"] == pytest.approx(groups.norm(dim=2).flatten(1).amax(1).mean().item(), rel=1e-5)
    assert row["positions"] == patches.shape[-1] and (row["rows"], row["cols"]) == (6, matrix.shape[-1])


def test_windows_in_the_batch_dimension_belong_to_their_image():
    class Windows(nn.Module):
        """Cuts each image's 8 tokens into 4 windows of 2, as Swin does before attention."""

        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(3, 2, bias=False)

        def forward(self, x):
            return self.inner(x.reshape(-1, 2, 3)).reshape(len(x), -1)

    torch.manual_seed(0)
    network = Network.of(Windows(), blocks=["inner"], input_size=(8, 3))
    images = torch.randn(4, 8, 3)
    (row,) = layer_rows(network, without(network, "inner", torch.ones(2, 3, dtype=torch.bool)), ["inner"], images)
    peaks = (images @ network.module.inner.weight.T).abs().flatten(1).amax(1)
    assert row["images"] == 4 and row["positions"] == 8 and row["mean_change"] == pytest.approx(peaks.mean().item(), rel=1e-5)


def test_a_layer_that_standardises_its_weight_has_no_figures():
    class Standardised(nn.Conv2d):
        def forward(self, x):
            return F.conv2d(x, (self.weight - self.weight.mean()) / self.weight.std(), self.bias)

    network = Network.of(nn.Sequential(Standardised(2, 3, 3)), blocks=["0"], input_size=(2, 6, 6))
    (row,) = layer_rows(network, without(network, "0", torch.rand(3, 2, 3, 3) < 0.5), ["0"], torch.randn(3, 2, 6, 6))
    assert row["mean_change"] is None and row["budget"] is None and row["note"] == NOT_LINEAR


@pytest.mark.parametrize("name", ["blocks.0.mlp.fc1", "blocks.1.attn.proj"])
def test_a_layer_that_gathers_its_inputs_is_measured_in_its_own_order(tiny_vit, name):
    from starfish_lab.models.gather import gather

    reference, order = tiny_vit.copy(), torch.randperm(32, generator=torch.Generator().manual_seed(3))
    layer = reference.module.get_submodule(name)
    with torch.no_grad():
        layer.weight.copy_(layer.weight[:, order])
    gather(layer, order)
    gone = torch.rand(layer.weight.shape, generator=torch.Generator().manual_seed(4)) < 0.5
    images = images_for(tiny_vit)
    (row,) = layer_rows(reference, without(reference, name, gone), [name], images)
    back = torch.zeros_like(gone)
    back[:, order] = gone  # the same weights in the usual order of columns
    (usual,) = layer_rows(tiny_vit, without(tiny_vit, name, back), [name], images)
    for figure in ("mean_change", "max_change", "mean_norm", "frobenius2", "positions"):
        assert row[figure] == pytest.approx(usual[figure], rel=1e-4), figure
    (whole,) = certify(tiny_vit, without(reference, name, gone), images).summary
    assert whole["mean_change"] > 0 and whole["flipped"] == 0


def test_a_network_that_merges_tokens_is_certified_whole_and_its_layers_without_merging(tiny_vit):
    from starfish_lab import tokens
    from starfish_lab.recipe import TokensChoice

    student, masks = magnitude(tiny_vit, 0.1)
    images, plain_rows = images_for(tiny_vit), layer_rows(tiny_vit, student, list(masks), images_for(tiny_vit))
    merging = student.copy()
    tokens.merge(merging, TokensChoice(r=(4,)))
    assert layer_rows(tiny_vit, merging, list(masks), images) == plain_rows
    whole, unmerged = (certify(tiny_vit, other, images).summary[0] for other in (merging, student))
    assert whole["mean_change"] != unmerged["mean_change"] and whole["flipped"] == 0


def test_moved_weights_are_not_disjoint_and_moved_biases_count(tiny_vit):
    moved = tiny_vit.copy()
    layer = moved.module.get_submodule("blocks.0.mlp.fc1")
    with torch.no_grad():
        layer.bias += 100
        layer.weight[0, 0] += 1
    (row,) = layer_rows(tiny_vit, moved, ["blocks.0.mlp.fc1"], images_for(tiny_vit))
    largest = direct(tiny_vit, "blocks.0.mlp.fc1", images_for(tiny_vit))[..., 0].add(100).abs().amax().item()
    assert not row["disjoint"] and row["max_change"] == pytest.approx(largest, rel=1e-4) and row["l1"] == pytest.approx(1, rel=1e-4)


def test_a_given_table_of_spectra_is_used(tiny_vit):
    from starfish_lab.spectra.layers import spectra_table

    student, masks = magnitude(tiny_vit, 0.5)
    layers, table = list(masks), spectra_table(tiny_vit, layers=list(masks))
    fresh = layer_rows(tiny_vit, student, layers, images_for(tiny_vit))
    assert layer_rows(tiny_vit, student, layers, images_for(tiny_vit), spectra=table) == fresh
    (first, *_) = layer_rows(tiny_vit, student, layers, images_for(tiny_vit), spectra=table.assign(sigma=7.0))
    assert first["sigma"] == 7 and fresh[0]["sigma"] == pytest.approx(table["sigma"][0])


def test_shapes_that_differ_and_layers_that_never_run_are_named(tiny_vit):
    other = tiny_vit.copy()
    other.module.blocks[0].mlp.fc1 = nn.Linear(32, 8)
    with pytest.raises(LabError, match="blocks.0.mlp.fc1"):
        layer_rows(tiny_vit, other, ["blocks.0.mlp.fc1"], images_for(tiny_vit))
    tiny_vit.module.idle = nn.Linear(3, 3)
    with pytest.raises(LabError, match="idle"):
        layer_rows(tiny_vit, tiny_vit.copy(), ["idle"], images_for(tiny_vit))
    with pytest.raises(ImagesError):
        layer_rows(tiny_vit, tiny_vit, ["head"], images_for(tiny_vit)[:0])


# bounds


def test_the_elastic_net_inequality_holds_on_a_head():
    """J(S) ≤ J(A) − slack, for cross-entropy and both penalties computed afresh."""
    torch.manual_seed(0)
    network = linear(torch.randn(5, 12).tolist())
    images, labels = torch.randn(40, 12), torch.randint(5, (40,))

    def objective(found: Network, l1: float, l2: float) -> float:
        weight = found.module[0].weight
        return (F.cross_entropy(found.module(images), labels) + l2 * weight.square().sum() + l1 * weight.abs().sum()).item()

    signs = set()
    for sparsity in (0.1, 0.5, 0.9):
        weight = network.module[0].weight
        student = without(network, "0", weight.abs() < weight.abs().flatten().quantile(sparsity))
        (row,) = head_rows(network, student, images, labels, layers=["0"], sparsity=sparsity).layers
        for l1, l2 in ((0.0, 0.01), (0.3, 0.0), (0.5, 0.5)):
            slack = bounds.elastic_net_slack(row["budget"], row["frobenius2"], row["l1"], l1, l2).item()
            signs.add(slack > 0)
            assert slack == pytest.approx(l2 * row["frobenius2"] + l1 * row["l1"] - row["budget"])
            assert objective(student, l1, l2) <= objective(network, l1, l2) - slack + 1e-4
    assert signs == {True, False}


def test_slack_grows_with_both_lambdas_and_changes_sign_where_said():
    lambdas = np.geomspace(1e-6, 1, 50)
    assert (np.diff(bounds.elastic_net_slack(0.4, 30.0, 90.0, 1e-3, lambdas)) > 0).all()
    assert (np.diff(bounds.elastic_net_slack(0.4, 30.0, 90.0, lambdas, 1e-3)) > 0).all()
    turn = bounds.smallest_lambda2(0.4, 30.0, 90.0, 1e-3).item()
    assert turn == pytest.approx((0.4 - 0.09) / 30) and bounds.elastic_net_slack(0.4, 30.0, 90.0, 1e-3, turn) == pytest.approx(0)
    assert bounds.smallest_lambda2([0.4, 0.4, 0.0], [30, 0, 0], [90, 0, 0], 1.0).tolist() == [0, np.inf, 0]
    assert np.isnan(bounds.smallest_lambda2(None, 1.0, 1.0, 0.0))


def test_the_gaussian_bound_is_the_papers():
    """[2σ₊/(1+√(m/n))] √((2/n) log(2n|T|/δ)) mean‖v‖, with σ₊ = σ(√n + √m)."""
    n, m, images, delta, sigma, norm = 64, 16, 100, 0.05, 0.02, 3.5
    edge = sigma * (math.sqrt(n) + math.sqrt(m))
    expected = 2 * edge / (1 + math.sqrt(m / n)) * math.sqrt(2 / n * math.log(2 * n * images / delta)) * norm
    assert bounds.gaussian_budget(sigma, n, images, norm, delta).item() == pytest.approx(expected)
    assert bounds.gaussian_budget(sigma, n, images, norm, delta, positions=17) > expected
    for wrong in (0, 1, -0.1, math.nan):
        with pytest.raises(LabError, match="δ"):
            bounds.gaussian_budget(sigma, n, images, norm, wrong)


@pytest.mark.parametrize("positions", [1, 7])
def test_the_gaussian_bound_fails_no_more_often_than_it_says(positions):
    """Noise drawn anew 400 times; the bound is about each image at once, so the largest image counts, and no draw may be far below."""
    rng = np.random.default_rng(0)
    n, m, images, sigma, delta = 32, 48, 20, 0.1, 0.3
    v = rng.standard_normal((images, positions, m))
    norms = np.linalg.norm(v, axis=-1).max(1)
    bound = bounds.gaussian_budget(sigma, n, images, norms.mean(), delta, positions=positions).item()
    factor = bound / 2 / norms.mean()  # of ‖v‖, for one image
    failed = exceeded = 0
    for _ in range(400):
        change = np.abs(np.einsum("rm,tpm->tpr", sigma * rng.standard_normal((n, m)), v)).max((1, 2))
        exceeded += bool(2 * change.mean() > bound)
        failed += bool((change > factor * norms).any())
    assert exceeded == 0 and failed <= delta * 400
    assert 2 * change.mean() > bound / 2  # and it says something: half of it would be broken

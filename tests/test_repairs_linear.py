"""Repairs that solve linear systems: against numpy's least squares, the textbook sweep, and the layers' own outputs."""

from __future__ import annotations

import itertools
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from test_healing import Watcher, half, images_for, lively
from torch import nn
from torch.nn import functional as F

from starfish_lab.calibration import supports
from starfish_lab.calibration.moments import repairable, walk
from starfish_lab.calibration.replay import CHUNK
from starfish_lab.errors import LabError, RecipeError
from starfish_lab.healing import REPAIRS
from starfish_lab.healing.session import Session
from starfish_lab.models.gather import gather, met
from starfish_lab.models.network import Network
from starfish_lab.pruning.prune import make_masks, pruned
from starfish_lab.recipe import PruningChoice, TokensChoice
from starfish_lab.tokens import merge

LINEAR = ("least_squares", "sparsegpt_update", "mean_shift")
FAMILIES = ("tiny_vit", "tiny_resnet", "tiny_swin")


@pytest.fixture(params=FAMILIES)
def network(request) -> Network:
    return lively(request.getfixturevalue(request.param))


def session(dense: Network, masks: dict, *, images: torch.Tensor | None = None, student: Network | None = None, memory: float = 1e9) -> Session:
    return Session(
        dense=dense, student=student or pruned(dense, masks), masks=masks, batches=None,
        calibration=images_for(dense, 36) if images is None else images, device=torch.device("cpu"), reporter=Watcher(), teacher_memory=memory,
    )  # fmt: skip


def repaired(name: str, dense: Network, masks: dict, **options) -> Session:
    one = session(dense, masks)
    REPAIRS.get(name)(one, **options)
    return one


@contextmanager
def watched(network: Network, layer: str):
    """Inputs as the weight meets them and outputs of a layer, while the network runs."""
    seen = []
    handle = network.module.get_submodule(layer).register_forward_hook(lambda module, args, output: seen.append((met(module, args[0]), output)))
    yield seen
    handle.remove()


@torch.no_grad()
def rows(network: Network, layer: str, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """All inputs (rows, cols) that the unfolded weight meets, and all outputs (rows, out), in float64, from one plain pass."""
    with watched(network, layer) as seen:
        network.module(images)
    (x, y), module = seen[0], network.module.get_submodule(layer)
    if isinstance(module, nn.Conv2d):
        x = F.unfold(x, module.kernel_size, module.dilation, module.padding, module.stride).mT  # (B, places, cols)
        y = y.flatten(2).mT
    return x.flatten(0, -2).double(), y.flatten(0, -2).double()


def layer_of(network: Network, name: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    module = network.module.get_submodule(name)
    return module.weight.detach().double().flatten(1), None if module.bias is None else module.bias.detach().double()


# -- what layers meet -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [1e9, 0.0])
def test_moments_are_those_of_one_plain_pass(network, memory):
    """Without memory all rows count too, but for targets of pairs, of which only what has room is kept."""
    masks = half(network)
    one = session(network, masks, memory=memory)
    plain = {which: {name: rows(net, name, one.calibration) for name in masks} for which, net in (("dense", network), ("pruned", one.student))}
    for together, inputs in itertools.product(("layer", "block"), ("dense", "pruned")):
        targets = "layer" if memory or inputs == "dense" else None
        found = {}
        for stage in walk(one, repairable(one, one.masks), inputs=inputs, together=together, targets=targets, rows=10**6):
            found |= stage
        assert list(found) == list(masks)
        for name, moments in found.items():
            x, y = plain[inputs][name][0], plain["dense"][name][1]
            pairs = [(moments.mean, x.mean(0)), (moments.second, x.T @ x / len(x))]
            pairs += [(moments.target, y.mean(0)), (moments.cross, x.T @ y / len(x))] if targets else []
            for value, expected in pairs:
                torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
            assert moments.rows == len(x)


def test_inputs_that_hardly_vary_keep_their_digits():
    """About a mean of 30 and a deviation of 0.001, E[x xᵀ] in float32 holds the mean's rounding and nothing of the variance."""
    dense = Network.of(nn.Sequential(nn.Linear(6, 4)), blocks=["0"], input_size=(6,))
    images = 30 + 1e-3 * torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    (found,) = next(iter(walk(session(dense, {}, images=images), ["0"], inputs="pruned"))).values()
    x, weight = images.double().numpy(), dense.module[0].weight.detach().double().numpy()
    covariance = (found.second - torch.outer(found.mean, found.mean)).numpy()
    assert np.allclose(covariance, np.cov(x.T, bias=True), rtol=1e-3, atol=1e-9)
    assert np.allclose((found.cross - torch.outer(found.mean, found.target)).numpy(), np.cov(x.T, bias=True) @ weight.T, rtol=0.05, atol=3e-8)


def test_a_look_sees_what_earlier_repairs_changed(network):
    one = session(network, half(network))
    means = {}
    for stage in walk(one, repairable(one, one.masks), inputs="pruned", targets=None, rows=10**6):
        for name, moments in stage.items():
            means[name] = moments.mean
            with torch.no_grad():
                one.student.module.get_submodule(name).weight.mul_(1.2)
    for name, mean in means.items():
        expected = rows(one.student, name, one.calibration)[0].mean(0)
        torch.testing.assert_close(mean, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("memory, passes", [(1e9, 1 + 2), (0.0, 1 + 1 + 8)])
def test_a_block_is_entered_from_the_block_before(tiny_vit, memory, passes):
    """One image tells how blocks follow, then each of two chunks runs from the images once, and all else starts at a block.

    Without memory one chunk is kept all the same, and the other runs from the images for each of the eight layers.
    """
    one = session(tiny_vit, half(tiny_vit), memory=memory)
    assert len(one.calibration) > CHUNK
    runs = []
    one.student.module.patch_embed.register_forward_hook(lambda *_: runs.append(1))
    list(walk(one, repairable(one, one.masks), inputs="pruned", targets=None))
    assert len(runs) == passes


def test_targets_are_heard_before_what_follows_works_in_place():
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(inplace=True)) for _ in range(3)]
    dense = Network.of(nn.Sequential(*blocks).eval(), blocks=["0", "1", "2"], input_size=(3, 8, 8), states="image")
    for found in walk(session(dense, {}, student=dense.copy()), ["0.0", "1.0", "2.0"], inputs="pruned"):
        ((name, moments),) = found.items()
        weight, bias = layer_of(dense, name)
        assert torch.allclose(moments.target, weight @ moments.mean + bias, atol=1e-6), name


@pytest.mark.parametrize("asked, memory, counted", [(50, 1e9, 50), (10**6, 0.0, 1)])
def test_rows_are_drawn_alike_in_both_networks(tiny_resnet, asked, memory, counted):
    """Few patches of many, as asked or for want of memory: with equal networks E[x yᵀ] must still be E[x xᵀ] Wᵀ, which holds for pairs alone."""
    one = session(tiny_resnet, half(tiny_resnet), student=tiny_resnet.copy(), memory=memory)
    for stage in walk(one, repairable(one, one.masks), inputs="pruned", rows=asked):
        for name, moments in stage.items():
            weight, bias = layer_of(tiny_resnet, name)
            chunks = [len(rows(tiny_resnet, name, chunk)[0]) for chunk in one.calibration.split(CHUNK)]
            assert bias is None and len(chunks) == 2 and moments.rows == sum(min(counted, patches) for patches in chunks)
            torch.testing.assert_close(moments.cross, moments.second @ weight.T, rtol=1e-3, atol=1e-4)


def test_merging_tokens_do_not_pair(tiny_vit):
    student = tiny_vit.copy()
    merge(student, TokensChoice(r=(4,)))
    masks = half(tiny_vit)
    one = session(tiny_vit, masks, student=pruned(student, masks))
    with pytest.raises(RecipeError, match="merges tokens"):
        REPAIRS.get("least_squares")(one)
    for name, options in (("least_squares", {"inputs": "dense"}), ("sparsegpt_update", {}), ("mean_shift", {})):
        REPAIRS.get(name)(one, **options)


def test_a_layer_that_never_runs_is_named(tiny_vit):
    tiny_vit.module.blocks[1].mlp.spare = nn.Linear(4, 4)
    with pytest.raises(LabError, match="blocks.1.mlp.spare does not run"):
        repaired("least_squares", tiny_vit, {"blocks.1.mlp.spare": torch.ones(4, 4, dtype=torch.bool)})


# -- all of them ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("inputs", ["dense", "pruned"])
def test_with_nothing_pruned_nothing_changes(network, name, inputs):
    one = repaired(name, network, {name: torch.ones_like(mask) for name, mask in half(network).items()}, inputs=inputs)
    for (key, before), after in zip(network.module.state_dict().items(), one.student.module.state_dict().values()):
        assert (after - before).abs().max() <= 1e-3 * before.abs().max().clamp_min(0.01), key


@pytest.mark.parametrize("name", LINEAR)
def test_zeros_stay_and_only_masked_layers_change(network, name):
    masks = half(network)
    one = repaired(name, network, masks)
    mine = {f"{layer}.{what}" for layer in masks for what in ("weight", "bias")}
    before, changed = pruned(network, masks).module.state_dict(), set()
    for key, after in one.student.module.state_dict().items():
        assert torch.isfinite(after).all()
        if not torch.equal(after, before[key]):
            changed.add(key)
    assert changed <= mine and all(not one.student.module.get_submodule(layer).weight[~mask].any() for layer, mask in masks.items())
    weights = {key for key in changed if key.endswith("weight")}
    assert weights == (set() if name == "mean_shift" else {f"{layer}.weight" for layer in masks})
    assert one.reporter.step == one.reporter.steps or not changed


@pytest.mark.parametrize("name", LINEAR)
def test_wrong_options_are_named(tiny_vit, name):
    for options in ({"inputs": "both"}, {"rows": 0}, *({"least_squares": [{"ridge": -1}, {"bias": "yes"}, {"together": "net"}],
        "sparsegpt_update": [{"damping": 0}, {"block": 0}], "mean_shift": [{"layers": "head"}]}[name])):  # fmt: skip
        with pytest.raises(RecipeError, match=next(iter(options))):
            repaired(name, tiny_vit, half(tiny_vit), **options)


def test_structured_masks_and_gathered_inputs(tiny_vit):
    order = torch.randperm(32, generator=torch.Generator().manual_seed(4))
    gather(tiny_vit.module.blocks[0].attn.qkv, order)
    masks = make_masks(tiny_vit, PruningChoice(pattern="structured", units=("mlp", "qk"), sparsity=0.5)).masks
    one = repaired("least_squares", tiny_vit, masks, ridge=1e-5, bias=False, inputs="dense")
    for name, mask in masks.items():
        x, y = rows(tiny_vit, name, one.calibration)
        weight, bias = layer_of(one.student, name)
        _check_against_numpy(weight, mask.flatten(1), x, y - bias)


# -- least squares --------------------------------------------------------------------------------------------------------


def _check_against_numpy(weight, mask, x, y) -> None:
    """Outputs of a row are those of numpy's solution on the row's own inputs (values alone need not be: there may be many)."""
    for i, support in list(enumerate(mask))[::7]:  # a few rows of each layer
        inputs, wanted = x[:, support].numpy(), y[:, i].numpy()
        best = inputs @ np.linalg.lstsq(inputs, wanted, rcond=None)[0]
        np.testing.assert_allclose(inputs @ weight[i, support].numpy(), best, atol=2e-3 * float(y.abs().max()))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("inputs", ["dense", "pruned"])
def test_least_squares_is_numpys(network, inputs, bias):
    """Every layer against the data it met: the dense network's, or the repaired one's, whose inputs depend on earlier layers alone."""
    masks = half(network)
    one = repaired("least_squares", network, masks, inputs=inputs, bias=bias, ridge=1e-7, rows=10**6)
    for name, mask in masks.items():
        x, _ = rows(network if inputs == "dense" else one.student, name, one.calibration)
        _, y = rows(network, name, one.calibration)
        weight, offset = layer_of(one.student, name)
        if offset is not None and bias:
            x, weight, mask = (torch.cat([a, ones], 1) for a, ones in ((x, x.new_ones(len(x), 1)), (weight, offset[:, None]),
                (mask.flatten(1), torch.ones(len(mask), 1, dtype=torch.bool))))  # fmt: skip
            offset = None
        _check_against_numpy(weight, mask.flatten(1), x, y if offset is None else y - offset)
    if not bias:
        for name in masks:
            before = network.module.get_submodule(name).bias
            assert before is None or torch.equal(before, one.student.module.get_submodule(name).bias)


@pytest.mark.parametrize("ridge", [1e-4, 0.01, 1.0, 100.0])
@pytest.mark.parametrize("bias", [False, True])
def test_no_layers_error_grows(network, ridge, bias):
    """On the very inputs that a layer met, under any ridge, against the weights it had."""
    masks = half(network)
    before = pruned(network, masks)
    one = repaired("least_squares", network, masks, ridge=ridge, bias=bias, rows=10**6)
    for name in masks:
        x, _ = rows(one.student, name, one.calibration)
        _, y = rows(network, name, one.calibration)
        errors = []
        for source in (before, one.student):
            weight, offset = layer_of(source, name)
            errors.append((x @ weight.T + (0 if offset is None else offset) - y).square().mean(0))
        assert (errors[1] <= errors[0] * (1 + 1e-4) + 1e-9).all(), name
        assert errors[1].sum() < errors[0].sum(), name


def test_the_ridge_draws_towards_what_survived(tiny_vit):
    masks = half(tiny_vit)
    one = repaired("least_squares", tiny_vit, masks, ridge=1e9, bias=False)
    for name, mask in masks.items():
        kept = tiny_vit.module.get_submodule(name).weight * mask
        torch.testing.assert_close(one.student.module.get_submodule(name).weight, kept, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["own", "shared", "mixed"])
def test_systems_on_supports(kind):
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(60, 30, generator=generator).double()
    matrix, right = a.T @ a, torch.randn(12, 30, generator=generator).double()
    support = torch.rand(12, 30, generator=generator) > torch.linspace(0.05, 0.95, 12)[:, None]
    if kind != "own":
        support[3 : 8 if kind == "mixed" else 12] = support[2]
    if kind == "shared":
        support[:2] = support[2]
    support[0] = False
    found = supports.solve(matrix, right, support)
    for i in range(12):
        s = support[i].nonzero().flatten()
        expected = torch.zeros(30).double()
        expected[s] = torch.linalg.inv(matrix[s][:, s]) @ right[i, s]
        torch.testing.assert_close(found[i], expected, rtol=1e-6, atol=1e-9)
    with pytest.raises(LabError, match="ridge"):
        supports.solve(torch.zeros(30, 30).double(), right, support)


def test_least_squares_lessens_drift_more_than_the_sweep_and_pruned_inputs_more_than_dense(tiny_vit):
    masks = half(tiny_vit)

    def drifts(name: str, **options) -> float:
        one = repaired(name, tiny_vit, masks, **options)
        with torch.no_grad():
            wanted, found = (network.module.forward_features(one.calibration) for network in (tiny_vit, one.student))
        return float((found - wanted).norm() / wanted.norm())

    pruned_inputs, dense_inputs, swept = drifts("least_squares"), drifts("least_squares", inputs="dense"), drifts("sparsegpt_update")
    assert pruned_inputs < dense_inputs < swept < drifts("none")
    assert pruned_inputs < drifts("mean_shift") < drifts("none")


# -- SparseGPT's update ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [5, 128])
def test_the_update_is_the_textbooks_loop(tiny_vit, block):
    """Column after column of one layer: a removed weight goes, the later ones move along the inverse moments over these alone."""
    name = "blocks.0.mlp.fc1"
    masks = {name: half(tiny_vit)[name]}
    one = repaired("sparsegpt_update", tiny_vit, masks, block=block)
    x, _ = rows(tiny_vit, name, one.calibration)
    h = x.T @ x / len(x)
    h += 0.01 * h.diagonal().mean() * torch.eye(len(h)).double()
    w, _ = layer_of(tiny_vit, name)
    for j in range(w.shape[1]):
        inverse = torch.linalg.inv(h[j:, j:])
        gone = ~masks[name][:, j]
        w[gone, j:] -= torch.outer(w[gone, j] / inverse[0, 0], inverse[0])
        w[gone, j] = 0
    torch.testing.assert_close(one.student.module.get_submodule(name).weight.double(), w, rtol=1e-3, atol=1e-4)


def test_blocks_are_seen_dense_behind_repaired_ones(tiny_vit):
    """The inputs of block 1's layers come through the repaired block 0 and a block 1 that is still dense."""
    masks = half(tiny_vit)
    one = repaired("sparsegpt_update", tiny_vit, masks)
    behind = one.student.copy()
    behind.module.blocks[1].load_state_dict(tiny_vit.module.blocks[1].state_dict())
    name = "blocks.1.mlp.fc2"
    alone = session(behind, {name: masks[name]}, student=behind.copy(), images=one.calibration)
    REPAIRS.get("sparsegpt_update")(alone)
    torch.testing.assert_close(*(n.module.get_submodule(name).weight for n in (alone.student, one.student)), rtol=1e-3, atol=1e-4)


# -- mean shift -----------------------------------------------------------------------------------------------------------


def test_means_of_all_layers_are_the_dense_ones(tiny_vit):
    masks = half(tiny_vit)
    one = repaired("mean_shift", tiny_vit, masks, layers="all", inputs="pruned")
    for name in masks:
        (_, found), (_, wanted) = (rows(network, name, one.calibration) for network in (one.student, tiny_vit))
        torch.testing.assert_close(found.mean(0), wanted.mean(0), rtol=1e-3, atol=1e-4)


def test_removed_units_leave_their_mean_in_the_second_layers_bias(tiny_vit):
    """VBP: b₂ += W₂[:, P] μ_P, μ the dense network's mean activations."""
    masks = make_masks(tiny_vit, PruningChoice(pattern="structured", units=("mlp",), sparsity=0.5)).masks
    one = repaired("mean_shift", tiny_vit, masks)
    for block in ("blocks.0", "blocks.1"):
        x, _ = rows(tiny_vit, f"{block}.mlp.fc2", one.calibration)
        weight, bias = layer_of(tiny_vit, f"{block}.mlp.fc2")
        gone = ~masks[f"{block}.mlp.fc2"][0]
        assert gone.any() and not masks[f"{block}.mlp.fc2"][:, gone].any()
        _, found = layer_of(one.student, f"{block}.mlp.fc2")
        torch.testing.assert_close(found, bias + weight[:, gone] @ x.mean(0)[gone], rtol=1e-4, atol=1e-5)
        assert torch.equal(layer_of(one.student, f"{block}.mlp.fc1")[1], layer_of(tiny_vit, f"{block}.mlp.fc1")[1])


def test_layers_without_a_bias_and_grouped_ones_are_named(tiny_resnet, tiny_convnext):
    one = repaired("mean_shift", tiny_resnet, half(tiny_resnet), layers="all")
    assert "layer1.0.conv1" in one.reporter.notes[0] and "changed nothing" in one.reporter.notes[1]
    depthwise = "stages.0.blocks.0.conv_dw"
    masks = half(tiny_convnext) | {depthwise: tiny_convnext.module.get_submodule(depthwise).weight > 0}
    one = repaired("least_squares", tiny_convnext, masks)
    assert f"different inputs: {depthwise}." in one.reporter.notes[0]

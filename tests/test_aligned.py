"""Aligned least squares, aligned masks and STARFISH+: the residual stream against numpy, and what training leaves out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_healing import choose, half, images_for, lively, run
from test_repairs_linear import session

from starfish_lab.calibration.activations import draw
from starfish_lab.errors import RecipeError
from starfish_lab.healing import REPAIRS
from starfish_lab.healing.heal import heal
from starfish_lab.healing.methods import starfish_plus
from starfish_lab.measure.certificate_layers import head_rows, layer_rows
from starfish_lab.measure.certificates import certify
from starfish_lab.models.loading import wrap
from starfish_lab.models.network import Network, prunable
from starfish_lab.models.states import BlockStates
from starfish_lab.pruning.prune import make_masks, pruned
from starfish_lab.recipe import PruningChoice
from starfish_lab.training.batches import Batch

STREAMS = {"attn.proj": "norm1", "mlp.fc2": "norm2"}


@pytest.fixture(params=["plain", "layer scale"])
def vit(request, tiny_vit) -> Network:
    if request.param == "plain":
        return tiny_vit
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    module = VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=10, init_values=0.3).eval()
    for block in module.blocks:
        for scale in (block.ls1, block.ls2):
            torch.nn.init.uniform_(scale.gamma, 0.2, 0.6)
    return wrap(module, name="scaled_vit", num_classes=10, preprocessing=tiny_vit.preprocessing)


@torch.no_grad()
def met(network: Network, names: list[str], images: torch.Tensor) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Inputs and outputs (tokens, …) of modules, in float64, from one plain pass."""
    found = {}
    handles = [
        network.module.get_submodule(name).register_forward_hook(
            lambda _, args, output, name=name: found.update({name: tuple(t.flatten(0, -2).double().numpy() for t in (args[0], output))})
        )
        for name in names
    ]
    network.module(images)
    for handle in handles:
        handle.remove()
    return found


def last_state(network: Network, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad(), BlockStates(network.module, network.blocks) as states:
        network.module(images)
    return states.values[-1]


def distance(dense: Network, student: Network, images: torch.Tensor) -> float:
    return float((last_state(dense, images) - last_state(student, images)).square().sum())


@pytest.mark.parametrize("class_weight", [0.0, 0.4])
def test_each_layer_solves_for_what_the_stream_lacks(vit, class_weight):
    """Layer by layer against numpy: the others as they ended, its targets the dense output plus what the stream lacks before it."""
    masks, images = half(vit), images_for(vit, 36)
    one = session(vit, masks, images=images)
    REPAIRS.get("aligned")(one, ridge=0.0, mirrored=False, rows=10**6, class_weight=class_weight)
    for layer in masks:
        block, _, short = layer.rpartition(".")[0].rpartition(".")[0], None, ".".join(layer.split(".")[-2:])
        norm = f"{block}.{STREAMS[short]}" if short in STREAMS else None
        seen = [met(network, [layer, *([norm] if norm else [])], images) for network in (vit, one.student)]
        target = seen[0][layer][1]
        if norm:
            scale = vit.module.get_submodule(f"{block}.ls{1 if short == 'attn.proj' else 2}")
            target = target + (seen[0][norm][0] - seen[1][norm][0]) / (getattr(scale, "gamma", torch.ones(1)).detach().double().numpy())
        x = seen[1][layer][0]
        root = np.ones(len(x))
        root[:: len(x) // len(images)] = np.sqrt(1 + class_weight * len(x) / len(images))  # of a row's weight
        module = one.student.module.get_submodule(layer)
        for row, kept in enumerate(masks[layer].numpy()):
            expected = np.linalg.lstsq(root[:, None] * np.column_stack([x[:, kept], np.ones(len(x))]), root * target[:, row], rcond=None)[0]
            np.testing.assert_allclose(module.weight.detach().numpy()[row, kept], expected[:-1], rtol=2e-3, atol=2e-4)
            np.testing.assert_allclose(module.bias.detach().numpy()[row], expected[-1], rtol=2e-3, atol=2e-4)
            assert not module.weight.detach().numpy()[row, ~kept].any()


def test_every_class_token_counts_however_few_rows_do():
    generator = torch.Generator().manual_seed(0)
    drawn = draw(40, 12, generator, torch.device("cpu"), always=8)
    assert len(drawn) == len(set(drawn.tolist())) == 12 and {0, 8, 16, 24, 32} < set(drawn.tolist())
    assert draw(40, 3, generator, torch.device("cpu"), always=8).tolist() == [0, 8, 16, 24, 32]
    assert draw(40, 40, generator, torch.device("cpu"), always=8).tolist() == list(range(40))


def test_a_channel_that_the_layer_scale_drops_does_no_harm(vit):
    for block in vit.module.blocks:
        if hasattr(block.ls1, "gamma"):
            block.ls1.gamma.data[3] = 0
    masks = half(vit)
    student = pruned(vit, masks)
    before = distance(vit, student, images_for(vit, 20))
    one = session(vit, masks, images=images_for(vit, 20), student=student)
    REPAIRS.get("aligned")(one, mirrored=False)
    assert all(value.isfinite().all() for value in student.module.state_dict().values())
    assert distance(vit, student, one.calibration) < 0.5 * before


def test_certificates_know_biases_that_moved():
    """A head alone: what its layer changes is what the network changes."""
    dense = Network.of(torch.nn.Sequential(torch.nn.Linear(5, 3)), blocks=["0"], input_size=(5,))
    images = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    result = make_masks(dense, PruningChoice(score="aligned", sparsity=0.4), calibration=images + 1)
    student = pruned(dense, result.masks, result.weights, result.biases)
    assert not torch.equal(student.module[0].bias, dense.module[0].bias)
    (whole,) = certify(dense, student, images).summary
    head = head_rows(dense, student, images, layers=["0"], sparsity=0.4)
    (layer,) = layer_rows(dense, student, ["0"], images)
    for row in (*head.summary, *head.layers, layer):
        assert row["mean_change"] == pytest.approx(whole["mean_change"], rel=1e-4)


def test_the_last_state_comes_nearer_than_by_least_squares_on_each_layer(vit):
    """By the target alone: both are drawn to where they start by the same ridge."""
    masks, images = half(vit), images_for(vit, 36)
    left = {}
    for name, options in {"none": {}, "least_squares": {"ridge": 0.01}, "aligned": {"ridge": 0.01}}.items():
        one = session(vit, masks, images=images)
        REPAIRS.get(name)(one, **options)
        left[name] = distance(vit, one.student, images)
    assert left["aligned"] < 0.97 * left["least_squares"] < 0.97 * left["none"]


@pytest.mark.parametrize("family", ["tiny_vit", "tiny_resnet", "tiny_swin"])
def test_nothing_pruned_stays_as_it_is(request, family):
    network = lively(request.getfixturevalue(family))
    one = session(network, {name: torch.ones_like(layer.weight, dtype=torch.bool) for name, layer in prunable(network).items()})
    REPAIRS.get("aligned")(one)
    for name, value in network.module.state_dict().items():
        torch.testing.assert_close(one.student.module.state_dict()[name], value, rtol=1e-3, atol=1e-4)


def test_mirrored_images_count_as_images_of_their_own(tiny_vit):
    masks, images = half(tiny_vit), images_for(tiny_vit, 32)
    mirrored, twice = session(tiny_vit, masks, images=images), session(tiny_vit, masks, images=torch.cat([images, images.flip(-1)]))
    REPAIRS.get("aligned")(mirrored, rows=10**6, mirrored=True)
    REPAIRS.get("aligned")(twice, rows=10**6, mirrored=False)
    for name in masks:
        torch.testing.assert_close(*(one.student.module.get_submodule(name).weight for one in (mirrored, twice)), rtol=1e-3, atol=1e-5)


# -- masks of its own choosing --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["tiny_vit", "tiny_resnet"])
def test_aligned_masks_remove_what_was_asked_and_leave_zeros(request, family):
    network = lively(request.getfixturevalue(family))
    images = images_for(network, 24)
    result = make_masks(network, PruningChoice(score="aligned", sparsity=0.6), calibration=images)
    student = pruned(network, result.masks, result.weights, result.biases)
    for name, mask in result.masks.items():
        layer = student.module.get_submodule(name)
        assert int((~mask).sum()) == round(0.6 * mask.numel())
        assert not layer.weight[~mask].any() and not torch.equal(layer.weight[mask], network.module.get_submodule(name).weight[mask])
    plain = make_masks(network, PruningChoice(score="magnitude", sparsity=0.6))
    spared = make_masks(network, PruningChoice(score="sparsegpt", sparsity=0.6), calibration=images)
    rivals = [pruned(network, plain.masks), pruned(network, spared.masks, spared.weights)]
    assert distance(network, student, images) < 0.9 * min(distance(network, rival, images) for rival in rivals)


def test_aligned_n_m_keeps_two_of_four(tiny_vit):
    result = make_masks(tiny_vit, PruningChoice(score="aligned", pattern="n_m"), calibration=images_for(tiny_vit, 24))
    for mask in result.masks.values():
        assert (mask.flatten(1).unflatten(1, (-1, 4)).sum(-1) == 2).all()


def test_zeros_of_a_start_stay_and_the_network_given_is_only_read(tiny_vit):
    started = tiny_vit.copy()
    gone = started.module.blocks[0].mlp.fc1.weight.data[:, :8]
    gone.zero_()
    before = {name: value.clone() for name, value in started.module.state_dict().items()}
    result = make_masks(started, PruningChoice(score="aligned", sparsity=0.5), dense=tiny_vit, calibration=images_for(tiny_vit, 24))
    assert not result.masks["blocks.0.mlp.fc1"][:, :8].any() and not result.weights["blocks.0.mlp.fc1"][:, :8].any()
    assert all(torch.equal(started.module.state_dict()[name], value) for name, value in before.items())


def test_solver_options_are_its_own(tiny_vit):
    for options in ({"sequential": True}, {"precision": "int8"}):
        with pytest.raises(RecipeError, match=next(iter(options))):
            make_masks(tiny_vit, PruningChoice(score="aligned", score_options=options), calibration=images_for(tiny_vit, 8))


# -- training on fewer tokens ---------------------------------------------------------------------------------------------


def test_both_networks_see_the_same_tokens_and_all_of_them_afterwards(tiny_vit):
    student, images = tiny_vit.copy(), images_for(tiny_vit, 3)
    gates = [network.module.patch_drop for network in (tiny_vit, student)]
    whole = last_state(tiny_vit, images)
    with starfish_plus.fewer_tokens(gates, 0.5, 1):
        first, second = last_state(tiny_vit, images), last_state(student, images)
    assert first.shape == (3, 1 + 8, 32) and torch.equal(first, second)
    with starfish_plus.fewer_tokens(gates, 0.5, 1):
        other = last_state(tiny_vit, images)
    assert not torch.equal(first, other)  # drawn anew
    with pytest.raises(ZeroDivisionError), starfish_plus.fewer_tokens(gates, 0.5, 1):
        raise ZeroDivisionError
    assert torch.equal(last_state(tiny_vit, images), whole)


def test_with_all_tokens_and_the_papers_settings_it_is_starfish(tiny_vit):
    plain, _ = run(tiny_vit, "starfish")
    plus, _ = run(tiny_vit, "starfish_plus", choice=choose("starfish_plus", options={"keep": 1, "class_weight": 0}))
    assert all(torch.equal(a, b) for a, b in zip(plain.module.state_dict().values(), plus.module.state_dict().values()))


def test_a_network_without_a_gate_trains_on_whole_images_and_on_fewer(tiny_resnet):
    assert not tiny_resnet.token_gate
    images, masks = images_for(tiny_resnet, 8), half(tiny_resnet)
    found, sizes = {}, {}
    for method, keep in (("starfish", None), ("starfish_plus", 1), ("starfish_plus", 0.5)):
        student = pruned(tiny_resnet, masks)
        options = {} if keep is None else {"options": {"keep_images": keep}}
        fed = sizes[method, keep] = set()
        student.module.register_forward_pre_hook(lambda _, inputs, fed=fed: fed.add(len(inputs[0])))
        heal(tiny_resnet, student, masks, images, replace(choose(method), **options))
        found[method, keep] = student.module.state_dict()
    plain, all_kept, half_kept = found.values()
    assert all(torch.equal(plain[name], all_kept[name]) for name in plain)
    assert not all(torch.equal(plain[name], half_kept[name]) for name in plain)
    assert {size // 2 for size in sizes["starfish", None]} == sizes["starfish_plus", 0.5]


def test_fewer_images_of_a_batch_keep_their_numbers():
    batch = Batch(index=3, images=torch.arange(8.0).reshape(8, 1, 1, 1), labels=None, rows=torch.arange(8) + 10)
    torch.manual_seed(0)
    drawn = starfish_plus.fewer_images(batch, 0.4)
    assert len(drawn.images) == 3 and drawn.index is None
    assert torch.equal(drawn.rows, drawn.images.flatten().long() + 10)
    assert len(starfish_plus.fewer_images(batch._replace(rows=None), 0.01).images) == 2
    assert len(starfish_plus.fewer_images(batch._replace(images=batch.images[:1], rows=None), 0.4).images) == 1


def test_a_share_that_is_none_is_refused(tiny_vit):
    with pytest.raises(RecipeError, match="healing.options.keep"):
        run(tiny_vit, "starfish_plus", choice=replace(choose("starfish_plus"), options={"keep": 0}))
    with pytest.raises(RecipeError, match="healing.options.keep_images"):
        run(tiny_vit, "starfish_plus", choice=replace(choose("starfish_plus"), options={"keep_images": 1.5}))

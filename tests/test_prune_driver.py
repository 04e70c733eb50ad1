"""Second moments against plain unfolding; solvers, kept zeros and options through `make_masks`."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from starfish_lab import data, tokens
from starfish_lab.calibration.activations import second_moments
from starfish_lab.errors import LabError, RecipeError
from starfish_lab.models.loading import load
from starfish_lab.models.network import Network, prunable
from starfish_lab.progress import Reporter
from starfish_lab.pruning import SCORES, SOLVERS, permutation, rules
from starfish_lab.pruning.masks import sparsity
from starfish_lab.pruning.prune import make_masks, pruned
from starfish_lab.pruning.scores import taylor
from starfish_lab.recipe import ImagesChoice, ModelChoice, PruningChoice, TokensChoice


def images_for(network: Network, count: int = 6) -> torch.Tensor:
    return torch.randn(count, *network.preprocessing.input_size, generator=torch.Generator().manual_seed(1))


def convolutions() -> tuple[Network, torch.Tensor]:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Conv2d(4, 8, (3, 2), padding="same"), nn.Conv2d(8, 8, 3, dilation=2, padding=(1, 2)),
        nn.Conv2d(8, 4, 1), nn.Flatten(2), nn.Linear(48, 5),
    ).eval()  # fmt: skip
    return Network.of(module, blocks=["0", "1", "2", "3", "5"], input_size=(3, 16, 16)), torch.randn(5, 3, 16, 16)


def sparse(network: Network, share: float = 0.35) -> Network:
    """A copy without its smallest weights, layer by layer."""
    return pruned(network, make_masks(network, PruningChoice(sparsity=share)).masks)


# -- second moments ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_moments_are_those_of_unfolded_inputs():
    network, images = convolutions()
    module, layers = network.module, prunable(network)
    full = second_moments(network, layers, images, batch_size=2)
    inputs = [module[:i](images) for i in range(6)]
    unfolded = {
        "0": F.unfold(inputs[0], 3, padding=1, stride=2), "1": F.unfold(F.pad(inputs[1], (0, 1, 1, 1)), (3, 2)),
        "2": F.unfold(inputs[2], 3, dilation=2, padding=(1, 2)), "3": F.unfold(inputs[3], 1), "5": inputs[5].transpose(1, 2),
    }  # fmt: skip
    for layer, columns in unfolded.items():
        rows = columns.transpose(1, 2).flatten(0, 1)
        torch.testing.assert_close(full[layer], rows.T @ rows / len(rows), msg=layer)
        assert full[layer].shape[0] == layers[layer].weight[0].numel()
    by_group = second_moments(network, {"2": layers["2"]}, images, group=4)["2"]
    assert by_group.shape == (18, 4, 4)
    for g, found in enumerate(by_group):
        torch.testing.assert_close(found, full["2"][4 * g : 4 * g + 4, 4 * g : 4 * g + 4])


def test_drawn_rows_follow_the_seed_and_not_the_other_layers(tiny_vit):
    layers, images = prunable(tiny_vit), images_for(tiny_vit, 40)  # two batches
    few = second_moments(tiny_vit, layers, images, group=4, rows=50)
    alone = second_moments(tiny_vit, {"blocks.1.mlp.fc2": layers["blocks.1.mlp.fc2"]}, images, group=4, rows=50)
    other = second_moments(tiny_vit, layers, images, group=4, rows=50, seed=1)
    whole = second_moments(tiny_vit, layers, images, group=4)
    for layer in layers:
        assert not torch.equal(few[layer], other[layer])
        near = (few[layer] - whole[layer]).norm() / whole[layer].norm()
        assert 0 < near < 0.4, "a hundred rows say nearly what all of them do"
    assert torch.equal(alone["blocks.1.mlp.fc2"], few["blocks.1.mlp.fc2"])


def test_a_layer_that_does_not_run_is_named(tiny_vit):
    tiny_vit.module.unused = nn.Linear(4, 4)
    with pytest.raises(LabError, match="unused sees no input"):
        second_moments(tiny_vit, {"unused": tiny_vit.module.unused}, images_for(tiny_vit))


def test_moments_are_of_the_network_as_it_runs(tiny_vit):
    """Merged tokens are fewer and larger; a layer that gathers meets its inputs in its own order."""
    layers, images = prunable(tiny_vit), images_for(tiny_vit)
    plain = second_moments(tiny_vit, layers, images)
    merging = tiny_vit.copy()
    tokens.merge(merging, TokensChoice(r=(4, 4)))
    merged = second_moments(merging, prunable(merging), images)
    assert torch.equal(merged["blocks.0.attn.qkv"], plain["blocks.0.attn.qkv"])
    assert not torch.allclose(merged["blocks.0.mlp.fc1"], plain["blocks.0.mlp.fc1"], rtol=0.01)
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    gathering = permutation.permuted(tiny_vit, {"blocks.1.attn.qkv": order})
    found = second_moments(gathering, prunable(gathering), images)["blocks.1.attn.qkv"]
    torch.testing.assert_close(found, plain["blocks.1.attn.qkv"][order][:, order])


# -- solvers through make_masks ----------------------------------------------------------------------------------------

CHOICES = {
    "cast 2:4": PruningChoice(score="cast", pattern="n_m"),
    "cast 4:8": PruningChoice(score="cast", pattern="n_m", keep=4, group=8),
    "alps 2:4": PruningChoice(score="alps", pattern="n_m"),
    "alps uniform": PruningChoice(score="alps", sparsity=0.437),
    "alps global": PruningChoice(score="alps", budget="global", sparsity=0.437),
    "sparsegpt 2:4": PruningChoice(score="sparsegpt", pattern="n_m"),
    "sparsegpt uniform": PruningChoice(score="sparsegpt", sparsity=0.437),
    "sparsegpt global": PruningChoice(score="sparsegpt", budget="global", sparsity=0.437),
    "sparsegpt mp_edge": PruningChoice(score="sparsegpt", budget="mp_edge", sparsity=0.437, score_options={"update": False}),
    "aligned 2:4": PruningChoice(score="aligned", pattern="n_m"),
    "aligned uniform": PruningChoice(score="aligned", sparsity=0.437),
}


def test_every_solver_is_tried():
    assert {choice.score for choice in CHOICES.values()} == set(SOLVERS.names())


@pytest.mark.parametrize("name", ["tiny_vit", "tiny_resnet", "tiny_convnext"])
@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
def test_contract(choice, name, request):
    network = request.getfixturevalue(name)
    start, images = sparse(network, 0.3), images_for(network)
    before = {key: value.clone() for key, value in start.module.state_dict().items()}
    result, again = (make_masks(start, choice, dense=network, calibration=images) for _ in range(2))
    student = pruned(start, result.masks, result.weights)

    layers = prunable(start)
    assert list(result.masks) == list(layers)
    assert set(result.weights) == set(layers) - set(result.left_dense) == {row["layer"] for row in result.rows}
    for layer, mask in result.masks.items():
        left = student.module.get_submodule(layer).weight
        assert mask.dtype == torch.bool and mask.shape == left.shape and torch.equal(mask, again.masks[layer])
        assert not left[~mask].any()
        if layer in result.left_dense:
            assert mask.all() and torch.equal(left, before[f"{layer}.weight"])
        else:
            assert torch.equal(left, result.weights[layer]) and torch.equal(left, again.weights[layer])
    for row in result.rows:
        assert row["cost"] <= row["cost_magnitude"] * (1 + 1e-5) or choice.score != "cast"
        assert len(row) <= 6 and all(isinstance(value, str | float | int) for value in row.values())
    assert all(torch.equal(value, before[key]) for key, value in start.module.state_dict().items()), "the network stays as it is"
    if choice.pattern == "n_m":
        assert all((mask.reshape(-1, choice.group).sum(1) == choice.keep).all() for layer, mask in result.masks.items() if layer in result.weights)
    else:
        gone = sparsity(network.module, result.masks)
        assert gone.removed == round(choice.sparsity * gone.prunable)


def test_cast_brings_back_dense_values_where_the_start_is_zero(tiny_vit):
    start = sparse(tiny_vit, 0.6)
    options = {"calibration": images_for(tiny_vit), "dense": tiny_vit}
    free = make_masks(start, CHOICES["cast 4:8"], **options)
    bound = make_masks(start, PruningChoice(score="cast", pattern="n_m", keep=4, group=8, score_options={"free_restoration": False}), **options)
    layer = "blocks.0.mlp.fc1"
    zero = start.module.get_submodule(layer).weight == 0
    back = free.masks[layer] & zero
    assert back.any() and torch.equal(free.weights[layer][back], tiny_vit.module.get_submodule(layer).weight[back])
    assert not bound.weights[layer][zero].any()


@torch.no_grad()
def change_of_output(network: Network, student: Network, images) -> float:
    return float((network.module(images) - student.module(images)).square().mean())


@pytest.mark.parametrize("choice", [CHOICES["cast 4:8"], CHOICES["sparsegpt 2:4"], CHOICES["sparsegpt uniform"]], ids=["cast", "2:4", "unstructured"])
def test_on_a_trained_network_every_layers_output_changes_less_than_by_magnitude(choice):
    network = load(ModelChoice())
    images = data.open_images(ImagesChoice(calibration=64), network).calibration.tensor()
    ours = make_masks(network, choice, calibration=images)
    plain = make_masks(network, dataclasses.replace(choice, score="magnitude"))
    moments = second_moments(network, prunable(network), images)  # exact changes of the outputs, correlations between groups and all

    def changes(result) -> list[float]:
        student = pruned(network, result.masks, result.weights)
        differences = {layer: (student.module.get_submodule(layer).weight - m.weight).detach() for layer, m in prunable(network).items()}
        return [float(((r @ moments[layer]) * r).sum()) for layer, r in differences.items()]

    ratios = [a / b for a, b in zip(changes(ours), changes(plain))]
    assert max(ratios) < (0.8 if choice.score == "cast" else 0.2)


def test_sequential_looks_again_after_each_block(tiny_vit):
    images = images_for(tiny_vit, 64)
    once, then = (
        make_masks(tiny_vit, PruningChoice(score="sparsegpt", sparsity=0.6, score_options={"sequential": sequential}), calibration=images)
        for sequential in (False, True)
    )
    assert list(once.masks) == list(then.masks)
    for layer in once.masks:  # the first block sees the same either way
        assert torch.equal(once.weights[layer], then.weights[layer]) == layer.startswith("blocks.0.")
    changes = [change_of_output(tiny_vit, pruned(tiny_vit, r.masks, r.weights), images) for r in (once, then)]
    assert changes[1] <= changes[0] * 1.02


def test_solvers_leave_misfits_dense_or_refuse(tiny_vit, tiny_convnext):
    images = images_for(tiny_vit)
    result = make_masks(tiny_vit, PruningChoice(score="cast", pattern="n_m", keep=8, group=16, include=("head",)), calibration=images)
    assert result.left_dense == {"head": "its 10 outputs are fewer than 16"} and "head" not in result.weights
    assert "head" not in make_masks(tiny_vit, CHOICES["cast 2:4"], calibration=images).masks, "the head stays out unless it is asked for"
    with pytest.raises(RecipeError, match="head: its 10 outputs"):
        choice = PruningChoice(score="cast", pattern="n_m", keep=8, group=16, include=("head",), indivisible="refuse")
        make_masks(tiny_vit, choice, calibration=images)
    with pytest.raises(RecipeError, match="grouped convolution stages.0.blocks.0.conv_dw"):
        make_masks(tiny_convnext, PruningChoice(score="sparsegpt", include=("*conv_dw",)), calibration=images_for(tiny_convnext))


def test_solvers_need_images(tiny_vit):
    with pytest.raises(RecipeError, match="'cast' looks at activations and needs calibration images"):
        make_masks(tiny_vit, CHOICES["cast 2:4"])


def test_weights_that_are_not_finite_are_named(tiny_vit):
    tiny_vit.module.blocks[1].mlp.fc1.weight.data[0, 0] = float("nan")
    with pytest.raises(LabError, match="blocks.1.mlp.fc1"):
        make_masks(tiny_vit, CHOICES["cast 2:4"], calibration=images_for(tiny_vit))


def test_progress_is_told_and_a_stop_is_heard(tiny_vit):
    class Watcher(Reporter):
        steps: list = []

        def progress(self, step, steps):
            self.steps.append((step, steps))

    make_masks(tiny_vit, CHOICES["cast 2:4"], calibration=images_for(tiny_vit), reporter=Watcher())
    assert Watcher.steps == [(i, 8) for i in range(1, 9)]


# -- kept zeros --------------------------------------------------------------------------------------------------------


def test_kept_takes_the_zeros_of_the_start_and_no_others(tiny_vit):
    masks = make_masks(tiny_vit, PruningChoice(sparsity=0.35, exclude=("blocks.0.mlp.fc1",))).masks
    start = pruned(tiny_vit, masks)
    result = make_masks(start, PruningChoice(score="cast", budget="global", pattern="kept", score_options={"whatever": 1}))
    assert result.masks.pop("blocks.0.mlp.fc1").all()  # a layer without zeros stays whole
    assert all(torch.equal(mask, masks[layer]) for layer, mask in result.masks.items())
    assert not result.weights and not result.notes and not result.left_dense


# -- units that a score ranks itself -----------------------------------------------------------------------------------


def test_structured_takes_the_lowest_units_of_a_score_that_ranks_them(tiny_vit):
    images, labels = images_for(tiny_vit), torch.arange(6)
    choice = PruningChoice(score="taylor", pattern="structured", sparsity=0.25)
    result = make_masks(tiny_vit, choice, calibration=images, labels=labels)
    units = taylor.unit_scores(tiny_vit, choice, images, labels)
    gone = ~result.masks["blocks.1.mlp.fc1"].any(1)
    assert set(gone.nonzero().flatten().tolist()) == set(units["blocks.1.mlp.fc1"].argsort()[:32].tolist())
    assert torch.equal(gone, ~result.masks["blocks.1.mlp.fc2"].any(0))
    q = result.masks["blocks.0.attn.qkv"][:32].any(1).view(2, 16)
    for head in range(2):
        assert set((~q[head]).nonzero().flatten().tolist()) == set(units["blocks.0.attn.qkv"][head].argsort()[:4].tolist())


def test_gradients_reach_the_scores_that_need_them(tiny_vit):
    images, labels = images_for(tiny_vit), torch.arange(6)
    choice = PruningChoice(score="taylor", sparsity=0.5)
    with_labels, without = make_masks(tiny_vit, choice, calibration=images, labels=labels), make_masks(tiny_vit, choice, calibration=images)
    assert any(not torch.equal(with_labels.masks[layer], without.masks[layer]) for layer in without.masks)
    with pytest.raises(RecipeError, match="'taylor' looks at gradients"):
        make_masks(tiny_vit, choice)


# -- what does not go together -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"score": "cast", "pattern": "unstructured"}, "The solver 'cast' goes with the pattern 'n_m', not with 'unstructured'"),
        ({"score": "sparsegpt", "pattern": "structured"}, "'unstructured' or 'n_m'"),
        ({"score": "variance", "pattern": "n_m"}, "The score 'variance' goes with the pattern 'structured'"),
        ({"score": "cast", "pattern": "n_m", "budget": "global"}, "Choose pruning.budget 'uniform'"),
        ({"score": "cast", "pattern": "n_m", "score_options": {"beta": 1}}, "The solver 'cast' has no option 'beta'. Its options: source, free"),
        ({"score": "cast", "pattern": "n_m", "score_options": {"alpha": "much"}}, "alpha is 'much': give a value like its default, 0.0"),
        ({"score": "cast", "pattern": "n_m", "score_options": {"sequential": 1}}, "score_options.sequential is 1"),
        ({"score": "cast", "pattern": "n_m", "score_options": {"rows": 0}}, "score_options.rows is 0"),
        ({"score": "cast", "pattern": "n_m", "score_options": {"rows": True}}, "score_options.rows is True"),
        ({"score": "wanda", "score_options": {"activations": 1}}, "The score 'wanda' has no option 'activations'. Its options: none"),
        ({"score": "wanda", "score_options": {"sequential": True}}, "no option 'sequential'"),
        ({"permutation": "deal"}, "under 'unstructured'. Choose pruning.permutation 'none'"),
        ({"permutation": "deal", "pattern": "n_m", "permutation_options": {"depth": 1}}, "The permutation 'deal' has no option 'depth'"),
        ({"permutation": "deal", "pattern": "kept"}, "permutation"),
    ],
)
def test_what_does_not_go_together_is_said_in_words(fields, words):
    with pytest.raises(RecipeError) as raised:
        rules.check(PruningChoice(**fields))
    assert words in str(raised.value)


def test_options_are_known_without_importing_the_entries():
    assert rules.score_options("cast") == {
        "source": "start", "free_restoration": True, "alpha": 0.0, "prior": "mean_cost", "candidates": 10_000, "sequential": False, "rows": 4096,
    }  # fmt: skip
    assert rules.score_options("sparsegpt")["damping"] == 0.01
    assert all(not rules.score_options(score) for score in SCORES.names() if score in ("magnitude", "random", "wanda", "taylor"))
    assert rules.patterns_of("magnitude") == () and rules.patterns_of("sparsegpt") == ("unstructured", "n_m")


@pytest.mark.parametrize(
    "layer, reason",
    [((768, 1, 4, 768), ""), ((768, 1, 4, 3), "3 outputs"), ((2, 1, 2, 8), "fewer than 4"), ((30, 1, 4, 8), "divisible"), ((8, 2, 4, 8), "grouped")],
)
def test_what_an_n_m_pattern_fits(layer, reason):
    found = rules.n_m_misfit(*layer)
    assert reason in found and bool(reason) == bool(found)

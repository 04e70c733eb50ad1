"""Layers and edges set by hand: in the recipe, in the run, in what-if answers and in the address bar, the same numbers everywhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from starfish_lab.errors import RecipeError
from starfish_lab.models.network import prunable
from starfish_lab.pruning import BUDGETS, by_hand, rules
from starfish_lab.pruning.budgets import mp_edge
from starfish_lab.pruning.prune import edge_table, make_masks
from starfish_lab.recipe import PruningChoice, Recipe, edit
from starfish_lab.whatif import predict

SIZES = {"a": 100, "b": 300, "c": 600}


def counts(choice: PruningChoice) -> dict[str, int]:
    scores = {layer: np.linspace(0, 1, size, dtype=np.float32) for layer, size in SIZES.items()}
    return by_hand.counts(choice, scores, SIZES, None)


def test_the_rest_pays_for_what_is_set():
    assert counts(PruningChoice(sparsity=0.5, layers={"a": 0.2})) == {"a": 20, "b": 160, "c": 320}  # 480 of 900 over b and c
    assert counts(PruningChoice(sparsity=0.5, layers={"b": 0.0, "c": 0.75})) == {"a": 50, "b": 0, "c": 450}
    assert counts(PruningChoice(sparsity=0.5)) == {"a": 50, "b": 150, "c": 300}


def test_a_name_counts_before_a_glob_and_the_last_glob_before_the_first():
    given = {"b": 0.1, "*": 0.2, "[ab]": 0.3}
    assert rules.by_layer("pruning.layers", given, list("abc")) == {"a": 0.3, "b": 0.1, "c": 0.2}


@pytest.mark.parametrize(
    ("sparsity", "layers", "says"),
    [
        (0.1, {"c": 0.5}, "alone takes 0.3000 of all weights, more than pruning.sparsity 0.1"),
        (0.9, {"c": 0.5}, "at most 0.7000 of all weights can go, less than pruning.sparsity 0.9"),
        (0.9, {"*": 0.5}, "at most 0.5000"),
        (0.5, {"d*": 0.5}, "'d\\*', which fits none of the 3 prunable layers"),
    ],
)
def test_what_leaves_no_way_to_the_sparsity_is_refused_in_a_sentence(sparsity, layers, says):
    with pytest.raises(RecipeError, match=says):
        counts(PruningChoice(sparsity=sparsity, layers=layers))


def test_at_the_very_end_of_the_room_it_still_works():
    assert counts(PruningChoice(sparsity=0.3, layers={"c": 0.5})) == {"a": 0, "b": 0, "c": 300}
    assert counts(PruningChoice(sparsity=0.7, layers={"c": 0.5})) == {"a": 100, "b": 300, "c": 300}
    assert counts(PruningChoice(sparsity=0.5, layers={"*": 0.5})) == {"a": 50, "b": 150, "c": 300}


@pytest.mark.parametrize("budget", BUDGETS.names())
def test_the_run_and_the_prediction_agree(profiled, budget):
    network, profile = profiled("tiny_vit")
    by_recipe = {"blocks.0.*": 0.25, "blocks.0.mlp.fc1": 0.8}
    choice = PruningChoice(budget=budget, sparsity=0.5, layers=by_recipe)
    gone = {layer: int((~mask).sum()) for layer, mask in make_masks(network, choice).masks.items()}
    answer = predict(profile, choice).layers.set_index("layer")
    for layer in by_recipe | {"blocks.0.attn.qkv": 0, "blocks.0.attn.proj": 0, "blocks.0.mlp.fc2": 0}:
        if layer in gone:  # set by hand: exactly so many, in both
            share = 0.8 if layer == "blocks.0.mlp.fc1" else 0.25
            assert gone[layer] == answer["removed"][layer] == round(share * answer["weights"][layer])
    assert sum(gone.values()) == answer["removed"].sum() == round(0.5 * answer["weights"].sum())
    within = 0 if budget == "uniform" else 0.02
    assert all(abs(gone[layer] - row.removed) <= within * row.weights for layer, row in answer.iterrows())


def test_the_run_and_the_prediction_agree_on_moved_edges(profiled):
    network, profile = profiled("tiny_vit")
    edges = {"blocks.1.mlp.fc1": 2.5, "*.qkv": 0.4}
    plain, moved = (PruningChoice(budget="mp_edge", sparsity=0.5, options=options) for options in ({}, {"edges": edges}))
    gone = {layer: int((~mask).sum()) for layer, mask in make_masks(network, moved).masks.items()}
    before, after = (predict(profile, choice).layers.set_index("layer") for choice in (plain, moved))
    assert all(abs(gone[layer] - row.removed) <= 0.02 * row.weights for layer, row in after.iterrows())
    assert after["removed"]["blocks.1.mlp.fc1"] > before["removed"]["blocks.1.mlp.fc1"]
    table = edge_table(network, list(prunable(network)), "cpu")
    table.loc["blocks.1.mlp.fc1", "sigma_plus"] = 2.5
    table.loc[table.index.str.endswith("qkv"), "sigma_plus"] = 0.4
    expected = mp_edge.weights(table, 0.5)
    np.testing.assert_allclose(after["edge_weight"], [expected[layer] for layer in after.index], rtol=1e-3)
    by_tail = {"signal": "hill_alpha"}
    same = [predict(profile, PruningChoice(budget="mp_edge", sparsity=0.5, options=by_tail | more)).layers for more in ({}, {"edges": edges})]
    assert same[0].equals(same[1]), "where Hill's α decides no edge does"


def test_a_solver_takes_as_many(profiled):
    network, profile = profiled("tiny_vit")
    choice = PruningChoice(score="sparsegpt", sparsity=0.5, layers={"*.fc2": 0.1})
    gone = {layer: int((~mask).sum()) for layer, mask in make_masks(network, choice, calibration=torch.randn(8, 3, 32, 32)).masks.items()}
    assert gone == dict(zip(predict(profile, choice).layers["layer"], predict(profile, choice).layers["removed"]))


def test_refusals_of_the_run_and_the_prediction_are_the_same(profiled):
    network, profile = profiled("tiny_vit")
    for choice in (
        PruningChoice(sparsity=0.9, layers={"*.mlp.*": 0.1}), PruningChoice(sparsity=0.5, layers={"head": 0.1}),
        PruningChoice(pattern="n_m", layers={"*": 0.5}), PruningChoice(pattern="kept", layers={"*": 0.5}),
        PruningChoice(budget="mp_edge", options={"edges": {"nowhere": 1.0}}), PruningChoice(budget="mp_edge", options={"edges": {"*.qkv": 0}}),
        PruningChoice(budget="mp_edge", options={"edges": [1.0]}), PruningChoice(budget="global", options={"edges": {"*.qkv": 1.0}}),
    ):  # fmt: skip
        with pytest.raises(RecipeError) as predicted:
            predict(profile, choice)
        with pytest.raises(RecipeError) as real:
            make_masks(network, choice)
        assert str(predicted.value) == str(real.value)


def test_recipes_carry_it_both_ways():
    recipe = Recipe(pruning=PruningChoice(sparsity=0.5, budget="mp_edge", layers={"blocks.0.*": 0.25}, options={"edges": {"*.qkv": 0.4}}))
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert edit(Recipe(), ['pruning.layers={"*.fc1": 0}']).pruning.layers == {"*.fc1": 0.0}
    assert recipe.fingerprint() != Recipe(pruning=PruningChoice(sparsity=0.5, budget="mp_edge", options={"edges": {"*.qkv": 0.4}})).fingerprint()


@pytest.mark.parametrize(
    ("layers", "says"),
    [
        ({"a": 1.0}, "gives 'a' the sparsity 1.0"),
        ({"a": -0.1}, "gives 'a' the sparsity -0.1"),
        ({"a": float("nan")}, "gives 'a' the sparsity nan"),
        ({"a": "half"}, "pruning.layers.a must be of type float"),
        ({"a": True}, "pruning.layers.a must be of type float"),
        (["a"], "pruning.layers must be of type dict"),
    ],
)
def test_wrong_layers_are_named(layers, says):
    with pytest.raises(RecipeError, match=says):
        Recipe.from_dict({"starfish_lab_recipe": 1, "pruning": {"layers": layers}})


def test_many_layers_go_into_a_link_and_come_back_exactly():
    import re

    from app import choice, merging

    layers = {f"stages.{i // 20}.blocks.{i % 20}.attn.qkv": round(0.3 + i / 701, 6) for i in range(200)}
    recipe = Recipe(pruning=PruningChoice(sparsity=0.5, layers=layers, budget="mp_edge", options={"edges": {"*.qkv": 1 / 3}, "s_d": 0.9}))
    c = choice.Choice(**choice.values(recipe))
    text = ",".join(c.layers)
    assert re.fullmatch(choice.FORMS["layers"], text) and re.fullmatch(choice.FORMS["edges"], ",".join(c.edges)) and len(text) < 10_000
    assert merging.merged(recipe, choice.recipe(c)).pruning == recipe.pruning
    assert merging.merged(recipe, choice.recipe(choice.Choice(sparsity=0.5, budget="mp_edge"))).pruning.options == {"s_d": 0.9}, "undone"
    assert choice.consistent(choice.Choice(pattern="n_m", layers=c.layers)).layers == ()
    assert choice.consistent(choice.Choice(budget="uniform", edges=c.edges)).edges == ()

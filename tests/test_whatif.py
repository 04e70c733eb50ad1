"""What-if answers against real masks, from a profile alone, at once, without torch."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT

from starfish_lab.errors import LabError, RecipeError, WeightsError
from starfish_lab.execution.slicing import slice_network
from starfish_lab.measure.macs import effective_macs, layer_macs, total_macs
from starfish_lab.models.network import prunable
from starfish_lab.pruning import BUDGETS
from starfish_lab.pruning.budgets import mp_edge
from starfish_lab.pruning.masks import sparsity
from starfish_lab.pruning.prune import edge_table, make_masks, pruned
from starfish_lab.recipe import ModelChoice, PruningChoice, StartChoice, TokensChoice
from starfish_lab.whatif import Profile, cannot_merge, predict, profile_key

NETWORKS = ("tiny_vit", "tiny_resnet", "tiny_convnext")


def agrees(network, profile, choice, *, within: float = 0.0) -> None:
    """Totals as in a real run, layers within a fraction of their size."""
    images = torch.randn(4, *network.preprocessing.input_size)
    result, answer = make_masks(network, choice, calibration=images), predict(profile, choice)
    real = sparsity(network.module, result.masks)
    assert list(answer.layers["layer"]) == list(result.masks)
    assert answer.layers["removed"].sum() == real.removed
    assert answer.totals["sparsity_prunable"] == pytest.approx(real.of_prunable)
    assert answer.totals["sparsity_all"] == pytest.approx(real.of_all)
    for row in answer.layers.itertuples():
        mask = result.masks[row.layer]
        assert row.weights == mask.numel()
        assert abs(row.removed - int((~mask).sum())) <= within * row.weights
        assert row.note == result.left_dense.get(row.layer, "")


@pytest.mark.parametrize("name", NETWORKS)
def test_unstructured(profiled, name):
    network, profile = profiled(name)
    for budget, share in itertools.product(BUDGETS.names(), (0.15, 0.37, 0.5, 0.75, 0.9)):
        choice = PruningChoice(budget=budget, sparsity=share)
        agrees(network, profile, choice, within=0.0 if budget == "uniform" else 0.02)
        assert predict(profile, choice).estimate == (budget != "uniform")


def test_other_scores(profiled):
    network, profile = profiled("tiny_vit")
    for score in ("wanda", "random"):
        agrees(network, profile, PruningChoice(score=score, sparsity=0.37))
        assert not predict(profile, PruningChoice(score=score)).estimate
        apart = predict(profile, PruningChoice(score=score, budget="global"))
        assert apart.estimate and len(apart.notes) == 1
    agrees(network, profile, PruningChoice(score="random", budget="global", sparsity=0.5), within=0.05)
    assert "wanda" in predict(profile, PruningChoice(score="wanda", budget="mp_edge")).notes[0]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("keep, group", [(2, 4), (3, 8), (8, 16)])
def test_n_m(profiled, name, keep, group):
    network, profile = profiled(name)
    agrees(network, profile, PruningChoice(pattern="n_m", keep=keep, group=group, include=("head*",)))


@pytest.mark.parametrize("name, excluded", [("tiny_vit", ("*.0.mlp.fc2", "*1.attn.qkv")), ("tiny_resnet", ("layer1.0.conv2",))])
@pytest.mark.parametrize("share", [0.1, 0.37, 0.5, 0.999])
def test_structured(profiled, name, excluded, share):
    network, profile = profiled(name)
    for exclude in ((), excluded):
        choice = PruningChoice(pattern="structured", sparsity=share, exclude=exclude)
        agrees(network, profile, choice)
        assert list(make_masks(network, choice).notes) == predict(profile, choice).notes


def test_include_and_exclude_choose_the_same_layers(profiled):
    network, profile = profiled("tiny_convnext")
    for include, exclude in (((), ("stages.0.*",)), (("head.*", "*conv_dw"), ()), (("*",), ("*.fc1",))):
        answer = predict(profile, PruningChoice(include=include, exclude=exclude))
        assert list(answer.layers["layer"]) == list(prunable(network, include, exclude))
    with pytest.raises(LabError, match="No prunable layer"):
        predict(profile, PruningChoice(exclude=("*",)))


def test_refusals_are_those_of_a_run(profiled):
    network, profile = profiled("tiny_convnext")
    for choice in (
        PruningChoice(pattern="structured"), PruningChoice(pattern="n_m", keep=1, group=7), PruningChoice(pattern="n_m", budget="global"),
        PruningChoice(pattern="n_m", keep=8, group=16, indivisible="refuse"), PruningChoice(options={"beta": 1}),
    ):  # fmt: skip
        with pytest.raises(RecipeError) as predicted:
            predict(profile, choice)
        with pytest.raises(RecipeError) as real:
            make_masks(network, choice)
        assert str(predicted.value) == str(real.value)


def test_multiply_adds_left(profiled):
    network, profile = profiled("tiny_vit")
    assert profile.facts["macs_g"] == pytest.approx(total_macs(network) / 1e9, rel=1e-5)
    cost = layer_macs(network).set_index("layer")["macs"]
    half = predict(profile, PruningChoice(sparsity=0.5))
    saved = sum(cost[layer] for layer in prunable(network)) / 2
    assert half.totals["macs_g"] - half.totals["macs_g_effective"] == pytest.approx(saved / 1e9, rel=1e-3)

    # 17 tokens, 32 wide, 2 heads of 16, MLP 128: half of the Q/K dimensions, in closed form
    smaller = predict(profile, PruningChoice(pattern="structured", sparsity=0.5, units=("qk",)))
    saved = 2 * (17 * 32 * 32 + 17 * 17 * 2 * 8)  # a block: half of the Q and K rows, half of Q·Kᵀ
    assert smaller.totals["macs_g"] - smaller.totals["macs_g_effective"] == pytest.approx(saved / 1e9, rel=1e-4)
    parameters = 2 * (32 * 32 + 32)  # their weights and biases
    assert smaller.totals["parameters_m"] - smaller.totals["nonzero_parameters_m"] == pytest.approx(parameters / 1e6, rel=1e-6)
    units = predict(profile, PruningChoice(pattern="structured", sparsity=0.5, units=("mlp",)))
    parameters = 2 * 64 * (32 + 1 + 32)
    assert units.totals["parameters_m"] - units.totals["nonzero_parameters_m"] == pytest.approx(parameters / 1e6, rel=1e-6)


@pytest.mark.parametrize("name", ["tiny_vit", "tiny_resnet"])
def test_structured_is_the_cost_of_the_sliced_network(profiled, name):
    network, profile = profiled(name)
    choice = PruningChoice(pattern="structured", sparsity=0.37)
    masks = make_masks(network, choice).masks
    small, totals = slice_network(pruned(network, masks), masks), predict(profile, choice).totals
    assert round(totals["nonzero_parameters_m"] * 1e6) == sum(p.numel() for p in small.module.parameters())
    assert totals["macs_g_effective"] == pytest.approx(total_macs(small) / 1e9, rel=1e-4)


def test_profile_says_what_it_found(profiled):
    network, profile = profiled("tiny_vit")
    assert profile.facts["parameters"] == sum(p.numel() for p in network.module.parameters())
    assert list(profile.layers[profile.layers["default"]]["layer"]) == list(prunable(network))
    row = profile.layers.set_index("layer").loc["blocks.1.mlp.fc1"]
    weight = network.module.blocks[1].mlp.fc1.weight.detach().abs().numpy()
    assert (row["rows"], row["cols"], row["in_features"], row["depth"], row["kind"]) == (128, 32, 32, 1, "mlp")
    np.testing.assert_allclose(row["magnitudes"], np.quantile(weight, np.linspace(0, 1, 257)), rtol=1e-5, atol=1e-9)
    assert row["sigma_plus"] > 0 and len(profile.spectra) >= len(profile.layers)
    assert profile.to_json() == Profile.from_json(profile.to_json()).to_json()


def test_json_is_strict_and_short():
    empty = pd.DataFrame()
    layers = pd.DataFrame({"layer": ["a"], "hill_alpha": [np.nan], "shape": [(2, 3)], "magnitudes": [np.array([0.123456789, np.inf])]})
    text = Profile({"name": "x"}, layers, empty, empty, empty).to_json()
    assert json.loads(text)["layers"] == {"layer": ["a"], "hill_alpha": [None], "shape": [[2, 3]], "magnitudes": [[0.123457, None]]}


def deit_base_like(depth: int = 12, width: int = 768) -> Profile:
    """A profile of DeiT-B's shapes with the quantiles of Gaussian weights."""
    rows = []
    shapes = {"attn.qkv": (3 * width, width), "attn.proj": (width, width), "mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
    for block, (name, (out, into)) in itertools.product(range(depth), shapes.items()):
        quantiles = np.sort(np.abs(np.random.default_rng(block).normal(0, 0.02 + 0.002 * block, 257)))
        rows.append({
            "layer": f"blocks.{block}.{name}", "block": f"blocks.{block}", "depth": block, "kind": "mlp" if "mlp" in name else "attention",
            "rows": out, "cols": into, "shape": [out, into], "weights": out * into, "macs_g": 197 * out * into / 1e9, "default": True,
            "in_features": into, "conv_groups": 1, "magnitudes": quantiles.tolist(), "sigma_plus": 1.0 + block, "hill_alpha": 3.0 + block % 5,
        })  # fmt: skip
    groups = pd.DataFrame(
        [{"producer": f"blocks.{b}.mlp.fc1", "consumer": f"blocks.{b}.mlp.fc2", "units": 4 * width, "beside": 1} for b in range(depth)]
    )
    attention = {"heads": 12, "head_dim": 64, "beside": 2, "macs_g": 2 * 197**2 * width / 1e9}
    attentions = pd.DataFrame([{"name": f"blocks.{b}.attn", "qkv": f"blocks.{b}.attn.qkv", **attention} for b in range(depth)])
    facts = {"name": "deit", "parameters": 86_567_656, "macs_g": 17.5638, "structured_refusal": ""}
    return Profile(facts, pd.DataFrame(rows), groups, attentions, pd.DataFrame())


@pytest.mark.parametrize("pattern, budget", [("unstructured", "mp_edge"), ("unstructured", "uniform"), ("n_m", "uniform"), ("structured", "uniform")])
def test_instant(pattern, budget):
    profile, choice = deit_base_like(), PruningChoice(pattern=pattern, budget=budget, sparsity=0.5)
    times = []
    for _ in range(7):
        start = time.process_time()
        predict(profile, choice)
        times.append(time.process_time() - start)
    assert min(times) < 0.05


def test_half_of_units_and_dimensions_of_deit_base():
    """41 % of DeiT-B's parameters go, density over qkv and MLP 6/11 (STARFISH reference, §4)."""
    answer = predict(deit_base_like(), PruningChoice(pattern="structured", sparsity=0.5))
    touched = answer.layers[~answer.layers["layer"].str.endswith("proj")]
    assert 1 - touched["removed"].sum() / touched["weights"].sum() == pytest.approx(6 / 11)
    assert answer.totals["sparsity_all"] == pytest.approx(0.409, abs=0.001)


def test_no_torch():
    code = (
        "import sys; from starfish_lab.whatif import *; from starfish_lab.recipe import PruningChoice\n"
        "profile = Profile.from_json(sys.stdin.read())\n"
        "for options in ({'budget': 'mp_edge'}, {'pattern': 'n_m', 'score': 'cast', 'permutation': 'deal'}, {'pattern': 'structured'}):\n"
        "    predict(profile, PruningChoice(**options))\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, input=deit_base_like(depth=2).to_json(), text=True, check=True)


def test_profile_key(tmp_path):
    choice = ModelChoice()
    assert profile_key(choice) == profile_key(ModelChoice()) != profile_key(ModelChoice(name="resnet50", weights="random"))
    file = tmp_path / "weights.safetensors"
    file.write_bytes(b"one")
    choice = ModelChoice(name="resnet50", weights="file", path=str(file))
    first = profile_key(choice)
    assert first.startswith("resnet50-") and first == profile_key(dataclasses.replace(choice))
    os.utime(file, ns=(1, 1))
    assert profile_key(choice) != first
    with pytest.raises(WeightsError, match="nowhere"):
        profile_key(dataclasses.replace(choice, path=str(tmp_path / "nowhere")))


# -- what comes before pruning, and in its place ------------------------------------------------------------------------------


MERGING = TokensChoice(r=(3,))


def merged_copy(network, tokens):
    from starfish_lab import tokens as merging

    student = network.copy()
    merging.merge(student, tokens)
    return student


@pytest.mark.parametrize("tokens", [MERGING, TokensChoice(r=(8, 0)), TokensChoice(r=(8,))])
@pytest.mark.parametrize(
    "choice",
    [
        PruningChoice(sparsity=0.5), PruningChoice(pattern="n_m"), PruningChoice(pattern="structured", sparsity=0.5),
        PruningChoice(pattern="structured", sparsity=0.37, units=("qk",)), PruningChoice(pattern="kept"),
    ],
    ids=lambda choice: f"{choice.pattern}-{len(choice.units)}",
)  # fmt: skip
def test_merged_tokens_cost_what_the_merged_network_costs(profiled, choice, tokens):
    network, profile = profiled("tiny_vit")
    student = merged_copy(network, tokens)
    masks = make_masks(student, choice).masks
    answer = predict(profile, choice, tokens=tokens)
    assert answer.totals["macs_g_effective"] == pytest.approx(effective_macs(student, masks) / 1e9, rel=1e-4)
    assert answer.totals["macs_g_effective"] < predict(profile, choice).totals["macs_g_effective"]
    assert answer.totals["sparsity_all"] == predict(profile, choice).totals["sparsity_all"], "merging removes no weight"


def test_tokens_merge_in_plain_transformers_alone_and_both_sides_say_so(profiled):
    network, profile = profiled("tiny_resnet")
    with pytest.raises(RecipeError, match="vit_") as predicted:
        predict(profile, PruningChoice(), tokens=MERGING)
    with pytest.raises(RecipeError) as real:
        merged_copy(network, MERGING)
    assert str(predicted.value) == str(real.value)
    assert cannot_merge(profile) and not cannot_merge(profiled("tiny_vit")[1])


def test_a_profile_made_before_it_knew_tokens_still_answers(profiled):
    _, profile = profiled("tiny_vit")
    for fact in ("tokens", "prefix_tokens", "matmuls"):
        profile.facts.pop(fact)
    assert not cannot_merge(profile)
    full = profiled("tiny_vit")[1]
    old, new = (predict(p, PruningChoice(), tokens=MERGING).totals["macs_g_effective"] for p in (profile, full))
    assert old == pytest.approx(new, rel=1e-3)


def test_kept_takes_nothing_from_a_dense_network(profiled):
    network, profile = profiled("tiny_vit")
    answer = predict(profile, PruningChoice(pattern="kept"))
    assert answer.layers["removed"].sum() == 0 and not answer.estimate
    assert answer.notes == list(make_masks(network, PruningChoice(pattern="kept")).notes)
    with pytest.raises(RecipeError, match="only in a run"):
        predict(profile, PruningChoice(pattern="kept"), start=StartChoice(method="file", path="x.pt"))


@pytest.mark.parametrize("method, budget", [("magnitude", "global"), ("ser", "mp_edge"), ("hybrid", "mp_edge"), ("classical_rmt", "global")])
def test_what_a_start_leaves_is_that_of_its_rule_and_says_so(profiled, method, budget):
    network, profile = profiled("tiny_vit")
    answer = predict(profile, PruningChoice(pattern="kept"), start=StartChoice(method=method, sparsity=0.35))
    alike = predict(profile, PruningChoice(budget=budget, sparsity=0.35))
    assert list(answer.layers["removed"]) == list(alike.layers["removed"])
    assert answer.estimate and "only in a run" in answer.notes[0]
    assert ("edge_weight" in answer.layers) == (budget == "mp_edge")
    student = pruned(network, make_masks(network, PruningChoice(budget=budget, sparsity=0.35)).masks)
    kept = make_masks(student, PruningChoice(pattern="kept")).masks
    assert answer.totals["sparsity_prunable"] == pytest.approx(sparsity(network.module, kept).of_prunable)


def test_a_hybrid_start_up_to_a_fifth_is_magnitude_alone(profiled):
    _, profile = profiled("tiny_vit")
    low = predict(profile, PruningChoice(pattern="kept"), start=StartChoice(method="hybrid", sparsity=0.2))
    assert list(low.layers["removed"]) == list(predict(profile, PruningChoice(budget="global", sparsity=0.2)).layers["removed"])


def test_the_edge_weights_are_those_of_the_budget(profiled):
    network, profile = profiled("tiny_vit")
    choice = PruningChoice(budget="mp_edge", sparsity=0.5, options={"signal": "hill_alpha", "beta": 1.5})
    answer = predict(profile, choice)
    layers = list(prunable(network))
    real = mp_edge.weights(edge_table(network, layers, "cpu"), 0.5, signal="hill_alpha", beta=1.5)
    np.testing.assert_allclose(answer.layers["edge_weight"], [real[layer] for layer in answer.layers["layer"]], rtol=1e-3)
    assert "edge_weight" not in predict(profile, PruningChoice(budget="global")).layers


@pytest.mark.parametrize("name", NETWORKS)
def test_solvers(profiled, name):
    network, profile = profiled(name)
    for choice in (
        PruningChoice(score="cast", pattern="n_m"), PruningChoice(score="sparsegpt", pattern="n_m", keep=4, group=8),
        PruningChoice(score="sparsegpt", sparsity=0.5),
    ):  # fmt: skip
        agrees(network, profile, choice)
        assert not predict(profile, choice).estimate
    apart = predict(profile, PruningChoice(score="sparsegpt", budget="global"))
    assert apart.estimate and "sparsegpt" in apart.notes[0]
    agrees(network, profile, PruningChoice(score="sparsegpt", budget="global", sparsity=0.5), within=0.02)


@pytest.mark.parametrize("score", ["corp", "taylor", "variance"])
def test_scores_of_units_take_as_many(profiled, score):
    network, profile = profiled("tiny_vit")
    agrees(network, profile, PruningChoice(score=score, pattern="structured", sparsity=0.37))
    if score == "taylor":
        agrees(network, profile, PruningChoice(score=score, sparsity=0.37))
        return
    with pytest.raises(RecipeError) as predicted:
        predict(profile, PruningChoice(score=score))
    with pytest.raises(RecipeError) as real:
        make_masks(network, PruningChoice(score=score), calibration=torch.randn(2, 3, 32, 32))
    assert str(predicted.value) == str(real.value) and "structured" in str(real.value)

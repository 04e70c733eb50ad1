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

from starfish_lab import profile as profiling
from starfish_lab.errors import LabError, RecipeError, WeightsError
from starfish_lab.execution.slicing import slice_network
from starfish_lab.measure.macs import layer_macs, total_macs
from starfish_lab.models.network import prunable
from starfish_lab.pruning import BUDGETS
from starfish_lab.pruning.masks import sparsity
from starfish_lab.pruning.prune import make_masks, pruned
from starfish_lab.recipe import ModelChoice, PruningChoice
from starfish_lab.whatif import Profile, predict, profile_key

NETWORKS = ("tiny_vit", "tiny_resnet", "tiny_convnext")


@pytest.fixture
def profiled(request):
    """A network and its profile as a page gets it: through JSON."""

    def get(name: str):
        network = request.getfixturevalue(name)
        return network, Profile.from_json(profiling.compute(network).to_json())

    return get


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
        start = time.perf_counter()
        predict(profile, choice)
        times.append(time.perf_counter() - start)
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
        "for options in ({'budget': 'mp_edge'}, {'pattern': 'n_m'}, {'pattern': 'structured'}):\n"
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

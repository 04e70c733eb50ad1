"""Structured healing from end to end: whole units go, the masked network heals, and the sliced one answers as it does and is smaller."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from starfish_lab import data, experiment
from starfish_lab.errors import RecipeError
from starfish_lab.execution import proof, slicing
from starfish_lab.export import load_pruned
from starfish_lab.healing.heal import heal
from starfish_lab.measure import accuracy
from starfish_lab.measure.drift import drift
from starfish_lab.models.loading import load
from starfish_lab.pruning.prune import make_masks, pruned
from starfish_lab.recipe import HealingChoice, ImagesChoice, MeasureChoice, PruningChoice, Recipe

UNITS = PruningChoice(pattern="structured", score="corp", sparsity=0.5)
CHAINS = {
    "starfish": HealingChoice(steps=8),
    "corp": HealingChoice(repair="corp", method="none"),
    "corp+starfish": HealingChoice(repair="corp", steps=8),
}


@pytest.mark.parametrize("healer", CHAINS)
def test_a_healed_network_answers_alike_masked_and_sliced(healer):
    dense = load(Recipe().model)
    splits = data.open_images(ImagesChoice(calibration=48, drift=16, evaluation=200), dense)
    images = splits.calibration.tensor()
    masks = make_masks(dense, PruningChoice(pattern="structured", score="corp", sparsity=0.75), calibration=images).masks
    student = pruned(dense, masks)
    healed = student.copy()
    heal(dense, healed, masks, images, CHAINS[healer])
    for layer, mask in masks.items():
        assert (healed.module.get_submodule(layer).weight[~mask] == 0).all()
    small = slicing.slice_network(healed, masks)
    whole, cut = (accuracy.predict(network, splits.evaluation) for network in (healed, small))
    assert np.array_equal(whole.top1, cut.top1)
    assert proof.prove(healed, small, images[:16]).largest_difference < 1e-5
    before, after = (np.mean([row["cosine_distance"] for row in drift(dense, network, splits.drift.tensor())]) for network in (student, healed))
    assert after < 0.9 * before


def test_a_chain_starts_where_the_repair_leaves_it(tiny_vit):
    """Its first loss is that of the repaired network: below that of the masked one."""
    images = torch.randn(32, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    masks = make_masks(tiny_vit, UNITS, calibration=images).masks
    first = {}
    for repair in ("none", "corp"):
        first[repair] = heal(tiny_vit, pruned(tiny_vit, masks), masks, images, HealingChoice(repair=repair, steps=1)).losses[0][1]
    assert first["corp"] < 0.8 * first["none"]


def test_a_run_saves_and_times_the_small_network(tmp_path):
    """MLP units and Q/K dimensions removed, repaired, healed while masked, then sliced: the same answers, fewer multiply-adds."""
    recipe = Recipe(
        images=ImagesChoice(calibration=32, drift=8, evaluation=100), pruning=UNITS, healing=HealingChoice(repair="corp", steps=4),
        measure=MeasureChoice(batch_sizes=(1,), seconds=0.05, spectra=False, certificates=False, snapshots=0),
    )  # fmt: skip
    report = experiment.run(recipe, folder=tmp_path, device="cpu")
    accuracies, totals = (report.frame(table).set_index("stage") for table in ("accuracy", "totals"))
    small = load_pruned(tmp_path / "healed")
    found = accuracy.accuracy_row(accuracy.predict(small, data.open_images(recipe.images, small).evaluation))
    assert found["correct"] == accuracies.loc["healed", "correct"]
    assert small.module.blocks[0].mlp.fc1.out_features == 384 and small.module.blocks[0].attn.qk_dim == 16
    assert totals.loc["healed", "macs_g_effective"] < 0.6 * totals.loc["dense", "macs_g"]
    row = report.frame("latency").set_index("stage").loc["healed"]
    assert row["execution"] == "sliced" and row["speedup"] > 0 and row["speedup_low"] <= row["speedup"] <= row["speedup_high"]


def test_a_recipe_that_corp_cannot_heal_says_so():
    recipe = Recipe(
        images=ImagesChoice(calibration=8, drift=8, evaluation=8), healing=HealingChoice(repair="corp", method="none"),
        measure=MeasureChoice(latency=False, spectra=False, certificates=False),
    )  # fmt: skip
    with pytest.raises(RecipeError, match="structured.*least_squares"):
        experiment.run(recipe, device="cpu")

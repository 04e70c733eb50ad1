"""Sensitivity of groups of units: each alone as the pattern would take it, at what it costs, and shares spent along the curves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_sensitivity import measured, splits_of
from test_slicing import bottlenecks
from torch.nn import functional as F

from starfish_lab.errors import RecipeError
from starfish_lab.measure.macs import effective_macs, total_macs
from starfish_lab.pruning.budgets.sensitivity import GRID, on_grid
from starfish_lab.pruning.prune import make_masks, pruned
from starfish_lab.recipe import PruningChoice, Recipe
from starfish_lab.sensitivity import spending, stored
from starfish_lab.sensitivity.plan import Sensitivity


@pytest.fixture(params=["tiny_vit", "tiny_resnet", "bottlenecks"])
def network(request):
    if request.param == "bottlenecks":  # whose middle convolutions are consumer of one group and producer of the next
        return replace(bottlenecks(), num_classes=10)
    network = request.getfixturevalue(request.param).copy()
    for attention in network.attentions:
        network.module.get_submodule(attention.qkv).weight.data.mul_(8)  # else attention hardly matters in an untrained network
    return network


@torch.no_grad()
def test_a_group_alone_is_what_the_pattern_takes_from_it_alone(network):
    splits, rows = splits_of(network), measured(network, levels=(0.5,), pattern="structured")
    names = list(rows["layer"])
    assert names == [name for name in dict(network.module.named_modules()) if name in names], "in the order of the network"
    for row in rows.itertuples():
        choice = PruningChoice(pattern="structured", layers={"*": 0.0, row.layer: 0.5})
        student = pruned(network, make_masks(network, choice).masks)
        p, q = (F.log_softmax(one.module(splits.drift.tensor()), -1).double() for one in (network, student))
        assert row.kl == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-3, abs=5e-7), row.layer
        assert row.sparsity == pytest.approx(0.5)
        saved = (total_macs(network) - effective_macs(network, make_masks(network, choice).masks)) / 1e9
        assert row.macs_g / 2 == pytest.approx(saved, rel=1e-6), f"half of {row.layer} saves half of what it says"


def test_the_network_is_as_it_was(tiny_vit):
    before = {key: value.clone() for key, value in tiny_vit.module.state_dict().items()}
    measured(tiny_vit, pattern="structured")
    assert all(torch.equal(value, before[key]) for key, value in tiny_vit.module.state_dict().items())


def test_shares_along_the_curves_save_what_was_asked_and_harm_less_than_equal_ones(tiny_vit):
    rows = measured(tiny_vit, levels=(0.25, 0.5, 0.75, 0.95), pattern="structured")
    choice = spending.budget(PruningChoice(pattern="structured", sparsity=0.5), rows)
    assert list(choice.layers) == list(rows["layer"].unique())
    masks = make_masks(tiny_vit, choice).masks
    every = 1e9 * rows.drop_duplicates("layer")["macs_g"].sum()
    assert total_macs(tiny_vit) - effective_macs(tiny_vit, masks) == pytest.approx(every / 2, rel=0.03)  # whole units
    levels, curves = stored.curves(rows, "kl")

    def summed(shares):
        return sum(np.interp(share, GRID, on_grid(levels, curves[name])) for name, share in shares.items())

    assert summed(choice.layers) <= summed(dict.fromkeys(choice.layers, 0.5)) + 1e-12


def test_units_count_in_the_fingerprint_and_nothing_that_does_not_matter():
    plan = Sensitivity.of(Recipe(pruning=PruningChoice(pattern="structured", sparsity=0.3, layers={"*": 0.5})))
    assert plan.fingerprint() == Sensitivity.of(Recipe(pruning=PruningChoice(pattern="structured"))).fingerprint()
    assert plan.fingerprint() != Sensitivity.of(Recipe(pruning=PruningChoice(pattern="structured", units=("qk",)))).fingerprint()


def test_a_network_without_removable_units_is_refused(tiny_convnext):
    with pytest.raises(RecipeError, match="No units can be removed here"):
        measured(tiny_convnext, pattern="structured")

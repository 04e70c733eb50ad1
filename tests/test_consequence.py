"""What is predicted and bounded from a profile, against the weights and the states themselves."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from starfish_lab import consequence, whatif
from starfish_lab.errors import RecipeError
from starfish_lab.models.loading import load
from starfish_lab.models.network import prunable
from starfish_lab.pruning.prune import make_masks
from starfish_lab.recipe import ImagesChoice, ModelChoice, PruningChoice, StartChoice

CHOICES = (
    PruningChoice(sparsity=0.5), PruningChoice(sparsity=0.93), PruningChoice(pattern="n_m"), PruningChoice(pattern="n_m", keep=1, group=8),
    PruningChoice(pattern="structured", sparsity=0.5), PruningChoice(score="random", sparsity=0.5), PruningChoice(score="wanda", sparsity=0.5),
    PruningChoice(sparsity=0.5, layers={"*1.*": 0.2}),
)  # fmt: skip


def followed(profile, choice, **more) -> consequence.Consequence:
    return consequence.follow(profile, whatif.predict(profile, choice), choice, **more)


@pytest.mark.parametrize("name", ["tiny_vit", "tiny_resnet", "tiny_convnext"])
@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_no_output_moves_by_more_than_the_bound(profiled, name, choice):
    network, profile = profiled(name)
    if choice.pattern == "structured" and profile.facts["structured_refusal"]:
        with pytest.raises(RecipeError, match="No units can be removed"):
            followed(profile, choice)
        return
    masks = make_masks(network, choice, calibration=torch.randn(4, *network.preprocessing.input_size)).masks
    found = followed(profile, choice)
    assert not found.why
    for row in found.layers.itertuples():
        weight = network.module.get_submodule(row.layer).weight.detach().double()
        gone = (weight * ~masks[row.layer]).flatten(1)
        largest = gone.norm(dim=1).max().item()  # the worst v of norm 1 for an output is its own row of R
        assert largest <= row.change_bound
        assert row.change_bound <= weight.norm().item() * 1.01 and (row.change_bound > 0) == bool((~masks[row.layer]).any())


@pytest.mark.parametrize("name", ["tiny_vit", "tiny_resnet"])
def test_the_energy_that_goes_is_that_of_the_smallest_weights(profiled, name):
    network, profile = profiled(name)
    weights = {layer: module.weight.detach().abs().flatten() for layer, module in prunable(network).items()}
    for choice, allowed in ((PruningChoice(sparsity=0.6), 0.01), (PruningChoice(pattern="n_m"), 0.06), (PruningChoice(score="random"), 0.06)):
        masks = make_masks(network, choice).masks
        for row in followed(profile, choice).layers.itertuples():
            gone = (weights[row.layer] * ~masks[row.layer].flatten()).square().sum() / weights[row.layer].square().sum()
            assert row.energy == pytest.approx(gone.item(), abs=allowed)


def test_n_m_takes_a_weight_when_too_few_of_its_group_are_smaller():
    """2:4 by hand: of 3 others at most one is smaller, at chance u each."""
    u = np.array([0.1, 0.5, 0.9])
    np.testing.assert_allclose(consequence._goes(u, 2, 4), (1 - u) ** 3 + 3 * u * (1 - u) ** 2)


def test_drift_by_hand(profiled):
    """Half of the energy of every layer: ρ = √½; a branch has two layers, so it keeps ½ of its direction; two blocks of two branches."""
    _, profile = profiled("tiny_vit")
    choice = PruningChoice(score="random", sparsity=0.5)  # its energy is its share
    expected = 1.0
    drift = []
    for parts in (1, 2, 3, 4):
        expected *= (parts + 0.5) / (parts + 1)
        drift.append(1 - expected)
    np.testing.assert_allclose(followed(profile, choice).blocks["drift"], drift[1::2], rtol=1e-3)


def test_nothing_goes_nothing_drifts(profiled):
    _, profile = profiled("tiny_vit")
    found = followed(profile, PruningChoice(pattern="kept"))
    assert (found.blocks["drift"] == 0).all() and (found.layers["change_bound"] == 0).all()
    spared = followed(profile, PruningChoice(sparsity=0.5, exclude=("blocks.0.*",)))
    assert spared.blocks["drift"][0] == 0 < spared.blocks["drift"][1]


def test_what_cannot_be_known_is_said(profiled):
    _, profile = profiled("tiny_vit")
    solved = followed(profile, PruningChoice(score="sparsegpt", sparsity=0.5))
    assert "sparsegpt" in solved.why and solved.layers["change_bound"].isna().all()
    assert "starts from another" in followed(profile, PruningChoice(sparsity=0.5), start=StartChoice(method="ser")).why
    assert followed(profile, PruningChoice(budget="global")).label == consequence.ESTIMATE != followed(profile, PruningChoice()).label


def test_a_profile_without_spectra_still_answers(profiled):
    _, profile = profiled("tiny_vit")
    exact = followed(profile, PruningChoice(sparsity=0.7))
    profile.spectra = profile.spectra.iloc[:0]
    near = followed(profile, PruningChoice(sparsity=0.7))
    np.testing.assert_allclose(near.layers["energy"], exact.layers["energy"], atol=0.05)


def test_predicted_drift_sorts_blocks_and_choices_of_the_starter():
    """Rank correlation of predicted with measured drift: 0.94 over everything when it was measured (tests/bar_explore.py)."""
    import bar_explore

    from starfish_lab.data import open_images

    network = load(ModelChoice())
    images = bar_explore._all(open_images(ImagesChoice(drift=16), network).drift)
    known = whatif.Profile.from_json(bar_explore.settings.ASSETS.joinpath("starter", "profile.json").read_text())
    asked = [PruningChoice(sparsity=s, budget=budget) for budget in ("uniform", "global") for s in (0.4, 0.6, 0.8)]
    asked += [PruningChoice(pattern="n_m"), PruningChoice(sparsity=0.7, exclude=("*.mlp.*",))]
    found = bar_explore.ranks(network, known, images, asked)
    assert found["rank_all"] > 0.9 and found["rank_choices"] > 0.9 and found["rank_within"] > 0.9
    assert math.isfinite(found["ratio"])

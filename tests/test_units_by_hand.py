"""Shares of their own for groups of units: the same in masks, in what-if answers and in the sliced network; what fits nothing is refused."""

from __future__ import annotations

import pytest
import torch

from starfish_lab.errors import RecipeError
from starfish_lab.execution.slicing import slice_network
from starfish_lab.measure.macs import total_macs
from starfish_lab.pruning.prune import make_masks, pruned
from starfish_lab.recipe import PruningChoice, Recipe
from starfish_lab.whatif import predict

SHARES = {
    "tiny_vit": {"blocks.0.mlp.fc1": 0.75, "blocks.1.mlp.fc1": 0.0, "*.qkv": 0.25},
    "tiny_resnet": {"layer1.*": 0.75, "layer2.0.conv1": 0.0},
}


@pytest.mark.parametrize("name", SHARES)
def test_what_is_predicted_is_what_goes_and_what_is_cut(profiled, name):
    network, profile = profiled(name)
    choice = PruningChoice(pattern="structured", sparsity=0.5, layers=SHARES[name])
    masks = make_masks(network, choice).masks
    answer = predict(profile, choice)
    assert {row.layer: row.removed for row in answer.layers.itertuples()} == {layer: int((~mask).sum()) for layer, mask in masks.items()}
    student = pruned(network, masks)
    small = slice_network(student, masks)
    assert total_macs(small) / 1e9 == pytest.approx(answer.totals["macs_g_effective"], rel=1e-5)
    images = torch.randn(2, *network.preprocessing.input_size)
    with torch.inference_mode():
        assert torch.allclose(small.module.eval()(images), student.module.eval()(images), atol=1e-5)


def test_each_group_loses_its_own_share_and_the_others_the_recipes(tiny_vit):
    choice = PruningChoice(pattern="structured", sparsity=0.5, layers=SHARES["tiny_vit"])
    masks = make_masks(tiny_vit, choice).masks
    units = {layer: int((~mask).any(1).sum()) for layer, mask in masks.items()}
    assert units["blocks.0.mlp.fc1"] == 96 and units["blocks.1.mlp.fc1"] == 0  # of 128
    assert units["blocks.0.attn.qkv"] == units["blocks.1.attn.qkv"] == 2 * 2 * 4  # of Q and K, 2 heads, 4 of 16 dimensions
    assert torch.equal((~masks["blocks.0.mlp.fc2"]).any(0), (~masks["blocks.0.mlp.fc1"]).any(1)), "a unit goes from both of its layers"
    rest = make_masks(tiny_vit, PruningChoice(pattern="structured", sparsity=0.5, layers={"blocks.0.mlp.fc1": 0.75})).masks
    assert int((~rest["blocks.1.mlp.fc1"]).any(1).sum()) == 64


@pytest.mark.parametrize(
    ("layers", "units", "says"),
    [
        ({"blocks.0.mlp.fc2": 0.5}, ("mlp", "qk"), r"'blocks\.0\.mlp\.fc2', which fits none of the 4 .*such as blocks\.0\.mlp\.fc1"),
        ({"*.qkv": 0.5}, ("mlp",), r"'\*\.qkv', which fits none of the 2"),
    ],
)
def test_a_name_that_no_group_has_is_refused_alike(profiled, layers, units, says):
    network, profile = profiled("tiny_vit")
    choice = PruningChoice(pattern="structured", units=units, layers=layers)
    for ask in (lambda: make_masks(network, choice), lambda: predict(profile, choice)):
        with pytest.raises(RecipeError, match=says):
            ask()


def test_groups_of_n_have_no_shares_of_their_own(tiny_vit):
    with pytest.raises(RecipeError, match="the pattern 'n_m' takes a share of its own from each.*'unstructured' or 'structured'"):
        make_masks(tiny_vit, PruningChoice(pattern="n_m", layers={"blocks.0.mlp.fc1": 0.5}))


@pytest.mark.parametrize("name", ["tiny_vit", "tiny_resnet"])
@pytest.mark.parametrize("multiple", [4, 24])
def test_what_stays_comes_in_multiples_everywhere(profiled, name, multiple):
    network, profile = profiled(name)
    choice = PruningChoice(pattern="structured", sparsity=0.37, multiple=multiple)
    masks = make_masks(network, choice).masks
    answer = predict(profile, choice)
    assert {row.layer: row.removed for row in answer.layers.itertuples()} == {layer: int((~mask).sum()) for layer, mask in masks.items()}
    for group in network.unit_groups:
        stay = masks[group.producer].flatten(1).any(1)
        assert int(stay.sum()) % multiple == 0 or len(stay) < multiple, group.producer
    for attention in network.attentions:
        stay = masks[attention.qkv].any(1)[: attention.heads * attention.head_dim].view(attention.heads, -1).sum(1)
        assert all(int(number) % multiple == 0 for number in stay) or attention.head_dim < multiple
    assert total_macs(slice_network(pruned(network, masks), masks)) / 1e9 == pytest.approx(answer.totals["macs_g_effective"], rel=1e-5)


def test_a_multiple_is_a_whole_number_and_no_multiple_changes_nothing(tiny_vit):
    with pytest.raises(RecipeError, match="pruning.multiple is 0: give a whole number of at least 1"):
        make_masks(tiny_vit, PruningChoice(pattern="structured", multiple=0))
    assert Recipe(pruning=PruningChoice(multiple=1)).fingerprint() == Recipe().fingerprint()
    whole = make_masks(tiny_vit, PruningChoice(pattern="structured", sparsity=0.5, multiple=16, layers={"*": 0.0})).masks
    assert all(mask.all() for mask in whole.values()), "a group that loses nothing keeps all"

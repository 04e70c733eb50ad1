"""Token merging: the algorithm against hand-made examples and exact oracles, and merging networks in every other part of the lab."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer

from starfish_lab import tokens
from starfish_lab.errors import RecipeError, WeightsError
from starfish_lab.execution import proof, slicing
from starfish_lab.healing.heal import heal
from starfish_lab.measure import macs
from starfish_lab.measure.drift import drift
from starfish_lab.models.loading import wrap
from starfish_lab.models.network import Preprocessing, prunable
from starfish_lab.models.states import BlockStates
from starfish_lab.pruning.prune import make_masks, pruned
from starfish_lab.recipe import HealingChoice, PruningChoice, Recipe, TokensChoice
from starfish_lab.tokens import MergingBlock, Tokens, combine, match


def merged(network, *r, proportional=True):
    student = network.copy()
    tokens.merge(student, TokensChoice(r=r, proportional=proportional))
    return student


def vit(**arguments):
    torch.manual_seed(0)
    usual = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 10}
    module = VisionTransformer(**{**usual, **arguments}).eval()
    return wrap(module, name="vit", num_classes=10, preprocessing=Preprocessing(input_size=(3, 32, 32)))


def images(count=3, seed=1):
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def returned(network, x):
    """What every block returns, as it is."""
    found = []
    handles = [network.module.get_submodule(name).register_forward_hook(lambda m, i, output: found.append(output)) for name in network.blocks]
    with torch.no_grad():
        network.module(x)
    for handle in handles:
        handle.remove()
    return found


# -- the algorithm ----------------------------------------------------------------------------------------------------


def test_of_five_tokens_the_two_alike_merge():
    keys = torch.tensor([[[1.0, 0], [1, 0], [0, 1], [1, 1], [0, 1.1]]])  # a class token, then patches 1 (b), 2 (a), 3 (b), 4 (a)
    keys = torch.cat([keys, torch.tensor([[[0.0, 1]]])], dim=1)  # 5 (b) is like 2 and 4
    assert match(keys, 1, 1).tolist() == [[0, 1, 4, 2, 3, 4]]  # 2 goes into 5, and the others move up
    assert match(keys, 2, 1).tolist() == [[0, 1, 3, 2, 3, 3]]  # 4 too


def test_each_image_of_a_batch_merges_its_own():
    keys = torch.nn.functional.one_hot(torch.tensor([[0, 1, 1, 2], [0, 2, 1, 1]])).float()
    assert match(keys, 1, 0).tolist() == [[0, 1, 1, 2], [0, 1, 2, 2]]


def test_means_are_weighted_by_size():
    values = torch.tensor([[[0.0], [3.0], [9.0]]])
    before = Tokens(values, torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[0, 1, 1, 2, 2, 2, 2]]))
    after = combine(before, torch.tensor([[0, 1, 1]]), 2)
    assert after.values.flatten().tolist() == [0, (3 * 2 + 9 * 4) / 6] and after.sizes.tolist() == [[1, 6]]
    assert after.source.tolist() == [[0, 1, 1, 1, 1, 1, 1]]
    assert after.expanded().flatten().tolist() == [0, *[7.0] * 6]


def test_half_precision_is_summed_in_full():
    values = torch.full((1, 200, 1), 1.01).half()
    after = combine(Tokens(values), torch.zeros(1, 200, dtype=torch.long), 1)
    assert after.values.dtype == torch.half and after.values.item() == pytest.approx(values[0, 0].item(), abs=1e-3)


@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
@pytest.mark.parametrize("patches", [2, 7, 16])
def test_the_prefix_never_merges_and_as_many_go_as_asked_for(prefix, patches):
    keys = torch.ones(2, prefix + patches, 4)  # all alike: nothing but the rules keeps them apart
    for r in range(1, patches // 2 + 1):
        target = match(keys, r, prefix)
        assert target[:, :prefix].tolist() == [list(range(prefix))] * 2
        assert (target[:, prefix:] >= prefix).all() and target.unique().tolist() == list(range(prefix + patches - r))


def test_a_choice_is_the_same_whatever_else_is_in_the_batch():
    keys = torch.randn(4, 17, 8)
    together = match(keys, 5, 1)
    assert all(torch.equal(together[i], match(keys[i : i + 1], 5, 1)[0]) for i in range(4))


def test_autocast_does_not_blunt_the_choice():
    keys = 1 + 0.1 * torch.randn(1, 65, 8, generator=torch.Generator().manual_seed(0))  # cosines of which bf16 makes many equal
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (keys @ keys.mT).dtype == torch.bfloat16
        found = match(keys, 16, 1)
    assert torch.equal(found, match(keys, 16, 1))


# -- in a network -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("r", [(), (0,), (0, 0)])
def test_without_merging_nothing_changes(tiny_vit, r):
    student = merged(tiny_vit, *r)
    assert type(student.module.blocks) is type(tiny_vit.module.blocks) and tokens.facts(student) is None
    assert torch.equal(student.module(images()), tiny_vit.module(images()))


def test_blocks_before_the_first_merge_are_bit_identical():
    dense = vit()
    with BlockStates(dense.module, dense.blocks) as wanted:
        dense.module(images())
    with BlockStates((student := merged(dense, 0, 0, 3)).module, student.blocks) as found:
        student.module(images())
    assert all(torch.equal(a, b) for a, b in zip(wanted.values[:2], found.values[:2])) and not torch.equal(wanted.values[2], found.values[2])


def test_names_and_weights_stay(tiny_vit):
    student = merged(tiny_vit, 2)
    before, after = tiny_vit.module.state_dict(), student.module.state_dict()
    assert list(before) == list(after) and all(torch.equal(before[name], after[name]) for name in before)
    assert list(prunable(student)) == list(prunable(tiny_vit)) and student.blocks == tiny_vit.blocks
    assert wrap(student.module, name="again").blocks == tiny_vit.blocks


@pytest.mark.parametrize("arguments", [{}, {"reg_tokens": 4}, {"class_token": False, "global_pool": "avg"}, {"qk_norm": True, "init_values": 0.1}])
@pytest.mark.parametrize("r", [(2,), (0, 5, 1), (8,)])
def test_sizes_sum_to_all_tokens_in_every_block(arguments, r):
    network = vit(**arguments)
    student = merged(network, *r)
    total = 16 + network.prefix_tokens
    expected = tokens.schedule(total, network.prefix_tokens, 3, r)[1:]
    for found, count in zip(returned(student, images()), expected, strict=True):
        assert found.values.shape == (3, count, 32)
        if count == total:
            assert found.sizes is None
            continue
        assert torch.equal(found.sizes.sum(1), torch.full((3,), float(total)))
        assert (found.sizes[:, : network.prefix_tokens] == 1).all()
        counted = torch.stack([row.bincount(minlength=count) for row in found.source])
        assert torch.equal(counted.float(), found.sizes)


def twins(network, x):
    """The network's own embedding with patches 1 and 2 made equal: a batch whose first merge loses nothing."""
    with torch.no_grad():
        embedded = network.module.norm_pre(network.module.patch_drop(network.module._pos_embed(network.module.patch_embed(x))))
    embedded[:, 2] = embedded[:, 1]
    return embedded


@torch.no_grad()
def test_merging_equal_tokens_changes_no_answer():
    """The exact oracle of proportional attention: a token of size 2 is attended to as two equal ones are."""
    dense = vit()
    start = twins(dense, images())
    wanted = dense.module.blocks(start)
    student, plain = merged(dense, 1, 0, 0), merged(dense, 1, 0, 0, proportional=False)
    tokens_ = Tokens(start)
    for block in student.module.blocks:
        tokens_ = block(tokens_)
        assert torch.equal(tokens_.source[:, 1], tokens_.source[:, 2])
    assert torch.allclose(tokens_.expanded(), wanted, atol=1e-5)
    assert not torch.allclose(plain.module.blocks(start)[:, 0], wanted[:, 0], atol=1e-4)


@torch.no_grad()
def test_fused_and_plain_attention_agree():
    student = merged(vit(), 3)
    fused = student.module(images())
    for block in student.module.blocks:
        block.attn.fused_attn = False
    assert torch.allclose(student.module(images()), fused, atol=1e-5)


def test_nothing_stays_from_one_pass_to_the_next():
    student = merged(vit(), 3)
    with torch.no_grad():
        first = student.module(images(3))
        assert student.module(images(1, seed=5)).shape == (1, 10)
        assert torch.equal(student.module(images(3)), first)
    assert all(block._keys.heard is None for block in student.module.blocks)


def test_a_copy_shares_nothing():
    student = merged(vit(), 3)
    student.module(images())  # with autograd, whose tensors could not be copied
    other = student.copy()
    wanted = student.module(images())
    for block in other.module.blocks:
        assert block._keys is not student.module.blocks[0]._keys
        assert list(block.attn.k_norm._forward_hooks.values()) == [block._keys]
        torch.nn.init.normal_(block.attn.qkv.weight)
    other.module(images())
    assert torch.equal(student.module(images()), wanted)


def test_gradients_flow_through_merging():
    student = merged(vit(), 3)
    with BlockStates(student.module, student.blocks) as states:
        student.module(images())
    assert [state.shape for state in states.values] == [(3, 17, 32)] * 3
    states.values[-1].square().sum().backward()
    for name, parameter in student.module.named_parameters():
        if not name.startswith(("head", "norm.")):
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_states_repeat_what_the_merged_token_holds():
    student = merged(vit(), 4)
    with BlockStates(student.module, student.blocks) as states, torch.no_grad():
        found = returned(student, images())
    for state, token in zip(states.values, found):
        for image in range(3):
            assert all(torch.equal(state[image, i], token.values[image, token.source[image, i]]) for i in range(17))


def test_a_pooling_head_weighs_tokens_by_size():
    dense = vit(class_token=False, global_pool="avg", depth=1)
    student = merged(dense, 4)
    (found,) = returned(student, images())
    with torch.no_grad():
        mean = (dense.module.norm(found.values) * found.sizes.unsqueeze(-1)).sum(1) / 16
        assert torch.allclose(dense.module.head(dense.module.fc_norm(mean)), student.module(images()), atol=1e-5)


@torch.no_grad()
def test_autocast_and_compile():
    student = merged(vit(), 3)
    wanted = student.module(images())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = student.module(images())
    assert torch.isfinite(found).all() and (found - wanted).abs().max() < 0.2 * wanted.abs().max()
    compiled = torch.compile(student.module, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(images()), wanted, atol=1e-5)
    assert torch.allclose(compiled(images(2)), student.module(images(2)), atol=1e-5)


# -- cost -------------------------------------------------------------------------------------------------------------


def vit_macs(entering, width, patches, classes=1000, pixels=768):
    """As run: attention and its projections at the tokens that enter a block, the MLP at those that leave it."""
    blocks = sum(4 * n * width**2 + 2 * n**2 * width + 8 * left * width**2 for n, left in zip(entering, entering[1:]))
    return blocks + patches * pixels * width + classes * width


def cosines(entering, r, head_dim):
    """What matching costs: every token of a against every token of b, without the class token."""
    return sum(((n - 1) // 2) * (n // 2) * head_dim for n in entering[:-1] if r)


def test_vit_b_with_r_8_costs_what_it_does_by_hand():
    with torch.device("meta"):
        network = wrap(timm.create_model("deit_base_patch16_224"), name="deit_base_patch16_224")
    dense = macs.total_macs(network)
    tokens.merge(network, TokensChoice(r=(8,)))
    table = macs.layer_macs(network).set_index("layer")["macs"]
    matching = table[[f"{block}.matmul" for block in network.blocks]].sum()
    entering = tokens.schedule(197, 1, 12, (8,))
    without = macs.total_macs(network) - matching
    assert without == vit_macs(entering, 768, 196) and without / 1e9 == pytest.approx(13.104, abs=5e-4)
    assert without / dense - 1 == pytest.approx(-0.2539, abs=5e-5)  # arXiv 2606.02608 counts -22.81 %, the MLP before merging
    assert matching == cosines(entering, 8, 64) < 0.0004 * dense


def test_counting_leaves_a_merging_network_as_it_was():
    student = merged(vit(), 3)
    wanted = student.module(images())
    macs.total_macs(student)
    assert torch.equal(student.module(images()), wanted)


def test_clamping_is_remarked_upon(tiny_vit):
    (remark,) = tokens.remarks(tiny_vit, TokensChoice(r=(6,)))
    assert "block 1 is asked to merge 6 of its 11 tokens and merges 5" in remark and "6 tokens leave the last" in remark
    assert tokens.remarks(tiny_vit, TokensChoice(r=(5,))) == [] == tokens.remarks(tiny_vit, TokensChoice())
    assert [t.values.shape[1] for t in returned(merged(tiny_vit, 6), images())] == [11, 6]


# -- in the lab -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", [
    PruningChoice(sparsity=0.5), PruningChoice(sparsity=0.5, score="wanda"), PruningChoice(pattern="n_m"),
    PruningChoice(pattern="structured", sparsity=0.5, units=("mlp",)),
], ids=["magnitude", "wanda", "2:4", "structured"])  # fmt: skip
def test_a_merging_network_is_pruned_healed_and_measured(tiny_vit, choice):
    student = merged(tiny_vit, 3)
    x = images(16)
    masks = make_masks(student, choice, calibration=x).masks
    small = pruned(student, masks)
    assert tokens.facts(small) == {"r": [3, 3], "proportional": True}
    before = drift(tiny_vit, small, x)
    assert {row["tokens"] for row in before} == {"all", "class", "patch"}
    heal(tiny_vit, small, masks, x, HealingChoice(steps=30, batch_size=8))
    after = drift(tiny_vit, small, x)
    assert sum(row["cosine_distance"] for row in after) < sum(row["cosine_distance"] for row in before)
    for name, mask in masks.items():
        assert (small.module.get_submodule(name).weight[~mask] == 0).all()
    assert macs.effective_macs(small, masks) < macs.effective_macs(pruned(tiny_vit, masks), masks)


def test_drift_of_an_unpruned_merging_network_is_what_merging_costs(tiny_vit):
    rows = {(row["depth"], row["tokens"]): row["cosine_distance"] for row in drift(tiny_vit, merged(tiny_vit, 4), images(8))}
    assert rows.pop((0, "class")) == pytest.approx(0, abs=1e-12)  # behind attention of all tokens, and itself not merged
    assert all(distance > 1e-6 for distance in rows.values())


def test_sliced_networks_merge_too(tiny_vit):
    choice = PruningChoice(pattern="structured", sparsity=0.5)
    masks = make_masks(tiny_vit, choice, calibration=images()).masks
    small = merged(slicing.slice_network(tiny_vit, masks), 3)
    assert any(isinstance(module, slicing.SlicedAttention) for module in small.module.modules())
    assert [t.values.shape[1] for t in returned(small, images())] == [14, 11]


@torch.no_grad()
@pytest.mark.parametrize("units", [("qk",), ("mlp", "qk")])
def test_slicing_a_merging_network_changes_no_answer(tiny_vit, units):
    for block in tiny_vit.module.blocks:
        torch.nn.init.normal_(block.attn.qkv.bias)  # what a removed dimension of K holds
    student = merged(tiny_vit, 4)
    masks = make_masks(student, PruningChoice(pattern="structured", sparsity=0.6, units=units), calibration=images()).masks
    masked = pruned(student, masks)
    small = slicing.slice_network(masked, masks)
    assert isinstance(small.module.blocks[0].attn, slicing.SlicedAttention) and tokens.facts(small) == tokens.facts(student)
    for a, b in zip(returned(masked, images()), returned(small, images()), strict=True):
        assert torch.equal(a.source, b.source)
    assert proof.prove(masked, small, images(16)).largest_difference < 1e-5
    again = slicing.reshape_like(tiny_vit.copy(), slicing.shapes(small))
    tokens.merge_like(again, tokens.facts(small))
    again.module.load_state_dict(small.module.state_dict(), strict=True)
    assert torch.equal(again.module(images()), small.module(images()))


def test_a_gathering_layer_in_front_of_qkv_is_no_matter(tiny_vit):
    class Gathered(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x[..., self.order])

    student = merged(tiny_vit, 3)
    wanted = student.module(images())
    for block in student.module.blocks:
        order = torch.randperm(32)
        layer = Gathered(32, 96)
        layer.weight, layer.bias, layer.order = torch.nn.Parameter(block.attn.qkv.weight[:, order]), block.attn.qkv.bias, order
        block.attn.qkv = layer
    assert torch.allclose(student.module(images()), wanted, atol=1e-5)


def test_facts_make_another_network_merge_alike(tiny_vit):
    student = merged(tiny_vit, 3, 1, proportional=False)
    found = tokens.facts(student)
    assert found == {"r": [3, 1], "proportional": False}
    other = tiny_vit.copy()
    tokens.merge_like(other, copy.deepcopy(found))
    assert torch.equal(other.module(images()), student.module(images()))
    tokens.merge_like(plain := tiny_vit.copy(), None)
    assert tokens.facts(plain) is None
    for wrong in ({}, {"r": [1], "proportional": 1}, {"r": [-1, 0], "proportional": True}, {"r": [1, 2, 3], "proportional": True}, {"r": 3}):
        with pytest.raises(WeightsError):
            tokens.merge_like(tiny_vit.copy(), wrong)


def test_networks_that_cannot_merge_say_so(tiny_resnet, tiny_convnext, tiny_vit):
    for network in (tiny_resnet, tiny_convnext):
        with pytest.raises(RecipeError, match="cannot merge tokens"):
            tokens.merge(network, TokensChoice(r=(2,)))
        tokens.merge(network, TokensChoice())
    with pytest.raises(RecipeError, match="3 numbers and the network 2 blocks"):
        tokens.merge(tiny_vit, TokensChoice(r=(1, 2, 3)))
    tokens.merge(tiny_vit, TokensChoice(r=(2,)))
    with pytest.raises(RecipeError, match="already"):
        tokens.merge(tiny_vit, TokensChoice(r=(2,)))
    with pytest.raises(RecipeError, match="at least 0"):
        Recipe(tokens=TokensChoice(r=(-1,)))


def test_blocks_of_another_make_are_refused():
    from timm.models.vision_transformer import ParallelScalingBlock

    with pytest.raises(RecipeError, match="ParallelScalingBlock"):
        tokens.merge(vit(block_fn=ParallelScalingBlock), TokensChoice(r=(2,)))


def test_a_mode_is_passed_on(tiny_vit):
    tiny_vit.module.train()
    tokens.merge(tiny_vit, TokensChoice(r=(2,)))
    assert all(module.training for module in tiny_vit.module.modules())
    tiny_vit.module.eval()
    assert not any(isinstance(module, MergingBlock) and module.training for module in tiny_vit.module.modules())

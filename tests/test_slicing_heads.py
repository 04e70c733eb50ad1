"""Whole heads and dimensions of V: timm's own attention with other sizes wherever Q, K and V end equally wide."""

from __future__ import annotations

import itertools

import pytest
import torch
from test_slicing import full, masked, starter_like
from timm.layers.attention import Attention

from starfish_lab import tokens
from starfish_lab.errors import WeightsError
from starfish_lab.execution import proof, slicing
from starfish_lab.models.gather import gather
from starfish_lab.models.network import AttentionLayer
from starfish_lab.pruning import masks as masking
from starfish_lab.recipe import TokensChoice

IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def mask_of(network, *, heads=(), qk=(), v=(), blocks=(0, 1)):
    """Masks that take whole heads, and in every other head the dimensions `qk` of Q and K and `v` of V."""
    masks = full(network)
    for b in blocks:
        a = network.attentions[b]
        for head, d in itertools.product(range(a.heads), range(a.head_dim)):
            row, width = head * a.head_dim + d, a.heads * a.head_dim
            if head in heads or d in qk:
                masks[a.qkv][[row, width + row]] = False
            if head in heads or d in v:
                masks[a.qkv][2 * width + row] = False
                masks[f"{a.name}.proj"][:, row] = False
    return masks


@pytest.mark.parametrize("heads, qk, v, kind, sizes", [
    ((1, 4), (), (), Attention, (4, 32, 32)),  # whole heads alone
    ((), range(16), range(16), Attention, (6, 16, 16)),  # Q, K and V alike
    ((0,), range(8), range(8, 16), Attention, (5, 24, 24)),  # alike in number, not in place
    ((), range(16), (), slicing.SlicedAttention, (6, 16, 32)),  # Q and K alone
    ((), (), range(16), slicing.SlicedAttention, (6, 32, 16)),  # V alone
    ((2, 3, 5), range(20), range(10), slicing.SlicedAttention, (3, 12, 22)),
    (range(6), (), (), Attention, (1, 1, 1)),  # one head of one dimension always stays
])  # fmt: skip
def test_what_is_masked_as_a_whole_goes(heads, qk, v, kind, sizes):
    network = starter_like()
    masks = mask_of(network, heads=heads, qk=qk, v=v)
    student = masked(network, masks)
    assert slicing.is_sliceable(masks, student)
    small = slicing.slice_network(student, masks)
    attention = small.module.blocks[0].attn
    assert type(attention) is kind
    if kind is Attention:
        assert (attention.num_heads, attention.head_dim, attention.head_dim) == sizes
        assert small.attentions[0] == AttentionLayer("blocks.0.attn", "blocks.0.attn.qkv", sizes[0], sizes[1])
    else:
        assert (attention.heads, attention.qk_dim, attention.v_dim) == sizes and small.attentions == ()
    rows = sizes[0] * (2 * sizes[1] + sizes[2])
    assert attention.qkv.weight.shape == (rows, 192) and attention.proj.weight.shape == (192, sizes[0] * sizes[2])
    assert proof.prove(student, small, IMAGES).largest_difference < 1e-5
    again = slicing.reshape_like(network.copy(), slicing.shapes(small))
    again.module.load_state_dict(small.module.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.equal(again.module.eval()(IMAGES), small.module(IMAGES))
    assert again.attentions == small.attentions and slicing.shapes(again) == slicing.shapes(small)


def test_without_fused_attention_the_scale_is_right_too():
    """timm's module divides by the root of its own width, or lets PyTorch do so: Q's weights make up for either."""
    network = starter_like()
    masks = mask_of(network, qk=range(24), v=range(24))
    student = masked(network, masks)
    small = slicing.slice_network(student, masks)
    for block in (*small.module.blocks, *student.module.blocks):
        block.attn.fused_attn = False
    assert proof.prove(student, small, IMAGES).largest_difference < 1e-5


def test_a_narrower_network_is_sliced_once_more():
    network = starter_like()
    first = mask_of(network, qk=range(8), v=range(8), heads=(5,))
    student = masked(network, first)
    small = slicing.slice_network(student, first)
    second = mask_of(small, qk=range(6), v=range(12), heads=(0,))
    twice = slicing.slice_network(small, second)
    assert (twice.module.blocks[1].attn.heads, twice.module.blocks[1].attn.qk_dim, twice.module.blocks[1].attn.v_dim) == (4, 18, 12)
    thinner = small.copy()
    masking.apply(thinner.module, second)
    assert proof.prove(thinner, twice, IMAGES).largest_difference < 1e-5


def test_a_dimension_that_is_still_read_or_still_written_stays():
    network = starter_like()
    for part in ("written", "read"):
        masks = mask_of(network, v=range(16))
        width = 192
        if part == "read":
            masks["blocks.0.attn.proj"][:, :16] = True
        else:
            masks["blocks.0.attn.qkv"][2 * width : 2 * width + 16] = True
        student = masked(network, masks)
        assert not slicing.is_sliceable(masks, student) and slicing.is_sliceable(masks, student, wholly=False)
        small = slicing.slice_network(student, masks)
        assert proof.prove(student, small, IMAGES).largest_difference < 1e-5
        assert type(small.module.blocks[0].attn) is Attention and small.module.blocks[1].attn.v_dim == 16  # head 0 keeps all its dimensions


def test_what_reorders_or_norms_the_heads_output_keeps_v_whole():
    network = starter_like()
    masks = mask_of(network, heads=(1,))
    gather(network.module.blocks[0].attn.proj, torch.randperm(192))
    small = slicing.slice_network(masked(network, masks), masks)
    assert small.module.blocks[0].attn.num_heads == 6 and small.module.blocks[1].attn.num_heads == 5
    network = starter_like()
    network.module.blocks[0].attn.norm = torch.nn.LayerNorm(192)
    student = masked(network, masks)
    small = slicing.slice_network(student, masks)
    assert small.module.blocks[0].attn.num_heads == 6 and proof.prove(student, small, IMAGES).largest_difference < 1e-5


@pytest.mark.parametrize("cut", [dict(heads=(1,)), dict(qk=range(16), v=range(16)), dict(qk=range(16), v=range(4)), dict(heads=(0,), qk=range(8))])
def test_where_tokens_merge_heads_stay_and_keys_stay_whole(cut):
    """Merging compares means over the keys of all heads, as they were."""
    network = starter_like()
    masks = mask_of(network, **cut)
    student = masked(network, masks)
    tokens.merge(student, TokensChoice(r=(4,)))
    small = slicing.slice_network(student, masks)
    assert (getattr(small.module.blocks[0].attn, "num_heads", None) or small.module.blocks[0].attn.heads) == 6
    assert proof.prove(student, small, IMAGES).largest_difference < 1e-5
    again = slicing.reshape_like(network.copy(), slicing.shapes(small))
    tokens.merge_like(again, tokens.facts(small))
    again.module.load_state_dict(small.module.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.equal(again.module.eval()(IMAGES), small.module(IMAGES))


@pytest.mark.parametrize("sizes", [[7, 32], [6, 33], [0, 32], [6, 2.5], [6], "6×32", [True, 32, 1]])
def test_sizes_of_another_network_are_refused(sizes):
    network = starter_like()
    with pytest.raises(WeightsError):
        slicing.reshape_like(network, {"units": {}, "qk_dims": {}, "heads": {"blocks.0.attn": sizes}})
    with pytest.raises(WeightsError):
        slicing.reshape_like(network, {"units": {}, "qk_dims": {}, "heads": {"blocks.7.attn": [6, 32]}})


def test_files_written_before_heads_could_go_still_load():
    network = starter_like()
    masks = mask_of(network, qk=range(16))
    small = slicing.slice_network(masked(network, masks), masks)
    shapes = {key: value for key, value in slicing.shapes(small).items() if key != "heads"}
    again = slicing.reshape_like(network.copy(), shapes)
    again.module.load_state_dict(small.module.state_dict(), strict=True)

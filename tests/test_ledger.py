"""The MAC ledger: every published figure by its own way of counting, what is true, and what kernels of today make of it."""

from __future__ import annotations

import doctest
import json

import pandas as pd
import pytest
import timm
import torch

from starfish_lab import ledger, literature, profile, settings, token_schedule
from starfish_lab.measure import ledger_rows, macs
from starfish_lab.models.loading import wrap
from starfish_lab.models.network import Network, Preprocessing
from starfish_lab.pruning.prune import make_masks
from starfish_lab.recipe import PruningChoice, TokensChoice
from starfish_lab.whatif import Profile

TWO_FOUR = PruningChoice(pattern="n_m")
TOME = TokensChoice(r=(8,))
MODELS = {
    "ViT-B/16": ("vit_base_patch16_224", 224), "ViT-L/16": ("vit_large_patch16_224", 224), "DeiT-B": ("deit_base_patch16_224", 224),
    "DeiT-S": ("deit_small_patch16_224", 224), "DeiT-T": ("deit_tiny_patch16_224", 224), "ConvNeXtV2-Base": ("convnextv2_base", 224),
    "ResNet50": ("resnet50", 224), "ResNet50d": ("resnet50d", 224), "ResNet101d": ("resnet101d", 256), "ResNet152d": ("resnet152d", 256),
}  # fmt: skip


def build(name: str, size: int = 224) -> Network:
    with torch.device("meta"):
        return wrap(timm.create_model(name), name=name, preprocessing=Preprocessing(input_size=(3, size, size)))


@pytest.fixture(scope="module")
def works():
    return {model: ledger_rows.work(build(*known)) for model, known in MODELS.items()}


def figures(work, pruning=None, tokens=None, zeros=None) -> pd.DataFrame:
    return ledger.totals(ledger.table(work, pruning, tokens, zeros), pruning).set_index("convention")


def test_doctests():
    for module in (ledger, token_schedule):
        found = doctest.testmod(module)
        assert found.attempted and not found.failed


def test_vit_b_has_the_published_figures_to_all_their_digits(works):
    work = works["ViT-B/16"]
    merged = figures(work, None, TOME)
    assert merged.loc["block input", "dense_g"] == pytest.approx(17.5638, abs=5e-5)
    assert merged.loc["block input", "after_g"] == pytest.approx(13.557, abs=5e-4)
    assert merged.loc["true", "after_g"] == pytest.approx(13.104, abs=5e-4)
    both = figures(work, TWO_FOUR, TOME, ledger.published_zeros(work, 2, 4))
    assert both.loc["block input", "after_g"] == pytest.approx(7.059, abs=5e-4)
    assert both.loc["block input", "reduction_pct"] == pytest.approx(59.81, abs=5e-3)
    assert both.loc["true", "after_g"] == pytest.approx(6.8325, abs=1e-4)
    assert both.loc["true", "reduction_pct"] == pytest.approx(61.10, abs=5e-3)


def test_every_published_reduction_stands_beside_the_true_one(works):
    table = ledger.paper_table(works)
    published = literature.accuracies()
    published = published[published["pattern"].str.fullmatch(r"\d+:\d+") & published["source"].eq("arXiv 2606.02608")]
    assert len(table) == len(published) == 21
    by = table.set_index(["model", "method"])

    def row(model, method):
        return by.loc[(model, method)]

    assert row("ViT-B/16", "CAST 6:12 alpha .5 (+perm), no ToMe")["true_pct"] == pytest.approx(47.6, abs=0.05)
    assert row("ViT-L/16", "CAST 8:16 dense+perm")["true_pct"] == pytest.approx(48.3, abs=0.05)
    assert row("ResNet50", "8:16 dense+perm")["true_pct"] == pytest.approx(48.5, abs=0.05)
    assert row("ConvNeXtV2-Base", '8:16 "dense+perm"')["true_pct"] == pytest.approx(48.2, abs=0.05)
    assert row("ConvNeXtV2-Base", '12:16 "dense+perm"')["true_pct"] == pytest.approx(24.1, abs=0.05)
    assert row("DeiT-S", "CAST 2:4+ToMe")["paper_pct"] == pytest.approx(58.57, abs=5e-3)
    assert row("DeiT-T", "CAST 2:4+ToMe")["paper_pct"] == pytest.approx(56.41, abs=5e-3)
    assert row("ViT-L/16", "CAST 2:4 + ToMe")["paper_pct"] == pytest.approx(72.9, abs=0.05)
    assert row("ResNet50", "CAST-conv")["paper_pct"] == pytest.approx(48.5, abs=0.05)
    assert row("ResNet50d", "CAST-conv")["paper_pct"] == pytest.approx(49.85, abs=5e-3)
    assert row("ResNet50", "CAST-conv")["pointwise_pct"] == pytest.approx(25.9, abs=0.05)
    assert row("ResNet50d", "CAST-conv")["pointwise_pct"] == pytest.approx(24.5, abs=0.05)
    assert row("ResNet50", "CAST-conv")["published_pct"] == 48.5
    assert (table.loc[~table["pattern"].eq("2:4"), "kernels_pct"] == 0).all()  # nothing runs 6:12, 8:16 or 12:16


def test_kernels_take_what_the_paper_converted(works):
    """Layers of which a 2:4 kernel takes the lowered matrix: 52 of ResNet50, and all but the two of 288 columns of the deep stems."""
    for model, taken, dense in (("ResNet50", 52, 0), ("ResNet50d", 52, 2), ("ResNet101d", 103, 2), ("ResNet152d", 154, 2), ("ViT-B/16", 48, 1)):
        work = works[model]
        table = ledger.table(work, TWO_FOUR, None, ledger.published_zeros(work, 2, 4))
        zeros = table[table["removed"] > 0]
        assert (zeros["why_dense"].eq("").sum(), zeros["why_dense"].ne("").sum()) == (taken, dense), model
    assert set(zeros.loc[zeros["why_dense"].ne(""), "why_dense"]) == {"1000 rows are no multiple of 32"}


def test_the_table_adds_up_and_agrees_with_the_lab_s_own_count(tiny_vit, tiny_resnet, tiny_swin):
    for network in (tiny_vit, tiny_resnet, tiny_swin):
        table = ledger.table(ledger_rows.work(network))
        assert table["dense_macs"].sum() == macs.total_macs(network)
        assert json.loads(json.dumps(table.to_dict("records"), allow_nan=False)) == table.to_dict("records")  # a report keeps it
        for column in ("paper_macs", "true_macs", "effective", "sparse_execution"):
            assert table[column].tolist() == table["dense_macs"].tolist()
        masks = make_masks(network, PruningChoice(sparsity=0.5)).masks
        gone = {name: 1 - mask.float().mean().item() for name, mask in masks.items()}
        assert ledger.table(ledger_rows.work(network), PruningChoice(sparsity=0.5), None, gone)["effective"].sum() == pytest.approx(
            macs.effective_macs(network, masks), rel=1e-6
        )


@pytest.mark.parametrize("units", [("mlp",), ("qk",), ("mlp", "qk")])
def test_structured_masks_count_as_the_smaller_network(tiny_vit, units):
    choice = PruningChoice(pattern="structured", sparsity=0.5, units=units)
    masks = make_masks(tiny_vit, choice).masks
    table = ledger.table(ledger_rows.work(tiny_vit), choice, None, {name: 1 - mask.float().mean().item() for name, mask in masks.items()})
    assert table["effective"].sum() == pytest.approx(macs.effective_macs(tiny_vit, masks), abs=1)
    assert table["sparse_execution"].sum() == table["effective"].sum()  # shapes are really smaller: no kernel is needed


def test_attention_runs_before_merging_and_the_mlp_after(tiny_vit):
    table = ledger.table(ledger_rows.work(tiny_vit), None, TokensChoice(r=(4,))).set_index("layer")
    assert table.loc["blocks.0.attn.qkv", ["tokens_paper", "tokens_true"]].tolist() == [17, 17]
    assert table.loc["blocks.0.mlp.fc1", ["tokens_paper", "tokens_true"]].tolist() == [17, 13]
    assert table.loc["blocks.1.attn.qkv", ["tokens_paper", "tokens_true"]].tolist() == [13, 13]
    assert table.loc["blocks.1.mlp.fc2", ["tokens_paper", "tokens_true"]].tolist() == [13, 9]
    assert table.loc["blocks.1.attn.matmul", "true_macs"] == pytest.approx(2 * 13**2 * 32)
    assert table.loc["head", "true_macs"] == table.loc["head", "dense_macs"]
    assert table.loc["patch_embed.proj", "true_macs"] == table.loc["patch_embed.proj", "dense_macs"]


def test_tokens_run_out_at_seven_in_a_deep_network(works):
    table = ledger.table(works["ViT-L/16"], None, TOME).set_index("layer")
    assert table.loc["blocks.23.attn.qkv", "tokens_true"] == 13 and table.loc["blocks.23.mlp.fc1", "tokens_true"] == 7


def test_other_counters_leave_out_attention_and_see_no_zeros(works):
    work = works["ViT-B/16"]
    found = figures(work, TWO_FOUR, None, ledger.published_zeros(work, 2, 4))
    assert found.loc["fvcore, thop", "dense_g"] == found.loc["fvcore, thop", "after_g"] == pytest.approx(16.85, abs=5e-3)
    assert found.loc["no sparse kernel", "reduction_pct"] == 0


def test_the_nominal_figure_appears_only_for_patterns_without_merging(works):
    work = works["ViT-B/16"]
    choice = PruningChoice(pattern="n_m", keep=6, group=12)
    found = figures(work, choice, None, ledger.published_zeros(work, 6, 12))
    assert found.loc["as printed", "reduction_pct"] == pytest.approx(50)
    assert found.loc["kernels of today", "reduction_pct"] == 0
    assert "as printed" not in figures(work, TWO_FOUR, TOME, ledger.published_zeros(work, 2, 4)).index
    assert "as printed" not in figures(work, PruningChoice(), None, {}).index


def test_a_profile_gives_the_same_ledger_as_the_network(tiny_vit, tiny_resnet, tiny_swin, tiny_convnext):
    for network in (tiny_vit, tiny_resnet, tiny_swin, tiny_convnext):
        known = Profile.from_json(profile.compute(network).to_json())
        zeros = {name: 0.5 for name in known.layers.loc[known.layers["default"], "layer"]}
        one = ledger.of_profile(known, TWO_FOUR, TokensChoice(r=(2,)), zeros).set_index("layer").sort_index()
        other = ledger.table(ledger_rows.work(network), TWO_FOUR, TokensChoice(r=(2,)), zeros).set_index("layer").sort_index()
        pd.testing.assert_frame_equal(one, other)


def test_a_profile_made_before_ledgers_is_read_as_far_as_it_goes(tiny_vit):
    known = profile.compute(tiny_vit)
    new = ledger.of_profile(known, tokens=TokensChoice(r=(4,)))
    for fact in ("tokens", "prefix_tokens", "matmuls"):
        del known.facts[fact]
    pd.testing.assert_frame_equal(ledger.of_profile(Profile.from_json(known.to_json()), tokens=TokensChoice(r=(4,))), new)


def test_the_bundled_profile_has_a_ledger():
    known = Profile.from_json((settings.ASSETS / "starter" / "profile.json").read_text())
    assert known.facts["tokens"] == 17 and known.facts["prefix_tokens"] == 1
    assert ledger.of_profile(known)["dense_macs"].sum() / 1e9 == pytest.approx(known.facts["macs_g"], rel=1e-5)

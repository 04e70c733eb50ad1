"""Predictions from a table whose times follow a known law, so that every answer can be computed by hand."""

from __future__ import annotations

import doctest
import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from starfish_lab import profile as profiling
from starfish_lab.execution.choice import Execution
from starfish_lab.prediction import predict as predicting
from starfish_lab.prediction import score as scoring
from starfish_lab.prediction import shapes
from starfish_lab.prediction.card import ESTIMATE, LITERATURE, NO_TABLE, REFUSED, RULE, card
from starfish_lab.prediction.forms import forms
from starfish_lab.prediction.predict import predict
from starfish_lab.prediction.score import compared, score
from starfish_lab.prediction.times import Times
from starfish_lab.recipe import PruningChoice, Recipe, TokensChoice
from starfish_lab.whatif import Profile

BESIDE = 0.002  # ms that a pass takes beside each of its pieces
BATCHES = (1, 8, 32)


def law(shape: tuple) -> float:
    """ms of a piece: a start, arithmetic at 1e6 multiply-adds a ms, and 1e7 bytes a ms."""
    kind, _, _, m, n, k = shape
    if kind in ("linear", "conv"):
        return 0.01 + m * n * k / 1e6 + 4 * (m * k + n * k + m * n) / 1e7
    if kind == "attention":
        return 0.01 + 2 * m * n * n * k / 1e6 + 16 * m * n * k / 1e7
    return 0.01 + (8 * m * n + (m * k if kind == "merging" else 0)) / 1e7


def whole(counts: dict) -> float:
    """ms of a pass."""
    return sum(count * (law(shape) + BESIDE) for shape, count in counts.items())


@pytest.fixture
def profile(tiny_vit):
    return Profile.from_json(profiling.compute(tiny_vit).to_json())


def cut(share: float) -> Recipe:
    return Recipe(pruning=PruningChoice(pattern="structured", sparsity=share), tokens=TokensChoice(r=(4,)))


def table(profile: Profile, *, batches=BATCHES, noise: float = 0.0, only: str = "", threads: int = 1) -> pd.DataFrame:
    """A table of layer times as the law gives them, each off by a random factor."""
    random, rows = np.random.default_rng(0), []
    known = {
        "precision": "float32", "model": "tiny_vit", "device": "cpu", "device_name": "Test CPU", "fingerprint": "0123456789ab",
        "threads": threads, "measured_on": "2026-01-02",
    }  # fmt: skip
    for form in forms(Recipe(tokens=TokensChoice(r=(4,))), "float32", most=8):
        if only and form.name != only:
            continue
        pruned = Recipe(pruning=form.pruning or PruningChoice(), tokens=form.tokens)
        left = shapes.after(profile, pruned, form.execution)
        for batch in batches:
            counts = shapes.counted(left, batch)
            entries = [("pass", "", "", 0, 0, 0), *counts]
            for shape in entries:
                ms = (whole(counts) if shape[0] == "pass" else law(shape)) * math.exp(noise * random.standard_normal())
                count = 1 if shape[0] == "pass" else counts[shape]
                spelled = dict(zip(("kind", "variant", "kernel", "m", "n", "k"), shape))
                rows.append(
                    {"form": form.name, **spelled, "count": count, "batch": batch, "ms": ms, "ms_low": ms * 0.99, "ms_high": ms * 1.01, **known}
                )
    return pd.DataFrame(rows)


def counts(profile: Profile, recipe: Recipe, label: str, batch: int) -> tuple[dict, dict]:
    return tuple(shapes.counted(pieces, batch) for pieces in (shapes.dense(profile), shapes.after(profile, recipe, Execution.of(label))))


def test_doctests():
    for module in (predicting, scoring):
        found = doctest.testmod(module)
        assert found.attempted and not found.failed


def test_shapes_that_were_timed_take_their_times(profile):
    rows = table(profile)
    found = Times(rows).total(shapes.counted(shapes.dense(profile), 8))
    assert found.ms == pytest.approx(sum(count * law(shape) for shape, count in shapes.counted(shapes.dense(profile), 8).items()))
    assert found.interpolated_ms == 0 and not found.unknown


@pytest.mark.parametrize(
    "shape", [("linear", "", "", 100, 70, 32), ("elementwise", "GELU", "", 99, 55, 0), ("attention", "16 sliced", "", 16, 17, 10)]
)
def test_shapes_between_are_interpolated_along_the_law(profile, shape):
    found = Times(table(profile)).total({shape: 3})
    assert found.ms == pytest.approx(3 * law(shape), rel=0.02)
    assert found.interpolated_ms == found.ms


def test_the_nearest_neighbours_correct_a_law_that_does_not_hold_everywhere(profile):
    rows = table(profile)
    small = (rows["kind"] == "linear") & (rows["m"] < 50)
    rows.loc[small, "ms"] *= 2  # few rows are slow
    slow, usual = ({("linear", "", "", m, 100, 32): 1} for m in (17, 17 * 32))
    assert Times(rows).total(slow).ms == pytest.approx(2 * law(next(iter(slow))), rel=0.1)
    assert Times(rows).total(usual).ms == pytest.approx(law(next(iter(usual))), rel=0.1)


def test_families_never_timed_are_unknown(profile):
    strange = ("linear", "", "cutlass", 17, 32, 32)
    found = Times(table(profile)).total({strange: 1})
    assert found.ms == 0 and found.unknown == (strange,)
    dense, _ = counts(profile, Recipe(), "masked", 8)
    answer = predict(dense, {strange: 1}, table(profile), 8)
    assert answer.speedup is None and answer.verdict == "unknown" and "cutlass" in answer.reasons[0]


def test_pieces_between_merged_tokens_are_no_measure_for_others(profile):
    rows = table(profile)
    rows.loc[rows["form"].str.startswith("merged"), "ms"] *= 3
    same = shapes.counted(shapes.dense(profile), 8)
    assert Times(rows).total(same).ms == pytest.approx(Times(table(profile)).total(same).ms)
    shared = {shape: count for shape, count in same.items() if shape[0] == "conv"}
    assert Times(rows, merged=True).total(shared).ms == pytest.approx(3 * Times(rows).total(shared).ms)


@pytest.mark.parametrize("label", ["sliced", "merged", "merged+sliced"])
@pytest.mark.parametrize("share", [0.5, 0.4, 0.66])
@pytest.mark.parametrize("batch", [8, 32])
def test_the_speed_up_is_that_of_the_law(profile, label, share, batch):
    dense, fast = counts(profile, cut(share), label, batch)
    found = predict(dense, fast, table(profile, noise=0.01), batch)
    truth = whole(dense) / whole(fast)
    assert found.speedup == pytest.approx(truth, rel=0.04)
    assert found.low < truth < found.high
    assert found.verdict == ("faster" if found.low > 1 else "not faster" if found.high < 1.05 else "unknown")
    assert found.dense_ms / found.fast_ms == pytest.approx(found.speedup)
    assert (found.interpolated > 0) == (share != 0.5 and "sliced" in label)


def test_a_batch_between_those_that_were_timed(profile):
    dense, fast = counts(profile, cut(0.5), "sliced", 16)
    found = predict(dense, fast, table(profile, noise=0.01), 16)
    assert found.speedup == pytest.approx(whole(dense) / whole(fast), rel=0.05)
    assert found.interpolated == 1
    assert found.low < whole(dense) / whole(fast) < found.high


def test_a_batch_beside_the_only_one_is_no_surer_than_a_form_that_was_not_timed(profile):
    rows = table(profile, batches=(8,))
    assert predicting._Passes(rows).reach(10, 1.0) >= 0.99 * predicting._Passes(rows).reach(8, 1.0)


def test_merging_goes_by_the_recipe_even_where_it_names_no_number(profile):
    """As the execution that is built: eight a block, and proportional attention only where the recipe has it."""
    for proportional in (True, False):
        recipe = replace(cut(0.5), tokens=TokensChoice(proportional=proportional))
        left = shapes.after(profile, recipe, Execution.of("merged+sliced"))
        assert any("with bias" in piece.variant for piece in left) == proportional


def test_noise_widens_the_interval(profile):
    dense, fast = counts(profile, cut(0.4), "sliced", 8)
    widths = [answer.high / answer.low for answer in (predict(dense, fast, table(profile, noise=noise), 8) for noise in (0.0, 0.02, 0.1))]
    assert widths == sorted(widths) and widths[-1] > 1.2 * widths[0]
    assert not predict(dense, fast, table(profile), 8).reasons
    assert "quiet machine" in predict(dense, fast, table(profile, noise=0.5), 8).reasons[0]


@pytest.mark.parametrize("seed", range(2))
def test_the_interval_covers(profile, seed):
    """Off-grid shares, noisy tables: at least as often as it says."""
    rows, inside = table(profile, noise=0.05), []
    rows["ms"] *= np.exp(0.03 * np.random.default_rng(seed).standard_normal(len(rows)))
    for share in (0.3, 0.45, 0.6, 0.7):
        for label in ("sliced", "merged+sliced"):
            dense, fast = counts(profile, cut(share), label, 8)
            found = predict(dense, fast, rows, 8)
            inside.append(found.low <= whole(dense) / whole(fast) <= found.high)
    assert np.mean(inside) >= 0.95


def test_two_runs_of_a_table_count_as_one(profile):
    dense, fast = counts(profile, cut(0.4), "sliced", 8)
    once, twice = table(profile), pd.concat([table(profile), table(profile)])
    assert predict(dense, fast, once, 8).speedup == pytest.approx(predict(dense, fast, twice, 8).speedup)


def test_what_was_not_timed_is_not_guessed(profile):
    dense, fast = counts(profile, cut(0.5), "sliced", 8)
    assert "bf16" in predict(dense, fast, table(profile), 8, "bf16").reasons[0]
    assert "Batch 256 lies outside" in predict(dense, fast, table(profile), 256).reasons[0]
    alone = predict(dense, dense, table(profile, only="dense"), 8)
    assert alone.speedup == pytest.approx(1) and alone.low is None and alone.verdict == "unknown"
    rows = table(profile)
    unpassed = predict(dense, fast, rows[rows["kind"] != "pass"], 8)
    assert unpassed.speedup == pytest.approx(whole(dense) / whole(fast), rel=0.05) and unpassed.low is None


def test_a_table_of_another_network_gives_no_interval(profile):
    rows = table(profile)
    rows.loc[rows["n"] == 96, "n"] = 48  # its qkv is another
    found = predict(*counts(profile, cut(0.5), "sliced", 8), rows, 8)
    assert found.speedup is not None and found.low is None and "other networks (tiny_vit)" in found.reasons[0]


# -- the card -----------------------------------------------------------------------------------------------------------------


def test_the_card_says_what_to_expect_and_why(profile):
    found = card(profile, cut(0.4), table(profile, noise=0.01), "sliced", 32)
    assert found.kind == ESTIMATE and found.verdict == "faster" and found.low > 1
    assert found.headline.startswith("Faster: about ") and found.headline.endswith("(estimate).")
    assert found.basis == "Estimate from layer times of Test CPU, 1 thread, measured 2026-01-02 on tiny_vit."
    said = " ".join(found.reasons)
    assert "times fewer multiply-adds" in said and "no multiple of 16" in said and "of shapes between" in said


def test_the_card_names_what_binds(profile):
    rows = table(profile, noise=0.01)
    late = rows.assign(ms=rows["ms"] + np.where(rows["kind"] == "pass", 0, 0.1))  # whatever starts takes its time
    at_one = " ".join(card(profile, cut(0.5), late, "sliced", 1).reasons)
    at_many = " ".join(card(profile, cut(0.5), late, "sliced", 32).reasons)
    assert "launch-bound" in at_one and "launch-bound" not in at_many
    rows.loc[rows["kind"].isin(["norm", "elementwise", "block"]), "ms"] *= 40
    assert "memory-bound" in " ".join(card(profile, cut(0.5), rows, "sliced", 32).reasons)


def test_a_mask_alone_needs_no_table(profile):
    found = card(profile, Recipe(), [], "masked", 8)
    assert (found.kind, found.verdict, found.speedup) == (RULE, "not faster", 1.0)
    assert found.reasons[0].startswith("mask only")


def test_without_a_table_the_card_says_how_long_one_takes(profile):
    found = card(profile, cut(0.5), [], "sliced", 8, device="cpu")
    assert (found.kind, found.verdict, found.speedup) == (NO_TABLE, "unknown", None)
    assert found.seconds_to_measure > 0 and f"(about {found.seconds_to_measure:.0f} s)" in found.basis
    beyond = card(profile, cut(0.5), table(profile), "sliced", 512)
    assert beyond.kind == NO_TABLE and "Batch 512 lies outside" in beyond.basis


def test_where_there_is_only_literature_the_card_says_so(profile):
    halved = Recipe(pruning=PruningChoice(pattern="n_m"))
    found = card(profile, halved, [], "semi_structured(cutlass)", 8, "bf16", device="gpu:A40")
    assert found.kind == LITERATURE and found.speedup is None and "0.78 to 1.06" in found.basis
    assert any("too few rows" in reason for reason in found.reasons)
    assert card(profile, halved, [], "masked, bf16, compiled", 8, device="gpu:A40").kind == RULE
    assert card(profile, halved, [], "semi_structured(cutlass), bf16", 8, device="gpu:H100").kind == NO_TABLE


def test_what_a_cpu_cannot_do_is_refused(profile):
    halved = Recipe(pruning=PruningChoice(pattern="n_m"))
    assert "CUDA GPU" in card(profile, halved, table(profile), "semi_structured(cutlass), bf16", 8).basis
    for label, reason in (("sliced", "no whole unit"), ("merged, bf16", "only in a run")):
        found = card(profile, halved, table(profile), label, 8)
        assert found.kind == REFUSED and reason in found.basis


def test_compiled_the_interval_spans_all_that_may_be_fused(profile):
    rows = table(profile, noise=0.01)
    eager, compiled = (card(profile, cut(0.5), rows, label, 8) for label in ("sliced", "sliced, compiled"))
    assert compiled.low <= eager.low and compiled.high >= eager.high and compiled.high / compiled.low > eager.high / eager.low
    assert any("eager" in reason for reason in compiled.reasons)


def test_only_the_last_installation_counts(profile):
    rows = table(profile)
    old = rows.assign(fingerprint="old", ms=rows["ms"] * np.where(rows["form"] == "dense", 10, 1))
    found, expected = (card(profile, cut(0.5), part, "sliced", 8) for part in (pd.concat([old, rows]), rows))
    assert found.speedup == pytest.approx(expected.speedup)


# -- the score ----------------------------------------------------------------------------------------------------------------


def test_predictions_are_scored_by_what_was_measured(profile):
    rows = table(profile, noise=0.01)
    known = {"device_name": "Test CPU", "threads": 1, "speedup_low": 1.0, "speedup_high": 2.0, "batch": 8}
    said = card(profile, cut(0.5), rows, "sliced", 8)
    latency = [
        {"execution": "sliced", "speedup": said.speedup, **known}, {"execution": "sliced", "speedup": said.speedup / 1.5, **known},
        {"execution": "dense", "speedup": 1.0, **known}, {"execution": "masked", "speedup": 1.01, **known},
        {"execution": "sliced", "speedup": None, **known}, {"execution": "sliced", "speedup": 2.0, **known, "device_name": "Another CPU"},
        {"execution": "of another time", "speedup": 2.0, **known},
    ]  # fmt: skip
    found = compared(profile, cut(0.5), rows, latency)
    assert found["execution"].tolist() == ["sliced", "sliced"]
    assert found["error"].tolist() == pytest.approx([0, 0.5]) and found["inside"].tolist() == [True, False]
    assert (score(found).median_error, score(found).inside) == (pytest.approx(0.25), 0.5)
    assert score(found[:0]).rows == 0 and "yet" in str(score(found[:0]))


def test_predictions_need_no_torch():
    code = "import sys\nfrom starfish_lab.prediction import card, score, predict, forms, shapes\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)

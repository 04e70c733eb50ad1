"""Sensitivity: damages against whole passes, nothing measured twice, interruptions, and budgets along curves against brute force."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional as F

from starfish_lab import whatif
from starfish_lab.__main__ import main
from starfish_lab.data import ImageSet, Splits
from starfish_lab.errors import Cancelled, ImagesError, RecipeError
from starfish_lab.progress import Reporter
from starfish_lab.pruning.budgets import sensitivity as budget
from starfish_lab.pruning.prune import make_masks
from starfish_lab.recipe import ImagesChoice, PruningChoice, Recipe, edit
from starfish_lab.sensitivity import spending, stored
from starfish_lab.sensitivity.layer_ms import layer_ms
from starfish_lab.sensitivity.plan import Sensitivity
from starfish_lab.sensitivity.run import run
from starfish_lab.sensitivity.spending import Along, sparsity
from starfish_lab.sensitivity.tail import Tail
from starfish_lab.store import Store

NETWORKS = ("tiny_vit", "tiny_resnet", "tiny_convnext", "tiny_swin", "tiny_hiera")


def splits_of(network, *, labels: bool = True) -> Splits:
    torch.manual_seed(1)
    images = [torch.randn(n, *network.preprocessing.input_size) for n in (8, 6, 20)]
    known = torch.arange(20) % network.num_classes if labels else None
    return Splits(ImageSet.of(images[0]), ImageSet.of(images[1]), ImageSet.of(images[2], known), [])


def measured(network, folder=None, reporter=None, *, splits=None, levels=(0.5, 0.9), on="drift", **pruning) -> pd.DataFrame:
    plan = Sensitivity.of(Recipe(pruning=PruningChoice(**pruning)), levels=levels, on=on)
    report = run(plan, dense=network, splits=splits or splits_of(network), folder=folder, reporter=reporter, device="cpu")
    return report.frame("sensitivity")


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_only_what_lies_behind_a_layer_runs_and_the_figures_are_those_of_whole_passes(name, request):
    network = request.getfixturevalue(name)
    before = {key: value.clone() for key, value in network.module.state_dict().items()}
    splits, rows = splits_of(network), measured(network, levels=(0.7,))
    for row in rows.iloc[[0, len(rows) // 2, -1]].itertuples():
        student = network.copy()
        weight = student.module.get_submodule(row.layer).weight
        gone = round(0.7 * weight.numel())
        weight.view(-1)[weight.abs().view(-1).argsort()[:gone]] = 0
        p, q = (F.log_softmax(one.module(splits.drift.tensor()), -1).double() for one in (network, student))
        assert row.sparsity == pytest.approx(gone / weight.numel(), abs=0.01)
        assert row.kl == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-3, abs=1e-7)
        assert row.agreement == pytest.approx(float((p.argmax(1) == q.argmax(1)).float().mean()))
    assert all(torch.equal(before[key], value) for key, value in network.module.state_dict().items())


def test_blocks_in_front_do_not_run_again_and_memory_may_run_short(tiny_vit, monkeypatch):
    images, counted = torch.randn(6, 3, 32, 32), []
    tiny_vit.module.blocks[0].mlp.fc1.register_forward_pre_hook(lambda *_: counted.append(1))
    with torch.inference_mode():
        tail = Tail(tiny_vit, images, batch_size=3)
        assert len(counted) == 2
        whole = tail.answers(0)
        assert len(counted) == 4 and torch.equal(tail.answers(1).log, whole.log) and len(counted) == 4
        monkeypatch.setenv("STARFISH_LAB_TEACHER_MEMORY_GB", "0")
        poor = Tail(tiny_vit, images, batch_size=3)
        assert torch.equal(poor.answers(1).log, whole.log) and len(counted) == 8
    assert "forward" not in vars(tiny_vit.module.blocks[0])


def test_a_damage_of_nothing_is_zero(tiny_vit):
    with torch.inference_mode():
        tail = Tail(tiny_vit, torch.randn(4, 3, 32, 32))
        found = tail.answers(1)
    assert found.kl(tail.dense) == 0 and found.cosine_distance == 0


def test_accuracy_comes_with_its_interval_and_needs_labels(tiny_vit):
    rows = measured(tiny_vit, on="evaluation", levels=(0.9,))
    assert (rows["images"] == 20).all() and ((rows["low"] <= rows["top1"]) & (rows["top1"] <= rows["high"])).all()
    assert rows["top1_dense"].nunique() == 1 and stored.damages(rows) == ["kl", "cosine_distance", "top1"]
    with pytest.raises(ImagesError, match="no labels"):
        measured(tiny_vit, on="evaluation", splits=splits_of(tiny_vit, labels=False))
    assert stored.damages(measured(tiny_vit, levels=(0.9,))) == ["kl", "cosine_distance"]


class StopsAfter(Reporter):
    def __init__(self, cells: int):
        self.cells, self.done = cells, 0

    def progress(self, step, steps):
        self.done = max(self.done, step)

    def cancel_requested(self):
        return self.done >= self.cells


def test_what_was_measured_survives_an_interruption_and_nothing_is_measured_twice(tiny_vit, tmp_path):
    with pytest.raises(Cancelled):
        measured(tiny_vit, tmp_path, StopsAfter(5))
    assert len((tmp_path / "cells.jsonl").read_text().splitlines()) == 5
    rest = StopsAfter(10_000)
    rows = measured(tiny_vit, tmp_path, rest)
    assert rest.done == len(rows) - 5 and len(rows) == 16
    again = StopsAfter(10_000)
    pd.testing.assert_frame_equal(measured(tiny_vit, tmp_path, again), rows)
    assert again.done == 0
    more = StopsAfter(10_000)
    measured(tiny_vit, tmp_path, more, levels=(0.5, 0.7, 0.9))  # a level more: only that one
    assert more.done == 8
    other = StopsAfter(10_000)
    measured(tiny_vit, tmp_path, other, score="wanda")
    assert other.done == 16


def test_equal_questions_are_one_question():
    recipe = Recipe()
    first = Sensitivity.of(recipe)
    same = edit(recipe, ["healing.steps=7", "pruning.sparsity=0.3", "pruning.budget=global", "device=cpu", "name=x", "measure.latency=false"])
    assert Sensitivity.of(same).fingerprint() == first.fingerprint() and Sensitivity.of(same).device == "cpu"
    for change in ("pruning.score=wanda", "images.drift=32", "pruning.pattern=n_m", "images.seed=3"):
        assert Sensitivity.of(edit(recipe, [change])).fingerprint() != first.fingerprint(), change
    assert replace(first, levels=(0.5,)).cells() == first.cells() and replace(first, on="evaluation").cells() != first.cells()


def test_n_m_has_levels_of_its_own(tiny_vit):
    rows = measured(tiny_vit, pattern="n_m", group=4)
    assert sorted(rows["level"].unique()) == [0.25, 0.5, 0.75] and (rows["sparsity"] == rows["level"]).all()


def test_what_the_start_left_has_no_levels():
    with pytest.raises(RecipeError, match="Choose one of: unstructured, n_m, structured"):
        Sensitivity.of(Recipe(pruning=PruningChoice(pattern="kept")))


@pytest.mark.parametrize("levels", [(), (0.0,), (1.0,), (0.5, 2.0)])
def test_levels_are_sparsities(levels):
    with pytest.raises(RecipeError, match="levels"):
        Sensitivity(levels=levels)


# --- the budget


def brute(curves: np.ndarray, prices: np.ndarray, total: float, steps: int = 20) -> float:
    """The least summed damage over all combinations on a grid that spend just `total`."""
    grid = np.linspace(0, 1, steps + 1)
    values = [np.interp(grid, budget.GRID, curve) for curve in curves]
    found = [
        sum(value[i] for value, i in zip(values, places))
        for places in itertools.product(range(steps + 1), repeat=len(curves))
        if abs(np.dot(grid[list(places)], prices) - total) < 1e-9
    ]
    return min(found)


@pytest.mark.parametrize("total", [0.3, 1.2, 2.0, 3.1])
def test_the_allocation_is_optimal_against_brute_force(total):
    curves = np.stack([budget.GRID**2, 5 * budget.GRID**3, 0.2 * budget.GRID, np.expm1(3 * budget.GRID) / 10])
    prices = np.array([1.0, 1.0, 1.0, 1.0])
    shares = budget.spend(curves, prices, prices, total)
    mine = sum(np.interp(share, budget.GRID, curve) for share, curve in zip(shares, curves))
    assert shares.sum() == pytest.approx(total) and (shares >= 0).all() and (shares <= 1).all()
    assert mine <= brute(curves, prices, total) + 1e-9  # brute force looks every 5 %, so it may be a little worse and never better


def test_a_curve_that_is_not_convex_costs_one_layer_at_most():
    cliff = np.clip(budget.GRID - 0.5, 0, 0.1) * 10  # nothing, then a cliff, then nothing more
    curves, prices = np.stack([cliff, cliff, cliff]), np.ones(3)
    for total in (0.9, 1.5, 2.0, 2.5):
        shares = budget.spend(curves, prices, prices, total)
        mine = sum(np.interp(share, budget.GRID, curve) for share, curve in zip(shares, curves))
        assert mine <= brute(curves, prices, total) + 1.0 + 1e-9
        assert shares.sum() == pytest.approx(total)


def test_marginal_damage_per_weight_is_the_same_in_all_layers():
    sizes, levels = {"a": 1000, "b": 3000, "c": 500}, [i / 20 for i in range(1, 20)]
    curves = {name: [k * s**2 for s in levels] for name, k in (("a", 1.0), ("b", 1.0), ("c", 4.0))}
    counts = budget.allocate({}, sizes, 0.4, levels=levels, curves=curves)
    assert sum(counts.values()) == 1800
    slopes = [2 * k * counts[name] / sizes[name] / sizes[name] for name, k in (("a", 1.0), ("b", 1.0), ("c", 4.0))]
    assert slopes == pytest.approx([slopes[0]] * 3, rel=0.15)  # within a piece of 1 %


def test_costs_move_the_budget_to_where_a_weight_is_multiplied_more_often():
    sizes, levels = {"a": 1000, "b": 1000}, [0.5, 0.95]
    options = {"levels": levels, "curves": {"a": [0.25, 0.9], "b": [0.25, 0.9]}}
    even, dear = (budget.allocate({}, sizes, 0.5, **options, **more) for more in ({}, {"costs": {"a": 4.0, "b": 1.0}}))
    assert abs(even["a"] - even["b"]) <= 10 and dear["a"] > dear["b"] and sum(dear.values()) == 1000


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"levels": [0.5], "curves": {"a": [1.0]}}, "no curve of b"),
        ({"levels": [0.5], "curves": {"a": [1.0], "b": [1.0, 2.0]}}, "makes no sense"),
        ({"levels": [0.5, 0.4], "curves": {"a": [1.0, 2.0], "b": [1.0, 2.0]}}, "makes no sense"),
        ({"levels": [0.5], "curves": {"a": [1.0], "b": [float("nan")]}}, "makes no sense"),
        ({"levels": None, "curves": {"a": [1.0], "b": [1.0]}}, "makes no sense"),
        ({"costs": {"a": 1.0, "b": 0}}, "costs"),
        ({"costs": 3}, "costs"),
    ],
)
def test_wrong_curves_are_told(options, said):
    scores = dict.fromkeys("ab", np.arange(10.0))
    with pytest.raises(RecipeError, match=said):
        budget.allocate(scores, {"a": 10, "b": 10}, 0.5, **options)


def test_curves_become_monotone_and_pass_through_what_was_measured():
    curve = budget.on_grid([0.2, 0.5, 0.9], [0.1, 0.05, 0.4])
    assert curve[[0, 20, 50, 90]] == pytest.approx([0, 0.1, 0.1, 0.4]) and (np.diff(curve) >= 0).all()
    assert curve[100] == pytest.approx(0.4 + 0.3 / 0.4 * 0.1)


def test_the_recipe_stands_alone_and_the_preview_says_what_the_run_does(profiled):
    network, profile = profiled("tiny_vit")
    rows = measured(network, levels=(0.3, 0.6, 0.9))
    recipe = Recipe(pruning=spending.budget(PruningChoice(sparsity=0.7), rows))
    recipe = Recipe.from_json(recipe.to_json())
    masks = make_masks(network, recipe.pruning).masks
    predicted = whatif.predict(profile, recipe.pruning).layers.set_index("layer")["removed"]
    assert {layer: int((~mask).sum()) for layer, mask in masks.items()} == predicted.to_dict()
    assert predicted.sum() == round(0.7 * sum(mask.numel() for mask in masks.values()))


def test_a_position_between_accuracy_and_speed_becomes_shares_of_layers_that_a_run_takes(profiled):
    network, profile = profiled("tiny_vit")
    rows = measured(network, levels=(0.3, 0.6, 0.9))
    layers = whatif.predict(profile, PruningChoice(sparsity=0.5)).layers
    along, sizes = Along.of(rows, "kl", layers), dict(zip(layers["layer"], layers["weights"]))
    for position in (0.2, 0.6, 0.9):
        shares = along.spent(position)
        assert along.position(shares) == pytest.approx(position, abs=1e-3)
        assert along.damage(shares) <= along.damage(dict.fromkeys(along.layers, position)) + 1e-9
        choice = PruningChoice(sparsity=round(sparsity(shares, sizes), 6), layers=shares)
        assert {layer: int((~mask).sum()) for layer, mask in make_masks(network, choice).masks.items()} == {
            layer: round(share * sizes[layer]) for layer, share in shares.items()
        }
    front = along.front()
    assert (front["damage"].diff().dropna() >= -1e-9).all() and (front["damage"] <= front["uniform"] + 1e-9).all()
    assert Along.of(rows[rows["layer"] != layers["layer"][0]], "kl", layers) is None
    assert along.units == ["macs_g"], "in a plain ViT every weight is multiplied equally often"


def test_time_is_spent_where_layers_were_timed(profiled):
    network, profile = profiled("tiny_vit")
    rows, layers = measured(network, levels=(0.5, 0.9)), whatif.predict(profile, PruningChoice(sparsity=0.5)).layers
    pieces = profile.pieces[profile.pieces["name"].isin(layers["layer"])]
    slow = pieces["name"].str.endswith("fc1")
    table = pd.DataFrame({
        "form": "dense", **{name: pieces[name] for name in ("kind", "variant", "kernel", "n", "k")}, "m": 8 * pieces["m"],
        "ms": np.where(slow, 40.0, 1.0), "precision": "float32", "batch": 8,
    })  # fmt: skip
    times = layer_ms(profile, table, list(layers["layer"]))
    assert times["blocks.0.mlp.fc1"] == 40.0 and times["blocks.1.attn.proj"] == 1.0
    along = Along.of(rows, "kl", layers, times)
    assert along.units == ["macs_g", "ms"]
    by_time, by_work = along.spent(0.6, "ms"), along.spent(0.6)
    assert along.position(by_time, "ms") == pytest.approx(0.6, abs=1e-3)
    assert sum(by_time[layer] for layer in by_time if "fc1" in layer) > sum(by_work[layer] for layer in by_work if "fc1" in layer)
    assert layer_ms(profile, table[table["n"] < 0], list(layers["layer"])) == {}
    assert layer_ms(profile, table.assign(kind="conv"), list(layers["layer"])) == {}


# --- the command and the store


SMALL = ["images.calibration=8", "images.drift=4", "images.evaluation=40"]


def test_the_command_measures_once_and_writes_a_recipe(capsys, tmp_path, monkeypatch):
    words = ["sensitivity", *(word for change in SMALL for word in ("--set", change)), "--levels", "0.9", "--json"]
    assert main([*words, "--recipe-out", str(tmp_path / "recipe.json")]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 24 and {"layer", "level", "kl", "cosine_distance", "agreement"} <= set(rows[0])
    recipe = Recipe.from_json((tmp_path / "recipe.json").read_text())
    assert recipe.pruning.budget == "sensitivity" and recipe.images == ImagesChoice(calibration=8, drift=4, evaluation=40)
    runs = Store().runs(kind="sensitivity")
    assert runs["status"].tolist() == ["done"]
    assert main(words) == 0 and json.loads(capsys.readouterr().out) == rows
    assert len(Store().runs(kind="sensitivity")) == 1, "what is known is not measured again"
    out = tmp_path / "table.csv"
    assert main([*words, "--out", str(out)]) == 0 and len(pd.read_csv(out)) == 24
    assert main([*words, "--damage", "top1", "--recipe-out", str(out)]) == 1 and "no accuracy" in capsys.readouterr().err


def test_the_queue_takes_the_same_question_once():
    store, plan = Store(), Sensitivity.of(Recipe())
    assert store.submit(plan, "sensitivity") == store.submit(replace(plan, recipe=replace(plan.recipe, device="cpu")), "sensitivity")
    assert stored.find(store, plan, status="queued") == 1 and stored.find(store, plan) is None


@pytest.mark.parametrize("score", ["sparsegpt", "taylor", "wanda", "random"])
def test_scores_that_look_at_images_and_solvers_are_seen_layer_by_layer_too(tiny_vit, score):
    rows = measured(tiny_vit, levels=(0.5,), score=score)
    assert (rows["sparsity"] == 0.5).all() and (rows["kl"] > 0).all() and np.isfinite(rows["cosine_distance"]).all()

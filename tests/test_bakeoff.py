"""The bake-off: one protocol for all healers, no cell twice, no failure that ends it, and figures that can be recomputed by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT

from starfish_lab import data
from starfish_lab.__main__ import main
from starfish_lab.bakeoff import bench, cell, live, run, tuning
from starfish_lab.bakeoff.book import NAME, Book, packed, unpacked
from starfish_lab.bakeoff.knee import knee
from starfish_lab.bakeoff.plan import BakeOff, Cell
from starfish_lab.data.images import ImageSet
from starfish_lab.errors import Cancelled, RecipeError, StoreError
from starfish_lab.healing import METHODS, REPAIRS, healers
from starfish_lab.jobs import worker
from starfish_lab.measure import memory
from starfish_lab.measure.accuracy import Predictions
from starfish_lab.measure.divergence import kl, log_answers
from starfish_lab.measure.drift import drift
from starfish_lab.measure.share import share_row
from starfish_lab.progress import Reporter
from starfish_lab.recipe import HealingChoice, ImagesChoice, MeasureChoice, PruningChoice, Recipe
from starfish_lab.store import Store, folder_of

RECIPE = Recipe(
    images=ImagesChoice(calibration=20, drift=6), pruning=PruningChoice(sparsity=0.5, score="wanda"), healing=HealingChoice(batch_size=8),
    measure=MeasureChoice(snapshots=3),
)  # fmt: skip
PLAN = BakeOff(recipe=RECIPE, healers=("starfish", "dense", "cross_entropy"), images=(10, 20), steps=(3,), seeds=(0,), rates=(0.5, 1.0, 2.0))
FIELDS = ["healer", "seed", "sparsity", "images", "steps"]


class Listener(Reporter):
    """Keeps what it hears; asks to stop after so many notes."""

    def __init__(self, stop_after: int = 1000):
        self.notes, self.metrics, self.stop_after = [], [], stop_after

    def note(self, text):
        self.notes.append(text)

    def metric(self, name, step, value):
        self.metrics.append({"name": name, "step": step, "value": value})

    def cancel_requested(self):
        return len(self.notes) >= self.stop_after


@pytest.fixture
def lab(tiny_vit, monkeypatch):
    """The tiny network and images of its own in the place of the recipe's; notes what every healing and every look at answers gets."""

    def opened(choice, network):
        generator = torch.Generator().manual_seed(choice.seed)

        def some(n, labelled=True):
            images = torch.randn(n, 3, 32, 32, generator=generator)
            labels = log_answers(network, images).argmax(1) if labelled else None  # the dense network is always right
            return ImageSet.of(images, labels)

        return data.Splits(calibration=some(choice.calibration), drift=some(choice.drift, False), evaluation=some(40), notes=[])

    heard = {"cell": [], "tuning": [], "answers": []}

    def listening(module, where):
        real = module.heal

        def heal(dense, student, masks, images, choice, *, labels=None, **others):
            weights = {name: value.clone() for name, value in student.module.state_dict().items()}
            heard[where].append({"masks": masks, "images": images.clone(), "labels": labels, "choice": choice, "weights": weights})
            return real(dense, student, masks, images, choice, labels=labels, **others)

        monkeypatch.setattr(module, "heal", heal)

    def answers(network, images, **others):
        heard["answers"].append(images.clone())
        return log_answers(network, images, **others)

    monkeypatch.setattr(memory, "_release", lambda: None)  # among all that a test process holds it takes longer than the healing
    monkeypatch.setattr(run, "load", lambda choice: tiny_vit)
    monkeypatch.setattr(bench.data, "open_images", opened)
    monkeypatch.setattr(tuning, "log_answers", answers)
    listening(cell, "cell")
    listening(tuning, "tuning")
    heard["splits"] = lambda seed, n=20: opened(replace(RECIPE.images, seed=seed, calibration=n), tiny_vit)
    return heard


def answers(right, indices=None) -> Predictions:
    right = np.asarray(right, dtype=bool)
    indices = np.arange(len(right)) if indices is None else np.asarray(indices)
    return Predictions(indices, np.where(right, 0, 1)[:, None], np.zeros(len(right), dtype=int))


def test_a_plan_survives_json_and_names_what_is_wrong():
    plan = replace(PLAN, options={"starfish, bf16": {"healer": "starfish", "precision": "bf16"}, "dense": {"batch_size": 4}})
    plan = replace(plan, healers=(*plan.healers, "starfish, bf16"))
    assert BakeOff.from_json(plan.to_json()) == plan and BakeOff.from_json(plan.to_json()).fingerprint() == plan.fingerprint()
    assert plan.choice("starfish, bf16").precision == "bf16" and plan.choice("dense").batch_size == 4 and plan.choice("dense").method == "none"
    assert plan.fingerprint() != PLAN.fingerprint() == replace(PLAN, recipe=replace(RECIPE, name="other")).fingerprint()
    for wrong, words in [
        ({"healers": ["nope"]}, "no healer 'nope'"), ({"images": [0]}, "images is"), ({"sparsities": [1.0]}, "sparsities is"),
        ({"rates": [1, 1]}, "each once"), ({"seeds": []}, "at least one"), ({"held_out": 0.9}, "held_out"), ({"sed": 1}, "sed is not a field"),
        ({"options": {"starfish": {"steps": 3}}}, "which the bake-off decides"), ({"options": {"starfish": {"rate": 3}}}, "healing.rate"),
        ({"tuning_steps": 0}, "tuning_steps"),
    ]:  # fmt: skip
        with pytest.raises(RecipeError, match=words):
            BakeOff.from_dict(plan.to_dict() | wrong)
    with pytest.raises(RecipeError, match="has one sparsity"):
        replace(PLAN, sparsities=(0.5, 0.6), recipe=replace(RECIPE, pruning=PruningChoice(pattern="n_m")))


def test_a_network_without_a_digest_is_known_by_its_weights(tiny_vit):
    """The same folder with another network of one's own must not answer with the first one's cells."""
    other = tiny_vit.copy()
    other.module.head.weight.data.add_(1)
    first, second = (run.cell_key(PLAN, PLAN.cells()[0], network, "cpu") for network in (tiny_vit, other))
    assert tiny_vit.weights_sha256 == other.weights_sha256 == "" and first != second


def test_cells_share_images_before_healers_change_and_repairs_have_no_steps():
    plan = replace(PLAN, steps=(3, 5), seeds=(0, 1), sparsities=(0.5, 0.75))
    cells = plan.cells()
    assert len(cells) == len(set(cells)) == 2 * 2 * 2 * (2 * 2 + 1)  # seeds · sparsities · images · (two that train · steps + a repair)
    assert [c.healer for c in cells[:3]] == ["starfish", "dense", "cross_entropy"] and {c.steps for c in cells if c.healer == "dense"} == {0}
    assert all(Cell.of(c.label) == c for c in cells)
    epochs = replace(PLAN, steps=()).cells()[0]
    assert epochs.steps == RECIPE.healing.epochs * math.ceil(10 / 8)


def test_healers_have_their_own_settings_and_chains_have_both(monkeypatch):
    assert {"starfish", "dense", "dense+starfish"} <= set(healers.names()) and "none+starfish" not in healers.names()
    known = {("repairs", "dense"): {"batch_size": 7, "strength": 2.0}, ("methods", "starfish"): {"learning_rate": 1e-7, "options": {"a": 1}}}
    for registry in (METHODS, REPAIRS):

        def constant(name, what, default=None, kind=registry.package.rpartition(".")[2]):
            return known.get((kind, name), default)

        monkeypatch.setattr(registry, "constant", constant)
    found = healers.choice("dense+starfish", HealingChoice(options={"b": 2}, warmup=3))
    assert (found.batch_size, found.learning_rate, found.warmup) == (7, 1e-7, 3)
    assert (found.repair_options, found.options) == ({"strength": 2.0}, {"a": 1, "b": 2})
    assert found.final_learning_rate == 1e-7  # never above the first
    assert healers.choice("dense", HealingChoice(options={"b": 2})).options == {}  # those were of another method


def test_all_healers_get_the_same_network_masks_and_images(lab):
    report = run.run(PLAN, device="cpu")
    rows = report.frame("healers")
    assert list(rows["note"]) == [""] * 6 and list(rows.columns[:5]) == FIELDS
    expected = lab["splits"](0)
    first = lab["cell"][0]
    for entry, row in zip(lab["cell"], rows.itertuples(), strict=True):
        assert entry["masks"] is first["masks"] and torch.equal(entry["images"], expected.calibration.tensor()[: row.images])
        assert all(torch.equal(entry["weights"][name], value) for name, value in first["weights"].items())
        assert (entry["labels"] is not None) == row.labels == (row.healer == "cross_entropy")
        assert row.learning_rate == entry["choice"].learning_rate or row.healer == "dense"
    assert {(row.healer, row.steps) for row in rows.itertuples()} == {("starfish", 3), ("dense", 0), ("cross_entropy", 3)}
    assert (rows["top1_dense"] == 1).all() and rows["top1_pruned"].nunique() == 1 and (rows["share"] == rows["top1"]).all()
    assert (rows["healing_seconds"] == rows["repair_seconds"] + rows["training_seconds"]).all()
    tries = report.frame("tuning")
    for row in rows[rows["steps"] > 0].itertuples():
        mine = tries[(tries["healer"] == row.healer) & (tries["images"] == row.images)]
        best = mine.loc[mine["kl"].idxmin()]
        assert row.rate_tuned and best["chosen"] and mine["chosen"].sum() == 1 and best["learning_rate"] == row.learning_rate
    curves = report.frame("healer_curves")
    assert list(curves[(curves["healer"] == "starfish") & (curves["images"] == 10)]["images_seen"]) == [0, 8, 18]  # 8, then 2 and 8
    assert set(report.frame("paired")["second"]) == {"dense", "cross_entropy"} and (report.frame("paired")["first"] == "starfish").all()
    assert {"device", "weights_sha256", "bakeoff"} <= set(report.frame("provenance")["name"])


def test_drift_and_kl_are_those_of_the_healed_network(lab, tiny_vit):
    plan = replace(PLAN, healers=("none",), images=(10,), recipe=replace(RECIPE, pruning=PruningChoice(sparsity=0.5)))
    report = run.run(plan, device="cpu")
    row, images = report.frame("healers").iloc[0], lab["splits"](0).drift.tensor()
    pruned = tiny_vit.copy()
    pruned.module.load_state_dict(lab["cell"][0]["weights"])
    distances = [r["cosine_distance"] for r in drift(tiny_vit, pruned, images) if r["tokens"] == "all"]
    assert row["drift"] == row["drift_pruned"] == pytest.approx(np.mean(distances))
    assert list(report.frame("healer_blocks")["after"]) == pytest.approx(distances)
    p, q = (network.module(images).detach().softmax(-1).double() for network in (tiny_vit, pruned))
    assert row["kl"] == pytest.approx(float((p * (p / q).log()).sum(1).mean()), rel=1e-4) and row["kl"] > 0
    assert kl(p.log(), p.log()) == pytest.approx(0)


def test_tuning_sees_neither_evaluation_images_nor_the_labels_of_those_it_judges_by(lab):
    run.run(replace(PLAN, images=(20,), tuning_steps=2), device="cpu")
    calibration = lab["splits"](0).calibration
    for entry in lab["tuning"]:
        assert torch.equal(entry["images"], calibration.tensor()[:16]) and entry["choice"].steps == 2
        assert entry["labels"] is None if entry["choice"].method == "starfish" else torch.equal(entry["labels"], calibration.labels[:16])
    assert len(lab["tuning"]) == 2 * 3 and len(lab["answers"]) == 2 * (1 + 3)
    assert all(torch.equal(seen, calibration.tensor()[16:]) for seen in lab["answers"])  # the dense network's and every try's


def test_wrong_labels_of_the_judging_images_change_nothing(lab, tiny_vit):
    splits, plan = lab["splits"](0), replace(PLAN, healers=("cross_entropy",))
    whole = bench.Images.of(tiny_vit, plan, 0, device="cpu", reporter=Reporter())
    made = bench.Bench.of(tiny_vit, plan, whole, 0, 0.5, device="cpu", reporter=Reporter())
    wrong = splits.calibration.labels.clone()
    wrong[16:] = 9 - wrong[16:]
    found = [
        tuning.tune(
            tiny_vit, made.prepared.network, made.prepared.result.masks, whole.calibration, labels, replace(plan.choice("cross_entropy"), steps=2),
            multiples=(0.5, 1e12), held_out=0.2,
        ) for labels in (splits.calibration.labels, wrong)
    ]  # fmt: skip
    assert [row["kl"] for row in found[0].rows] == [row["kl"] for row in found[1].rows]
    diverged = found[0].rows[1]
    assert found[0].multiple == 0.5 and (diverged["kl"] is None) == bool(diverged["note"])


def test_a_stopped_or_extended_bake_off_repeats_no_cell(lab, tmp_path):
    with pytest.raises(Cancelled):
        run.run(PLAN, reporter=Listener(stop_after=2), folder=tmp_path, device="cpu")
    first = [json.loads(line) for line in (tmp_path / NAME).read_text().splitlines()]
    assert [entry["label"].split("|")[0] for entry in first] == ["starfish", "dense"]
    with (tmp_path / NAME).open("a") as file:
        file.write('{"key": "cut sho')  # a kill in the middle of a line
    lab["cell"].clear()
    listener = Listener()
    whole = run.run(PLAN, reporter=listener, folder=tmp_path, device="cpu")
    assert len(lab["cell"]) == 4 and len(whole.frame("healers")) == 6 and len(listener.notes) == 6
    assert whole.tables["healers"][0]["healing_seconds"] == first[0]["tables"]["healers"][0]["healing_seconds"]
    lab["cell"].clear()
    longer = replace(PLAN, healers=(*PLAN.healers, "none"), seeds=(0, 1), images=(10,))
    assert len(run.run(longer, folder=tmp_path, device="cpu").frame("healers")) == 8 and len(lab["cell"]) == 5  # 1 of seed 0, 4 of seed 1
    lab["cell"].clear()
    again = run.run(PLAN, folder=tmp_path, device="cpu")
    assert not lab["cell"] and again.tables["healers"] == whole.tables["healers"] and again.tables["paired"] == whole.tables["paired"]
    run.run(replace(PLAN, healers=("starfish",), options={"starfish": {"learning_rate": 1e-3}}), folder=tmp_path, device="cpu")
    assert len(lab["cell"]) == 2  # another choice is another cell


def test_a_healer_that_fails_becomes_a_row_with_the_reason(lab, tmp_path, monkeypatch):
    def broken(session):
        raise RuntimeError("no such kernel\nsecond line")

    monkeypatch.setattr(METHODS.module("logit_distillation"), "objective", broken)
    plan = replace(PLAN, healers=("corp", "logit_distillation", "starfish"), images=(10,), rates=())
    listener = Listener()
    rows = run.run(plan, reporter=listener, folder=tmp_path, device="cpu").frame("healers").set_index("healer")
    assert rows["note"]["starfish"] == "" and rows["top1"]["starfish"] >= 0 and pd.isna(rows["top1"]["corp"])
    assert rows["note"]["corp"] and "Traceback" not in rows["note"]["corp"]  # it is for structured pruning
    assert rows["note"]["logit_distillation"] == "RuntimeError: no such kernel"
    assert any(rows["note"]["corp"] in note for note in listener.notes)
    lab["cell"].clear()
    run.run(plan, folder=tmp_path, device="cpu")
    assert [entry["choice"].method for entry in lab["cell"]] == ["logit_distillation"]  # what another try might do is tried again


def test_live_figures_become_tables_without_torch(lab):
    listener = Listener()
    report = run.run(replace(PLAN, images=(10,)), reporter=listener, device="cpu")
    events = pd.DataFrame(listener.metrics)
    done = live.finished(events)
    rows = report.frame("healers")
    pd.testing.assert_frame_equal(done[FIELDS + ["top1", "drift", "kl"]], rows[FIELDS + ["top1", "drift", "kl"]], check_dtype=False)
    curve, table = live.curves(events), report.frame("healer_curves")
    mine = curve[(curve["healer"] == "starfish") & curve["accuracy"].notna()]
    assert list(mine["accuracy"]) == list(table[table["healer"] == "starfish"]["accuracy"]) and (mine["seconds"].diff().dropna() > 0).all()
    assert live.curves(events[:0]).empty and live.finished(events[:0]).empty


@pytest.mark.parametrize(
    ("right", "expected", "at_end"),
    [
        ({8: 500, 64: 800, 400: 898, 5000: 900}, 400, False),  # of 1,000 and two seeds: 4 answers apart are too few, p = 1/8
        ({8: 100, 64: 300, 400: 600}, 400, True),  # still rising
        ({8: 900, 64: 900, 400: 900}, 8, False),  # flat
        ({8: 500, 64: 900, 400: 700}, 64, False),  # falls again
    ],
)
def test_the_knee_is_the_fewest_images_not_told_apart_from_the_best(right, expected, at_end):
    curve = {images: [answers(np.arange(1000) < count), answers(np.arange(1000) < count)] for images, count in right.items()}
    found = knee(curve)
    assert (found["knee_images"], found["at_end"]) == (expected, at_end) and found["top1_knee"] == right[expected] / 1000
    assert found["top1_best"] == max(right.values()) / 1000


def test_pooled_seeds_find_a_smaller_difference_than_one():
    few, many = answers(np.arange(1000) < 895), answers(np.arange(1000) < 900)
    assert knee({8: [few], 64: [many]})["knee_images"] == 8  # 5 discordant answers: p = 1/16
    assert knee({8: [few] * 3, 64: [many] * 3})["knee_images"] == 64  # 15: p = 2⁻¹⁴


def test_the_interval_of_the_share_covers_and_agrees_with_a_bootstrap():
    rng = np.random.default_rng(0)
    dense = rng.random(600) < 0.8
    healed = np.where(dense, rng.random(600) < 0.7, rng.random(600) < 0.2)
    row = share_row(answers(dense), answers(healed))
    draws = rng.integers(0, 600, (4000, 600))
    low, high = np.quantile(healed[draws].mean(1) / dense[draws].mean(1), [0.025, 0.975])
    assert row["share"] == healed.sum() / dense.sum()
    assert (row["share_low"], row["share_high"]) == pytest.approx((low, high), abs=0.01)
    covered = 0
    for _ in range(400):
        a = rng.random(200) < 0.7
        b = np.where(a, rng.random(200) < 0.3, rng.random(200) < 0.05)
        found = share_row(answers(a), answers(b))
        covered += found["share_low"] <= (0.7 * 0.3 + 0.3 * 0.05) / 0.7 <= found["share_high"]
    assert 0.92 <= covered / 400 <= 1


def test_the_interval_of_the_share_has_a_width_at_its_ends():
    right = np.arange(100) < 80
    same, none = share_row(answers(right), answers(right)), share_row(answers(right), answers(right & False))
    assert same["share"] == 1 and 0.9 < same["share_low"] < 1 < same["share_high"] < 1.1
    assert none["share"] == 0 == none["share_low"] and 0 < none["share_high"] < 0.1
    assert share_row(answers(right & False), answers(right))["share"] is None


def test_the_book_keeps_which_images_were_answered_and_how(tmp_path):
    given = answers([True, False, True], indices=[0, 2, 5])
    back = unpacked(json.loads(json.dumps(packed(given))))
    assert back.indices.tolist() == [0, 2, 5] and back.correct.tolist() == [True, False, True]
    Book(tmp_path).keep("k", "label", {"healers": [{"top1": 0.5}]}, given)
    assert Book(tmp_path).get("k")["tables"]["healers"][0]["top1"] == 0.5 and Book(tmp_path).get("other") is None and Book(None).get("k") is None


def test_a_worker_bakes_and_a_second_run_finds_everything_done(lab, monkeypatch):
    monkeypatch.setattr(worker, "_title", lambda device: device)
    store, plan = Store(), replace(PLAN, images=(10,), recipe=replace(RECIPE, name="mine"))
    ids = [store.submit(plan, "bakeoff") for _ in range(2)]
    with pytest.raises(StoreError, match="takes a recipe"):
        store.submit(plan)
    for _ in ids:
        worker.work(store, "cpu", once=True)
    found = [store.run(i) for i in ids]
    assert [r.status for r in found] == ["done", "done"] and found[0].plan == plan and found[0].recipe == plan.recipe and found[0].name == "mine"
    assert len(lab["cell"]) == 3  # none in the second run
    assert store.report(ids[0]).tables["healers"] == store.report(ids[1]).tables["healers"]
    assert len(live.finished(store.events(ids[1]))) == 3 and len(store.notes(ids[1])) == 3
    assert not (folder_of(ids[0]) / NAME).exists()  # the book belongs to the lab, so that deleting a run loses no cell


def test_the_command_makes_a_plan_of_flags_and_writes_what_it_found(lab, tmp_path, capsys):
    flags = ["--images", "10", "--steps", "2", "--seeds", "3", "--rates", "", "--set", "images.drift=6", "--set", "images.calibration=10"]
    assert main(["bakeoff", "--healers", "starfish,none", *flags, "--show"]) == 0
    text = capsys.readouterr().out
    plan = BakeOff.from_json(text)
    assert (plan.healers, plan.images, plan.steps, plan.seeds, plan.rates) == (("starfish", "none"), (10,), (2,), (3,), ())
    (tmp_path / "plan.json").write_text(text)
    assert main(["bakeoff", str(tmp_path / "plan.json"), "--set", "device=cpu", "--out", str(tmp_path / "out"), "--json"]) == 0
    captured = capsys.readouterr()
    rows = json.loads(captured.out)
    assert [row["healer"] for row in rows] == ["starfish", "none"] and "1 of 2: starfish at 90 %" in captured.err
    assert {"plan.json", "report.json", "healers.csv", NAME} <= {path.name for path in (tmp_path / "out").iterdir()}
    assert main(["bakeoff", str(ROOT / "no such file")]) == 1 and "cannot be read" in capsys.readouterr().err

"""run(recipe) → Report on the bundled starter: every stage meets, and the figures hang together."""

from __future__ import annotations

import pytest

from starfish_lab import experiment
from starfish_lab.errors import Cancelled, StoreError
from starfish_lab.export import load_pruned
from starfish_lab.progress import Reporter
from starfish_lab.recipe import HealingChoice, ImagesChoice, MeasureChoice, PruningChoice, Recipe

QUICK = MeasureChoice(batch_sizes=(1,), seconds=0.05, spectra=False, latency=False)
IMAGES = ImagesChoice(calibration=16, drift=8, evaluation=40)


class Recorder(Reporter):
    """Remembers what it was told; asks to stop at a stage if given one."""

    def __init__(self, stop_at: str = ""):
        self.stages, self.notes, self.stop_at = [], [], stop_at

    def stage(self, name):
        self.stages.append(name)

    def note(self, text):
        self.notes.append(text)

    def cancel_requested(self):
        return bool(self.stop_at) and self.stop_at in self.stages


def _recipe(**parts) -> Recipe:
    return Recipe(**{"images": IMAGES, "measure": QUICK, "healing": HealingChoice(steps=6), **parts})


def test_report_holds_every_stage(tmp_path):
    recipe = _recipe(measure=MeasureChoice(batch_sizes=(1,), seconds=0.05))
    recorder = Recorder()
    report = experiment.run(recipe, reporter=recorder, folder=tmp_path, device="cpu")
    assert [row["stage"] for row in report.tables["accuracy"]] == ["dense", "pruned", "healed"]
    assert {(r["first"], r["second"]) for r in report.tables["comparisons"]} == {("dense", "pruned"), ("dense", "healed"), ("pruned", "healed")}
    assert [*recorder.stages[:4], "snapshots", *recorder.stages[4:]] == [row["stage"] for row in report.tables["seconds"]]
    assert set(report.frame("drift")["stage"]) == {"pruned", "healed"}
    assert set(report.frame("spectra")["stage"]) == {"dense", "pruned", "healed"}
    assert set(report.frame("latency")["execution"]) == {"dense", "masked"}
    assert report.frame("losses")["step"].max() == 6
    layers, totals = report.frame("layers"), report.frame("totals").set_index("stage")
    assert layers["removed"].sum() == round(0.9 * layers["weights"].sum())
    assert totals.loc["healed", "sparsity_prunable"] == pytest.approx(0.9, abs=1e-6)
    assert totals.loc["dense", "sparsity_prunable"] == 0
    assert totals.loc["healed", "macs_g_effective"] < totals.loc["dense", "macs_g_effective"]
    summary = report.summary()
    assert summary["recovered"] == summary["top1_healed"] / summary["top1_dense"]
    names = set(report.frame("provenance")["name"])
    assert {"recipe", "hardware.fingerprint", "version.torch", "seed.healing", "weights_sha256"} <= names


def test_saved_network_answers_as_the_healed_one(tmp_path):
    """The export of a structured run is small, and its accuracy is the report's."""
    from starfish_lab import data
    from starfish_lab.measure import accuracy

    recipe = _recipe(pruning=PruningChoice(pattern="structured", sparsity=0.5))
    report = experiment.run(recipe, folder=tmp_path, device="cpu")
    network = load_pruned(tmp_path / "healed")
    evaluation = data.open_images(recipe.images, network).evaluation
    row = accuracy.accuracy_row(accuracy.predict(network, evaluation, device="cpu"))
    assert row["correct"] == report.frame("accuracy").set_index("stage").loc["healed", "correct"]
    parameters = sum(p.numel() for p in network.module.parameters()) / 1e6
    totals = report.frame("totals").set_index("stage")
    assert parameters == pytest.approx(totals.loc["healed", "parameters_m"])
    assert parameters < 0.65 * totals.loc["dense", "parameters_m"]
    assert any("differ by" in note for note in report.frame("notes")["note"])


def test_same_recipe_same_figures(tmp_path):
    first, second = (experiment.run(_recipe(), folder=tmp_path / name, device="cpu") for name in "ab")
    for table in ("accuracy", "drift", "losses", "layers"):
        assert first.tables[table] == second.tables[table], table


def test_without_healing_there_are_two_stages():
    report = experiment.run(_recipe(healing=HealingChoice(method="none")), device="cpu")
    assert [row["stage"] for row in report.tables["accuracy"]] == ["dense", "pruned"]
    assert "top1_healed" not in report.summary()


def test_cancel_stops_between_stages():
    with pytest.raises(Cancelled):
        experiment.run(_recipe(), reporter=Recorder(stop_at="measure pruned"), device="cpu")


def test_full_disk_while_saving_loses_the_copy_not_the_run(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise StoreError("The disk is full.")

    monkeypatch.setattr(experiment.export, "save", full)
    recorder = Recorder()
    report = experiment.run(_recipe(), reporter=recorder, folder=tmp_path, device="cpu")
    assert len(report.tables["accuracy"]) == 3
    assert any("was not saved: The disk is full." in note for note in recorder.notes)

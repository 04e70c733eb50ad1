"""The table of layer times, measured: what each module takes by itself, and what is left of whole passes."""

from __future__ import annotations

import itertools

import pandas as pd
import pytest
import torch
from torch import nn

from starfish_lab import __main__ as command_line
from starfish_lab.measure import own_time
from starfish_lab.prediction import forms as of_forms
from starfish_lab.prediction import layer_times, recording
from starfish_lab.recipe import MeasureChoice, ModelChoice, Recipe, TokensChoice
from starfish_lab.store import Store

QUICK = Recipe(measure=MeasureChoice(batch_sizes=(2,)))


@pytest.fixture
def few_rounds(monkeypatch):
    monkeypatch.setattr(layer_times, "ROUNDS", (3, 3))


class Ticks:
    """A clock that is a second further whenever it is asked."""

    def __init__(self):
        self.now = itertools.count().__next__

    def between(self, first: int, second: int) -> float:
        return float(second - first)


def test_a_modules_own_time_is_without_those_inside_it(monkeypatch):
    module = nn.Sequential(nn.Sequential(nn.ReLU(), nn.ReLU()), nn.ReLU())
    monkeypatch.setattr(own_time, "_Clock", Ticks)
    found = own_time.own_times(module, ["", "0", "0.0", "0.1", "1"], lambda: module(torch.ones(1)), device="cpu")
    # marks: '' 0, '0' 1, '0.0' 2–3, '0.1' 4–5, '0' 6, '1' 7–8, '' 9
    assert found == [("0.0", 1.0), ("0.1", 1.0), ("0", 3.0), ("1", 1.0), ("", 3.0)]
    assert sum(seconds for _, seconds in found) == 9
    partly = own_time.own_times(module, ["", "1"], lambda: module(torch.ones(1)), device="cpu")
    assert [name for name, _ in partly] == ["1", ""]
    assert not any(child._forward_hooks or child._forward_pre_hooks for child in module.modules())


def test_hooks_go_when_the_pass_fails():
    module = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(RuntimeError):
        own_time.own_times(module, ["0"], lambda: module(torch.ones(1, 3)), device="cpu")
    assert not module[0]._forward_hooks and not module[0]._forward_pre_hooks


def test_on_a_gpu_events_stand_in_the_stream_and_one_wait_ends_it(monkeypatch):
    """With a stand-in for CUDA: no GPU is needed to see what is asked of one."""
    recorded, waits = [], []

    class Event:
        def __init__(self, enable_timing: bool):
            assert enable_timing

        def record(self, stream):
            assert stream == "stream of cuda:1" and not waits, "an event of another device, or recorded after the wait"
            self.at = len(recorded)
            recorded.append(self)

        def elapsed_time(self, other) -> float:
            return 1000.0 * (other.at - self.at)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    monkeypatch.setattr(torch.cuda, "synchronize", waits.append)
    module = nn.Sequential(nn.ReLU(), nn.ReLU())
    found = own_time.own_times(module, ["", "0", "1"], lambda: module(torch.ones(1)), device="cuda:1")
    assert found == [("0", 1.0), ("1", 1.0), ("", 3.0)] and waits == ["cuda:1"] and len(recorded) == 6


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_a_gpu_is_timed(tiny_vit, few_rounds):
    built = layer_times.build(tiny_vit, QUICK, device="cuda:0", precision="bf16", notes=[])
    rows = pd.DataFrame(layer_times.measure(built, 8, device="cuda:0", seconds=0.1))
    assert (rows["ms"] > 0).all() and {"dense", "sliced 50%", "merged r=8"} <= set(rows["form"])


def test_every_piece_of_every_form_is_in_the_table(tiny_vit, few_rounds):
    notes: list[str] = []
    built = layer_times.build(tiny_vit, QUICK, device="cpu", precision="float32", notes=notes)
    assert list(built) == [
        "dense", "sliced 25%", "sliced 50%", "sliced 75%", "merged r=8", "merged r=8, sliced 50%", "merged r=4", "merged r=4, sliced 25%",
    ] and not notes  # fmt: skip
    rows = pd.DataFrame(layer_times.measure(built, 2, device="cpu", seconds=0.01))
    assert (rows["ms"] > 0).all() and (rows["ms_low"] <= rows["ms"]).all() and (rows["ms"] <= rows["ms_high"]).all()
    assert (rows["rounds"] == 3).all() and (rows["batch"] == 2).all()
    for name, form in built.items():
        own = rows[rows["form"] == name]
        pieces = own[own["kind"] != "pass"]
        assert (own["kind"] == "pass").sum() == 1
        assert pieces["count"].sum() == len(recording.places(form.network))
        assert not pieces.duplicated(["kind", "variant", "kernel", "m", "n", "k"]).any()
    fc1 = rows[(rows["kind"] == "linear") & (rows["k"] == 32) & (rows["m"] == 34)].set_index("form")
    assert fc1.loc["sliced 25%", "n"].max() == 96 and fc1.loc["dense", "n"].max() == 128


def test_the_pieces_of_a_pass_add_up_to_it(tiny_vit):
    """A clock that counts the processor's work would be exact; the wall clock is not, so this is a rough check."""
    module = tiny_vit.module
    images = torch.randn(64, 3, 32, 32)
    with torch.inference_mode():
        sums = [sum(recording.timed(tiny_vit, lambda: module(images), device="cpu")) for _ in range(15)]
        wholes = [dict(own_time.own_times(module, [""], lambda: module(images), device="cpu"))[""] for _ in range(15)]
    assert 0.5 < min(sums) / min(wholes) < 2


def test_a_network_without_removable_units_says_why(tiny_convnext, few_rounds):
    notes: list[str] = []
    built = layer_times.build(tiny_convnext, QUICK, device="cpu", precision="float32", notes=notes)
    assert list(built) == ["dense"] and len(notes) == 3 and all("GRN" in note for note in notes)


def test_on_a_gpu_kernels_are_forms_too():
    names = {precision: [form.name for form in of_forms.forms(QUICK, precision, cuda=True, most=8)] for precision in ("float32", "bf16")}
    assert {"2:4 (cutlass)", "2:4 (cusparselt)", "im2col (cutlass)"} <= set(names["bf16"])
    assert not any("2:4" in name for name in names["float32"]) and "im2col (dense)" in names["float32"]
    assert of_forms.precisions("cpu") == ("float32",) and "bf16" in of_forms.precisions("gpu:A40")


def test_the_recipes_own_schedule_of_tokens_is_timed():
    names = [form.name for form in of_forms.forms(Recipe(tokens=TokensChoice(r=(4, 2))), "float32", most=8)]
    assert "merged r=4,2" in names and "merged r=2,1" in names
    assert not any("merged" in form.name for form in of_forms.forms(QUICK, "float32", most=0))


def test_a_job_times_the_starter(few_rounds):
    report = layer_times.run(QUICK, device="cpu", seconds=0.01)
    rows = report.frame("layer_times")
    assert set(rows["model"]) == {"starter"} and set(rows["device"]) == {"cpu"} and (rows["threads"] >= 1).all()
    assert rows["device_name"].iloc[0] and len(rows["fingerprint"].iloc[0]) == 12 and rows["precision"].unique().tolist() == ["float32"]
    assert not rows.isna().any().any()


def test_the_command_times_here_or_leaves_it_to_a_worker(few_rounds, monkeypatch, capsys):
    monkeypatch.setattr(of_forms, "SHARES", (0.5,))
    assert command_line.main(["layer-times", "--set", "measure.batch_sizes=[1]", "--queue"]) == 0
    assert Store().runs(kind=None)["kind"].tolist() == ["layer_times"]
    assert command_line.main(["layer-times", "--set", "measure.batch_sizes=[1]", "--set", "measure.seconds=0.01"]) == 0
    assert "sliced 50%" in capsys.readouterr().out


def test_memory_that_runs_out_leaves_a_batch_out_and_says_so(few_rounds, monkeypatch):
    real = layer_times.measure

    def full(built, batch, **options):
        if batch == 2:
            raise torch.OutOfMemoryError
        return real(built, batch, **options)

    monkeypatch.setattr(layer_times, "measure", full)
    report = layer_times.run(Recipe(model=ModelChoice(), measure=MeasureChoice(batch_sizes=(1, 2))), device="cpu", seconds=0.01)
    assert set(report.frame("layer_times")["batch"]) == {1}
    assert "Batch 2 in float32 does not fit" in report.frame("notes")["note"].iloc[0]

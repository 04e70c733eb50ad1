"""The latency lab: every execution against every other, refusals, halved batches, layers and sensors; with real networks and with stand-ins."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from starfish_lab import tokens as merging
from starfish_lab.errors import Cancelled, LabError, RecipeError, Refused
from starfish_lab.execution.choice import Execution
from starfish_lab.execution.proof import Proof
from starfish_lab.latency import contestants, energy, layers, sensors
from starfish_lab.latency.contestants import Contestant
from starfish_lab.latency.plan import LatencyPlan
from starfish_lab.latency.rows import timed
from starfish_lab.latency.run import run
from starfish_lab.measure import latency, macs
from starfish_lab.models.network import Network
from starfish_lab.progress import Reporter
from starfish_lab.recipe import ModelChoice, PruningChoice, Recipe, TokensChoice

STRUCTURED = Recipe(pruning=PruningChoice(pattern="structured", sparsity=0.5))
QUICK = dict(batches=(2,), seconds=0.02, min_iterations=3, starts=1)
PROOF = Proof(largest_difference=0.0, from_float32=0.0, tolerance=1e-5, top1_agreement=1.0, images=8)


class Notes(Reporter):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


class Runner:
    """Stands in for `execution.running.Run`: takes `seconds`, fails where it is told to."""

    def __init__(self, seconds=0.001, fails=None):
        self.seconds, self.fails, self.batches = seconds, fails or {}, []

    def inputs(self, images):
        return images

    def __call__(self, images):
        self.batches.append(len(images))
        if (error := self.fails.get(len(images))) is not None:
            raise error
        time.sleep(self.seconds)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(latency, "PATIENCE", 1)
    monkeypatch.setattr(latency, "FEWEST", 2)
    monkeypatch.setattr("starfish_lab.latency.peak.measure", lambda device, precisions: [
        {"precision": name, "tflops": 0.5, "gb_per_s": 10.0, "shape": "256x256x256"} for name in dict.fromkeys(precisions)
    ])  # fmt: skip


@pytest.fixture
def stand_ins(monkeypatch, tiny_vit):
    """Replace what makes executions ready: {label: Runner or the error to raise}; returns the dict that the test fills."""
    runners: dict[str, object] = {}

    def ready(dense, pruned, masks, execution, **_):
        found = runners.get(execution.label, Runner())
        if isinstance(found, Exception):
            raise found
        return SimpleNamespace(network=tiny_vit, module=found, note="", proof=PROOF)

    monkeypatch.setattr(contestants, "ready", ready)
    return runners


def plan(*executions: str, recipe: Recipe = STRUCTURED, **changes) -> LatencyPlan:
    return LatencyPlan(recipe=recipe, executions=executions, **{**QUICK, "layers": False, **changes})


def test_real_networks_from_recipe_to_rows():
    report = run(plan("sliced", "merged+sliced", "masked, bf16", "semi_structured, fp16", layers=True), device="cpu")
    json.dumps(report.tables, allow_nan=False)
    table = report.frame("latency").set_index("execution")
    assert list(table.index) == [
        "dense", "dense, fp16", "dense, bf16", "sliced", "merged+sliced", "masked, bf16", "semi_structured(cusparselt), fp16",
    ]  # fmt: skip
    refusal = table.iloc[-1]
    assert "compute capability ≥ 8.0" in refusal["note"] and refusal[["latency_ms_p50", "speedup", "macs_g", "iterations"]].isna().all()
    ran = table.iloc[:-1]
    assert (ran["latency_ms_p50"] > 0).all() and (ran["largest_difference"] <= ran["tolerance"]).all() and (ran["memory_bytes"] > 0).all()
    assert ran["speedup"].iloc[:3].tolist() == [1, 1, 1] and set(ran["stage"]) == {"dense", "pruned"}
    assert ran["tokens"].tolist() == ["", "", "", "", "8", ""] and ran.loc["masked, bf16", "dtype"] == "bfloat16"
    assert ran.loc["dense", "macs_g"] > ran.loc["sliced", "macs_g"] > ran.loc["merged+sliced", "macs_g"]
    totals = report.frame("totals").set_index("stage")
    assert totals.loc["pruned", "macs_g"] == pytest.approx(ran.loc["sliced", "macs_g"])
    assert ran.loc["sliced", "tflops"] == pytest.approx(2e-3 * ran.loc["sliced", "macs_g"] * ran.loc["sliced", "images_per_s"])
    assert ran.loc["sliced", "peak_share"] == pytest.approx(ran.loc["sliced", "tflops"] / 0.5)
    assert set(report.frame("latency_layers")["execution"]) == set(ran.index)
    assert report.frame("sensors")["when"].tolist() == ["before", "after"]
    facts = report.frame("hardware").set_index("name")["value"]
    assert set(table["fingerprint"]) == {facts["fingerprint"]}
    assert {"load", "prune", "peak", "build", "latency", "layers"} == set(report.frame("seconds")["stage"])


def test_random_weights_are_said_and_images_are_not_needed():
    recipe = Recipe(model=ModelChoice(name="vit_tiny_patch16_224", weights="random", preprocessing={"input_size": [3, 32, 32]}))
    notes = Notes()
    report = run(plan("masked", recipe=recipe), device="cpu", reporter=notes)
    assert any("weights are random" in note for note in notes.notes) and "accuracy" not in report.tables
    with pytest.raises(RecipeError, match="needs calibration images"):
        run(plan("masked", recipe=Recipe(pruning=PruningChoice(score="wanda"))), device="cpu")
    with pytest.raises(LabError, match="no device 'cuda:97'"):
        run(plan("masked"), device="cuda:97")


def test_every_ratio_is_paired_with_its_own_dense_and_with_the_best_of_all():
    rounds = {
        "dense": [[0.8], [0.4], [0.8]], "dense, bf16": [[0.4], [0.2], [0.4]], "sliced": [[0.2], [0.1], [0.2]], "sliced, bf16": [[0.1], [0.1], [0.1]],
    }  # fmt: skip
    entries = [Contestant(Execution.of(label), note="a note", proof=PROOF, macs=1_000_000_000) for label in rounds]
    about = {"model": "starter", "device": "cpu", "device_name": "Test", "throttle": "", "energy_method": "a meter"}
    starts = {label: {1: found} for label, found in rounds.items()}
    rows = {row["execution"]: row for row in timed(entries, starts, 8, {"float32": 0.1}, {"sliced": 2.0}, {"sliced": 77}, about)}
    assert [rows[label]["speedup"] for label in rounds] == pytest.approx([1, 1, 4, 4])
    assert [rows[label]["speedup_best"] for label in rounds] == pytest.approx([0.5, 1, 2, 4])
    assert {row["best_dense"] for row in rows.values()} == {"dense, bf16"}
    sliced = rows["sliced"]
    assert sliced["speedup_low"] <= 4 <= sliced["speedup_high"] and sliced["images_per_s"] == pytest.approx(40)
    assert sliced["tflops"] == pytest.approx(0.08) and sliced["peak_share"] == pytest.approx(0.8) and rows["sliced, bf16"]["peak_share"] is None
    assert (sliced["joules_per_image"], sliced["memory_bytes"], rows["dense"]["joules_per_image"]) == (2.0, 77, None)
    assert sliced["note"] == "a note; p99 from 3 iterations only"


def test_a_batch_that_does_not_fit_is_halved_until_it_does(stand_ins):
    full = torch.OutOfMemoryError("CUDA out of memory")
    stand_ins["sliced"] = Runner(fails={64: full, 32: full})
    notes = Notes()
    report = run(plan("sliced", batches=(2, 64)), device="cpu", reporter=notes)
    rows = report.frame("latency")
    assert rows["batch"].tolist() == [2, 2, 16, 16] and all("batch 64 did not fit" in note for note in rows["note"][2:])
    assert [note for note in notes.notes if "fit" in note] == [
        "Batch 64 does not fit into the memory of cpu: batch 32 is timed instead.",
        "Batch 32 does not fit into the memory of cpu: batch 16 is timed instead.",
    ]
    assert notes.notes[-2:] == [row["note"] for row in report.tables["notes"]][-2:]


@pytest.mark.parametrize("said", ["DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes", "CUDA error: out of memory"])
def test_a_half_that_is_timed_already_is_not_timed_again(stand_ins, said):
    stand_ins["sliced"] = Runner(fails={8: RuntimeError(said)})
    notes = Notes()
    report = run(plan("sliced", batches=(4, 8)), device="cpu", reporter=notes)
    assert report.frame("latency")["batch"].tolist() == [4, 4]
    assert notes.notes[-1] == "Batch 8 does not fit into the memory of cpu: batch 4 is timed already."


def test_memory_that_holds_not_one_image_ends_the_run_in_words(stand_ins):
    stand_ins["sliced"] = Runner(fails=dict.fromkeys((1, 2, 4), torch.OutOfMemoryError("CUDA out of memory")))
    with pytest.raises(LabError, match="Not one image fits into the memory of cpu beside 2 executions"):
        run(plan("sliced", batches=(4,)), device="cpu")


def test_what_is_refused_or_fails_is_a_row_that_says_why_and_the_rest_runs(stand_ins):
    stand_ins["sliced"] = Refused("nothing to cut")
    stand_ins["masked, bf16"] = Runner(fails={2: RuntimeError("no kernel image is available\nmore words")})
    stand_ins["masked, fp16"] = torch.OutOfMemoryError("CUDA out of memory")
    rows = run(plan("sliced", "masked, bf16", "masked, fp16", "masked"), device="cpu").frame("latency").set_index("execution")
    assert rows.loc["sliced", "note"] == "nothing to cut"
    assert rows.loc["masked, bf16", "note"] == "it fails at batch 2: no kernel image is available"
    assert "memory of cpu ran out while it was built" in rows.loc["masked, fp16", "note"]
    assert rows["images_per_s"].notna().tolist() == [True, True, True, True, False, False, False]
    with pytest.raises(ZeroDivisionError):  # a mistake of ours is no refusal
        stand_ins["masked"] = ZeroDivisionError("a bug")
        run(plan("masked"), device="cpu")


def test_cancel_is_obeyed_between_calls(stand_ins):
    class Stop(Reporter):
        def cancel_requested(self):
            return len(stand_ins["masked"].batches) > 5

    stand_ins["masked"] = Runner()
    with pytest.raises(Cancelled):
        run(plan("masked", seconds=100.0), device="cpu", reporter=Stop())
    assert len(stand_ins["masked"].batches) < 9


def test_heat_and_energy_stand_in_the_rows(stand_ins, monkeypatch):
    readings = iter(["", "power cap, heat (driver)"])
    monkeypatch.setattr(sensors, "read", lambda device: {**dict.fromkeys(sensors.COLUMNS), "throttle": next(readings), "power_w": 300.0})
    monkeypatch.setattr(energy, "method_for", lambda device: energy.COUNTER)
    monkeypatch.setattr(energy, "per_image", lambda call, batch, **_: 0.25)
    report = run(plan("masked"), device="cpu")
    rows = report.frame("latency")
    assert set(rows["throttle"]) == {"heat (driver)"} and set(rows["joules_per_image"]) == {0.25} and set(rows["energy_method"]) == {energy.COUNTER}
    assert report.frame("sensors")[["batch", "when", "throttle"]].values.tolist() == [[2, "before", ""], [2, "after", "power cap, heat (driver)"]]


class Slow(nn.Module):
    """Takes so many seconds on top of what lies inside it."""

    def __init__(self, seconds: float, inside: nn.Module | None = None):
        super().__init__()
        self.inside, self.seconds = inside or nn.Identity(), seconds

    def forward(self, x):
        time.sleep(self.seconds)
        return self.inside(x)


def test_the_waterfall_gives_every_layer_its_own_time():
    inner = nn.Sequential(Slow(0.004, nn.Linear(8, 8)), nn.LayerNorm(8))
    network = Network.of(nn.Sequential(Slow(0.002, inner), Slow(0.006)).eval(), blocks=["0", "1"], input_size=(8,))
    rows = layers.waterfall(network, lambda: network.module(torch.zeros(2, 8)), device="cpu")
    ms = {(row["layer"], row["kind"]): row["ms"] for row in rows}
    others = {(f"{place}, other", "other") for place in ("0", "1", "outside blocks")}
    assert set(ms) == {*others, ("0.inside.0.inside", "linear"), ("0, norm", "norm")}
    assert ms["0, other", "other"] >= 6 and ms["1, other", "other"] >= 6 and ms["0.inside.0.inside", "linear"] < 3
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.module.modules())


def test_the_waterfall_knows_attention_and_convolutions(tiny_vit, tiny_convnext):
    for network, kinds in ((tiny_vit, {"conv", "linear", "attention", "norm", "other"}), (tiny_convnext, {"conv", "linear", "norm", "other"})):
        images = torch.zeros(1, *network.preprocessing.input_size)
        rows = layers.waterfall(network, lambda network=network, images=images: network.module(images), device="cpu")
        assert {row["kind"] for row in rows} == kinds
    names = [row["layer"] for row in rows]
    assert len(set(names)) == len(names)


def test_macs_are_those_of_what_runs(tiny_vit):
    """A mask saves none, merging saves some, and they are counted in any format."""
    whole = macs.total_macs(tiny_vit)
    half = tiny_vit.copy()
    half.module.half()
    found = contestants._macs(half, tiny_vit, plan("masked"), Execution.of("masked, fp16"))
    assert found == whole and half.module.head.weight.dtype == torch.float16


def test_macs_of_compressed_weights_are_half_of_what_would_run(tiny_vit, monkeypatch):
    """Merged by the recipe's schedule, and where it has none by the usual one, as what runs is."""
    compressed = {id(block.mlp.fc1.weight): block.mlp.fc1 for block in tiny_vit.module.blocks}
    monkeypatch.setattr(contestants, "_compressed", lambda weight: id(weight) in compressed)
    for recipe, r in ((STRUCTURED, 8), (replace(STRUCTURED, tokens=TokensChoice(r=(2,))), 2)):
        merged = merging.unmerged(tiny_vit)
        merging.merge(merged, TokensChoice(r=(r,)))
        table = macs.layer_macs(merged).set_index("layer")["macs"]
        halved = sum(table[f"blocks.{i}.mlp.fc1"] for i in range(2)) / 2
        found = contestants._macs(tiny_vit, tiny_vit, plan("masked", recipe=recipe), Execution.of("merged+semi_structured, fp16"))
        assert found == table.sum() - halved < macs.total_macs(tiny_vit)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_on_a_gpu_everything_is_told():
    report = run(plan("sliced, bf16", "masked, fp16", layers=True), device="cuda:0")
    rows = report.frame("latency")
    assert (rows["speedup"] > 0).all() and (rows["memory_bytes"] > 0).all() and (report.frame("latency_layers")["ms"] > 0).all()

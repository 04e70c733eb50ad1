"""Results files from other machines: written, checked, imported; which rows may be compared; the library without the app's packages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import reduce

import pytest
from conftest import ROOT

from starfish_lab.__main__ import main
from starfish_lab.errors import LabError
from starfish_lab.execution.choice import Execution
from starfish_lab.latency import importing, results_file
from starfish_lab.latency.comparable import badge, caution, comparable, covered
from starfish_lab.latency.plan import LatencyPlan
from starfish_lab.measure.fingerprint import digest
from starfish_lab.report import Report
from starfish_lab.store import Store

FACTS = {"device_name": "NVIDIA A40", "kind": "cuda", "power_limit_w": 300.0, "threads": 16, "mig": ""}
RATES = {"images_per_s_low": 1.0, "images_per_s_high": 1000.0}
PLAN = LatencyPlan(executions=("sliced, bf16",), batches=(8,))


def row(label: str = "sliced, bf16", *, rate: float | None = 100.0, batch: int = 8, **changes) -> dict[str, object]:
    execution = Execution.of(label)
    figures = dict.fromkeys(results_file.FIGURES, rate) if rate is None else dict.fromkeys(results_file.FIGURES, 1.5) | RATES | {"images_per_s": rate}
    return {
        "stage": "pruned", "execution": label, "backend": execution.backend, "precision": execution.precision, "compiled": execution.compile,
        "merged": False, "channels_last": False, "tokens": "", "batch": batch, "scenario": "single" if batch == 1 else "offline",
        **figures, "model": "starter", "throttle": "", "dtype": "bfloat16", "device": "cuda:0", "device_name": FACTS["device_name"],
        "fingerprint": digest(FACTS), "threads": 16, "note": "", **changes,
    }  # fmt: skip


def report(*rows: dict[str, object]) -> Report:
    found = Report()
    found.add("latency", list(rows) or [row("dense, bf16", stage="dense"), row(), row("masked, bf16", rate=None, note="no such kernel")])
    found.add("hardware", [{"name": name, "value": value} for name, value in {**FACTS, "fingerprint": digest(FACTS)}.items()])
    found.add("provenance", [{"name": "measured_at", "value": "2030-01-02T03:04:05+00:00"}])
    return found


def content(**changes) -> str:
    """The text of a good file, changed."""
    return json.dumps({results_file.KEY: 2, "plan": PLAN.to_dict(), "tables": report().tables, **changes})


def test_written_and_read_again(tmp_path):
    path = tmp_path / "new" / "a40.json"
    results_file.write(path, report(), PLAN)
    found, plan = results_file.read(path)
    assert plan == PLAN and found.tables == report().tables and [p.name for p in path.parent.iterdir()] == ["a40.json"]


def test_a_file_of_version_1_was_timed_in_one_process(tmp_path):
    path, plan = tmp_path / "old.json", PLAN.to_dict()
    del plan["starts"]
    path.write_text(content(starfish_lab_latency_results=1, plan=plan))
    found, plan = results_file.read(path)
    assert plan.starts == 1 and "starts" not in found.tables["latency"][0] and covered(found.tables["latency"][0]) == "rounds within one process"


NESTED = reduce(lambda inner, _: [inner], range(900), 3)  # lists in each other


def tables(**changes) -> dict[str, object]:
    return report().tables | changes


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "a40.json is not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "no results file"),
        (content(starfish_lab_latency_results=3), 'expected a JSON object with "starfish_lab_latency_results": 2'),
        (content(plan=None), "plan in a40.json is broken"),
        (content(plan={**PLAN.to_dict(), "executions": ["quick"]}), "no execution 'quick'"),
        (content(tables=[]), "lacks the tables latency and hardware"),
        (content(tables=tables(latency=[])), "lacks the tables latency and hardware"),
        (content(tables=tables(secrets=[])), "table 'secrets'"),
        (content(tables=tables(latency=[3])), "no list of rows"),
        (content(tables=tables(latency=[row(note={"a": 1})])), "expected a text or a finite number"),
        (content(tables=tables(latency=[row(latency_ms_p50=-1)])), "-1 as latency_ms_p50: expected a number above 0"),
        (content(tables=tables(latency=[row(execution=None)])), "None as execution: expected a text"),
        (content(tables=tables(latency=[row(images_per_s_low=None)])), "None as images_per_s_low"),
        (content(tables=tables(latency=[row(speedup_best="2")])), "'2' as speedup_best"),
        (content(tables=tables(latency=[{"stage": "dense"}])), "None as execution"),
        (content().replace("1.5", "NaN"), "NaN is no number"),
        (content().replace("1.5", "1e999"), "expected a text or a finite number"),
        (content().replace('"value": 300.0', '"value": 250.0'), "hash to .* one was changed"),
        (content(tables=tables(latency=[row(fingerprint="0123456789ab")])), "timed on 0123456789ab"),
        (content(tables=tables(latency=[row(device_name="NVIDIA A100")])), "timed on NVIDIA A100 beside the facts of NVIDIA A40"),
        (content(tables=tables(hardware=[{"name": 3}])), "3 as name: expected a text"),
        (content(tables=tables(hardware=2 * report().tables["hardware"])), "a fact about the machine twice"),
        (content(tables=tables(latency=[row(note=NESTED)])), "expected a text or a finite number"),
        (content(tables=tables(latency=[row(rate=10**400)])), "expected a text or a finite number"),
        (content(tables=tables(latency=[row(batch=8.5)])), "8.5 as batch: expected a whole number above 0"),
        (content(tables=tables(latency=[row(starts=0)])), "0 as starts: expected a whole number above 0"),
        (content(tables=tables(latency=[row() | {"execution": "warp speed"}])), "'warp speed' as execution: expected an execution of this lab"),
        (content(tables=tables(latency=[row(precision="float32")])), "'float32' as precision: expected bf16, as 'sliced, bf16' says"),
        (content(tables=tables(latency=[row(merged="yes")])), "'yes' as merged: expected False"),
        (content(tables=tables(latency=[row(scenario="single")])), "'single' as scenario: expected offline at batch 8"),
        (content(tables=tables(latency=[row(images_per_s_low=900)])), "100.0 as images_per_s: expected a number from 900 to"),
        (content(tables=tables(latency=[row(peak_share="fast")])), "'fast' as peak_share: expected a number or nothing"),
        (content(tables=tables(latency_layers=[dict.fromkeys(("execution", "layer", "kind"), "")])), "Row 1 of the table latency_layers"),
        (content(tables=tables(totals=[{"macs_g": 1}])), "None as stage: expected a text"),
        (content(tables=tables(seconds=[{"stage": "load", "seconds": "long"}])), "'long' as seconds: expected a number"),
        (content(tables=tables(accuracy=[{"top1": 1}])), "table 'accuracy', which no timing has"),
    ],
)
def test_a_broken_file_is_named_in_one_sentence_and_leaves_no_run(tmp_path, capsys, text, says):
    path = tmp_path / "a40.json"
    path.write_text(text)
    with pytest.raises(LabError, match=says):
        results_file.read(path)
    assert main(["latency", "--import", str(path)]) == 1
    error = capsys.readouterr().err
    assert "a40.json" in error and "Traceback" not in error and len(error.strip().splitlines()) == 1
    assert Store().runs(None).empty


def test_files_that_are_not_there_or_no_text(tmp_path):
    with pytest.raises(LabError, match="cannot be read"):
        results_file.read(tmp_path / "nowhere.json")
    (tmp_path / "picture.json").write_bytes(b"\x89PNG\xff")
    with pytest.raises(LabError, match="not text"):
        results_file.read(tmp_path / "picture.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(LabError, match="cannot be written"):
        results_file.write(tmp_path / "file" / "a40.json", report(), PLAN)


def test_nothing_is_written_that_could_not_be_read_again(tmp_path):
    with pytest.raises(LabError, match="hash to"):
        broken = report()
        broken.tables["hardware"][2]["value"] = 250.0
        results_file.write(tmp_path / "a40.json", broken, PLAN)
    assert not list(tmp_path.glob("a40*"))


def test_an_imported_file_is_a_finished_run_that_says_where_it_comes_from(tmp_path, capsys):
    path = tmp_path / "a40.json"
    results_file.write(path, report(), PLAN)
    assert main(["latency", "--import", str(path), "--json"]) == 0
    number = json.loads(capsys.readouterr().out)[0]["run"]
    store = Store()
    run = store.run(number)
    assert (run.kind, run.status, run.owner, run.plan) == ("latency", "done", importing.OWNER, PLAN)
    kept = store.report(number)
    assert kept.tables["latency"] == report().tables["latency"]
    assert kept.tables["notes"] == [
        {"note": "Imported from a40.json: measured on NVIDIA A40 at 2030-01-02T03:04:05+00:00, not on this machine."}
    ]  # fmt: skip
    again = path.rename(tmp_path / "copy.json")
    assert importing.import_file(store, again) == number and len(store.runs("latency")) == 1  # it counts once
    results_file.write(path, report(row(rate=200.0)), PLAN)
    assert importing.import_file(store, path) != number  # another timing of the same plan


def test_an_import_that_is_killed_leaves_nothing_for_a_worker(tmp_path):
    path, store = tmp_path / "a40.json", Store(stale_seconds=0.0)
    results_file.write(path, report(), PLAN)
    code = "import os, sys; from starfish_lab.__main__ import main; from starfish_lab.store import queue\n"
    code += "queue.keep_tables = lambda *_: os._exit(9)  # after the run's row, before its tables\nmain(['latency', '--import', sys.argv[1]])"
    assert subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT).returncode == 9
    assert store.runs(None).empty and store.claim("w", "cuda:0") is None
    number = importing.import_file(store, path)
    assert store.run(number).status == "done" and store.claim("w", "cuda:0") is None


@pytest.mark.parametrize(
    ("changes", "reasons"),
    [
        ({}, []),
        ({"execution": "masked, bf16", "backend": "masked"}, []),
        ({"batch": 64}, ["batch size: 8 and 64"]),
        ({"batch": 1, "scenario": "single"}, ["batch size: 8 and 1", "scenario: offline and single"]),
        ({"precision": "fp16", "dtype": "float16"}, ["precision: bf16 and fp16"]),
        ({"compiled": True}, ["compilation: no and yes"]),
        ({"channels_last": True}, ["channels last: no and yes"]),
        ({"tokens": "8"}, ["tokens merged a block: none and 8"]),
        ({"model": "resnet50"}, ["network: starter and resnet50"]),
        ({"fingerprint": "0123456789ab"}, [f"machine or versions (the fingerprint): {digest(FACTS)} and 0123456789ab"]),
        ({"device_name": "NVIDIA A100", "fingerprint": "0123456789ab"}, ["device: NVIDIA A40 and NVIDIA A100"]),
        ({"throttle": "heat (driver)"}, ["throttled while it was timed: heat (driver)"]),
        ({"images_per_s": float("nan")}, ["not timed: it was refused"]),
    ],
)
def test_rows_are_comparable_or_the_reason_is_named(changes, reasons):
    first, second = row(), row() | changes
    assert comparable(first, second) == reasons
    assert len(comparable(second, first)) == len(reasons)
    assert badge(first, second) == ("comparable" if not reasons else f"not comparable ({'; '.join(reasons)})")


def test_old_rows_and_published_ones():
    old = {"stage": "pruned", "batch": 8, "scenario": "offline", "images_per_s": 9.0, "execution": "merged", "dtype": "bfloat16",
           "device_name": "NVIDIA A40", "fingerprint": digest(FACTS), "note": ""}  # fmt: skip
    assert comparable(old, row()) == ["tokens merged a block: some and none"]
    assert comparable(old | {"execution": "masked"}, row()) == []
    assert comparable(old | {"execution": "masked", "dtype": "float32"}, row()) == ["precision: float32 and bf16"]
    assert "published figures" in badge(row(), {"gpu": "A40", "batch": 8, "images_per_s": 1.0, "source": "arXiv 2606.02608"})


def test_what_an_interval_covers_is_told_of_rows_of_every_age():
    old, new = row(), row(starts=8)
    assert (covered(old), covered(new), covered(row(starts=float("nan")))) == ("rounds within one process", "8 fresh starts", covered(old))
    assert covered(row(rate=None)) == covered({"images_per_s": 9.0, "source": "arXiv"}) == ""
    assert comparable(old, new) == [] == comparable(new, new) and caution(new, new) == ""
    assert caution(old, new).startswith("the interval of the first covers rounds within one process")
    assert caution(new, old).startswith("the interval of the second") and caution(old, old).startswith("the intervals of both cover")


ABSENT = "import sys\nsys.modules |= dict.fromkeys(['streamlit', 'plotly', 'sqlalchemy', 'sklearn', 'ray'])\n"  # None: not importable
TINY = ["--set", "pruning.pattern=structured", "--set", "pruning.sparsity=0.5", "--executions", "sliced", "--batches", "1", "--seconds", "0.02"]


def test_latency_runs_without_the_apps_packages_and_its_file_is_imported(tmp_path):
    """A GPU machine may have torch, timm, numpy, scipy and pandas only; in every process that a measurement starts."""
    (tmp_path / "sitecustomize.py").write_text(ABSENT)
    out = tmp_path / "here.json"
    command = [sys.executable, "-m", "starfish_lab", "latency", *TINY, "--starts", "2", "--out", str(out), "--no-layers", "--json"]
    answer = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    found, plan = results_file.read(out)
    assert [entry["execution"] for entry in json.loads(answer.stdout)] == ["dense", "sliced"] == found.frame("latency")["execution"].tolist()
    assert set(found.frame("latency")["starts"]) == {2} and sorted(found.frame("sensors")["start"]) == [1, 1, 2, 2]
    assert {"load", "prune", "peak", "build", "latency"} == set(found.frame("seconds")["stage"])
    assert plan.executions == ("sliced",) and plan.starts == 2 and not plan.layers
    number = importing.import_file(Store(), out)
    assert Store().run(number).status == "done"


def test_the_command_builds_plans_and_obeys_plan_files(tmp_path, capsys):
    shown = ["latency", "--executions", "sliced,merged+sliced", "--precisions", "bf16", "--compile", "--batches", "1,64", "--seconds", "3", "--show"]
    assert main(shown) == 0
    text = capsys.readouterr().out
    plan = LatencyPlan.from_json(text)
    assert plan.executions == ("sliced, bf16", "sliced, bf16, compiled", "merged+sliced, bf16", "merged+sliced, bf16, compiled")
    assert (plan.batches, plan.seconds, plan.layers) == ((1, 64), 3.0, True)
    (tmp_path / "plan.json").write_text(text)
    assert main(["latency", str(tmp_path / "plan.json"), "--set", "pruning.sparsity=0.5", "--no-layers", "--starts", "5", "--show"]) == 0
    again = LatencyPlan.from_json(capsys.readouterr().out)
    assert again.starts == 5 and again.executions == plan.executions and again.recipe.pruning.sparsity == 0.5 and not again.layers
    assert main(["latency", "--executions", "im2col(cutlass), fp16; dense, tf32", "--show"]) == 0
    assert LatencyPlan.from_json(capsys.readouterr().out).executions == ("im2col(cutlass), fp16", "dense, tf32")
    assert main(["latency", "--queue", "--json"]) == 0
    assert Store().run(json.loads(capsys.readouterr().out)[0]["run"]).plan == LatencyPlan.of(LatencyPlan().recipe)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--set", "device=cuda:97", "--out", "{}/a.json"], "There is no device 'cuda:97' on this machine"),
        (["--set", "device=gpu:A40", "--out", "{}/a.json"], "There is no device 'gpu:A40' on this machine"),
        (["--executions", "quick"], "There is no execution 'quick'"),
        (["--batches", "1,many"], "'many' is no batch size"),
        (["--out", "{}/nowhere/a.json"], "There is no folder"),
        (["nowhere.json"], "cannot be read"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, capsys, arguments, says):
    assert main(["latency", *(word.format(tmp_path) for word in arguments)]) == 1
    error = capsys.readouterr().err
    assert says in error and "Traceback" not in error

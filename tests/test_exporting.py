"""Runs in MLflow and Weights & Biases, read back with their own clients; each test is skipped where its client is not installed."""

from __future__ import annotations

import json
import math
import struct
import sys
from collections.abc import Iterator

import pandas as pd
import pytest
import synthetic

from starfish_lab import __main__ as command_line
from starfish_lab.errors import LabError, StoreError
from starfish_lab.exporting import contents, export_runs
from starfish_lab.store import Store


@pytest.fixture
def store(lab_home):
    return Store()


def told(store: Store, name: str) -> int:
    """A run that told its loss at steps 0, 10, 20 and 30."""
    number = store.submit(synthetic.recipe(name=name))
    store.add_events(number, [(100.0 + step, "loss", step, 0.3 * math.exp(-step / 50)) for step in (0, 10, 20, 30)])
    return number


@pytest.fixture
def run(store) -> int:
    """A finished run that told its loss at steps 0, 10, 20 and 30, and a figure that is none."""
    number = told(store, name="first")
    store.add_event(number, "top1", 5, math.nan)
    store.finish(number, synthetic.report())
    store.decide(number, "accepted", "as good as dense", "ada@x.org")
    store.remark(number, "three seeds agree", "ada@x.org")
    return number


def test_what_a_tracker_gets_is_what_the_store_has(store, run):
    found = contents.of(store, run)
    recipe = json.loads(store.run(run).recipe_json)
    assert found.parameters["pruning.sparsity"] == recipe["pruning"]["sparsity"] == 0.9 and found.parameters["healing.steps"] == 200
    assert not any(isinstance(value, dict | list) and value for value in found.parameters.values())
    losses = [(step, value) for name, step, value, _ in found.series if name == "loss"]
    assert losses == [(step, pytest.approx(0.3 * math.exp(-step / 50))) for step in (0, 10, 20, 30)]
    assert all(math.isfinite(value) for _, _, value, _ in found.series) and "top1" not in {name for name, *_ in found.series}
    assert found.figures["top1_healed"] == pytest.approx(synthetic.TOP1["healed"], abs=1e-3)
    assert found.figures["drift.healed.depth_0"] == pytest.approx(0.02 / synthetic.DEPTH)
    assert found.tags["starfish_lab.decision"] == "accepted" and "ada@x.org: three seeds agree" in found.note
    assert found.fingerprint == contents.of(store, run).fingerprint != contents.of(store, synthetic.done(store, name="first")).fingerprint


def test_a_missing_run_or_client_is_said_before_anything_is_sent(store, run, monkeypatch):
    with pytest.raises(StoreError, match="There is no run 99"):
        export_runs(store, [run, 99], to="mlflow")
    with pytest.raises(LabError, match="no export to 'excel'. Choose one of: mlflow, wandb"):
        export_runs(store, [run], to="excel")
    with pytest.raises(LabError, match="such as 3,4"):
        export_runs(store, [], to="mlflow")
    for client, package in (("mlflow", "mlflow-skinny"), ("wandb", "wandb")):
        monkeypatch.setitem(sys.modules, client, None)  # as if it were not installed
        monkeypatch.delitem(sys.modules, f"starfish_lab.exporting.to_{client}", raising=False)
        with pytest.raises(LabError, match=rf"needs its client, which is not here .*pip install {package}\b"):
            export_runs(store, [run], to=client)


@pytest.mark.timeout(300)
def test_mlflow_holds_a_run_once_however_often_it_is_exported(store, run, tmp_path, monkeypatch, capsys):
    mlflow = pytest.importorskip("mlflow", reason="MLflow's client is not installed (pip install mlflow-skinny)")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # since MLflow 3 a plain folder has to be asked for
    uri = (tmp_path / "mlruns").as_uri()
    other = told(store, name="second")
    flags = ["export-runs", "--to", "mlflow", "--runs", f"{run},{other}", "--uri", uri, "--json"]
    assert command_line.main(flags) == 0
    first = json.loads(capsys.readouterr().out)
    assert [row["state"] for row in first] == ["new", "new"]
    store.add_event(other, "loss", 40, 0.125)
    store.finish(other, synthetic.report())
    assert command_line.main(flags) == 0
    again = json.loads(capsys.readouterr().out)
    assert [(row["state"], row["id"]) for row in again] == [("updated", row["id"]) for row in first]

    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("starfish-lab")
    kept = client.search_runs([experiment.experiment_id])
    assert len(kept) == 2
    there = {row.info.run_name: row for row in kept}["second"]
    assert there.info.status == "FINISHED" and there.data.params["pruning.sparsity"] == "0.9"
    history = client.get_metric_history(there.info.run_id, "loss")
    assert [(row.step, row.value) for row in sorted(history, key=lambda row: row.step)] == [
        (step, pytest.approx(0.3 * math.exp(-step / 50)) if step < 40 else 0.125) for step in (0, 10, 20, 30, 40)
    ]
    assert len(client.get_metric_history(there.info.run_id, "top1_healed")) == 1
    assert there.data.tags["starfish_lab.recipe"] == store.run(other).recipe.fingerprint()
    folder = tmp_path / "got"
    folder.mkdir()
    table = pd.read_csv(client.download_artifacts(there.info.run_id, "accuracy.csv", str(folder)))
    assert list(table["top1"]) == pytest.approx(list(store.report(other).frame("accuracy")["top1"]))


def records(log: bytes) -> Iterator[bytes]:
    """The entries of a file of W&B's: LevelDB's log format (blocks of 32 KiB; 4 bytes of sum, 2 of length, 1 of kind) behind a head of 7 bytes."""
    at, parts = 7, b""
    while at + 7 <= len(log):
        if 32768 - at % 32768 < 7:  # no entry begins so near a block's end
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack_from("<HB", log, at + 4)
        parts += log[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last of several parts
            yield parts
            parts = b""


@pytest.mark.timeout(300)
def test_wandb_keeps_a_run_under_one_id_offline(store, run, monkeypatch, lab_home):
    pytest.importorskip("wandb", reason="the client of Weights & Biases is not installed (pip install wandb)")
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    sent = [export_runs(store, [run], to="wandb").iloc[0] for _ in range(2)]
    assert {row["id"] for row in sent} == {contents.of(store, run).fingerprint} and {row["state"] for row in sent} == {"sent"}
    logs = sorted((lab_home / "wandb").glob(f"offline-run-*/run-{sent[0]['id']}.wandb"))
    assert logs
    losses, config = {}, {}
    for record in map(Record.FromString, records(logs[0].read_bytes())):
        row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        losses |= {row["_step"]: row["loss"]} if "loss" in row else {}
        config |= {item.key or "/".join(item.nested_key): item.value_json for item in record.run.config.update}
    assert losses == {step: pytest.approx(0.3 * math.exp(-step / 50)) for step in (0, 10, 20, 30)}
    assert "0.9" in config["pruning.sparsity"]

"""The sidebar and the top of every page: where runs go, who is there to take them, and what is said while nobody answers."""

from __future__ import annotations

import time

import pandas as pd
import pytest
import synthetic
from synthetic import button, labels, open_page, said, unharmed

from app import devices, sidebar, state
from starfish_lab.errors import LabError
from starfish_lab.jobs.protocol import LocalBackend
from starfish_lab.store import Store

A100 = "NVIDIA A100-SXM4-80GB (cuda:0)"


@pytest.fixture
def store(lab_home):
    return Store()


def _workers(*rows: tuple[str, str]) -> pd.DataFrame:
    return pd.DataFrame([dict(worker=f"w{i}", device=device, title=title, run=pd.NA) for i, (device, title) in enumerate(rows)])


def test_gpus_of_workers_and_of_the_literature_are_offered_by_name():
    alive = _workers(("cuda:0", A100), ("cuda", "L4 (node lab-3, 2 GPUs)"), ("cpu", "Xeon 6 (cpu, 8 threads)"))
    assert devices.offered(alive, "gpu:H200") == ["auto", "cuda:0", "cuda", "cpu", "gpu:A100", "gpu:L4", "gpu:A40", "gpu:H200"]
    assert devices.waits("gpu:A100", alive) == devices.waits("auto", alive) == devices.waits("cuda", alive) == ""
    assert devices.waits("gpu:A40", alive) == "waits until a node with an A40 joins"
    assert devices.waits("gpu:T4", alive) == "waits until a node with a T4 joins"
    assert "worker --device mps" in devices.waits("mps", alive)


def test_a_gpu_by_name_stands_in_the_link_and_says_what_its_runs_wait_for(store):
    store.announce("w1", "cpu", "Xeon 6 (cpu, 8 threads)")
    app = open_page("prune_and_heal")
    app.selectbox(key="choice.device").set_value("gpu:A40").run()
    assert app.query_params["device"] in ("gpu:A40", ["gpu:A40"]) and "A run waits until a node with an A40 joins." in said(app)
    button(app, "Prune & heal").click().run()
    assert store.run(1).wants == "gpu:A40" and unharmed(app)
    assert "The workers have cpu: run 1 (on Any A40) waits until a node with an A40 joins." in said(app)
    store.announce("w2", "cuda:1", "NVIDIA A40 (cuda:1)")
    app.run()
    assert "waits until" not in said(app) and "cuda:1 (A40): idle" in said(app)


@pytest.mark.parametrize(("typed", "chosen"), [("H100", "gpu:H100"), ("cuda:1", "cuda:1"), ("a room with a view", "auto")])
def test_a_device_may_be_typed_and_what_is_none_changes_nothing(store, typed, chosen):
    app = open_page("explore")
    box = app.selectbox(key="choice.device")
    box.options.append(typed)  # what is typed in a browser is no option of the list
    box.set_value(typed).run()
    assert unharmed(app) and app.selectbox(key="choice.device").value == chosen
    assert ("is no device" in said(app)) == (chosen == "auto")


class Cluster(LocalBackend):
    def capacity(self) -> pd.DataFrame:
        gpu = ("cuda", "A40 (node lab-1, 2 GPUs)")
        return _workers(gpu, gpu, ("cpu", "(cpu node lab-3)")).assign(run=[7, pd.NA, pd.NA])


def test_nodes_of_a_cluster_stand_in_the_sidebar_as_it_gives_them(store, monkeypatch):
    monkeypatch.setattr(state, "backend", lambda: Cluster(state.store()))
    app = open_page("explore", device="gpu:A40")
    shown = said(app)
    assert unharmed(app) and "cuda (A40): busy with run 7" in shown and "cuda (A40): idle" in shown and "cpu: idle" in shown
    assert "waits until" not in shown and "Any A40" in app.selectbox(key="choice.device").options


class Unreachable(LocalBackend):
    def capacity(self) -> pd.DataFrame:
        raise LabError("Ray at ray://head:10001 cannot be reached, so runs wait: Connection refused. Start it.")


@pytest.mark.parametrize("page", ["explore", "prune_and_heal", "runs", "latency", "tokens"])
def test_ray_out_of_reach_is_one_sentence_and_the_page_stays_up(store, monkeypatch, page):
    monkeypatch.setattr(state, "backend", lambda: Unreachable(state.store()))
    app = open_page(page, new=1)
    assert unharmed(app) and said(app).count("Ray at ray://head:10001 cannot be reached") == 1
    assert "Workers out of reach" in said(app) and "No worker" not in said(app)
    monkeypatch.undo()
    app.run()
    assert "cannot be reached" not in said(app)


@pytest.mark.parametrize(
    ("seconds", "says", "not_yet"),
    [(1, "Worker starting", "python -m"), (61, "Runs wait until one is started: `python -m starfish_lab worker`", "Worker starting")],
)
def test_a_worker_has_a_minute_to_start_before_it_is_missed(store, monkeypatch, seconds, says, not_yet):
    monkeypatch.setattr(sidebar, "_FIRST_OPENED", time.monotonic() - seconds)
    shown = said(open_page("spectra"))
    assert says in shown and not_yet not in shown


def test_a_run_can_be_launched_while_ray_is_out_of_reach_and_waits(store, monkeypatch):
    monkeypatch.setattr(state, "backend", lambda: Unreachable(state.store()))
    app = open_page("prune_and_heal")
    button(app, "Prune & heal").click().run()
    assert unharmed(app) and store.run(1).status == "queued" and "Cancel" in labels(app)


def test_a_database_that_is_away_is_one_sentence_and_back_again(store, monkeypatch):
    synthetic.done(store, name="kept")
    monkeypatch.setenv("STARFISH_LAB_DATABASE_URL", "postgresql+psycopg://nobody@127.0.0.1:9/lab?connect_timeout=2")
    app = open_page("runs")
    assert unharmed(app) and len(app.error) == 1 and "cannot be reached" in app.error[0].value and "comes back by itself" in app.error[0].value
    assert not app.dataframe and "Model" in [box.label for box in app.selectbox]  # the frame stands
    monkeypatch.delenv("STARFISH_LAB_DATABASE_URL")
    app.run()
    assert not app.error and list(app.dataframe[0].value["Name"]) == ["kept"]

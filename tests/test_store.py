"""The store: rows in, rows out, one owner a run, and words instead of database errors."""

from __future__ import annotations

import dataclasses
import json
import math
import multiprocessing
import sqlite3
import subprocess
import sys
import threading
import time

import pandas as pd
import pytest
from conftest import at_once

from starfish_lab import settings
from starfish_lab.errors import StoreError
from starfish_lab.jobs.protocol import LocalBackend
from starfish_lab.latency.plan import LatencyPlan
from starfish_lab.recipe import ModelChoice, PruningChoice, Recipe
from starfish_lab.report import Report
from starfish_lab.store import SUMMARY_COLUMNS, Store, folder_of


@pytest.fixture
def store(database_url):
    """A store in a file, and once more in PostgreSQL."""
    store = Store(database_url)
    yield store
    store.close()


@pytest.fixture
def file_store():
    return Store()


def report(top1: float = 0.9) -> Report:
    found = Report()
    for stage, share in (("dense", 1.0), ("pruned", 0.5), ("healed", 0.75)):
        found.add("accuracy", [{"top1": top1 * share, "low": 0.1, "high": 0.9, "images": 540}], stage=stage)
        found.add("totals", [dict.fromkeys(("parameters_m", "nonzero_parameters_m", "macs_g", "macs_g_effective"), 2.0)], stage=stage)
        found.tables["totals"][-1] |= {"sparsity_prunable": 0.9, "sparsity_all": 0.8}
    found.add("spectra", [{"layer": "a", "counts": [1, 2, 3], "sigma": math.nan}])
    found.add("seconds", [{"stage": "heal", "seconds": 2.5}])
    return found


def make_stale(store: Store) -> None:
    """As if the workers had been silent for a minute."""
    with store.transaction() as connection:
        connection.exec_driver_sql("UPDATE runs SET heartbeat_at = heartbeat_at - 60")


def test_the_store_needs_no_torch():
    code = "import sys, starfish_lab.store, starfish_lab.jobs.protocol, starfish_lab.jobs.launcher; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=settings.ROOT).returncode == 0


def test_a_submitted_run_comes_back_as_it_was(store):
    recipe = Recipe(name="first", pruning=PruningChoice(pattern="n_m", keep=1, group=4))
    run = store.run(store.submit(recipe, parent=7, owner="ada"))
    assert run.recipe == recipe
    assert (run.status, run.kind, run.name, run.parent, run.owner, run.attempt, run.active) == ("queued", "experiment", "first", 7, "ada", 0, True)
    row = store.runs().iloc[0]
    assert (row["pattern"], row["sparsity"], row["method"], row["recipe_hash"]) == ("n_m", 0.75, "starfish", recipe.fingerprint())
    with pytest.raises(StoreError, match="no kind"):
        store.submit(recipe, "other")


def test_columns_are_there_before_any_run(store):
    empty = store.runs()
    store.submit(Recipe())
    assert len(empty) == 0 and list(empty.columns) == list(store.runs().columns)
    assert set(SUMMARY_COLUMNS) < set(empty.columns)
    assert list(store.events(1).columns) == ["id", "t", "name", "step", "value"]
    assert len(store.workers()) == 0 and store.table([1], "accuracy").empty


def test_runs_are_listed_newest_first_with_their_figures(store):
    first, second, latency = store.submit(Recipe()), store.submit(Recipe()), store.submit(LatencyPlan(), "latency")
    store.finish(first, report(), artefact="somewhere")
    listed = store.runs().set_index("id")
    assert list(listed.index) == [second, first]
    assert listed.loc[first, "top1_healed"] == pytest.approx(0.675)
    assert listed.loc[first, "recovered"] == pytest.approx(0.75)
    assert listed.loc[first, "seconds"] == 2.5 and listed.loc[first, "artefact"] == "somewhere"
    assert math.isnan(listed.loc[second, "top1_healed"]) and listed.loc[second, "artefact"] is None
    assert list(store.runs(status="done")["id"]) == [first]
    assert list(store.runs("latency")["id"]) == [latency]
    assert list(store.runs(None, limit=2)["id"]) == [latency, second]


def test_reports_come_back_table_by_table(store):
    ids = [store.submit(Recipe()) for _ in range(3)]
    for run_id, top1 in zip(ids, (0.5, 0.7, 0.9), strict=True):
        store.finish(run_id, report(top1))
    assert json.dumps(store.report(ids[1]).tables, sort_keys=True) == json.dumps(report(0.7).tables, sort_keys=True)
    chosen = store.table([ids[2], ids[0]], "accuracy")
    assert list(chosen["run"]) == [ids[2]] * 3 + [ids[0]] * 3
    assert list(chosen["top1"][:3]) == list(report(0.9).frame("accuracy")["top1"])
    assert store.table(ids, "spectra")["counts"][0] == [1, 2, 3]


def test_numpy_figures_are_stored_as_numbers(store):
    np = pytest.importorskip("numpy")
    found = Report({"seconds": [{"stage": "heal", "seconds": np.float64(1.5)}], "layers": [{"removed": np.int64(3), "shape": np.array([2, 3])}]})
    run_id = store.submit(Recipe())
    store.finish(run_id, found)
    assert store.report(run_id).tables == {"seconds": [{"stage": "heal", "seconds": 1.5}], "layers": [{"removed": 3, "shape": [2, 3]}]}


def test_events_in_order_and_the_later_of_two_equal_steps_counts(store):
    run_id, other = store.submit(Recipe()), store.submit(Recipe())
    store.add_events(run_id, [(1.0, "loss", 0, 0.5), (1.1, "loss", 1, 0.4), (1.2, "block.0", 1, math.nan), (9.0, "loss", 1, 0.45)])
    store.add_event(other, "loss", 0, 7.0)
    events = store.events(run_id)
    assert list(events[["name", "step"]].itertuples(index=False, name=None)) == [("loss", 0), ("block.0", 1), ("loss", 1)]
    assert list(store.events(run_id, "loss")["value"]) == [0.5, 0.45]
    assert math.isnan(store.events(run_id, "block.0")["value"][0])
    assert list(store.events(run_id, after=int(events["id"][1]))["value"]) == [0.45]
    store.note(run_id, "one image skipped")
    assert store.notes(run_id) == ["one image skipped"] and store.notes(other) == []


def test_rename_and_delete(store):
    run_id = store.submit(Recipe())
    store.rename(run_id, "best")
    assert store.run(run_id).name == "best"
    folder_of(run_id).mkdir(parents=True)
    store.claim("w", "cpu")
    with pytest.raises(StoreError, match="Cancel it first"):
        store.delete(run_id)
    store.add_event(run_id, "loss", 0, 1.0)
    store.finish(run_id, report())
    store.delete(run_id)
    assert not folder_of(run_id).exists() and store.events(run_id).empty and store.table([run_id], "accuracy").empty
    assert store.submit(Recipe()) > run_id  # a number is never given twice
    for call in (store.run, store.delete, store.request_cancel, lambda i: store.rename(i, ""), lambda i: store.fail(i, "")):
        with pytest.raises(StoreError, match=f"no run {run_id}"):
            call(run_id)


def test_devices_are_matched(store):
    wanted = {device: store.submit(Recipe(device=device)) for device in ("cuda:1", "cuda", "cpu", "auto")}
    assert store.claim("a", "mps").id == wanted["auto"]
    assert store.claim("b", "cuda:0").id == wanted["cuda"]
    assert store.claim("b", "cuda:0") is None
    assert store.claim("c", "cpu").id == wanted["cpu"]
    assert store.claim("d", "cuda:1").id == wanted["cuda:1"]
    assert set(store.runs()["device"]) == {"mps", "cuda:0", "cpu", "cuda:1"}


def test_profiles_come_first_and_once(store):
    store.submit(Recipe())
    profile = store.submit(Recipe(), "profile")
    assert store.submit(Recipe(), "profile") == profile
    assert store.submit(Recipe(model=ModelChoice(name="resnet50", weights="random")), "profile") != profile
    assert store.claim("w", "cpu").id == profile


@dataclasses.dataclass
class FakeProfile:
    text: str

    def to_json(self) -> str:
        return self.text

    @classmethod
    def from_json(cls, text: str) -> FakeProfile:
        return cls(text)


def test_profiles_are_kept_by_key(store, monkeypatch):
    monkeypatch.setattr("starfish_lab.whatif.Profile", FakeProfile)
    assert store.profile("a") is None
    store.save_profile("a", FakeProfile("1"))
    store.save_profile("a", FakeProfile("2"))
    assert store.profile("a") == FakeProfile("2")


def claim_all(url: str, worker: str, begin, out) -> None:
    store = Store(url)
    begin.wait()
    claimed = []
    while (run := store.claim(worker, "cpu")) is not None:
        claimed.append(run.id)
        store.set_progress(run.id, stage="prune", worker=worker)
    out.put(claimed)


def test_four_processes_claim_200_runs_each_once(store):
    ids = {store.submit(Recipe()) for _ in range(200)}
    context = multiprocessing.get_context("spawn")
    begin, out = context.Barrier(4), context.Queue()
    processes = [context.Process(target=claim_all, args=(store.url, f"w{i}", begin, out)) for i in range(4)]
    for process in processes:
        process.start()
    shares = [out.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    claimed = [run_id for share in shares for run_id in share]
    assert len(claimed) == 200 and set(claimed) == ids
    assert sum(bool(share) for share in shares) > 1  # it was a race
    assert set(store.runs()["attempt"]) == {1} and set(store.runs()["status"]) == {"running"}


def test_two_browsers_launch_at_once(store):
    begin, ids = threading.Barrier(2), []

    def press() -> None:
        begin.wait()
        ids.append(store.submit(Recipe()))

    threads = [threading.Thread(target=press) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(ids)) == 2 and set(store.runs()["status"]) == {"queued"}


def test_a_worker_that_lost_its_run_changes_nothing(store):
    run_id = store.submit(Recipe())
    store.claim("slow", "cpu")
    make_stale(store)
    again = store.claim("quick", "cpu")
    assert (again.id, again.attempt, again.worker) == (run_id, 2, "quick")
    assert not store.heartbeat("slow", run_id)
    assert not store.set_progress(run_id, stage="heal", worker="slow")
    assert not store.add_event(run_id, "loss", 0, 1.0, worker="slow")
    assert not store.note(run_id, "mine", worker="slow")
    assert not store.finish(run_id, report(), worker="slow")
    assert not store.fail(run_id, "no", worker="slow")
    assert not store.mark_cancelled(run_id, worker="slow")
    assert not store.release(run_id, worker="slow")
    assert store.cancel_requested(run_id, worker="slow") and not store.cancel_requested(run_id, worker="quick")
    run = store.run(run_id)
    assert (run.status, run.worker, run.stage, run.error) == ("running", "quick", None, None)
    assert store.events(run_id).empty and store.notes(run_id) == [] and store.report(run_id).tables == {}
    assert store.finish(run_id, report(), worker="quick") and store.run(run_id).status == "done"


def test_a_fresh_heartbeat_keeps_a_run(store):
    run_id = store.submit(Recipe())
    store.claim("w", "cpu")
    make_stale(store)
    assert store.heartbeat("w", run_id)
    assert store.claim("other", "cpu") is None


def test_three_deaths_fail_a_run(store):
    run_id = store.submit(Recipe())
    for attempt in (1, 2, 3):
        assert store.claim(f"w{attempt}", "cpu").attempt == attempt
        make_stale(store)
    assert store.claim("w4", "cpu") is None
    run = store.run(run_id)
    assert run.status == "failed" and "died 3 times" in run.error and run.finished_at


def test_a_released_run_goes_on_later(store):
    run_id = store.submit(Recipe())
    for _ in range(5):  # more often than a run may be claimed after deaths
        assert store.claim("w", "cpu").attempt == 1
        assert store.release(run_id, worker="w")
    store.claim("w", "cpu")
    store.request_cancel(run_id)
    assert store.release(run_id, worker="w") and store.run(run_id).status == "cancelled"


def test_cancel(store):
    waiting, running, abandoned = (store.submit(Recipe()) for _ in range(3))
    store.request_cancel(waiting)
    assert store.run(waiting).status == "cancelled" and store.run(waiting).finished_at
    store.claim("dead", "cpu")
    make_stale(store)
    store.request_cancel(running)  # nobody lives to obey
    assert store.run(running).status == "cancelled"
    assert store.claim("w", "cpu").id == abandoned
    store.request_cancel(abandoned)
    assert store.run(abandoned).status == "running" and store.cancel_requested(abandoned)
    assert store.mark_cancelled(abandoned, worker="w") and store.run(abandoned).status == "cancelled"
    assert store.claim("w", "cpu") is None
    store.request_cancel(abandoned)  # a second press does no harm
    assert store.run(abandoned).status == "cancelled"


def test_a_cancelled_run_whose_worker_died_is_not_started_again(store):
    run_id = store.submit(Recipe())
    store.claim("w", "cpu")
    store.request_cancel(run_id)
    make_stale(store)
    assert store.claim("other", "cpu") is None
    assert store.run(run_id).status == "cancelled"


def test_workers_and_capacity(store):
    run_id = store.submit(Recipe())
    store.announce("a", "cuda:0", "NVIDIA A40")
    store.announce("b", "cpu", "CPU")
    store.heartbeat("a", run_id)
    with store.transaction() as connection:
        connection.exec_driver_sql("UPDATE workers SET heartbeat_at = heartbeat_at - 60 WHERE worker = 'b'")
    workers = store.workers().set_index("worker")
    assert workers.loc["a", ["device", "title", "run", "alive"]].tolist() == ["cuda:0", "NVIDIA A40", run_id, True]
    assert not workers.loc["b", "alive"] and pd.isna(workers.loc["b", "run"])
    backend = LocalBackend(store)
    assert list(backend.capacity()["worker"]) == ["a"]
    store.retire("a")
    assert backend.capacity().empty
    second = backend.submit(Recipe(), owner="ada")
    backend.cancel(second)
    assert store.run(second).status == "cancelled"


def test_a_locked_database_is_said_in_words_and_nothing_is_lost(file_store):
    impatient = Store(timeout=0.1)
    run_id = impatient.submit(Recipe())
    other = sqlite3.connect(settings.home() / "lab.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    started = time.monotonic()
    writes = (
        lambda: impatient.submit(Recipe()),
        lambda: impatient.claim("w", "cpu"),
        lambda: impatient.add_event(run_id, "loss", 0, 1.0),
        lambda: impatient.finish(run_id, report()),
        lambda: impatient.delete(run_id),
    )
    for write in writes:
        with pytest.raises(StoreError, match="locked by another program; nothing was written"):
            write()
    assert time.monotonic() - started < 5
    assert list(impatient.runs()["id"]) == [run_id]  # reading goes on
    other.execute("ROLLBACK")
    assert impatient.claim("w", "cpu").id == run_id


def test_a_full_disk_is_said_in_words_and_nothing_is_lost(file_store):
    run_id = file_store.submit(Recipe())
    with file_store.transaction() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")  # this connection may not let the file grow
        large = Report({"notes": [{"note": "x" * 1_000_000}]})
    with pytest.raises(StoreError, match="is full; nothing was written"):
        file_store.finish(run_id, large)
    assert file_store.run(run_id).status == "queued" and file_store.report(run_id).tables == {}


def test_other_files_and_addresses_are_refused_in_words(tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("no database at all, but quite long enough to look like one " * 50)
    with pytest.raises(StoreError, match="no store of this lab"):
        Store(f"sqlite:///{text}")
    with pytest.raises(StoreError, match="cannot be reached"):
        Store(f"sqlite:///{tmp_path / 'missing' / 'lab.db'}")
    for url in ("nonsense", "oracle9://x"):
        with pytest.raises(StoreError, match="no usable database address"):
            Store(url)


def test_another_version_is_refused(store):
    with store.transaction() as connection:
        connection.exec_driver_sql("UPDATE meta SET value = '99'")
    with pytest.raises(StoreError, match="version 99, this lab reads version 2"):
        Store()


def test_many_openings_at_once(tmp_path):
    url = f"sqlite:///{tmp_path / 'new.db'}"
    at_once(8, lambda: Store(url).submit(Recipe()))
    assert len(Store(url).runs()) == 8


def test_a_thousand_runs_are_listed_quickly(file_store):
    first = file_store.submit(Recipe())
    file_store.finish(first, report())
    with file_store.transaction() as connection:  # 999 copies of the finished run
        names = [c[1] for c in connection.exec_driver_sql("PRAGMA table_info(runs)") if c[1] != "id"]
        copied = ", ".join(names)
        series = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 999)"
        connection.exec_driver_sql(f"INSERT INTO runs ({copied}) {series} SELECT {copied} FROM runs, n WHERE id = {first}")
    times = []
    for _ in range(5):
        started = time.process_time()
        listed = file_store.runs(limit=1000)
        times.append(time.process_time() - started)
    assert len(listed) == 1000 and listed["recovered"].notna().all()
    assert sorted(times)[2] <= 0.1

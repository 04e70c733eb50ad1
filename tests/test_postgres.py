"""A team's store: workers of several processes on a real PostgreSQL, which goes away and comes back. What a store does is in test_store."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import conftest
import pytest

from starfish_lab import settings
from starfish_lab.errors import StoreError
from starfish_lab.recipe import Recipe
from starfish_lab.store import Store
from starfish_lab.sweep.plan import Sweep

STEPS, STALE_SECONDS = 20, 1.5
until = partial(conftest.until, seconds=120.0)
PLAN = Sweep(recipe=Recipe(device="cpu"), sparsities=(0.5, 0.75), healers=("starfish", "none"), seeds=(0, 1, 2))
WORKER = f"""
    import os, sys, time
    from starfish_lab.jobs import kinds, worker
    from starfish_lab.report import Report
    from starfish_lab.store import Store

    def steps(run, *, store, reporter, folder, device):
        ledger = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(ledger, f"{{run.id}}\\n".encode())
        reporter.stage("heal")
        for step in range({STEPS}):
            reporter.check()
            reporter.metric("x", step, step)
            time.sleep(0.05)
        return Report({{"provenance": [{{"name": "worker", "value": os.getpid()}}]}})

    kinds.KINDS["experiment"] = steps
    worker._prepare = lambda: None
    worker._title = worker._choose = lambda device: device
    worker.RETRY_SECONDS = 0.3
    worker.Store = lambda: Store(stale_seconds={STALE_SECONDS})
    worker.main(["--device", "cpu"])
"""


@pytest.fixture
def store(postgres, monkeypatch):
    url = postgres.database()
    monkeypatch.setenv("STARFISH_LAB_DATABASE_URL", url)
    store = Store(url, stale_seconds=STALE_SECONDS)
    yield store
    store.close()


@pytest.fixture
def workers(tmp_path):
    """Starts worker processes, which note each run that they begin in a file; ends them with the test."""
    script, ledger, processes = tmp_path / "worker.py", tmp_path / "begun.txt", []
    script.write_text(textwrap.dedent(WORKER))

    def begin(count: int) -> Path:
        environment = {**os.environ, "PYTHONPATH": str(settings.ROOT)}
        processes.extend(subprocess.Popen([sys.executable, str(script), str(ledger)], env=environment) for _ in range(count))
        return ledger

    yield begin
    for process in processes:
        process.kill()
        process.wait()


def assert_each_done_once(store: Store, sweep: int, ledger: Path) -> None:
    rows = store.sweep_runs(sweep)
    listed = store.runs().set_index("id").loc[rows["run"]]
    assert set(rows["status"]) == {"done"} and set(listed["attempt"]) == {1} and store.run(sweep).status == "done"
    assert Counter(map(int, ledger.read_text().split())) == Counter(rows["run"])
    for run in rows["run"]:
        assert list(store.events(run)["value"]) == list(range(STEPS))


def test_several_workers_do_every_run_once(store, workers):
    sweep = store.submit(PLAN, "sweep")
    ledger = workers(3)
    until(lambda: not store.run(sweep).active)
    assert_each_done_once(store, sweep, ledger)
    did = store.table(store.sweep_runs(sweep)["run"], "provenance")["value"]
    assert len(set(did)) > 1  # they shared the work


def test_the_database_goes_in_mid_run_and_comes_back(store, workers, postgres):
    sweep = store.submit(PLAN, "sweep")
    ledger = workers(3)
    until(lambda: (store.runs()["status"] == "running").sum() >= 2)
    postgres.stop()
    try:
        for call in (store.runs, store.workers, lambda: store.run(sweep), lambda: store.submit(Recipe()), lambda: store.claim("w", "cpu")):
            with pytest.raises(StoreError, match=r"^The store at postgresql.* cannot be reached: .*\. Check that it exists and answers.*\.$") as said:
                call()
            assert "\n" not in str(said.value)
        with pytest.raises(StoreError, match="cannot be reached"):
            Store(store.url)
        time.sleep(2 * STALE_SECONDS)  # so long that every worker would count as dead, had the database been there to tell
    finally:
        postgres.start()
    until(lambda: not store.run(sweep).active)
    assert_each_done_once(store, sweep, ledger)


def test_a_worker_that_dies_while_the_database_is_away_loses_no_run(store, workers, postgres):
    run = store.submit(PLAN.recipe)
    claimed = store.claim("of a machine that burnt down", "cpu")
    assert claimed.id == run
    postgres.stop()
    postgres.start()
    ledger = workers(1)
    until(lambda: store.run(run).status == "done")
    assert store.run(run).attempt == 2 and ledger.read_text().split() == [str(run)]


def test_many_openings_of_a_new_database_at_once(postgres):
    url = postgres.database()

    def open_and_submit() -> None:
        store = Store(url)
        store.submit(replace(PLAN, seeds=(0,)), "sweep")
        store.close()

    conftest.at_once(8, open_and_submit)
    store = Store(url)
    assert len(store.runs("sweep")) == 8 and len(store.runs()) == 4
    store.close()


def test_what_cannot_be_opened_is_said_in_words(postgres):
    with pytest.raises(StoreError, match='database "nowhere" does not exist'):
        Store(postgres.url("nowhere"))
    with pytest.raises(StoreError, match="cannot be reached"):
        Store("postgresql+psycopg://lab@127.0.0.1:1/lab")
    with pytest.raises(StoreError, match="no usable database address"):
        Store(postgres.url("lab", driver="+nothing"))


def test_what_the_database_refuses_is_no_matter_of_reach(store):
    run = store.submit(Recipe(name="mine"))
    with pytest.raises(StoreError, match="refused: .*NUL.*Nothing was written") as said:
        store.rename(run, "a name with a \0 in it")
    assert "reach" not in str(said.value) and store.run(run).name == "mine"


def test_workers_of_machines_whose_clocks_differ_judge_alike(store, monkeypatch):
    """An hour ahead on one machine must not make the other machines' workers look dead."""
    run = store.submit(Recipe())
    store.announce("here", "cpu", "a CPU")
    assert store.claim("here", "cpu").id == run
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() + 3600)
    store.announce("ahead", "cpu", "a CPU")
    assert store.claim("ahead", "cpu") is None and store.workers()["alive"].all()
    monkeypatch.setattr(time, "time", lambda: clock() - 3600)
    assert store.heartbeat("here", run)
    monkeypatch.undo()
    assert store.claim("third", "cpu") is None

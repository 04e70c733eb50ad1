"""A store of an earlier version, opened by this lab: it gets the tables that it lacks, and nothing that it holds changes."""

from __future__ import annotations

import multiprocessing

import pytest
import sqlalchemy as sa
from conftest import at_once

from starfish_lab.errors import StoreError
from starfish_lab.recipe import Recipe
from starfish_lab.store import Store
from starfish_lab.store.schema import REMARKS, VERSION

VERSION_1 = """
CREATE TABLE meta (name VARCHAR(40) NOT NULL, value TEXT NOT NULL, PRIMARY KEY (name));
INSERT INTO meta VALUES ('schema', '1');
CREATE TABLE runs (id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, kind VARCHAR(20) NOT NULL, name TEXT NOT NULL, status VARCHAR(12) NOT NULL,
  owner TEXT NOT NULL, parent INTEGER, recipe TEXT NOT NULL, recipe_hash VARCHAR(12) NOT NULL, model TEXT NOT NULL, weights VARCHAR(20) NOT NULL,
  pattern VARCHAR(40) NOT NULL, sparsity DOUBLE NOT NULL, score VARCHAR(40) NOT NULL, budget VARCHAR(40) NOT NULL, method VARCHAR(40) NOT NULL,
  wants VARCHAR(20) NOT NULL, device VARCHAR(20), worker VARCHAR(120), attempt INTEGER NOT NULL, cancel BOOLEAN NOT NULL,
  created_at DOUBLE NOT NULL, started_at DOUBLE, finished_at DOUBLE, heartbeat_at DOUBLE, stage VARCHAR(40), step INTEGER, steps INTEGER,
  seconds_left DOUBLE, error TEXT, artefact TEXT, summary TEXT);
CREATE INDEX runs_by_status ON runs (status, id);
CREATE INDEX runs_by_kind ON runs (kind, id);
CREATE TABLE workers (worker VARCHAR(120) NOT NULL, device VARCHAR(20) NOT NULL, title TEXT NOT NULL, pid INTEGER NOT NULL, run_id INTEGER,
  started_at DOUBLE NOT NULL, heartbeat_at DOUBLE NOT NULL, PRIMARY KEY (worker));
CREATE TABLE profiles (key VARCHAR(200) NOT NULL, profile TEXT NOT NULL, created_at DOUBLE NOT NULL, PRIMARY KEY (key));
CREATE TABLE report_tables (run_id INTEGER NOT NULL, name VARCHAR(40) NOT NULL, rows TEXT NOT NULL, PRIMARY KEY (run_id, name),
  FOREIGN KEY(run_id) REFERENCES runs (id));
CREATE TABLE events (id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, run_id INTEGER NOT NULL, t DOUBLE NOT NULL, name VARCHAR(80) NOT NULL,
  step INTEGER NOT NULL, value DOUBLE, FOREIGN KEY(run_id) REFERENCES runs (id));
CREATE INDEX events_by_run ON events (run_id, id);
CREATE TABLE notes (id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, run_id INTEGER NOT NULL, t DOUBLE NOT NULL, note TEXT NOT NULL,
  FOREIGN KEY(run_id) REFERENCES runs (id));
CREATE INDEX ix_notes_run_id ON notes (run_id);
"""
HELD = ("runs", "workers", "profiles", "report_tables", "events", "notes")


@pytest.fixture
def old(database_url) -> str:
    """The address of a store of version 1 with a queued run and a finished one that has a table, events and a note."""
    text = VERSION_1
    if database_url.startswith("postgresql"):
        text = text.replace("INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT", "SERIAL PRIMARY KEY").replace("DOUBLE", "DOUBLE PRECISION")
    recipe = Recipe(name="of old")
    columns = "kind, name, status, owner, recipe, recipe_hash, model, weights, pattern, sparsity, score, budget, method, wants, attempt, cancel"
    row = "'experiment', 'of old', :status, 'ada', :recipe, :hash, 'starter', 'bundled', 'unstructured', 0.9, 'wanda', 'mp_edge', 'starfish'"
    engine = sa.create_engine(database_url)
    with engine.begin() as connection:
        for statement in filter(str.strip, text.split(";")):
            connection.exec_driver_sql(statement)
        for status in ("queued", "done"):
            values = dict(status=status, recipe=recipe.to_json(), hash=recipe.fingerprint())
            connection.execute(sa.text(f"INSERT INTO runs ({columns}, created_at) VALUES ({row}, 'auto', 0, false, 1.5)"), values)
        connection.exec_driver_sql('INSERT INTO report_tables VALUES (2, \'accuracy\', \'[{"stage": "dense", "top1": 0.5}]\')')
        connection.exec_driver_sql("INSERT INTO events (run_id, t, name, step, value) VALUES (2, 1.0, 'loss', 3, 0.25)")
        connection.exec_driver_sql("INSERT INTO notes (run_id, t, note) VALUES (2, 1.0, 'one image skipped')")
    engine.dispose()
    return database_url


def held(url: str) -> dict[str, list[str]]:
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        found = {name: sorted(map(repr, connection.exec_driver_sql(f"SELECT * FROM {name}"))) for name in HELD}
    engine.dispose()
    return found


def test_nothing_is_lost_and_all_that_is_new_works(old):
    before = held(old)
    store = Store(old)
    assert held(old) == before and len(before["runs"]) == 2
    with store.transaction() as connection:
        assert connection.exec_driver_sql("SELECT value FROM meta").scalar() == str(VERSION) == "2"
    run = store.run(2)
    assert (run.name, run.owner, run.recipe.name, run.created_at) == ("of old", "ada", "of old", 1.5)
    assert store.table([2], "accuracy")["top1"][0] == 0.5 and store.events(2)["value"][0] == 0.25 and store.notes(2) == ["one image skipped"]
    store.decide(2, "accepted", "as good as dense", "ada")
    store.remark(1, "waits since long", "ada")
    store.acting_as(None).request_cancel(1)
    assert len(store.decisions([2])) == len(store.remarks([1])) == len(store.audit()) == 1
    assert store.submit(Recipe()) == 3 and store.claim("w", "cpu").id == 3
    store.close()
    again = Store(old)  # a second opening finds it as it is
    assert list(again.decisions([2])["decision"]) == ["accepted"] and again.run(3).status == "running"
    again.close()


def test_several_openings_at_once_upgrade_it_once(old):
    stores = at_once(6, lambda: Store(old))
    assert {len(store.runs()) for store in stores} == {2}
    for store in stores:
        store.remark(1, "still here", "ada")
    assert len(stores[0].remarks([1])) == 6
    for store in stores:
        store.close()


def _remark(url: str) -> None:
    Store(url).remark(2, "from another process", "ada")


def test_several_processes_at_once_upgrade_it_once(old):
    processes = [multiprocessing.get_context("spawn").Process(target=_remark, args=(old,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    store = Store(old)
    assert [process.exitcode for process in processes] == [0, 0, 0] and len(store.remarks([2])) == 3
    store.close()


def test_an_upgrade_that_fails_leaves_the_old_store_as_it_was(old, monkeypatch):
    before = held(old)

    def full(connection):
        REMARKS.create(connection)  # half of the work is done
        raise sa.exc.OperationalError("CREATE TABLE", {}, Exception("database or disk is full"))

    monkeypatch.setattr("starfish_lab.store.database.METADATA.create_all", full)
    with pytest.raises(StoreError, match="is full; nothing was written"):
        Store(old)
    engine = sa.create_engine(old)
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT value FROM meta").scalar() == "1"
        assert set(sa.inspect(connection).get_table_names()) == {"meta", *HELD}
    engine.dispose()
    assert held(old) == before


def test_calls_inside_a_transaction_happen_together_or_not_at_all(database_url):
    store, called = Store(database_url), []
    with pytest.raises(ZeroDivisionError), store.transaction():
        store.afterwards(lambda: called.append("never"))
        store.remark(store.submit(Recipe()), "gone with its run", "ada")
        raise ZeroDivisionError
    assert store.runs().empty and not called
    with store.transaction():
        run = store.submit(Recipe())
        store.afterwards(lambda: called.append(len(store.runs())))
        assert not called
    assert called == [1] and store.run(run).status == "queued"
    store.close()

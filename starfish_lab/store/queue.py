"""The life of a run: submitted, claimed by one worker, watched, finished.

A worker owns a run from `claim` on, as long as its heartbeat is fresh. Each write a worker makes names the
worker and does nothing (returns False) once the run belongs to somebody else, so a worker that slept too
long cannot spoil the work of the one that took over.
"""

from __future__ import annotations

import json
import os
import time
from typing import NamedTuple

import pandas as pd
import sqlalchemy as sa

from starfish_lab.errors import StoreError
from starfish_lab.jobs import accelerators
from starfish_lab.plain_data import Plan
from starfish_lab.report import Report
from starfish_lab.store import tasks
from starfish_lab.store.database import Database
from starfish_lab.store.run import Run
from starfish_lab.store.schema import EVENTS, NOTES, RUNS, TABLES, WORKERS

MAX_ATTEMPTS = 3
FORGET_WORKERS_SECONDS = 86400.0
ORDER = (sa.case((RUNS.c.kind.in_(("profile", "merging", "picture")), 0), else_=1), RUNS.c.id)  # a page waits for the first
ONCE = ("profile", "sensitivity")  # kinds whose result is the same for all who ask for it
IMPORTED = "imported"  # the stage of a run that was done elsewhere and recorded here
PAUSE = "pause"  # what a sweep's own row keeps as its status once it was asked to pause


class Active(NamedTuple):
    """A run that is queued or running, as a scheduler needs it."""

    id: int
    wants: str
    cancel: bool  # asked to stop
    free: bool  # queued, or its worker is dead: may be claimed


class Queue(Database):
    """Submitting, claiming and ending runs."""

    def submit(
        self, task: Plan, kind: str = "experiment", *, parent: int | None = None, owner: str = "",
        claimed_by: tuple[str, str] | None = None,
    ) -> int:  # fmt: skip
        """Add a run to the queue and return its number. What is in ONCE and already queued or running is not added twice.

        `task` is what `tasks.TASKS` says of the kind: for most a recipe.
        `claimed_by` (worker, device) gives the run to that worker from the start, past the queue.
        """
        tasks.check(task, kind)
        with self.transaction() as connection:
            if kind in ONCE and claimed_by is None:
                same = sa.and_(RUNS.c.kind == kind, RUNS.c.recipe_hash == task.fingerprint(), RUNS.c.status.in_(("queued", "running")))
                waiting = connection.scalar(sa.select(RUNS.c.id).where(same).limit(1))
                if waiting is not None:
                    return waiting
            claim = {}
            if claimed_by is not None:
                now = time.time()
                claim = dict(zip(("worker", "device"), claimed_by)) | dict(status="running", attempt=1, started_at=now, heartbeat_at=self.clock)
            return add(connection, task, kind, parent=parent, owner=owner, **claim)

    def record(self, task: Plan, kind: str, report: Report, *, owner: str, device: str) -> int:
        """What was found elsewhere, as a run that is done; no worker ever sees it otherwise. Returns its number."""
        tasks.check(task, kind)
        now = time.time()
        with self.transaction() as connection:
            values = dict(status="done", stage=IMPORTED, started_at=now, finished_at=now, summary=_dumps(report.summary()))
            run_id = add(connection, task, kind, owner=owner, device=device, **values)
            keep_tables(connection, run_id, report)
        return run_id

    def claim(self, worker: str, device: str, *, title: str = "", run_id: int | None = None) -> Run | None:
        """Give the worker the next run that its device may do, or None. By its `title` a device is known to runs that ask for a GPU by name.

        Profiles and token merging come first (a page waits for them), then the oldest. A run whose worker died is taken over;
        after MAX_ATTEMPTS workers died on it, it fails. With `run_id` the worker takes that run or none: a scheduler chose the device.
        """
        stale, free = self._free()
        with self.transaction() as connection:  # a look before the leap: idle polling never takes the write lock
            wanted = connection.scalars(sa.select(RUNS.c.wants).where(free).distinct()).all()
        fitting = [wants for wants in wanted if run_id is not None or accelerators.fits(wants, device, title)]
        if not fitting:
            return None
        free = sa.and_(free, RUNS.c.wants.in_(fitting) if run_id is None else RUNS.c.id == run_id)
        chosen = sa.select(RUNS.c.id).where(free).order_by(*ORDER).limit(1).with_for_update(skip_locked=True).scalar_subquery()
        with self.transaction() as connection:
            dead = f"The worker died {MAX_ATTEMPTS} times while it did this run, so it is not tried again. Memory may be short: try smaller batches."
            end(connection, sa.and_(stale, RUNS.c.cancel), status="cancelled")
            end(connection, sa.and_(stale, RUNS.c.attempt >= MAX_ATTEMPTS), status="failed", error=dead)
            values = dict(
                status="running", worker=worker, device=device, attempt=RUNS.c.attempt + 1,
                heartbeat_at=self.clock, started_at=sa.func.coalesce(RUNS.c.started_at, time.time()),
            )  # fmt: skip
            # `free` stands in the outer condition too: it is what PostgreSQL checks again after waiting for the row.
            row = connection.execute(sa.update(RUNS).where(RUNS.c.id == chosen, free).values(values).returning(*Run.columns())).first()
        return Run(*row) if row else None

    def active(self) -> list[Active]:
        """Runs that are queued or running, in the order they are claimed; of sweeps, their runs."""
        _, free = self._free()
        columns = (RUNS.c.id, RUNS.c.wants, RUNS.c.cancel, free.label("free"))
        query = sa.select(*columns).where(RUNS.c.status.in_(("queued", "running")))
        with self.transaction() as connection:
            return [Active(row.id, row.wants, bool(row.cancel), bool(row.free)) for row in connection.execute(query.order_by(*ORDER))]

    def _free(self) -> tuple[sa.ColumnElement[bool], sa.ColumnElement[bool]]:
        """Which runs have lost their worker, and which may be claimed."""
        stale = self._stale()
        return stale, sa.or_(RUNS.c.status == "queued", stale)

    def heartbeat(self, worker: str, run_id: int | None = None) -> bool:
        """The worker lives and does this run. False once the run is no longer the worker's."""
        with self.transaction() as connection:
            connection.execute(sa.update(WORKERS).where(WORKERS.c.worker == worker).values(heartbeat_at=self.clock, run_id=run_id))
            return run_id is None or _update(connection, run_id, worker, heartbeat_at=self.clock)

    def set_progress(
        self, run_id: int, *, stage: str | None = None, step: int | None = None, steps: int | None = None,
        seconds_left: float | None = None, worker: str | None = None,
    ) -> bool:  # fmt: skip
        """Where the run is: all four fields are written."""
        with self.transaction() as connection:
            return _update(connection, run_id, worker, stage=stage, step=step, steps=steps, seconds_left=seconds_left)

    def add_event(self, run_id: int, name: str, step: int, value: float, *, worker: str | None = None) -> bool:
        """One figure worth plotting live."""
        return self.add_events(run_id, [(time.time(), name, step, value)], worker=worker)

    def add_events(self, run_id: int, events: list[tuple[float, str, int, float]], *, worker: str | None = None) -> bool:
        """Several figures (t, name, step, value) in one transaction."""
        rows = [dict(run_id=run_id, t=t, name=name, step=step, value=value) for t, name, step, value in events]
        return self._append(EVENTS, run_id, rows, worker)

    def note(self, run_id: int, text: str, *, worker: str | None = None) -> bool:
        """Something the person should know about the run."""
        return self._append(NOTES, run_id, [dict(run_id=run_id, t=time.time(), note=text)], worker)

    def cancel_requested(self, run_id: int, *, worker: str | None = None) -> bool:
        """True once the run should stop: it was asked to, or is gone, or (with `worker`) belongs to another worker."""
        with self.transaction() as connection:
            row = connection.execute(sa.select(RUNS.c.cancel, RUNS.c.worker).where(RUNS.c.id == run_id)).first()
        return row is None or bool(row.cancel) or worker not in (None, row.worker)

    def finish(self, run_id: int, report: Report, artefact: str | None = None, *, worker: str | None = None) -> bool:
        """The run is done: keep its report, and where its healed network lies."""
        with self.transaction() as connection:
            values = dict(summary=_dumps(report.summary()), artefact=artefact)
            if not _close(connection, run_id, worker, status="done", **values):
                return False
            connection.execute(sa.delete(TABLES).where(TABLES.c.run_id == run_id))
            keep_tables(connection, run_id, report)
            return True

    def fail(self, run_id: int, error: str, *, worker: str | None = None) -> bool:
        """The run stopped with an error, told in words."""
        with self.transaction() as connection:
            return _close(connection, run_id, worker, status="failed", error=error)

    def mark_cancelled(self, run_id: int, *, worker: str | None = None) -> bool:
        """The run stopped because it was asked to."""
        with self.transaction() as connection:
            return _close(connection, run_id, worker, status="cancelled")

    def release(self, run_id: int, *, worker: str) -> bool:
        """The worker stops in good order: its run goes back to the queue, to continue from its checkpoint, unless it was to be cancelled.

        A run of a paused sweep pauses.
        """
        with self.transaction() as connection:
            values = dict(device=None, seconds_left=None, attempt=RUNS.c.attempt - 1)
            sweep = RUNS.alias("sweep")
            paused = sa.exists().where(sweep.c.id == RUNS.c.parent, sweep.c.kind == tasks.SWEEP, sweep.c.status == PAUSE)
            status = sa.case((RUNS.c.cancel, "cancelled"), (paused, "paused"), else_="queued")
            finished_at = sa.case((RUNS.c.cancel, time.time()), else_=None)
            return _update(connection, run_id, worker, status=status, finished_at=finished_at, **values)

    def announce(self, worker: str, device: str, title: str) -> None:
        """A worker started. Workers that have long been silent are forgotten."""
        values = dict(worker=worker, device=device, title=title, pid=os.getpid(), started_at=time.time(), heartbeat_at=self.clock)
        with self.transaction() as connection:
            connection.execute(sa.delete(WORKERS).where(WORKERS.c.heartbeat_at < self.clock - FORGET_WORKERS_SECONDS))
            connection.execute(sa.insert(WORKERS).values(values))

    def retire(self, worker: str) -> None:
        """A worker ended in good order."""
        with self.transaction() as connection:
            connection.execute(sa.delete(WORKERS).where(WORKERS.c.worker == worker))

    def workers(self) -> pd.DataFrame:
        """Columns worker, device, title, pid, run, started_at, heartbeat_at, alive; one row a worker of the last day."""
        columns = [c.label("run") if c.name == "run_id" else c for c in WORKERS.c]
        alive = WORKERS.c.heartbeat_at > self.clock - self.stale_seconds
        with self.transaction() as connection:
            result = connection.execute(sa.select(*columns, alive.label("alive")).order_by(WORKERS.c.device, WORKERS.c.started_at))
            return pd.DataFrame(result.all(), columns=list(result.keys())).astype({"run": "Int64", "alive": "bool"})

    def _stale(self) -> sa.ColumnElement[bool]:
        """Runs whose worker is dead. Nobody counts as dead until the store has been there long enough for all to tell that they live."""
        if time.time() - self.unreachable_at < self.stale_seconds:
            return sa.false()
        return sa.and_(RUNS.c.status == "running", RUNS.c.heartbeat_at < self.clock - self.stale_seconds)

    def _append(self, table: sa.Table, run_id: int, rows: list[dict[str, object]], worker: str | None) -> bool:
        with self.transaction() as connection:
            mine = _update(connection, run_id, worker, heartbeat_at=self.clock)
            if mine and rows:
                connection.execute(sa.insert(table), rows)
            return mine


def row_of(task: Plan, kind: str, **values: object) -> dict[str, object]:
    """A new row of the list of runs, queued unless `values` say otherwise."""
    row = {"kind": kind, "status": "queued", "created_at": time.time(), "recipe": task.to_json(), "recipe_hash": task.fingerprint()}
    return {**row, **tasks.listed(task), **values}


def add(connection: sa.Connection, task: Plan, kind: str, **values: object) -> int:
    """Add a row to the list of runs and return its number."""
    return connection.execute(sa.insert(RUNS).values(row_of(task, kind, **values))).inserted_primary_key[0]


def keep_tables(connection: sa.Connection, run_id: int, report: Report) -> None:
    """The report of a run that has none yet."""
    rows = [dict(run_id=run_id, name=name, rows=_dumps(rows)) for name, rows in report.tables.items()]
    if rows:
        connection.execute(sa.insert(TABLES), rows)


def end(connection: sa.Connection, condition: sa.ColumnElement[bool], **values: object) -> None:
    """End all runs of a condition."""
    connection.execute(sa.update(RUNS).where(condition).values(finished_at=time.time(), seconds_left=None, **values))


def _update(connection: sa.Connection, run_id: int, worker: str | None, **values: object) -> bool:
    """Change a run if it exists and, where a worker is named, is running and that worker's."""
    condition = RUNS.c.id == run_id
    if worker is not None:
        condition = sa.and_(condition, RUNS.c.status == "running", RUNS.c.worker == worker)
    return connection.execute(sa.update(RUNS).where(condition).values(values)).rowcount == 1


def _close(connection: sa.Connection, run_id: int, worker: str | None, **values: object) -> bool:
    closed = _update(connection, run_id, worker, finished_at=time.time(), seconds_left=None, **values)
    if not closed and worker is None:
        raise unknown_run(run_id)
    return closed


def unknown_run(run_id: int) -> StoreError:
    return StoreError(f"There is no run {run_id} in the store. It may have been deleted.")


def _dumps(value: object) -> str:
    """JSON; figures that are still numpy's become Python's."""
    return json.dumps(value, default=lambda item: item.tolist())

"""The life of a run: submitted, claimed by one worker, watched, finished.

A worker owns a run from `claim` on, as long as its heartbeat is fresh. Each write a worker makes names the
worker and does nothing (returns False) once the run belongs to somebody else, so a worker that slept too
long cannot spoil the work of the one that took over.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from dataclasses import dataclass
from functools import cached_property

import pandas as pd
import sqlalchemy as sa

from starfish_lab.bakeoff.plan import BakeOff
from starfish_lab.errors import StoreError
from starfish_lab.healing import healers
from starfish_lab.pruning import STARTS
from starfish_lab.recipe import Recipe
from starfish_lab.report import Report
from starfish_lab.store.schema import EVENTS, NOTES, RUNS, TABLES, WORKERS, Database

KINDS = ("experiment", "profile", "latency", "merging", "bakeoff")
MAX_ATTEMPTS = 3
FORGET_WORKERS_SECONDS = 86400.0


@dataclass(frozen=True)
class Run:
    """One row of the list of runs. Times are seconds since 1970 (UTC)."""

    id: int
    kind: str
    name: str
    status: str  # queued, running, done, failed or cancelled
    owner: str
    parent: int | None
    recipe_json: str
    wants: str  # the recipe's device
    device: str | None  # the worker's
    worker: str | None
    attempt: int
    cancel: bool  # asked to stop
    created_at: float
    started_at: float | None
    finished_at: float | None
    stage: str | None
    step: int | None
    steps: int | None
    seconds_left: float | None
    error: str | None
    artefact: str | None  # folder of the healed network

    @cached_property
    def recipe(self) -> Recipe:
        """What the run does; of a bake-off, what all its healers share."""
        return self.plan.recipe if self.kind == "bakeoff" else Recipe.from_json(self.recipe_json)

    @cached_property
    def plan(self) -> BakeOff:
        """The whole of a bake-off."""
        return BakeOff.from_json(self.recipe_json)

    @property
    def task(self) -> Recipe | BakeOff:
        """What was submitted, and can be again."""
        return self.plan if self.kind == "bakeoff" else self.recipe

    @property
    def active(self) -> bool:
        """Queued or running: worth polling."""
        return self.status in ("queued", "running")

    @staticmethod
    def columns() -> list[sa.Column]:
        names = [f.name for f in dataclasses.fields(Run)]
        return [RUNS.c.recipe.label("recipe_json") if name == "recipe_json" else RUNS.c[name] for name in names]


class Queue(Database):
    """Submitting, claiming and ending runs."""

    def submit(
        self, task: Recipe | BakeOff, kind: str = "experiment", *, parent: int | None = None, owner: str = "",
        claimed_by: tuple[str, str] | None = None,
    ) -> int:  # fmt: skip
        """Add a run to the queue and return its number. A profile that is already queued or running is not added twice.

        `task` is a recipe, and for the kind 'bakeoff' a bake-off, kept whole where others keep their recipe.
        `claimed_by` (worker, device) gives the run to that worker from the start, past the queue.
        """
        if kind not in KINDS:
            raise StoreError(f"There is no kind of run '{kind}'. Choose one of: {', '.join(KINDS)}.")
        if isinstance(task, BakeOff) != (kind == "bakeoff"):
            raise StoreError(f"A run of the kind '{kind}' takes a {'bake-off' if kind == 'bakeoff' else 'recipe'}, not a {type(task).__name__}.")
        recipe, fingerprint = task.recipe if isinstance(task, BakeOff) else task, task.fingerprint()
        pruning = recipe.pruning
        with self.transaction() as connection:
            if kind == "profile":
                same = sa.and_(RUNS.c.kind == kind, RUNS.c.recipe_hash == fingerprint, RUNS.c.status.in_(("queued", "running")))
                waiting = connection.scalar(sa.select(RUNS.c.id).where(same).limit(1))
                if waiting is not None:
                    return waiting
            values = dict(
                kind=kind, name=recipe.name, status="queued", owner=owner, parent=parent, wants=recipe.device, created_at=time.time(),
                recipe=task.to_json(), recipe_hash=fingerprint, model=recipe.model.name, weights=recipe.model.weights,
                pattern=pruning.pattern, score=pruning.score, budget=pruning.budget, method=_healer(task),
                sparsity=_asked(task),
            )  # fmt: skip
            if claimed_by is not None:
                worker, device = claimed_by
                now = values["created_at"]
                values |= dict(status="running", worker=worker, device=device, attempt=1, started_at=now, heartbeat_at=now)
            return connection.execute(sa.insert(RUNS).values(values)).inserted_primary_key[0]

    def claim(self, worker: str, device: str) -> Run | None:
        """Give the worker the next run that its device may do, or None.

        Profiles and token merging come first (a page waits for them), then the oldest. A run whose worker died is taken over;
        after MAX_ATTEMPTS workers died on it, it fails.
        """
        now = time.time()
        stale = sa.and_(RUNS.c.status == "running", RUNS.c.heartbeat_at < now - self.stale_seconds)
        fits = RUNS.c.wants.in_({"auto", device, device.partition(":")[0]})
        free = sa.and_(sa.or_(RUNS.c.status == "queued", stale), fits)
        with self.transaction() as connection:  # a look before the leap: idle polling never takes the write lock
            if connection.scalar(sa.select(RUNS.c.id).where(free).limit(1)) is None:
                return None
        order = (sa.case((RUNS.c.kind.in_(("profile", "merging")), 0), else_=1), RUNS.c.id)
        chosen = sa.select(RUNS.c.id).where(free).order_by(*order).limit(1).with_for_update(skip_locked=True).scalar_subquery()
        with self.transaction() as connection:
            dead = f"The worker died {MAX_ATTEMPTS} times while it did this run, so it is not tried again. Memory may be short: try smaller batches."
            _end(connection, sa.and_(stale, RUNS.c.cancel), status="cancelled")
            _end(connection, sa.and_(stale, RUNS.c.attempt >= MAX_ATTEMPTS), status="failed", error=dead)
            values = dict(
                status="running", worker=worker, device=device, attempt=RUNS.c.attempt + 1,
                heartbeat_at=now, started_at=sa.func.coalesce(RUNS.c.started_at, now),
            )  # fmt: skip
            # `free` stands in the outer condition too: it is what PostgreSQL checks again after waiting for the row.
            row = connection.execute(sa.update(RUNS).where(RUNS.c.id == chosen, free).values(values).returning(*Run.columns())).first()
        return Run(*row) if row else None

    def heartbeat(self, worker: str, run_id: int | None = None) -> bool:
        """The worker lives and does this run. False once the run is no longer the worker's."""
        now = time.time()
        with self.transaction() as connection:
            connection.execute(sa.update(WORKERS).where(WORKERS.c.worker == worker).values(heartbeat_at=now, run_id=run_id))
            return run_id is None or _update(connection, run_id, worker, heartbeat_at=now)

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

    def request_cancel(self, run_id: int) -> None:
        """Ask a run to stop: at once where no living worker has it, else within its worker's next steps."""
        alone = sa.or_(RUNS.c.status == "queued", sa.and_(RUNS.c.status == "running", RUNS.c.heartbeat_at < time.time() - self.stale_seconds))
        with self.transaction() as connection:
            _end(connection, sa.and_(RUNS.c.id == run_id, alone), status="cancelled")
            if connection.execute(sa.update(RUNS).where(RUNS.c.id == run_id).values(cancel=True)).rowcount == 0:
                raise unknown_run(run_id)

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
            rows = [dict(run_id=run_id, name=name, rows=_dumps(rows)) for name, rows in report.tables.items()]
            if rows:
                connection.execute(sa.insert(TABLES), rows)
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
        """The worker stops in good order: its run goes back to the queue, to continue from its checkpoint, unless it was to be cancelled."""
        with self.transaction() as connection:
            values = dict(device=None, seconds_left=None, attempt=RUNS.c.attempt - 1)
            status = sa.case((RUNS.c.cancel, "cancelled"), else_="queued")
            finished_at = sa.case((RUNS.c.cancel, time.time()), else_=None)
            return _update(connection, run_id, worker, status=status, finished_at=finished_at, **values)

    def announce(self, worker: str, device: str, title: str) -> None:
        """A worker started. Workers that have long been silent are forgotten."""
        now = time.time()
        values = dict(worker=worker, device=device, title=title, pid=os.getpid(), started_at=now, heartbeat_at=now)
        with self.transaction() as connection:
            connection.execute(sa.delete(WORKERS).where(WORKERS.c.heartbeat_at < now - FORGET_WORKERS_SECONDS))
            connection.execute(sa.insert(WORKERS).values(values))

    def retire(self, worker: str) -> None:
        """A worker ended in good order."""
        with self.transaction() as connection:
            connection.execute(sa.delete(WORKERS).where(WORKERS.c.worker == worker))

    def workers(self) -> pd.DataFrame:
        """Columns worker, device, title, pid, run, started_at, heartbeat_at, alive; one row a worker of the last day."""
        columns = [c.label("run") if c.name == "run_id" else c for c in WORKERS.c]
        with self.transaction() as connection:
            result = connection.execute(sa.select(*columns).order_by(WORKERS.c.device, WORKERS.c.started_at))
            frame = pd.DataFrame(result.all(), columns=list(result.keys())).astype({"run": "Int64"})
        return frame.assign(alive=frame["heartbeat_at"] > time.time() - self.stale_seconds)

    def _append(self, table: sa.Table, run_id: int, rows: list[dict[str, object]], worker: str | None) -> bool:
        with self.transaction() as connection:
            mine = _update(connection, run_id, worker, heartbeat_at=time.time())
            if mine and rows:
                connection.execute(sa.insert(table), rows)
            return mine


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


def _end(connection: sa.Connection, condition: sa.ColumnElement[bool], **values: object) -> None:
    connection.execute(sa.update(RUNS).where(condition).values(finished_at=time.time(), seconds_left=None, **values))


def unknown_run(run_id: int) -> StoreError:
    return StoreError(f"There is no run {run_id} in the store. It may have been deleted.")


def _dumps(value: object) -> str:
    """JSON; figures that are still numpy's become Python's."""
    return json.dumps(value, default=lambda item: item.tolist())


def _healer(task: Recipe | BakeOff) -> str:
    """Who heals: a healer's name, or how many of them bake."""
    return f"{len(task.healers)} healers" if isinstance(task, BakeOff) else healers.name(task.healing)


def _asked(task: Recipe | BakeOff) -> float:
    """The sparsity that is asked for, of several the largest; of a start from a file nothing is known before it runs."""
    recipe = task.recipe if isinstance(task, BakeOff) else task
    pruning, start = recipe.pruning, recipe.start
    if isinstance(task, BakeOff) and task.sparsities:
        return max(task.sparsities)
    if pruning.pattern == "n_m":
        return 1 - pruning.keep / pruning.group
    if pruning.pattern == "kept":
        return start.sparsity if STARTS.constant(start.method, "TRAINS", False) else 0.0
    return pruning.sparsity

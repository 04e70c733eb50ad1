"""Sweeps in the store: one row that no worker claims, the runs it asks for, and what is done to all of them at once.

A sweep's own row keeps as its status what was asked of it: GO, PAUSE or CANCEL. What a person sees, its status, progress and end,
follows from its runs whenever it is read. The table `sweep_runs` of its report names them: those it made, whose parent it is, and
those it adopted because the store had them already.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable

import pandas as pd
import sqlalchemy as sa

from starfish_lab.errors import StoreError
from starfish_lab.plain_data import Plan
from starfish_lab.report import Report
from starfish_lab.store import tasks
from starfish_lab.store.database import one_at_a_time
from starfish_lab.store.queue import PAUSE, Queue, add, end, keep_tables, row_of, unknown_run
from starfish_lab.store.schema import NOTES, RUNS, TABLES

GO, CANCEL = "go", "cancel"
ENDED = ("done", "failed", "cancelled")
FRESH = dict.fromkeys(("started_at", "finished_at", "stage", "step", "steps", "seconds_left", "error", "device", "worker"))


class Sweeps(Queue):
    """Many runs as one. Single runs are paused, resumed, cancelled and retried by the same calls."""

    def submit(self, task: Plan, kind: str = "experiment", *, parent: int | None = None, owner: str = "", **claim: object) -> int:
        """As `Queue.submit`; of a sweep every run is queued that the store has not done and does not have in its queue."""
        if kind != tasks.SWEEP:
            return super().submit(task, kind, parent=parent, owner=owner, **claim)
        tasks.check(task, kind)
        report = Report()
        with self.transaction() as connection:
            one_at_a_time(connection)  # of two sweeps that begin at once, one adopts the other's runs
            points = {point: recipe.fingerprint() for point, recipe in task.points.items()}
            known = _known(connection, list(points.values()))
            sweep = add(connection, task, kind, status=GO, parent=parent, owner=owner)
            missing = [point for point in points if points[point] not in known]
            rows = [row_of(task.points[point], "experiment", parent=sweep, owner=owner) for point in missing]
            made = connection.scalars(sa.insert(RUNS).returning(RUNS.c.id, sort_by_parameter_order=True), rows).all() if rows else []
            made = dict(zip(missing, made))
            for point, fingerprint in points.items():
                run = made.get(point) or known[fingerprint]
                report.add("sweep_runs", [{"run": run, "adopted": point not in made, **dataclasses.asdict(point)}])
            keep_tables(connection, sweep, report)
        return sweep

    def pause(self, run_id: int) -> None:
        """Hold a waiting run back, or all waiting runs of a sweep; those that run go on to their end."""
        with self.transaction() as connection:
            kind, mine = _own(connection, run_id)
            held = connection.execute(sa.update(RUNS).where(mine, RUNS.c.status == "queued").values(status="paused")).rowcount
            _ask(connection, run_id, PAUSE)
            if kind != tasks.SWEEP and not held:
                raise StoreError(f"Run {run_id} waits for no worker, so it cannot be paused. Cancel it, or let it end.")

    def resume(self, run_id: int) -> None:
        """Give a paused run, or those of a sweep, back to the queue."""
        with self.transaction() as connection:
            _, mine = _own(connection, run_id)
            connection.execute(sa.update(RUNS).where(mine, RUNS.c.status == "paused").values(status="queued"))
            _ask(connection, run_id, GO)

    def request_cancel(self, run_id: int) -> None:
        """Ask a run to stop: at once where no living worker has it, else within its worker's next steps.

        Of a sweep, all runs that it made are asked; those it adopted go on.
        """
        alone = sa.or_(RUNS.c.status.in_(("queued", "paused")), self._stale())
        with self.transaction() as connection:
            _, mine = _own(connection, run_id)
            end(connection, sa.and_(mine, alone), status="cancelled")
            connection.execute(sa.update(RUNS).where(mine).values(cancel=True))
            _ask(connection, run_id, CANCEL)

    def retry(self, run_id: int) -> list[int]:
        """Queue a failed or cancelled run again, or all such runs that a sweep made; each goes on from its checkpoint. Returns their numbers."""
        with self.transaction() as connection:
            _, mine = _own(connection, run_id)
            again = sa.and_(mine, RUNS.c.status.in_(("failed", "cancelled")))
            ids = list(connection.scalars(sa.select(RUNS.c.id).where(again).order_by(RUNS.c.id)))
            connection.execute(sa.update(RUNS).where(again).values(status="queued", attempt=0, cancel=False, **FRESH))
            connection.execute(sa.delete(NOTES).where(NOTES.c.run_id.in_(ids)))  # it will tell them again
            _ask(connection, run_id, GO)
            others = [row["run"] for row in _rows(connection, [run_id]).get(run_id, []) if row["adopted"] and row["status"] == "failed"]
        if not ids and others:
            raise StoreError(f"What failed of run {run_id} is not its own: try again run {', '.join(map(str, others))}, which it found in the store.")
        if not ids:
            raise StoreError(f"Nothing of run {run_id} has failed or was cancelled, so there is nothing to try again.")
        return ids

    def sweep_runs(self, run_id: int) -> pd.DataFrame:
        """The runs of a sweep in the order of its plan.

        Columns: run, adopted, those of `sweep.plan.Point`, status ('deleted' where the run is gone), started_at and finished_at.
        """
        with self.transaction() as connection:
            return pd.DataFrame(_rows(connection, [run_id]).get(run_id, []))

    def followed(self, sweeps: Iterable[int]) -> dict[int, dict[str, object]]:
        """{sweep: columns of the list of runs} as they follow from the runs of each."""
        sweeps = list(sweeps)
        if not sweeps:
            return {}
        with self.transaction() as connection:
            asked = dict(connection.execute(sa.select(RUNS.c.id, RUNS.c.status).where(RUNS.c.id.in_(sweeps), RUNS.c.kind == tasks.SWEEP)).all())
            return {sweep: _follow(asked[sweep], rows) for sweep, rows in _rows(connection, list(asked)).items()}

    def to_delete(self, connection: sa.Connection, run_id: int) -> list[int]:
        """What goes with a run: itself, of a sweep the runs that it made unless another adopted them, and the pictures shown to their networks."""
        kind, mine = _own(connection, run_id)
        ids = [run_id]
        if kind == tasks.SWEEP:
            others = connection.scalars(sa.select(TABLES.c.rows).where(TABLES.c.name == "sweep_runs", TABLES.c.run_id != run_id))
            elsewhere = {row["run"] for text in others for row in json.loads(text)}
            ids = [run for run in connection.scalars(sa.select(RUNS.c.id).where(mine)) if run not in elsewhere]
        return [*ids, *connection.scalars(sa.select(RUNS.c.id).where(RUNS.c.parent.in_(ids), RUNS.c.kind == "picture"))]


def _own(connection: sa.Connection, run_id: int) -> tuple[str, sa.ColumnElement[bool]]:
    """The kind of a run, and the condition for all that is done with it: itself, and of a sweep the runs that it made."""
    kind = connection.scalar(sa.select(RUNS.c.kind).where(RUNS.c.id == run_id))
    if kind is None:
        raise unknown_run(run_id)
    if kind != tasks.SWEEP:
        return kind, RUNS.c.id == run_id
    made = [row["run"] for row in json.loads(_tables(connection, [run_id]).get(run_id, "[]")) if not row["adopted"]]
    return kind, sa.or_(RUNS.c.id == run_id, sa.and_(RUNS.c.parent == run_id, RUNS.c.id.in_(made)))


def _ask(connection: sa.Connection, run_id: int, wish: str) -> None:
    """What is asked of a sweep; does nothing to any other run."""
    connection.execute(sa.update(RUNS).where(RUNS.c.id == run_id, RUNS.c.kind == tasks.SWEEP).values(status=wish, cancel=wish == CANCEL))


def _known(connection: sa.Connection, fingerprints: list[str]) -> dict[str, int]:
    """{fingerprint: run} of experiments that are done or will be, the finished ones first, of several the oldest."""
    will_be = sa.and_(RUNS.c.status.in_(("running", "queued")), sa.not_(RUNS.c.cancel))
    fits = sa.and_(RUNS.c.kind == "experiment", RUNS.c.recipe_hash.in_(fingerprints), sa.or_(RUNS.c.status == "done", will_be))
    order = (sa.case((RUNS.c.status == "done", 1), else_=0), RUNS.c.id.desc())  # the last one counts
    return dict(connection.execute(sa.select(RUNS.c.recipe_hash, RUNS.c.id).where(fits).order_by(*order)).all())


def _tables(connection: sa.Connection, sweeps: list[int]) -> dict[int, str]:
    return dict(connection.execute(sa.select(TABLES.c.run_id, TABLES.c.rows).where(TABLES.c.run_id.in_(sweeps), TABLES.c.name == "sweep_runs")).all())


def _rows(connection: sa.Connection, sweeps: list[int]) -> dict[int, list[dict[str, object]]]:
    """{sweep: the rows of its table, each with its run's present status and times}."""
    found = {sweep: json.loads(text) for sweep, text in _tables(connection, sweeps).items()}
    ids = {row["run"] for rows in found.values() for row in rows}
    columns = [RUNS.c[name] for name in ("id", "status", "started_at", "finished_at")]
    runs = {run.id: run for run in connection.execute(sa.select(*columns).where(RUNS.c.id.in_(ids)))}
    gone = {"status": "deleted", "started_at": None, "finished_at": None}
    return {
        sweep: [{**row, **(gone if row["run"] not in runs else {name: getattr(runs[row["run"]], name) for name in gone})} for row in rows]
        for sweep, rows in found.items()
    }


def _follow(asked: str, rows: list[dict]) -> dict[str, object]:
    """What a list of runs shows of a sweep with these runs."""
    ended = [row for row in rows if row["status"] in ENDED or row["status"] == "deleted"]
    failed = [str(row["run"]) for row in rows if row["status"] == "failed"]
    finished = [row["finished_at"] for row in ended if row["finished_at"]]
    status = _status(asked, rows)
    return {
        "status": status, "step": len(ended), "steps": len(rows), "seconds_left": _seconds_left(rows) if status == "running" else None,
        "started_at": min((row["started_at"] for row in rows if row["started_at"]), default=None),
        "finished_at": max(finished, default=None) if status in ENDED else None,
        "error": f"{len(failed)} of {len(rows)} runs failed: {', '.join(failed)}. See what stopped them, then try them again." if failed else None,
    }  # fmt: skip


def _status(asked: str, rows: list[dict]) -> str:
    """'paused' as long as a run of its own is held back; 'failed' once all ended and at least one failed."""
    own = {row["status"] for row in rows if not row["adopted"]}
    of_others = {row["status"] for row in rows if row["adopted"]}
    if "paused" in own:
        return "paused"
    every = own if asked == CANCEL else own | of_others  # a cancelled sweep waits for nobody else's runs
    if every & {"running", "queued", "paused"}:
        return "running" if "running" in every or (own | of_others) & set(ENDED) else "queued"
    if "failed" in every:
        return "failed"
    return "done" if own | of_others == {"done"} else "cancelled"


def _seconds_left(rows: list[dict]) -> float | None:
    """What is left, at the pace of those that this sweep finished."""
    took = [row["finished_at"] - row["started_at"] for row in rows if row["status"] == "done" and not row["adopted"] and row["started_at"]]
    left = sum(row["status"] in ("queued", "running") for row in rows)
    at_once = max(sum(row["status"] == "running" for row in rows), 1)
    return sum(took) / len(took) * left / at_once if took else None

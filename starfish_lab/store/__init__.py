"""The store: every run, its figures while it runs, its report, the workers, and the profiles of networks.

>>> store = Store()                                    # doctest: +SKIP
>>> run = store.submit(Recipe())                       # doctest: +SKIP
>>> store.runs()[["id", "status", "top1_healed"]]      # doctest: +SKIP

Pages read it, workers write it; both may be many. It imports no torch.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING

import pandas as pd
import sqlalchemy as sa

from starfish_lab import artefacts
from starfish_lab.errors import StoreError
from starfish_lab.report import Report
from starfish_lab.store.people import People
from starfish_lab.store.queue import unknown_run
from starfish_lab.store.run import Run
from starfish_lab.store.schema import DECISIONS, EVENTS, NOTES, PROFILES, REMARKS, RUNS, TABLES, folder_of
from starfish_lab.store.tasks import KINDS, SWEEP

if TYPE_CHECKING:
    from starfish_lab.store.service import Service
    from starfish_lab.whatif import Profile

__all__ = ["KINDS", "SUMMARY_COLUMNS", "Run", "Store", "folder_of"]

LISTED = (
    "id", "name", "kind", "status", "model", "weights", "pattern", "sparsity", "score", "budget", "method", "owner", "parent",
    "created_at", "started_at", "finished_at", "stage", "step", "steps", "seconds_left", "cancel", "attempt", "error", "artefact", "recipe_hash",
)  # fmt: skip
STAGES = ("dense", "pruned", "healed")
STAGE_FIGURES = ("top1", "low", "high", "parameters_m", "nonzero_parameters_m", "macs_g", "macs_g_effective")
SUMMARY_COLUMNS = (
    *(f"{figure}_{stage}" for stage in STAGES for figure in STAGE_FIGURES),
    "images", "sparsity_prunable", "sparsity_all", "recovered", "seconds",
)  # fmt: skip
DTYPES = (
    {"id": "int64", "attempt": "int64", "cancel": "bool"}
    | dict.fromkeys(("parent", "step", "steps"), "Int64")
    | dict.fromkeys(("sparsity", "created_at", "started_at", "finished_at", "seconds_left"), "float64")
)  # texts stay objects, so that a missing one is None and not NaN


class Store(People):
    """Everything the lab remembers."""

    def acting_as(self, who: str | None) -> Service:
        """This store as a signed-in person may use it, or (None) the one local person of a lab without sign-in.

        Raises StoreError where `who` is empty: a person without an address is nobody, and never the local one.
        """
        from starfish_lab.store.service import Service

        return Service(self, who)

    def run(self, run_id: int) -> Run:
        """One run. Raises StoreError where there is none."""
        with self.transaction() as connection:
            row = connection.execute(sa.select(*Run.columns()).where(RUNS.c.id == run_id)).first()
        if row is None:
            raise unknown_run(run_id)
        run = Run(*row)
        return dataclasses.replace(run, **self.followed([run_id])[run_id]) if run.kind == SWEEP else run

    def runs(
        self, kind: str | None = "experiment", *, limit: int = 1000, status: str | None = None, ids: Iterable[int] | None = None
    ) -> pd.DataFrame:
        """The newest runs, or the newest of `ids`, one row each, newest first.

        Columns: those of LISTED, device (the worker's, before that the recipe's) and SUMMARY_COLUMNS, which
        are NaN until the run is done. Times are seconds since 1970 (UTC). `status` lists what stands in that state itself: not sweeps,
        whose state is that of their runs, unless their kind is asked for.
        """
        query = sa.select(*(RUNS.c[name] for name in LISTED), sa.func.coalesce(RUNS.c.device, RUNS.c.wants).label("device"), RUNS.c.summary)
        if kind is not None:
            query = query.where(RUNS.c.kind == kind)
        if ids is not None:
            query = query.where(RUNS.c.id.in_([int(run_id) for run_id in ids]))
        if status is not None and kind != SWEEP:
            query = query.where(RUNS.c.status == status)
        with self.transaction() as connection:
            rows = connection.execute(query.order_by(RUNS.c.id.desc()).limit(limit)).all()
        frame = pd.DataFrame(rows, columns=[*LISTED, "device", "summary"], dtype=object).drop(columns="summary")
        followed = pd.DataFrame.from_dict(self.followed(frame.loc[frame["kind"] == SWEEP, "id"]), orient="index", dtype=object)
        for place in frame.index[frame["kind"] == SWEEP]:
            frame.loc[place, followed.columns] = followed.loc[frame.loc[place, "id"]]
        summaries = pd.DataFrame([json.loads(row.summary or "{}") for row in rows], index=frame.index)
        frame = frame.astype(DTYPES).join(summaries.reindex(columns=SUMMARY_COLUMNS).astype("float64"))
        return frame if status is None else frame[frame["status"] == status].reset_index(drop=True)

    def report(self, run_id: int, *, without: Iterable[str] = ()) -> Report:
        """The tables of one run, but for those named; an empty report while it is not done."""
        wanted = sa.and_(TABLES.c.run_id == run_id, TABLES.c.name.not_in(list(without)))
        with self.transaction() as connection:
            rows = connection.execute(sa.select(TABLES.c.name, TABLES.c.rows).where(wanted)).all()
        return Report({name: json.loads(text) for name, text in rows})

    def table(self, run_ids: Iterable[int], name: str) -> pd.DataFrame:
        """One table of several runs, below each other in the order asked for, with the run's number in the column run."""
        run_ids = [int(run_id) for run_id in run_ids]
        with self.transaction() as connection:
            rows = connection.execute(sa.select(TABLES.c.run_id, TABLES.c.rows).where(TABLES.c.run_id.in_(run_ids), TABLES.c.name == name)).all()
        found = {run_id: json.loads(text) for run_id, text in rows}
        return pd.DataFrame([{"run": run_id, **row} for run_id in run_ids for row in found.get(run_id, [])])

    def recipes(self, run_ids: Iterable[int]) -> dict[int, dict]:
        """The recipes of several runs as plain data, as `Recipe.from_dict` takes it: a thousand are read at a glance."""
        with self.transaction() as connection:
            rows = connection.execute(sa.select(RUNS.c.id, RUNS.c.recipe).where(RUNS.c.id.in_([int(run_id) for run_id in run_ids]))).all()
        return {run_id: json.loads(text) for run_id, text in rows}

    def numbers(self, *, limit: int | None = None, **equal: object) -> list[int]:
        """Numbers of the runs whose columns equal these, such as kind="profile", newest first, and nothing else of them: a page asks on every rerun.

        `status` means what stands in that state itself, not sweeps, as in `runs`.
        """
        query = sa.select(RUNS.c.id).where(*(RUNS.c[name] == value for name, value in equal.items()))
        if "status" in equal:
            query = query.where(RUNS.c.kind != SWEEP)
        with self.transaction() as connection:
            return list(connection.scalars(query.order_by(RUNS.c.id.desc()).limit(limit)))

    def events(self, run_id: int, name: str | None = None, after: int = 0) -> pd.DataFrame:
        """Figures of a run in the order they came: id, t, name, step, value; `after` leaves out ids up to it.

        A run that went on from a checkpoint reports some steps twice: the later figure counts.
        """
        columns = [EVENTS.c[c] for c in ("id", "t", "name", "step", "value")]
        query = sa.select(*columns).where(EVENTS.c.run_id == run_id, EVENTS.c.id > after)
        if name is not None:
            query = query.where(EVENTS.c.name == name)
        with self.transaction() as connection:
            rows = connection.execute(query.order_by(EVENTS.c.id)).all()
        frame = pd.DataFrame(rows, columns=[c.name for c in columns]).astype({"value": "float64"})
        return frame.drop_duplicates(["name", "step"], keep="last", ignore_index=True)

    def notes(self, run_id: int) -> list[str]:
        """What a person should know about a run, in the order it came."""
        with self.transaction() as connection:
            return list(connection.scalars(sa.select(NOTES.c.note).where(NOTES.c.run_id == run_id).order_by(NOTES.c.id)))

    def save_profile(self, key: str, profile: Profile) -> None:
        """Keep the profile of a network under `whatif.profile_key`."""
        with self.transaction() as connection:
            connection.execute(sa.delete(PROFILES).where(PROFILES.c.key == key))
            connection.execute(sa.insert(PROFILES).values(key=key, profile=profile.to_json(), created_at=time.time()))

    def profile(self, key: str) -> Profile | None:
        """The profile kept under a key, or None."""
        from starfish_lab.whatif import Profile

        with self.transaction() as connection:
            text = connection.scalar(sa.select(PROFILES.c.profile).where(PROFILES.c.key == key))
        return None if text is None else Profile.from_json(text)

    def rename(self, run_id: int, name: str) -> None:
        """Give a run another name."""
        with self.transaction() as connection:
            if connection.execute(sa.update(RUNS).where(RUNS.c.id == run_id).values(name=name)).rowcount == 0:
                raise unknown_run(run_id)

    def delete(self, run_id: int) -> None:
        """Remove a run with all it found and its folder, and of a sweep the runs that it made. What is running is refused."""
        with self.transaction() as connection:
            ids = self.to_delete(connection, run_id)
            # Every row is locked, so that no worker takes one that is about to go.
            rows = connection.execute(sa.select(RUNS.c.id, RUNS.c.status).where(RUNS.c.id.in_(ids)).order_by(RUNS.c.id).with_for_update()).all()
            if running := [row.id for row in rows if row.status == "running"]:
                raise StoreError(f"Run {running[0]} is still running. Cancel it first, then delete it.")
            networks = connection.scalars(sa.select(RUNS.c.artefact).where(RUNS.c.id.in_(ids), RUNS.c.artefact.is_not(None))).all()
            for table in (TABLES, EVENTS, NOTES, DECISIONS, REMARKS):
                connection.execute(sa.delete(table).where(table.c.run_id.in_(ids)))
            connection.execute(sa.delete(RUNS).where(RUNS.c.id.in_(ids)))
            for number in ids:
                self.afterwards(partial(shutil.rmtree, folder_of(number), ignore_errors=True))
            for network in networks:
                self.afterwards(partial(artefacts.remove, network))

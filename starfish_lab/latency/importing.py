"""A results file of another machine into the store, as a finished run that says where it comes from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from starfish_lab.latency import results_file
from starfish_lab.latency.plan import LatencyPlan
from starfish_lab.report import Report

if TYPE_CHECKING:
    import pandas as pd

    from starfish_lab.store import Store

OWNER = "imported"  # whose runs these are where nobody signs in


def brought(runs: pd.DataFrame) -> pd.Series:
    """Which of the runs in a list (`Store.runs`) came in as a file."""
    from starfish_lab.store.queue import IMPORTED  # where there is no store there is no list: timing alone needs no database

    return (runs["stage"] == IMPORTED) | (runs["owner"] == OWNER)  # stores of before say it by the owner alone


def import_file(store: Store, path: Path) -> int:
    """Check the file and keep it. Returns the number of the run. Raises LabError where the file is broken."""
    report, plan = results_file.read(path)
    return keep(store, report, plan, name=path.name)


def keep(store: Store, report: Report, plan: LatencyPlan, *, name: str) -> int:
    """A checked report as a finished run of the kind 'latency'; `name` is the file's. Returns its number, the earlier one if it was kept before."""
    if (known := _kept(store, report, plan)) is not None:
        return known
    first = report.tables["latency"][0]
    measured = {row["name"]: row["value"] for row in report.tables.get("provenance", [])}.get("measured_at", "an unknown time")
    marked = Report({table: list(rows) for table, rows in report.tables.items()})
    marked.add("notes", [{"note": f"Imported from {name}: measured on {first['device_name']} at {measured}, not on this machine."}])
    return store.record(plan, "latency", marked, owner=OWNER, device=first["device"])


def _kept(store: Store, report: Report, plan: LatencyPlan) -> int | None:
    """The run that holds these very timings, so that a file that comes in twice does not count twice."""
    runs = store.runs("latency", status="done")
    for run in runs.loc[brought(runs) & (runs["recipe_hash"] == plan.fingerprint()), "id"].astype(int):
        if store.report(run).tables["latency"] == report.tables["latency"]:
            return run
    return None

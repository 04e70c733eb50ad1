"""What a tracker gets of a run: plain data, the same for every tracker."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from starfish_lab.report import LARGE, Report

if TYPE_CHECKING:
    from starfish_lab.store import Run, Store

TAG = "starfish_lab.run"  # under which tag a tracker keeps a run's fingerprint
FIGURES = {"latency": ("stage", "batch", "latency_ms_p50"), "drift": ("stage", "depth", "cosine_distance")}


@dataclass(frozen=True)
class Contents:
    """One run. `figures` are what came of it, `series` what it told step by step: (name, step, value, seconds since 1970)."""

    number: int
    fingerprint: str  # 16 hex digits, the same whenever this run of this store is exported
    name: str
    status: str
    began: float
    ended: float | None
    parameters: dict[str, object]
    figures: dict[str, float]
    series: list[tuple[str, int, float, float]]
    tags: dict[str, str]
    note: str
    tables: dict[str, pd.DataFrame]
    recipe: str  # JSON


def of(store: Store, run_id: int) -> Contents:
    """A run as it stands now; what is not a finite number is no figure. Raises StoreError where there is no such run."""
    run, report, events = store.run(run_id), store.report(run_id), store.events(run_id)
    facts = {row["name"]: str(row["value"]) for row in report.tables.get("provenance", [])}
    tags = {TAG: fingerprint(run), "starfish_lab.kind": run.kind, "starfish_lab.owner": run.owner, "starfish_lab.number": str(run.id)}
    if run.parent:
        tags["starfish_lab.parent"] = str(run.parent)
    decided = store.decisions([run_id])
    if len(decided):
        tags["starfish_lab.decision"] = decided["decision"].iloc[0]
    told = [*store.notes(run_id), *(f"{row.who}: {row.text}" for row in store.remarks([run_id]).iloc[::-1].itertuples())]
    return Contents(
        number=run.id, fingerprint=tags[TAG], name=run.name or f"{run.recipe.model.name} {run.id}", status=run.status,
        began=run.started_at or run.created_at, ended=run.finished_at, parameters=flat(json.loads(run.recipe_json)), figures=_figures(report),
        series=[(e.name, int(e.step), float(e.value), float(e.t)) for e in events.itertuples() if math.isfinite(e.value)],
        tags={**tags, "starfish_lab.recipe": run.plan.fingerprint(), **facts}, note="\n".join([run.error or "", *told]).strip(),
        tables={name: report.frame(name) for name in report.tables if name not in LARGE}, recipe=run.recipe_json,
    )  # fmt: skip


def fingerprint(run: Run) -> str:
    """What tells this run from every other, of this store and of others."""
    return hashlib.sha256(f"{run.id} {run.created_at!r} {run.recipe_json}".encode()).hexdigest()[:16]


def flat(data: dict[str, object], before: str = "") -> dict[str, object]:
    """A recipe's fields by their dotted names.

    >>> flat({"pruning": {"sparsity": 0.5, "layers": []}, "name": "a"})
    {'pruning.sparsity': 0.5, 'pruning.layers': '[]', 'name': 'a'}
    """
    found: dict[str, object] = {}
    for name, value in data.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{before}{name}.")
        else:
            found[f"{before}{name}"] = json.dumps(value) if isinstance(value, list | dict) else value
    return found


def _figures(report: Report) -> dict[str, float]:
    """The summary of the run, and by stage its latency at each batch size and its drift at each depth."""
    found = {name: value for name, value in report.summary().items() if value is not None}
    for table, (stage, place, figure) in FIGURES.items():
        for row in report.tables.get(table, []):
            if row.get(figure) is not None and row.get("tokens", "all") in ("all", "image"):
                found[f"{table}.{row[stage]}.{place}_{row[place]}"] = row[figure]
    return {name: float(value) for name, value in found.items() if math.isfinite(value)}

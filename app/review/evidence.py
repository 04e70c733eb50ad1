"""The evidence pack with its charts: one HTML file that works without a network, and the numbers behind every chart as CSV.

The library collects tables, recipes and hashes (`starfish_lab.evidence`), this adds what is drawn. The command line runs this module.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go

from app import results
from app.charts import compare, drift
from app.charts import differs as bars
from app.charts import lineage as tree
from app.review import differs, lineage, page
from starfish_lab.errors import LabError
from starfish_lab.evidence import Evidence, archive, collect
from starfish_lab.store import Store

HTML = "evidence.html"
AGAINST = (
    "Up and to the left is better; marks joined by the grey line are beaten by no other. Vertical lines are 95 % Wilson intervals. "
    "Where these overlap, the images do not tell two marks apart."
)
DRIFT = (
    "A row a run, a column a block, white is no distance from the dense network; both panels share one scale. "
    "It shows distance on the drift images, not whether answers are right."
)
DIFFERS = "A group of bars is a value of what alone differs. It speaks for these runs; other seeds or images may answer otherwise."
LINEAGE = "A row is a run, from its dense network on the left to what it made of it. It shows where runs come from, not which to take."


@dataclass(frozen=True)
class Chart:
    """A figure, the numbers that it draws, and how to read it."""

    name: str
    fig: go.Figure
    data: pd.DataFrame
    caption: str


def zipped(store: Store, run_ids: list[int], *, made_at: str = "", link: str = "") -> bytes:
    """The whole pack of these runs as a .zip. Raises StoreError where one of them is no finished experiment."""
    pack, made_at = collect(store, run_ids), made_at or archive.now()
    figures = charts(pack)
    contents = archive.files(pack) | {f"charts/{chart.name}.csv": chart.data.to_csv(index=False, lineterminator="\n") for chart in figures}
    contents[HTML] = page.page(pack, figures, made_at=made_at, link=link)
    return archive.packed(contents, runs=pack.ids, made_at=made_at)


def charts(pack: Evidence) -> list[Chart]:
    """Every chart that these runs have figures for; on white, whatever the app's theme."""
    return [*_against_costs(pack), *_by_value(pack), *_drift(pack), *_lineage(pack)]


def _against_costs(pack: Evidence) -> list[Chart]:
    found = []
    for cost in compare.COSTS:
        points = results.points(pack.runs, cost=cost, latency=pack.table("latency"), seconds=pack.table("seconds"))
        if len(points) and not (cost == "healing_s" and points["cost"].eq(0).all()):
            found.append(Chart(f"accuracy_by_{cost}", compare.accuracy_against_cost(points, cost=cost), points, AGAINST))
    return found


def _by_value(pack: Evidence) -> list[Chart]:
    one = differs.alone(differs.table({run: recipe.to_dict() for run, recipe in pack.recipes.items()}))
    figures = pack.stages()
    if one is None or figures["top1"].isna().all():
        return []
    data = figures.assign(field=one.field, value=figures["run"].map(one.values))
    return [Chart("what_differs", bars.by_value(figures, one.values, field=one.field, others=one.others), data, DIFFERS)]


def _drift(pack: Evidence) -> list[Chart]:
    rows = drift.distances(pack.table("drift"), metric="cosine_distance", tokens="all")
    if rows.empty:
        return []
    fig = drift.by_run(pack.table("drift"), {run: f"run {run}" for run in pack.ids})
    return [Chart("drift", fig, rows[["run", "stage", "block", "depth", "distance"]], DRIFT)]


def _lineage(pack: Evidence) -> list[Chart]:
    found = lineage.graph(pack.runs, {run: recipe.to_dict() for run, recipe in pack.recipes.items()})
    fig = tree.lineage(found.nodes, found.edges, names=found.names, changes=found.changes)
    return [Chart("lineage", fig, found.nodes, LINEAGE)]


def main(argv: list[str] | None = None) -> int:
    """Write a pack to a file: `python -m starfish_lab evidence --runs 3,4 --out FILE.zip` comes here."""
    parser = argparse.ArgumentParser(description="Write an evidence pack, as the command evidence asks for.")
    parser.add_argument("--runs", required=True)
    parser.add_argument("--out", required=True, type=Path)
    arguments = parser.parse_args(argv)
    try:
        arguments.out.write_bytes(zipped(Store(), [int(run) for run in arguments.runs.split(",")]))
    except (LabError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

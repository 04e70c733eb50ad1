"""Where runs come from: dense → pruned → healed within a run, and from run to run by cloning or by going on from its network. No Streamlit."""

from __future__ import annotations

import json
from collections.abc import Container, Iterable
from dataclasses import dataclass

import pandas as pd

from app import results
from app.review import differs

ENDS = {  # what the last stage is called, by the healing method; others heal
    "distillation": "distilled", "logit_distillation": "distilled", "feature_mimicking": "distilled", "cross_entropy": "fine-tuned",
    "pseudo_labels": "fine-tuned",
}  # fmt: skip
NODES = ["run", "stage", "name", "x", "y", "top1", "low", "high", "images", "macs_g", "status", "label", "last"]
EDGES = ["x0", "y0", "x1", "y1", "kind"]  # kind: 'stage', 'continued' from another run's network, or 'cloned' from its recipe


@dataclass(frozen=True)
class Graph:
    """A picture of runs: a row (y) a run with its `names` and what it changed in `changes`, a column (x) a stage; NODES and EDGES."""

    nodes: pd.DataFrame
    edges: pd.DataFrame
    names: dict[int, str]
    changes: dict[int, str]


def family(runs: pd.DataFrame, run: int) -> list[int]:
    """The run, its ancestors and everything descended from the oldest of them, by `runs` (columns id and parent).

    A parent that no longer exists ends the line of ancestors.
    """
    parent = _parents(runs)
    root = run
    while root in parent:
        root = parent[root]
    found = {root}
    for child in sorted(parent):  # a child always has a higher number than its parent
        if parent[child] in found:
            found.add(child)
    return sorted(found)


def missing(runs: pd.DataFrame) -> list[int]:
    """Parents that these rows name and do not hold: to be asked for, until none is left or the store has none."""
    return sorted({int(i) for i in runs["parent"].dropna()} - {int(i) for i in runs["id"]})


def graph(runs: pd.DataFrame, recipes: dict[int, dict]) -> Graph:
    """The lineage of `runs` (rows of the store's list) with their plain recipes. Children stand below their parents, by number."""
    rows = {int(row["id"]): row for row in runs.to_dict("records")}
    continued = _continued(rows, recipes)
    cloned = {child: parent for child, parent in _parents(runs).items() if child not in continued}
    order = _order(rows, {**cloned, **continued}, first=continued)
    drawn = _Drawing(rows, recipes)
    for y, run in enumerate(order):
        drawn.add(run, y, continued.get(run))
    for child, parent in cloned.items():
        drawn.join(parent, child)
    changes = {run: differs.changes(recipes[source], recipes[run]) for run, source in {**cloned, **continued}.items()}
    names = {run: rows[run]["name"] or results.short(rows[run]).partition(" · ")[2] for run in order}
    return Graph(pd.DataFrame(drawn.nodes, columns=NODES), pd.DataFrame(drawn.edges, columns=EDGES), names, changes)


class _Drawing:
    """Nodes and edges as runs are added, parents before children."""

    def __init__(self, rows: dict[int, dict], recipes: dict[int, dict]):
        self.rows, self.recipes = rows, recipes
        self.nodes: list[dict[str, object]] = []
        self.edges: list[tuple[float, float, float, float, str]] = []
        self.dense: dict[str, dict[float, tuple[float, float]]] = {}  # place of each dense network, by its weights and its accuracy
        self.first: dict[int, tuple[float, float]] = {}  # of each run's own first node
        self.last: dict[int, tuple[float, float]] = {}

    def add(self, run: int, y: int, source: int | None) -> None:
        """A run's nodes from left to right, beginning at its dense network or at the run that it goes on from."""
        row, recipe = self.rows[run], self.recipes[run]
        at, kind = (self.last[source], "continued") if source is not None else (self._dense(run, y), "stage")
        stages = [stage for stage in ("pruned", "healed") if pd.notna(row[f"top1_{stage}"]) or pd.notna(row[f"macs_g_effective_{stage}"])]
        if source is not None and recipe["pruning"]["pattern"] == "kept" and len(stages) == 2:
            stages = stages[1:]  # nothing is pruned: the network that it goes on from stands there already
        for stage in stages or [row["status"]]:
            name = ENDS.get(recipe["healing"]["method"], "healed") if stage == "healed" else stage
            to = (at[0] + 1, y)
            self._node(run, stage, name, to, last=stage == (stages or [stage])[-1])
            self.edges.append((*at, *to, kind))
            self.first.setdefault(run, to)
            at, kind = to, "stage"
        self.last[run] = at

    def join(self, parent: int, child: int) -> None:
        """That a run was cloned from another."""
        self.edges.append((*self.first[parent], *self.first[child], "cloned"))

    def _dense(self, run: int, y: int) -> tuple[float, float]:
        """The dense network of a run, which those of the same weights and the same accuracy share; of a run without figures any of its weights."""
        model, top1 = json.dumps(self.recipes[run]["model"], sort_keys=True), self.rows[run]["top1_dense"]
        same = self.dense.setdefault(model, {})
        if pd.isna(top1) and same:
            return next(iter(same.values()))
        if top1 not in same:
            same[top1] = (0, y)
            self._node(run, "dense", "dense", (0, y), last=False)
        return same[top1]

    def _node(self, run: int, stage: str, name: str, at: tuple[float, float], *, last: bool) -> None:
        row = self.rows[run]
        figures = {figure: row.get(f"{figure}_{stage}") for figure in ("top1", "low", "high")}
        label = f"{row['model']}, dense" if stage == "dense" else results.short(row)
        facts = {"images": row["images"], "macs_g": row.get(f"macs_g_effective_{stage}"), "status": row["status"], "label": label, "last": last}
        self.nodes.append({"run": run, "stage": stage, "name": name, "x": at[0], "y": at[1], **figures, **facts})


def _parents(runs: pd.DataFrame) -> dict[int, int]:
    """{child: parent} of those whose parent is among the rows."""
    known = {int(i) for i in runs["id"]}
    return {int(row.id): int(row.parent) for row in runs.itertuples() if pd.notna(row.parent) and int(row.parent) in known}


def _continued(rows: dict[int, dict], recipes: dict[int, dict]) -> dict[int, int]:
    """{run: the run whose healed network it starts from}, by the path in its recipe."""
    networks = {row["artefact"].rstrip("/"): run for run, row in rows.items() if row.get("artefact")}
    found = {}
    for run, recipe in recipes.items():
        paths = [recipe["start"].get("path"), recipe["model"].get("path")]
        sources = [networks[place] for path in filter(None, paths) for place in _folders(path) if place in networks]
        if sources and sources[0] < run:
            found[run] = sources[0]
    return found


def _folders(path: str) -> Iterable[str]:
    """A path and the folder around it."""
    path = path.rstrip("/")
    return path, path.rpartition("/")[0]


def _order(rows: Iterable[int], source: dict[int, int], *, first: Container[int]) -> list[int]:
    """Parents before children, each family together; of children those of `first` before others, then by number."""
    children: dict[int | None, list[int]] = {}
    for run in sorted(rows, key=lambda run: (run not in first, run)):
        children.setdefault(source.get(run), []).append(run)
    found, waiting = [], children.get(None, [])[::-1]
    while waiting:
        run = waiting.pop()
        found.append(run)
        waiting += children.get(run, [])[::-1]
    return found

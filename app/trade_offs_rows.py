"""Every finished run of a network as a point: what it reaches, what it costs, what it needed, and where it stands to the front. No Streamlit."""

from __future__ import annotations

import hashlib
import threading
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from app import latency_rows
from app.charts.compare import front
from starfish_lab.healing import METHODS
from starfish_lab.pruning import SCORES, STARTS

if TYPE_CHECKING:
    from starfish_lab.store import Store

STAGES = ("dense", "pruned", "healed")
STANDINGS = {"front": "on the front", "unresolved": "not resolved from the front", "beaten": "beaten"}
LABELS = {"without": "Without labels", "with": "With labels"}
PATTERNS = {"unstructured": "Unstructured", "n_m": "N:M", "structured": "Structured", "kept": "As started"}
MARKS = 300  # drawn with interval and hover
SPOTS = (60, 40)  # others share a dot where they fall into the same cell of this grid


class Shelf:
    """The finished runs of one network, each read once: a finished run never changes. Sessions share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs = pd.DataFrame()
        self._tables: dict[str, tuple[set[int], pd.DataFrame]] = {}
        self._timed: dict[int, str] = {}  # what each timing on the page Latency timed, see `network`
        self._timings = pd.DataFrame({"run": []})
        self._latency: tuple[object, pd.DataFrame] = (None, pd.DataFrame())

    def runs(self, store: Store, model: str, weights: str) -> pd.DataFrame:
        """The store's rows of them, newest last, with what `needs` says of their recipes; index: the run's number."""
        with self._lock:
            ids = store.numbers(kind="experiment", status="done", model=model, weights=weights)
            known = self._runs[self._runs.index.isin(ids)] if len(self._runs) else self._runs
            if fresh := sorted(set(ids) - set(known.index)):
                rows = store.runs(ids=fresh, limit=len(fresh)).set_index("id", drop=False)
                recipes = store.recipes(fresh)
                facts = pd.DataFrame([needs(recipes[run]) | {"network": network(recipes[run])} for run in rows.index], index=rows.index)
                known = pd.concat([known, rows.join(facts)]) if len(known) else rows.join(facts)
            self._runs = known.sort_index()
            return self._runs

    def latency(self, store: Store, model: str, weights: str) -> pd.DataFrame:
        """Times of a batch, as `latency_rows.whole`, with the run that has the accuracy: its own, and what timings on the page Latency took of
        the very same network, which stand at the newest run of that network as it ended. What stands for no run is left out."""
        own = self.table(store, "latency")
        with self._lock:
            ids = store.numbers(kind="latency", status="done", model=model, weights=weights)
            if fresh := sorted(set(ids) - set(self._timed)):
                self._timed |= {run: network(recipe) for run, recipe in store.recipes(fresh).items()}
                self._timings = pd.concat([self._timings, store.table(fresh, "latency")], ignore_index=True)
            newest = dict(zip(self._runs["network"], self._runs["id"]))
            stands = {run: newest[self._timed[run]] for run in ids if self._timed[run] in newest}
            if self._latency[0] != (key := (len(own), stands)):
                there = self._timings[self._timings["run"].isin(stands)]
                there = there.assign(run=there["run"].map(stands).astype(int), elsewhere=True)
                self._latency = key, self._settled(latency_rows.whole(pd.concat([own.assign(elsewhere=False), there], ignore_index=True)))
            return self._latency[1]

    def _settled(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Timings elsewhere at the stage that ended the run; without those of tokens merged that the run's recipe does not merge."""
        runs = self._runs.reindex(rows["run"])
        last = runs["top1_healed"].notna().map({True: "healed", False: "pruned"}).to_numpy()
        rows = rows.assign(stage=rows["stage"].where(~rows["elsewhere"].astype(bool) | rows["stage"].eq("dense"), last))
        return rows[~rows["merged"] | runs["merges"].eq(True).to_numpy()]

    def table(self, store: Store, name: str) -> pd.DataFrame:
        """A report table of all of them, with the column run."""
        with self._lock:
            seen, rows = self._tables.get(name, (set(), pd.DataFrame()))
            if fresh := sorted(set(self._runs.index) - seen):
                rows = pd.concat([rows, store.table(fresh, name)], ignore_index=True)
                self._tables[name] = (seen | set(fresh), rows)
            return rows


def needs(recipe: dict) -> dict[str, object]:
    """What a recipe, as plain data, needed: labels (used or not), calibration (images), source (of all images, in words), path (of its weights),
    merges (whether tokens are merged).

    >>> from starfish_lab.recipe import Recipe
    >>> needs(Recipe().to_dict())
    {'labels': 'without', 'calibration': 64, 'source': 'starter', 'path': '', 'merges': False}
    """
    images, healing, start, pruning = (recipe.get(part, {}) for part in ("images", "healing", "start", "pruning"))
    used = (
        METHODS.constant(healing.get("method", "starfish"), "NEEDS_LABELS", False)
        or STARTS.constant(start.get("method", "dense"), "TRAINS", False)
        or (pruning.get("score") in SCORES.names() and SCORES.constant(pruning["score"], "NEEDS_GRADIENTS", False))
    )
    source = " · ".join(filter(None, (images.get("source", "starter"), images.get("path"), images.get("csv"))))
    return {
        "labels": "with" if used else "without", "calibration": images.get("calibration", 64), "source": source,
        "path": recipe.get("model", {}).get("path") or "", "merges": any(recipe.get("tokens", {}).get("r", ())),
    }  # fmt: skip


def network(recipe: dict) -> str:
    """Equal for recipes, or plans of a recipe, whose networks are the same on the same images."""
    return hashlib.sha256(latency_rows.same_network(recipe).encode()).hexdigest()[:16]


def stages(
    runs: pd.DataFrame, *, cost: str, latency: pd.DataFrame, seconds: pd.DataFrame, device: str = "", batch: int = 1, precision: str = ""
) -> pd.DataFrame:
    """Each run as it ended (healed, else pruned), and dense once: run, stage, top1, low, high, images, cost; those that have both figures.

    `cost` names one of `charts.compare.COSTS`: MACs (effective, G), parameters (other than 0, M), latency (p50 of a batch, ms, on
    `device` in `precision`, by the fastest execution, in the column execution) or healing time (s, 0 where nothing was healed). Dense is that of
    the newest run that has the cost.
    """
    found = []
    for stage in ("pruned", "healed"):
        last = runs["top1_healed"].notna() if stage == "healed" else runs["top1_healed"].isna() & runs["top1_pruned"].notna()
        found.append(_of_stage(runs[last], stage))
    found.append(_of_stage(runs[runs["top1_dense"].notna()], "dense"))
    points, named = pd.concat(found, ignore_index=True), []
    if cost in ("macs_g", "parameters_m"):
        points["cost"] = points.pop("macs" if cost == "macs_g" else "parameters")
    elif cost == "healing_s":
        heal = seconds[seconds["stage"] == "heal"].set_index("run")["seconds"] if len(seconds) else pd.Series(dtype=float)
        points["cost"] = points["run"].map(heal).where(points["stage"] == "healed", 0.0)
    else:
        asked = {"device_name": device, "batch": batch, "precision": precision}
        timed = latency[np.logical_and.reduce([latency[name].eq(value) for name, value in asked.items()])] if len(latency) else latency
        fastest = timed.sort_values("latency_ms_p50").drop_duplicates(["run", "stage"]).set_index(["run", "stage"]) if len(timed) else timed
        keys = pd.MultiIndex.from_frame(points[["run", "stage"]])
        points["cost"] = fastest["latency_ms_p50"].reindex(keys).to_numpy() if len(timed) else np.nan
        points["execution"] = fastest["execution"].reindex(keys).to_numpy() if len(timed) else ""
        named = ["execution"]
    points = points.astype({"cost": float}).dropna(subset=["cost", "top1"])[["run", "stage", "top1", "low", "high", "images", "cost", *named]]
    older = points["stage"].eq("dense") & points["run"].ne(points.loc[points["stage"].eq("dense"), "run"].max())
    return points[~older].reset_index(drop=True)


def _of_stage(runs: pd.DataFrame, stage: str) -> pd.DataFrame:
    return pd.DataFrame({
        "run": runs["id"], "stage": stage, **{name: runs[f"{name}_{stage}"] for name in ("top1", "low", "high")}, "images": runs["images"],
        "macs": runs[f"macs_g_effective_{stage}"], "parameters": runs[f"nonzero_parameters_m_{stage}"],
    })  # fmt: skip


def standing(points: pd.DataFrame) -> pd.DataFrame:
    """The points, cheapest first, with the column standing: 'front', 'unresolved' or 'beaten'.

    On the front stands what no other beats: none that costs no more is as accurate, and none as accurate costs less. Of the others a point
    is not resolved while its interval overlaps that of the most accurate point of the front that costs no more.
    """
    if points.empty:
        return points.assign(standing=pd.Series(dtype=object))
    best = front(points)
    ordered = points.sort_values(["cost", "top1"], ascending=[True, False])
    rival = np.searchsorted(best["cost"].to_numpy(), ordered["cost"].to_numpy(), side="right") - 1
    overlap = ordered["high"].to_numpy() >= best["low"].to_numpy()[rival]
    found = np.where(ordered.index.isin(best.index), "front", np.where(overlap, "unresolved", "beaten"))
    return ordered.assign(standing=found)


def finding(points: pd.DataFrame) -> str:
    """How many stand where, in a sentence.

    >>> finding(pd.DataFrame({"run": [1, 2, 3], "standing": ["front", "unresolved", "beaten"]}))
    '1 point of 3 runs stands on the front; 1 more is not resolved from it'
    """
    if points.empty:
        return "What does accuracy cost?"
    counts, runs = points["standing"].value_counts(), points["run"].nunique()
    best, close = int(counts.get("front", 0)), int(counts.get("unresolved", 0))
    said = f"{best} point{'s' if best > 1 else ''} of {runs:,} run{'s' if runs != 1 else ''} stand{'' if best > 1 else 's'} on the front"
    return f"{said}; {close:,} more {'is' if close == 1 else 'are'} not resolved from it" if close else said


def drawn(points: pd.DataFrame, chosen: int = 0, *, most: int = MARKS) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(marks, dots): at most `most` points as marks, the front, the chosen run and dense first, then what is not resolved, then the newest;
    of the others one dot for each spot of a grid."""
    order = points["standing"].map({"front": 0, "unresolved": 2, "beaten": 3}).mask(points["run"].eq(chosen) | points["stage"].eq("dense"), 1)
    ranked = points.assign(order=order).sort_values(["order", "run"], ascending=[True, False], kind="stable").drop(columns="order")
    marks, rest = ranked.head(most), ranked.iloc[most:]
    if rest.empty:
        return marks, rest
    cells = [np.floor(n * (rest[name] - rest[name].min()) / (np.ptp(rest[name]) or 1)) for name, n in zip(("cost", "top1"), SPOTS)]
    return marks, rest[~pd.concat(cells, axis=1).duplicated()]


def wanted(runs: pd.DataFrame, *, source: str, labels: str = "", patterns: tuple[str, ...] = (), most: int = 0) -> pd.DataFrame:
    """What the filters leave; '' , () and 0 filter nothing."""
    keep = runs["source"].eq(source)
    if labels:
        keep &= runs["labels"].eq(labels)
    if patterns:
        keep &= runs["pattern"].isin(patterns)
    if most:
        keep &= runs["calibration"].le(most)
    return runs[keep]


def wanted_published(rows: pd.DataFrame, *, labels: str = "", patterns: tuple[str, ...] = (), most: int = 0) -> pd.DataFrame:
    """Published rows that a filter leaves: where their source does not say what it asks for, they are left out."""
    if rows.empty:
        return rows
    pattern = rows["pattern"].fillna("").str.replace(r"^\d+:\d+$", "n_m", regex=True).str.replace(r"^structured.*", "structured", regex=True)
    free = rows["method"].str.contains("no labels") | rows["trained"].isin(["none"]) | rows["trained"].str.contains("unlabelled")
    said = rows["trained"].str.contains("labels used").map({True: "with", False: ""}).mask(free, "without")
    keep = pd.Series(most == 0, index=rows.index)
    if labels:
        keep &= said.eq(labels)
    if patterns:
        keep &= pattern.isin(patterns)
    return rows[keep]

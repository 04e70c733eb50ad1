"""Accuracy against cost: what each run gives for what it takes, and which points nothing else beats."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from app.charts import theme

COSTS = {
    "macs_g": ("MACs", "Effective multiply-adds (G MACs an image)"),
    "parameters_m": ("Parameters", "Nonzero parameters (M)"),
    "latency_ms": ("Latency", "Latency at batch 1, p50 (ms)"),
    "healing_s": ("Healing time", "Healing time (s)"),
}
# Intervals are vertical, so labels stand beside: pruned to the left, healed to the right, for they often share a cost.
_LABEL_SIDES = {
    "dense": ("middle left", "top left"),
    "pruned": ("middle left", "bottom left", "top left"),
    "healed": ("middle right", "top right", "bottom right"),
}


CROWD = 20  # runs from which on only marks on the front are named: names would stand on each other


def front(points: pd.DataFrame) -> pd.DataFrame:
    """The Pareto front: points that no other beats in cost without losing accuracy, from cheap to dear. Columns used: cost, top1."""
    ordered = points.sort_values(["cost", "top1"], ascending=[True, False])
    best_so_far = ordered["top1"].cummax().shift(fill_value=-np.inf)
    return ordered[ordered["top1"] > best_so_far]


def accuracy_against_cost(
    points: pd.DataFrame, *, cost: str, literature: pd.DataFrame | None = None, dark: bool = False, keep: object = True
) -> go.Figure:
    """Every stage of every run: accuracy with its 95 % Wilson interval against what it costs.

    `points` has the columns run, label, stage, cost, top1, low, high (fractions) and images; `literature` has label, cost,
    top1 (fraction), method and source. Published points are hollow and never on the front.
    """
    name, unit = COSTS[cost]
    points = points.dropna(subset=["cost", "top1"]) if len(points) else points
    best = front(points) if len(points) else points
    fig = theme.figure(_title(points, best), dark=dark, height=480, x=unit, y="Top-1 accuracy (%)", keep=keep)
    if len(points):
        front_line(fig, best, dark)
        _healing_lines(fig, points, dark)
    for stage in theme.STAGES:
        rows = points[points["stage"] == stage] if len(points) else points
        if len(rows):
            named = set(best.loc[best["stage"] == stage, "run"]) if points["run"].nunique() > CROWD else set(rows["run"])
            fig.add_trace(_stage_points(rows, stage, name, named, dark))
    if literature is not None and len(literature):
        fig.add_scatter(
            x=literature["cost"], y=100 * literature["top1"], mode="markers", name="literature",
            marker={"symbol": "square-open", "size": 8, "color": theme.ink(dark, quiet=True), "line": {"width": 1.5}},
            customdata=literature[["label", "method", "source"]].to_numpy(),
            hovertemplate="%{customdata[0]}: %{y:.2f} %<br>%{customdata[1]}<br>%{customdata[2]}<extra>literature</extra>",
        )  # fmt: skip
    fig.update_xaxes(rangemode="tozero")
    fig.update_layout(hovermode="closest")
    return fig


def _title(points: pd.DataFrame, best: pd.DataFrame) -> str:
    if points.empty:
        return "What does accuracy cost?"
    names = ["dense" if row.stage == "dense" else f"run {row.run} {row.stage}" for row in best.itertuples()]
    if len(names) <= 3:
        return f"Nothing chosen beats {_and(names)}"
    return f"{len(names)} of {len(points)} points lie on the front"


def _and(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def front_line(fig: go.Figure, best: pd.DataFrame, dark: bool) -> None:
    """The grey steps that join the marks no other beats; `best` has columns cost and top1, in the order of cost."""
    fig.add_scatter(
        x=best["cost"], y=100 * best["top1"], mode="lines", name="Pareto front", hoverinfo="skip",
        line={"color": theme.ink(dark, quiet=True), "width": 1.5, "shape": "hv"},
    )  # fmt: skip


def _healing_lines(fig: go.Figure, points: pd.DataFrame, dark: bool) -> None:
    """A faint line from each run's pruned point to its healed one: what healing brought."""
    x, y = [], []
    for _, rows in points[points["stage"] != "dense"].groupby("run"):
        if set(rows["stage"]) == {"pruned", "healed"}:
            ordered = rows.sort_values("stage", ascending=False)
            x += [*ordered["cost"], None]
            y += [*(100 * ordered["top1"]), None]
    if x:
        fig.add_scatter(
            x=x, y=y, mode="lines", name="healing", hoverinfo="skip", showlegend=False,
            line={"color": theme.tint(theme.stage_colour("healed", dark), 0.35), "width": 1},
        )  # fmt: skip


def _stage_points(rows: pd.DataFrame, stage: str, cost: str, named: set[int], dark: bool) -> go.Scatter:
    rows = rows.sort_values("cost")
    sides = [_LABEL_SIDES[stage][i % len(_LABEL_SIDES[stage])] for i in range(len(rows))]
    labels = [str(run) if stage != "dense" else "dense" if len(rows) == 1 else f"dense {run}" for run in rows["run"]]
    labels = [label if run in named else "" for label, run in zip(labels, rows["run"])]
    return go.Scatter(
        x=rows["cost"], y=100 * rows["top1"], mode="markers+text", name=stage, marker=theme.marker(stage, dark=dark, size=10),
        text=labels, textposition=sides, textfont={"size": 11}, cliponaxis=False,
        error_y={
            "array": 100 * (rows["high"] - rows["top1"]), "arrayminus": 100 * (rows["top1"] - rows["low"]),
            "thickness": 1.2, "width": 4, "color": theme.tint(theme.stage_colour(stage, dark), 0.7),
        },
        customdata=rows.assign(label=rows["label"].map(escape))[["label", "low", "high", "images", "run"]].to_numpy(),
        hovertemplate=f"%{{customdata[0]}}, {stage}<br>%{{y:.1f}} %, interval %{{customdata[1]:.1%}} to %{{customdata[2]:.1%}}"
        f"<br>n = %{{customdata[3]}}, {cost.lower()} %{{x:.3g}}<extra></extra>",
    )  # fmt: skip

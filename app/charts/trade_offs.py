"""Accuracy against one cost over all runs of a network: the front, what is not resolved from it, what is beaten, and published rows."""

from __future__ import annotations

from html import escape

import pandas as pd
import plotly.graph_objects as go

from app.charts import theme
from app.charts.compare import COSTS, front_line
from app.charts.latency_accuracy import wrapped

SIZES = {"front": 12, "unresolved": 9, "beaten": 7}
OPACITY = {"front": 1.0, "unresolved": 0.8, "beaten": 0.38}
UNITS = {"macs_g": "G", "parameters_m": "M", "latency_ms": "ms", "healing_s": "s"}  # of a cost, on its axis and in hover
PUBLISHED = "published "  # customdata of a published row, before its number in the literature's table


def trade_offs(
    marks: pd.DataFrame, dots: pd.DataFrame, literature: pd.DataFrame, *, title: str, cost: str, labels: dict[int, str], chosen: object = None,
    axis: str = "", dark: bool = False, keep: object = True,
) -> go.Figure:  # fmt: skip
    """Points by cost and top-1 with its 95 % Wilson interval.

    marks : run, stage, top1, low, high (fractions), images, cost, standing ('front', 'unresolved', 'beaten'); they carry their run's number
    as customdata. dots : the same, without interval or hover. literature : label, cost, top1 (fraction), method, source; hollow and never
    on the front. labels : {run: its name}. chosen : the run's number, or PUBLISHED and the row's, that is ringed. axis : in place of the cost's own.
    """
    marks, dots, literature, smaller, unit = _scaled(cost, marks, dots, literature)
    fig = theme.figure(title, dark=dark, height=500, x=axis or smaller or COSTS[cost][1], y="Top-1 accuracy (%)", keep=keep)
    if len(dots):
        fig.add_scatter(
            x=dots["cost"], y=100 * dots["top1"], mode="markers", name="other beaten runs", hoverinfo="skip",
            marker={"size": 3, "color": theme.ink(dark, quiet=True), "opacity": 0.5},
        )  # fmt: skip
    best = marks[marks["standing"] == "front"].sort_values("cost") if len(marks) else marks
    if len(best):
        front_line(fig, best, dark)
    for stage in theme.STAGES:
        for standing in ("beaten", "unresolved", "front"):
            rows = marks[(marks["stage"] == stage) & (marks["standing"] == standing)] if len(marks) else marks
            if len(rows):
                fig.add_trace(_marks(rows, stage, standing, f"{COSTS[cost][0]} %s {unit}", labels, dark, shown=standing == _first(marks, stage)))
    if len(literature):
        fig.add_trace(_published(literature, dark))
    if (ring := _ring(marks, literature, chosen)) is not None:
        fig.add_scatter(
            x=[ring[0]], y=[100 * ring[1]], mode="markers", name="chosen", hoverinfo="skip", showlegend=False, cliponaxis=False,
            marker={"symbol": "circle-open", "size": 22, "color": theme.ink(dark), "line": {"width": 2}},
        )  # fmt: skip
    fig.update_xaxes(rangemode="tozero")
    return fig.update_layout(hovermode="closest", clickmode="event+select")


def _scaled(cost: str, *tables: pd.DataFrame) -> tuple:
    """The tables with costs in the next smaller unit where all are small, the axis title then ('' where they stay), and the unit."""
    units = {"macs_g": ("Effective multiply-adds (M MACs an image)", "M"), "parameters_m": ("Nonzero parameters (k)", "k")}
    largest = max((float(table["cost"].max()) for table in tables if len(table)), default=0.0)
    if cost not in units or not 0 < largest < 0.1:
        return *tables, "", UNITS[cost]
    return *(table.assign(cost=1e3 * table["cost"]) if len(table) else table for table in tables), *units[cost]


def _first(marks: pd.DataFrame, stage: str) -> str:
    """The standing whose trace stands for its stage in the legend."""
    there = set(marks.loc[marks["stage"] == stage, "standing"])
    return next(standing for standing in SIZES if standing in there)


def _marks(rows: pd.DataFrame, stage: str, standing: str, cost: str, labels: dict[int, str], dark: bool, *, shown: bool) -> go.Scatter:
    colour = theme.stage_colour(stage, dark)
    said = {"front": "on the front", "unresolved": "not resolved from the front", "beaten": "beaten"}[standing]
    hover = [
        f"<b>{escape(labels.get(row.run, f'run {row.run}'))}</b>, {stage}<br>{100 * row.top1:.1f} %, interval {100 * row.low:.1f} to "
        f"{100 * row.high:.1f} %, n = {int(row.images)}<br>{cost % theme.number(row.cost)}, {said}"
        for row in rows.itertuples()
    ]
    return go.Scatter(
        x=rows["cost"], y=100 * rows["top1"], mode="markers", name=stage, legendgroup=stage, showlegend=shown, cliponaxis=False,
        marker={**theme.marker(stage, dark=dark, size=SIZES[standing]), "opacity": OPACITY[standing]},
        selected={"marker": {"opacity": OPACITY[standing]}}, unselected={"marker": {"opacity": OPACITY[standing]}},
        error_y={
            "array": 100 * (rows["high"] - rows["top1"]), "arrayminus": 100 * (rows["top1"] - rows["low"]),
            "thickness": 1.2 if standing == "front" else 0.8, "width": 3, "color": theme.tint(colour, 0.7 if standing != "beaten" else 0.25),
        },
        customdata=rows["run"].astype(str), hovertext=hover, hovertemplate="%{hovertext}<extra>measured</extra>",
    )  # fmt: skip


def _published(rows: pd.DataFrame, dark: bool) -> go.Scatter:
    hover = [f"{escape(row.label)}: {100 * row.top1:.2f} %<br>{escape(row.method)}<br>{wrapped(escape(row.source))}" for row in rows.itertuples()]
    quiet = theme.ink(dark, quiet=True)
    return go.Scatter(
        x=rows["cost"], y=100 * rows["top1"], mode="markers", name="literature", cliponaxis=False,
        marker={"symbol": "square-open", "size": 8, "color": quiet, "line": {"width": 1.5, "color": quiet}},
        unselected={"marker": {"opacity": 1}},
        customdata=[f"{PUBLISHED}{row}" for row in rows.index], hovertext=hover, hovertemplate="%{hovertext}<extra>literature</extra>",
    )  # fmt: skip


def _ring(marks: pd.DataFrame, literature: pd.DataFrame, chosen: object) -> tuple[float, float] | None:
    """Where the chosen point stands: of a run its last stage."""
    if isinstance(chosen, str) and chosen.startswith(PUBLISHED):
        rows = literature[literature.index.astype(str) == chosen.removeprefix(PUBLISHED)]
    else:
        rows = marks[marks["run"].astype(str).eq(str(chosen))] if len(marks) else marks
        rows = rows.sort_values("stage", key=lambda stages: stages == "dense") if len(rows) else rows
    return None if rows.empty else (float(rows["cost"].iloc[0]), float(rows["top1"].iloc[0]))

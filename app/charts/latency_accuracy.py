"""Accuracy against latency on one device, with the front that no other point beats, and published accuracies over sparsity."""

from __future__ import annotations

import textwrap

import pandas as pd
import plotly.graph_objects as go

from app.charts import theme
from app.charts.compare import front, front_line
from app.latency_rows import spoken
from app.results import count

_SYMBOLS = ("circle", "square", "diamond", "x", "triangle-up", "star", "triangle-down", "cross", "hexagram", "bowtie", "hourglass", "star-square")


def accuracy_against_latency(
    points: pd.DataFrame, literature: pd.DataFrame, *, device: str, batch: int, dark: bool = False, keep: object = True
) -> go.Figure:
    """Top-1 with its 95 % interval against the time of a batch with its own, and the Pareto front of what was measured.

    `points`: run, stage, execution, accuracy_run, top1, low, high (fractions), images, cost, cost_low, cost_high (ms a batch).
    `literature`: label, execution, cost (ms a batch), top1 (fraction), source; hollow and never on the front.
    """
    best = front(points) if len(points) else points
    fig = theme.figure(
        _title(points, best, device, batch), dark=dark, height=460, x=f"Time of a batch of {batch} (ms)", y="Top-1 accuracy (%)", keep=keep
    )
    if len(best):
        front_line(fig, best, dark)
    for stage in theme.STAGES:
        rows = points[points["stage"] == stage] if len(points) else points
        if len(rows):
            fig.add_trace(_stage(rows, stage, dark))
    if len(literature):
        fig.add_scatter(
            x=literature["cost"], y=100 * literature["top1"], mode="markers", name="literature",
            marker=theme.marker("healed", origin="literature", dark=dark, size=10),
            customdata=[(row.label, row.execution, wrapped(row.source)) for row in literature.itertuples()],
            hovertemplate="%{customdata[0]}: %{y:.2f} %, %{x:.3g} ms<br>%{customdata[1]}<br>%{customdata[2]}<extra>literature</extra>",
        )  # fmt: skip
    fig.update_xaxes(rangemode="tozero")
    return theme.legend_below(fig.update_layout(hovermode="closest"))


def _stage(rows: pd.DataFrame, stage: str, dark: bool) -> go.Scatter:
    colour = theme.tint(theme.stage_colour(stage, dark), 0.7)

    def whiskers(middle: pd.Series, low: pd.Series, high: pd.Series) -> dict[str, object]:
        return {"array": high - middle, "arrayminus": middle - low, "thickness": 1.2, "width": 4, "color": colour}

    return go.Scatter(
        x=rows["cost"], y=100 * rows["top1"], mode="markers", name=stage, marker=theme.marker(stage, dark=dark, size=10), cliponaxis=False,
        error_x=whiskers(rows["cost"], rows["cost_low"], rows["cost_high"]),
        error_y=whiskers(100 * rows["top1"], 100 * rows["low"], 100 * rows["high"]),
        customdata=[(row.run, spoken(row.execution), row.low, row.high, row.images, row.accuracy_run) for row in rows.itertuples()],
        hovertemplate=f"{stage}, %{{customdata[1]}}, timed in run %{{customdata[0]}}<br>%{{x:.3g}} ms<br>%{{y:.1f}} %, interval "
        "%{customdata[2]:.1%} to %{customdata[3]:.1%}<br>n = %{customdata[4]}, accuracy of run %{customdata[5]}<extra>measured</extra>",
    )  # fmt: skip


def _title(points: pd.DataFrame, best: pd.DataFrame, device: str, batch: int) -> str:
    if points.empty:
        return f"What does accuracy cost in time on {device}?"
    if best["stage"].eq("dense").all():
        return f"At batch {batch} nothing pruned stands on the front"
    fastest, surest = (spoken(best.iloc[end]["execution"]) for end in (0, -1))
    return f"At batch {batch} the front runs from {fastest} to {surest}" if len(best) > 1 else f"At batch {batch} nothing beats {fastest}"


def published_accuracies(rows: pd.DataFrame, *, model: str, dark: bool = False, keep: object = True) -> go.Figure:
    """Published accuracies of a network over sparsity; as a share of dense where some were published so alone.

    Columns: method, pattern, sparsity, top1 (%), of_dense (fraction), source.
    """
    shares = rows["top1"].isna().any()
    y = 100 * rows["of_dense"] if shares else rows["top1"]
    best = rows.loc[y.idxmax()]
    title = f"{model}: {count(len(rows), 'published figure')}, the highest {y.max():.2f} % at {100 * best['sparsity']:.0f} % sparsity"
    fig = theme.figure(title, dark=dark, height=440, x="Sparsity (%)", y="Of the dense accuracy (%)" if shares else "Top-1 accuracy (%)", keep=keep)
    for i, (method, part) in enumerate(rows.groupby("method", sort=False)):
        symbol = _SYMBOLS[i % len(_SYMBOLS)]
        colour = theme.ink(dark, quiet=True)
        fig.add_scatter(
            x=100 * part["sparsity"], y=y[part.index], mode="markers", name=method, cliponaxis=False,
            marker={"symbol": f"{symbol}-open", "size": 9, "color": colour, "line": {"color": colour, "width": 1.5}},
            customdata=[(method, row.pattern, wrapped(row.source)) for row in part.itertuples()],
            hovertemplate="%{customdata[0]}, %{customdata[1]}, %{x:.0f} %<br>%{y:.2f} %<br>%{customdata[2]}<extra>literature</extra>",
        )  # fmt: skip
    fig.update_xaxes(range=[0, 100])
    return theme.legend_below(fig, room=40 + 14 * rows["method"].nunique() // 2)


def wrapped(source: str) -> str:
    """A source on lines that fit beside the pointer."""
    return "<br>".join(textwrap.wrap(source, 70))

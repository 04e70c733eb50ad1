"""The roofline: how fast the device can be at best for what is asked of each byte, and how near each execution comes."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from app.charts import theme
from app.latency_rows import spoken


def roofline(points: pd.DataFrame, peaks: pd.DataFrame, *, batch: int, dark: bool = False, keep: object = True) -> go.Figure:
    """TFLOP/s over arithmetic intensity, both on log axes, under the measured roof of each precision.

    `points`: run, execution, stage, precision, tflops (measured), intensity (FLOP/byte, by the rule that each layer reads its weights and
    inputs and writes its outputs once). `peaks`: precision, tflops, gb_per_s, as measured on the device; may be empty.
    """
    fig = theme.figure(
        _title(points, peaks, batch), dark=dark, height=440, x="Arithmetic intensity (FLOP/byte)", y="Throughput (TFLOP/s)", keep=keep
    )  # fmt: skip
    least, most = (points["intensity"].min(), points["intensity"].max()) if len(points) else (10.0, 100.0)
    roofs = peaks.dropna(subset=["tflops", "gb_per_s"]).groupby("precision", sort=False)[["tflops", "gb_per_s"]].max() if len(peaks) else peaks
    knees = [1e3 * roof.tflops / roof.gb_per_s for roof in roofs.itertuples()] if len(roofs) else []
    span = np.geomspace(min([least, *knees]) / 3, max([most, *knees]) * 3, 60)
    for roof in roofs.itertuples() if len(roofs) else ():
        fig.add_trace(_roof(roof.Index, roof.tflops, roof.gb_per_s, span, dark))
    for stage in theme.STAGES:
        rows = points[points["stage"] == stage] if len(points) else points
        if len(rows):
            fig.add_trace(_points(rows, stage, roofs, dark))
    fig.update_xaxes(type="log", dtick=1)
    fig.update_yaxes(type="log", dtick=1)
    return theme.legend_below(fig)


def share(row, roofs: pd.DataFrame) -> float:
    """What a point reaches of the roof above it, a fraction; NaN where the device's peak in its precision was not measured."""
    precision = "bf16" if row.precision == "autocast" else row.precision  # its products are bf16
    if precision not in roofs.index:
        return float("nan")
    roof = roofs.loc[precision]
    return row.tflops / min(roof["tflops"], row.intensity * roof["gb_per_s"] / 1e3)


def _roof(precision: str, tflops: float, gb_per_s: float, span: np.ndarray, dark: bool) -> go.Scatter:
    height = np.minimum(tflops, span * gb_per_s / 1e3)
    return go.Scatter(
        x=span, y=height, mode="lines+text", name=f"roof, {precision}", showlegend=False,
        text=[""] * (len(span) - 1) + [f"{precision}: {theme.number(tflops)} TFLOP/s, {theme.number(gb_per_s)} GB/s"],
        textposition="top left", textfont={"size": 11, "color": theme.ink(dark, quiet=True)},
        line={"color": theme.ink(dark, quiet=True), "width": 1.5},
        hovertemplate=f"{precision}: {theme.number(tflops)} TFLOP/s, {theme.number(gb_per_s)} GB/s<extra>measured</extra>",
    )  # fmt: skip


def _points(rows: pd.DataFrame, stage: str, roofs: pd.DataFrame, dark: bool) -> go.Scatter:
    shares = [theme.percent(share(row, roofs), 0) if len(roofs) else "–" for row in rows.itertuples()]
    return go.Scatter(
        x=rows["intensity"], y=rows["tflops"], mode="markers", name=stage, marker=theme.marker(stage, dark=dark, size=10),
        customdata=[(spoken(row.execution), row.run, reached) for row, reached in zip(rows.itertuples(), shares)],
        hovertemplate="run %{customdata[1]}, %{customdata[0]}<br>%{y:.3g} TFLOP/s at %{x:.3g} FLOP/byte"
        "<br>%{customdata[2]} of the roof above it<extra>measured; intensity estimated</extra>",
    )  # fmt: skip


def _title(points: pd.DataFrame, peaks: pd.DataFrame, batch: int) -> str:
    if points.empty or peaks.empty:
        return "How near to the device's limits?"
    roofs = peaks.dropna(subset=["tflops", "gb_per_s"]).groupby("precision")[["tflops", "gb_per_s"]].max()
    known = [(share(row, roofs), row) for row in points.itertuples()]
    known = [(found, row) for found, row in known if found == found]
    if not known:
        return "How near to the device's limits?"
    best, row = max(known, key=lambda pair: pair[0])
    return f"{theme.sentence(spoken(row.execution))} reaches {theme.percent(best, 0)} of its roof at batch {batch}, the most"

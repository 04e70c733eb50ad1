"""Charts of measured speed: throughput over batch size by execution, and speed-up against what MACs alone would promise."""

from __future__ import annotations

import textwrap

import pandas as pd
import plotly.graph_objects as go

from app.charts import theme

_HOLLOW = ("circle-open", "square-open", "diamond-open", "x-open", "triangle-up-open")


def batch_sweep(measured: pd.DataFrame, literature: pd.DataFrame, *, device: str, dark: bool = False, keep: object = True) -> go.Figure:
    """Images a second over batch size, one line an execution; measured filled, literature hollow, never one line for both.

    `measured`: run, stage, execution, batch, images_per_s, images_per_s_low, images_per_s_high, dtype.
    `literature`: model, variant, execution, batch, images_per_s, source.
    """
    fig = theme.figure(_sweep_title(measured, device), dark=dark, height=440, x="Batch size (images)", y="Throughput (images/s)", keep=keep)
    batches = sorted({*(measured["batch"] if len(measured) else ()), *(literature["batch"] if len(literature) else ())})
    for (run, stage, execution), rows in measured.groupby(["run", "stage", "execution"], sort=False) if len(measured) else ():
        fig.add_trace(_measured_line(rows.sort_values("batch"), int(run), stage, execution, dark))
    for i, ((model, execution), rows) in enumerate(literature.groupby(["model", "execution"], sort=False) if len(literature) else ()):
        fig.add_trace(_literature_line(rows.sort_values("batch"), model, execution, _HOLLOW[i % len(_HOLLOW)], dark))
    fig.update_xaxes(type="log", tickmode="array", tickvals=batches, ticktext=[str(int(batch)) for batch in batches])
    fig.update_yaxes(rangemode="tozero")
    return fig


def _sweep_title(measured: pd.DataFrame, device: str) -> str:
    known = measured.dropna(subset=["speedup"]) if "speedup" in measured else measured.iloc[:0]
    known = known[known["stage"] != "dense"] if len(known) else known
    if known.empty:
        return f"How many images a second on {device}?"
    best = known.loc[known["speedup"].idxmax()]
    if best["speedup_low"] > 1:
        return f"{best['speedup']:.2f}× dense at batch {int(best['batch'])}, the best measured"
    if known["speedup_high"].max() < 1:
        return f"Slower than dense at every batch size: {known['speedup'].max():.2f}× at best"
    return "No speed-up is resolved at any batch size"


def _measured_line(rows: pd.DataFrame, run: int, stage: str, execution: str, dark: bool) -> go.Scatter:
    colour = theme.stage_colour(stage, dark)
    name = "dense" if stage == "dense" else f"{stage}, {execution}"
    return go.Scatter(
        x=rows["batch"], y=rows["images_per_s"], mode="lines+markers", name=f"{name} (run {run})", cliponaxis=False,
        marker=theme.marker(stage, dark=dark, size=10), line={"color": colour, "width": 2},
        error_y={
            "array": rows["images_per_s_high"] - rows["images_per_s"], "arrayminus": rows["images_per_s"] - rows["images_per_s_low"],
            "thickness": 1.5, "width": 5, "color": colour,
        },
        customdata=rows[["images_per_s_low", "images_per_s_high", "dtype"]].to_numpy(),
        hovertemplate=f"run {run}, {name}, %{{customdata[2]}}, batch %{{x}}<br>%{{y:,.3r}} images/s"
        "<br>interval %{customdata[0]:,.3r} to %{customdata[1]:,.3r}<extra>measured</extra>",
    )  # fmt: skip


def _literature_line(rows: pd.DataFrame, model: str, execution: str, symbol: str, dark: bool) -> go.Scatter:
    colour = theme.stage_colour("dense" if execution.startswith("dense") else "pruned", dark)
    sources = ["<br>".join(textwrap.wrap(text, 70)) for text in rows["source"]]
    return go.Scatter(
        x=rows["batch"], y=rows["images_per_s"], mode="lines+markers", name=execution, cliponaxis=False,
        marker={"symbol": symbol, "size": 10, "color": colour, "line": {"color": colour, "width": 1.5}},
        line={"color": theme.tint(colour, 0.6), "width": 1},
        customdata=[[variant, source] for variant, source in zip(rows["variant"], sources, strict=True)],
        hovertemplate=f"{model}, %{{customdata[0]}}, batch %{{x}}<br>{execution}<br>%{{y:,.4r}} images/s"
        "<br>%{customdata[1]}<extra>literature</extra>",
    )  # fmt: skip


def speedup_against_macs(points: pd.DataFrame, *, dark: bool = False, keep: object = True) -> go.Figure:
    """Measured speed-up with its 95 % interval against the ratio of MACs, and the line both would share if MACs were all.

    Columns: label, stage, execution, batch, macs_ratio (dense / this), speedup, speedup_low, speedup_high.
    """
    fig = theme.figure(_speedup_title(points), dark=dark, height=400, x="MACs: dense / this one (×)", y="Measured speed-up (×)", keep=keep)
    limit = 1.1 * max([2.0, *(points["macs_ratio"] if len(points) else ()), *(points["speedup_high"] if len(points) else ())])
    fig.add_scatter(
        x=[1, limit], y=[1, limit], mode="lines", name="if MACs were all", hoverinfo="skip",
        line={"color": theme.ink(dark, quiet=True), "width": 1.5, "dash": theme.ORIGIN_DASH["estimate"]},
    )  # fmt: skip
    for stage in theme.STAGES[1:]:
        rows = points[points["stage"] == stage] if len(points) else points
        if rows.empty:
            continue
        fig.add_scatter(
            x=rows["macs_ratio"], y=rows["speedup"], mode="markers+text", name=stage, text=rows["label"], textposition="middle right",
            textfont={"size": 11}, marker=theme.marker(stage, dark=dark, size=10), cliponaxis=False,
            error_y={
                "array": rows["speedup_high"] - rows["speedup"], "arrayminus": rows["speedup"] - rows["speedup_low"],
                "thickness": 1.5, "width": 5, "color": theme.stage_colour(stage, dark),
            },
            customdata=rows[["execution", "batch", "speedup_low", "speedup_high"]].to_numpy(),
            hovertemplate="%{text}, %{customdata[0]}, batch %{customdata[1]}<br>%{y:.3g}× for %{x:.3g}× fewer MACs"
            "<br>interval %{customdata[2]:.3g} to %{customdata[3]:.3g}<extra>measured</extra>",
        )  # fmt: skip
    fig.add_hline(y=1, line={"color": theme.ink(dark, quiet=True), "width": 1}, opacity=0.5)
    fig.update_xaxes(range=[0.9, limit])
    fig.update_yaxes(rangemode="tozero")
    return fig


def _speedup_title(points: pd.DataFrame) -> str:
    if points.empty:
        return "Do fewer MACs make it faster?"
    best = points.loc[points["speedup"].idxmax()]
    return f"{theme.number(best['macs_ratio'])}× fewer MACs gave {best['speedup']:.2f}×, the most measured"

"""Charts of measured speed: throughput over batch size by execution, and speed-up against what MACs alone would promise."""

from __future__ import annotations

import math
import textwrap

import pandas as pd
import plotly.graph_objects as go

from app.charts import theme
from app.latency_rows import best_dense, spoken, timed
from app.published import ratios

_HOLLOW = ("circle-open", "square-open", "diamond-open", "x-open", "triangle-up-open")
_LABEL = 30  # pixels that a label of two lines takes
_INSIDE = 330  # pixels that the axes are high, about


def batch_sweep(measured: pd.DataFrame, literature: pd.DataFrame, *, device: str, dark: bool = False, keep: object = True) -> go.Figure:
    """Images a second over batch size, one line an execution; measured filled, literature hollow, never one line for both.

    `measured`: rows as `latency_rows.whole` gives them. `literature`: model, variant, execution, batch, images_per_s, source.
    The broad slate line is the best dense network at each batch size, which the title compares with.
    """
    measured = timed(measured) if len(measured) else measured
    fig = theme.figure(
        sweep_title(measured, literature, device), dark=dark, height=460, x="Batch size (images)", y="Throughput (images/s)", keep=keep
    )
    batches = sorted({int(batch) for rows in (measured, literature) if len(rows) for batch in rows["batch"]})
    ends = []
    if len(measured):
        for run, rows in best_dense(measured).groupby("run", sort=False):
            fig.add_trace(_best_line(rows, int(run), dark))
        several = measured["run"].nunique() > 1
        for (run, stage, execution), rows in measured.groupby(["run", "stage", "execution"], sort=False):
            rows = rows.sort_values("batch")
            name = _name(stage, execution, measured) + (f" (run {int(run)})" if several else "")
            fig.add_trace(_measured_line(rows, int(run), stage, name, dark))
            ends.append((rows["images_per_s"].iloc[-1], name, theme.stage_colour(stage, dark)))
    for i, ((model, execution), rows) in enumerate(literature.groupby(["model", "execution"], sort=False) if len(literature) else ()):
        fig.add_trace(_literature_line(rows.sort_values("batch"), model, execution, _HOLLOW[i % len(_HOLLOW)], dark))
    fig.update_xaxes(type="log", tickmode="array", tickvals=batches, ticktext=[str(batch) for batch in batches])
    top = 1.05 * max([1.0, *measured.get("images_per_s_high", ()), *literature.get("images_per_s", ())])
    fig.update_yaxes(range=[0, top])
    _end_labels(fig, ends, batches, top)
    return theme.legend_below(fig, room=40) if len(literature) else fig


def sweep_title(measured: pd.DataFrame, literature: pd.DataFrame, device: str) -> str:
    """The finding: the largest speed-up over the best dense network that is resolved, or that there is none; else what was published."""
    known = measured.dropna(subset=["speedup_best"]) if len(measured) else measured
    known = known[known["stage"] != "dense"] if len(known) else known
    if known.empty:
        return _published_title(literature, device) if measured.empty else f"How many images a second on {device}?"
    resolved = known[known["speedup_best_low"] > 1]
    best = (resolved if len(resolved) else known).sort_values("speedup_best").iloc[-1]
    against = "dense" if best["best_dense"] in ("", "dense") else f"the best dense ({spoken(best['best_dense'])})"
    if len(resolved):
        return f"{theme.sentence(spoken(best['execution']))}: {best['speedup_best']:.2f}× {against} at batch {int(best['batch'])}"
    if known["speedup_best_high"].max() < 1:
        return f"Slower than {against} at every batch size: {best['speedup_best']:.2f}× at best"
    return "No speed-up over the best dense is resolved at any batch size"


def _published_title(literature: pd.DataFrame, device: str) -> str:
    table = ratios(literature)
    if "matched" not in table:
        return f"How many images a second on {device}?"
    best = table.loc[table["matched"].idxmax()]
    at = f"at best (batch {int(best['batch'])})"
    return f"Published for {literature['model'].iloc[0]}: 2:4 runs at {best['matched']:.2f}× dense in the same precision, {at}"


def _name(stage: str, execution: str, rows: pd.DataFrame) -> str:
    """What a line is called; with its stage where several stages were run the same way."""
    several = rows.loc[rows["execution"] == execution, "stage"].nunique() > 1 or stage == "healed"
    return f"{stage}, {spoken(execution)}" if several else spoken(execution)


def _best_line(rows: pd.DataFrame, run: int, dark: bool) -> go.Scatter:
    colour = theme.stage_colour("dense", dark)
    return go.Scatter(
        x=rows["batch"], y=rows["images_per_s"], mode="lines", name="best dense", legendgroup="best dense", showlegend=False,
        line={"color": theme.tint(colour, 0.25), "width": 9}, customdata=[spoken(label) for label in rows["execution"]],
        hovertemplate=f"run {run}, the best dense at batch %{{x}}: %{{customdata}}<br>%{{y:,.3r}} images/s<extra>measured</extra>",
    )  # fmt: skip


def _measured_line(rows: pd.DataFrame, run: int, stage: str, name: str, dark: bool) -> go.Scatter:
    colour = theme.stage_colour(stage, dark)
    return go.Scatter(
        x=rows["batch"], y=rows["images_per_s"], mode="lines+markers", name=name, showlegend=False, cliponaxis=False,
        marker=theme.marker(stage, dark=dark, size=9), line={"color": colour, "width": 1.5},
        error_y={
            "array": rows["images_per_s_high"] - rows["images_per_s"], "arrayminus": rows["images_per_s"] - rows["images_per_s_low"],
            "thickness": 1.5, "width": 5, "color": colour,
        },
        customdata=[
            (row.images_per_s_low, row.images_per_s_high, row.precision, _ratio(row), row.latency_ms_p50) for row in rows.itertuples()
        ],
        hovertemplate=f"run {run}, {name}, %{{customdata[2]}}, batch %{{x}}<br>%{{y:,.3r}} images/s"
        "<br>interval %{customdata[0]:,.3r} to %{customdata[1]:,.3r}<br>p50 %{customdata[4]:.3g} ms%{customdata[3]}<extra>measured</extra>",
    )  # fmt: skip


def _ratio(row) -> str:
    if row.stage == "dense" or row.speedup_best != row.speedup_best:
        return ""
    return f"<br>{row.speedup_best:.2f}× ({row.speedup_best_low:.2f} to {row.speedup_best_high:.2f}) the best dense"


def _end_labels(fig: go.Figure, ends: list[tuple[float, str, str]], batches: list[int], top: float) -> None:
    """Names of (height, name, colour) beside the ends of their lines, and room for them on the right; `top` is where the axis ends."""
    if not ends:
        return
    ends = sorted(ends)
    own = [_INSIDE * y / top for y, _, _ in ends]
    low, high = math.log10(min(batches)), math.log10(max(batches))
    for (y, name, colour), before, after in zip(ends, own, apart(own)):
        fig.add_annotation(
            x=high, y=y, text="<br>".join(name.split(", ", 1)), font={"size": 11, "color": colour}, showarrow=False, align="left",
            xanchor="left", xshift=12, yanchor="middle", yshift=after - before,
        )  # fmt: skip
    width = max(high - low, 0.3)
    fig.update_xaxes(range=[low - 0.04 * width, high + 0.34 * width])


def apart(heights: list[float], gap: float = _LABEL, most: float = _INSIDE) -> list[float]:
    """Rising heights moved up until they are `gap` apart, and down again where they would pass `most`.

    >>> apart([10, 20, 330], gap=30, most=330), apart([310, 320, 330], gap=30, most=330)
    ([10, 40, 330], [270, 300, 330])
    """
    found: list[float] = []
    for height in heights:
        found.append(max(height, found[-1] + gap) if found else height)
    for i in range(len(found) - 1, -1, -1):
        found[i] = min(found[i], most if i == len(found) - 1 else found[i + 1] - gap)
    return found


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

    Columns: label, stage, execution, batch, macs_ratio (dense / this), speedup, speedup_low, speedup_high (over dense run the same way).
    """
    fig = theme.figure(_speedup_title(points), dark=dark, height=400, x="MACs: dense / this one (×)", y="Measured speed-up (×)", keep=keep)
    limit = 1.1 * max([2.0, *(points["macs_ratio"] if len(points) else ()), *(points["speedup_high"].dropna() if len(points) else ())])
    fig.add_scatter(
        x=[1, limit], y=[1, limit], mode="lines", name="if MACs were all", hoverinfo="skip",
        line={"color": theme.ink(dark, quiet=True), "width": 1.5, "dash": theme.ORIGIN_DASH["estimate"]},
    )  # fmt: skip
    for stage in theme.STAGES[1:]:
        rows = points[points["stage"] == stage] if len(points) else points
        if rows.empty:
            continue
        fig.add_scatter(
            x=rows["macs_ratio"], y=rows["speedup"], mode="markers", name=stage, marker=theme.marker(stage, dark=dark, size=10), cliponaxis=False,
            error_y={
                "array": rows["speedup_high"] - rows["speedup"], "arrayminus": rows["speedup"] - rows["speedup_low"],
                "thickness": 1.5, "width": 5, "color": theme.stage_colour(stage, dark),
            },
            customdata=rows[["label", "batch", "speedup_low", "speedup_high", "run"]].to_numpy(),
            hovertemplate="run %{customdata[4]}, %{customdata[0]}, batch %{customdata[1]}<br>%{y:.3g}× for %{x:.3g}× fewer MACs"
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

"""Published accuracy against sparsity, and what was measured here beside it."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from app.charts import theme

_SYMBOLS = ("diamond-open", "square-open", "circle-open", "triangle-up-open", "x-open", "star-open", "hexagon-open", "pentagon-open")
_DASHES = ("solid", "dot", "dash", "dashdot", "longdash")


def accuracy_against_sparsity(published: pd.DataFrame, measured: pd.DataFrame, *, model: str, dark: bool = False, keep: object = True) -> go.Figure:
    """Top-1 over sparsity: published methods hollow, one line each; measured runs filled, with their 95 % interval.

    `published` are rows of `presets.presets()` of one network. `measured` has key, run, stage, sparsity, top1, low, high
    (fractions), images, differs, and may be empty. Methods that train are teal, those that do not amber.
    """
    fig = theme.figure(_title(published, measured, model), dark=dark, height=460, x="Sparsity of the prunable weights (%)", y="Top-1 (%)", keep=keep)
    for place, (method, rows) in enumerate(published.groupby("method", sort=False)):
        fig.add_trace(_method(method, rows.sort_values("sparsity"), place, dark))
    if len(published):
        for dense in published["dense_top1"].unique():
            fig.add_hline(
                y=dense, line={"color": theme.tint(theme.stage_colour("dense", dark), 0.6), "width": 1, "dash": "dot"},
                annotation={"text": f"dense, published: {dense:.2f}", "font": {"size": 11, "color": theme.ink(dark, quiet=True)}},
                annotation_position="top right",
            )  # fmt: skip
    for stage in theme.STAGES[1:]:
        rows = measured[measured["stage"] == stage] if len(measured) else measured
        if len(rows):
            fig.add_trace(_measured(rows, stage, dark))
    if (floor := lowest(published, measured)) is not None:
        top = max([published["dense_top1"].max(), published["top1"].max(), *(100 * measured["high"] if len(measured) else ())])
        fig.update_yaxes(range=[floor, float(top) + 0.5])
    return theme.legend_below(fig.update_layout(hovermode="closest"), room=40)


def lowest(published: pd.DataFrame, measured: pd.DataFrame) -> float | None:
    """Where the axis begins if methods that do not train fall far below those that do, None where all fit.

    Columns as above; in percent.
    """
    trained = published[published["family"] != "one-shot"]
    if trained.empty:
        return None
    floor = min([trained["top1"].min(), *(100 * measured["low"] if len(measured) else ())]) - 3
    return float(floor) if published["top1"].min() < floor else None


def _title(published: pd.DataFrame, measured: pd.DataFrame, model: str) -> str:
    exact = measured[measured["differs"].eq("")] if len(measured) else measured
    if exact.empty:
        return f"Nothing of {model} was measured here yet"
    wanted = published.set_index("key")["top1"]
    meets = [100 * row.low <= wanted[row.key] <= 100 * row.high for row in exact.itertuples()]
    return f"{sum(meets)} of {len(meets)} measured rows of {model} have the published figure in their interval"


def _method(method: str, rows: pd.DataFrame, place: int, dark: bool) -> go.Scatter:
    colour = theme.stage_colour("pruned" if rows["family"].iloc[0] == "one-shot" else "healed", dark)
    curve = len(rows) > 1
    return go.Scatter(
        x=100 * rows["sparsity"], y=rows["top1"], mode="lines+markers" if curve else "markers", name=method, cliponaxis=False,
        marker={"symbol": _SYMBOLS[place % len(_SYMBOLS)], "size": 8 if curve else 11, "color": colour, "line": {"color": colour, "width": 1.5}},
        line={"color": theme.tint(colour, 0.5), "width": 1, "dash": _DASHES[place % len(_DASHES)]},
        customdata=rows[["pattern", "dense_top1", "source"]].to_numpy(),
        hovertemplate=f"{method}, %{{customdata[0]}}, %{{x:.0f}} %<br>%{{y:.2f}} % of %{{customdata[1]:.2f}} % dense"
        "<br>%{customdata[2]}<extra>literature</extra>",
    )  # fmt: skip


def _measured(rows: pd.DataFrame, stage: str, dark: bool) -> go.Scatter:
    colour = theme.stage_colour(stage, dark)
    return go.Scatter(
        x=100 * rows["sparsity"], y=100 * rows["top1"], mode="markers+text", name=f"{stage}, measured here", cliponaxis=False,
        marker=theme.marker(stage, dark=dark, size=11),
        text=[f"run {run}" for run in rows["run"]], textposition="middle right", textfont={"size": 11},
        error_y={
            "array": 100 * (rows["high"] - rows["top1"]), "arrayminus": 100 * (rows["top1"] - rows["low"]),
            "thickness": 1.5, "width": 5, "color": colour,
        },
        customdata=rows[["run", "low", "high", "images", "differs"]].to_numpy(),
        hovertemplate="run %{customdata[0]}<br>%{y:.2f} %, interval %{customdata[1]:.1%} to %{customdata[2]:.1%}"
        "<br>n = %{customdata[3]}<br>%{customdata[4]}<extra>measured</extra>",
    )  # fmt: skip

"""Charts of the lessons that need a network: drift over depth by sparsity, and speed beside what was promised."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from app.charts import theme


def drift_by_sparsity(drift: pd.DataFrame, *, chosen: float, dark: bool = False) -> go.Figure:
    """Distance from dense over depth, one line a sparsity, the chosen one strong. Columns: sparsity, depth, cosine_distance."""
    now = drift[drift["sparsity"] == chosen].set_index("depth")["cosine_distance"].sort_index()
    title = f"At {theme.percent(chosen, 0)} block {now.idxmax()} is furthest from dense: {theme.number(float(now.max()))}"
    fig = theme.figure(title, dark=dark, height=400, x="Block, by depth", y="1 − cosine, mean over tokens and images", keep="drift")
    colour = theme.stage_colour("pruned", dark)
    for sparsity, rows in drift.sort_values("depth").groupby("sparsity"):
        strong = sparsity == chosen
        fig.add_scatter(
            x=rows["depth"], y=rows["cosine_distance"], mode="lines+markers", name=theme.percent(sparsity, 0), cliponaxis=False,
            marker=theme.marker("pruned", dark=dark, size=10 if strong else 6) | {"opacity": 1 if strong else 0.45},
            line={"color": colour if strong else theme.tint(colour, 0.4), "width": 3 if strong else 1.5},
            hovertemplate=f"{theme.percent(sparsity, 0)} removed, block %{{x}}<br>distance %{{y:.3g}}<extra></extra>",
        )  # fmt: skip
    fig.update_xaxes(dtick=1, showgrid=False)
    fig.update_yaxes(rangemode="tozero")
    return fig


def speedups(rows: pd.DataFrame, *, dark: bool = False) -> go.Figure:
    """How much faster than dense, a row an execution: measured here filled with its interval, published hollow.

    Columns: label, origin ('measured' or 'literature'), ratio, low, high (None where nobody gave them), source.
    """
    fig = theme.figure(_finding(rows), dark=dark, height=170 + 34 * len(rows), x="Faster than dense (×)", keep="speedups")
    colour = theme.stage_colour("pruned", dark)
    for origin, of in rows.groupby("origin", sort=False):
        fig.add_scatter(
            x=of["ratio"], y=of["label"], mode="markers+text", text=[f"{ratio:.2f}×" for ratio in of["ratio"]], textposition="top center",
            name={"measured": "measured here", "literature": "published"}[origin], cliponaxis=False,
            marker=theme.marker("pruned", origin=origin, dark=dark, size=12),
            error_x={
                "array": (of["high"] - of["ratio"]).fillna(0), "arrayminus": (of["ratio"] - of["low"]).fillna(0), "thickness": 2, "width": 6,
                "color": colour,
            } if origin == "measured" else None,
            customdata=of[["source"]].to_numpy(), hovertemplate="%{y}: %{x:.3f}×<br>%{customdata[0]}<extra></extra>",
        )  # fmt: skip
    fig.add_vline(x=1, line={"color": theme.ink(dark, quiet=True), "width": 1.5})
    fig.update_xaxes(range=[0, 1.12 * float(max(rows["ratio"].max(), rows["high"].max(), 1.5))])
    fig.update_yaxes(categoryorder="array", categoryarray=list(rows["label"])[::-1], range=[-0.6, len(rows) - 0.3], showgrid=False)
    return fig


def _finding(rows: pd.DataFrame) -> str:
    measured = rows[rows["origin"] == "measured"]
    if measured.empty:
        return "Is sparse also fast?"
    best = measured.loc[measured["ratio"].idxmax()]
    return f"{best['label']}: {best['ratio']:.2f}× measured here"

"""Drift against accuracy, a mark a run: does less drift mean more accuracy?"""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from app.charts import theme

LABELLED = 30  # runs of which each still has its number beside it


def drift_against_accuracy(
    rows: pd.DataFrame, correlation: dict[str, float | int | None], chosen: set[int], *, x: str, dark: bool = False, keep: object = True
) -> go.Figure:
    """Accuracy with its 95 % Wilson interval over drift.

    `rows` has the columns run, label, stage, drift, top1, low, high (fractions) and images; `correlation` is that of
    `measure.agreement`; `chosen` are the runs of least drift among their equals, ringed.
    """
    fig = theme.figure(_title(correlation), dark=dark, height=420, x=x, y="Top-1 accuracy (%)", keep=keep)
    for stage in theme.STAGES[1:]:
        part = rows[rows["stage"] == stage]
        if part.empty:
            continue
        fig.add_scatter(
            x=part["drift"], y=100 * part["top1"], mode="markers+text" if len(rows) <= LABELLED else "markers", name=stage,
            marker=theme.marker(stage, dark=dark), text=part["run"].astype(str), textposition="middle right",
            textfont={"size": 11}, cliponaxis=False,
            error_y={
                "array": 100 * (part["high"] - part["top1"]), "arrayminus": 100 * (part["top1"] - part["low"]),
                "thickness": 1.2, "width": 4, "color": theme.tint(theme.stage_colour(stage, dark), 0.5),
            },
            customdata=part[["label", "low", "high", "images"]].to_numpy(),
            hovertemplate=f"%{{customdata[0]}}, {stage}<br>drift %{{x:.3g}}<br>%{{y:.1f}} %, interval %{{customdata[1]:.1%}} to "
            "%{customdata[2]:.1%}<br>n = %{customdata[3]}<extra></extra>",
        )  # fmt: skip
    ringed = rows[rows["run"].isin(chosen)]
    if len(ringed):
        fig.add_scatter(
            x=ringed["drift"], y=100 * ringed["top1"], mode="markers", name="least drift of its group", hoverinfo="skip", cliponaxis=False,
            marker={"symbol": "circle-open", "size": 19, "color": theme.ink(dark), "line": {"width": 1.5}},
        )  # fmt: skip
    fig.update_xaxes(rangemode="tozero")
    fig.update_layout(hovermode="closest")
    return fig


def _title(correlation: dict[str, float | int | None]) -> str:
    rho, low, high, n = (correlation[name] for name in ("rho", "low", "high", "n"))
    if rho is None:
        return f"Not enough different runs to tell (n = {n})"
    if low <= 0 <= high:
        return f"Whether less drift means more accuracy is not resolved (n = {n})"
    return f"Less drift means {'more' if rho < 0 else 'less'} accuracy: rank correlation {rho:.2f} (n = {n})".replace("-", "−")

"""The picture of a sweep: accuracy over sparsity, a panel a pattern, a line a healer, all on one scale."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from app.charts import theme
from app.charts.bakeoff import Look, looks

ASIDE = 0.5  # percent of sparsity between the marks of two healers, so that intervals do not hide one another
MOST_PANELS = 3
GAP = 0.04  # between panels, of the chart's width


def accuracy(found: pd.DataFrame, *, title: str, dense: float | None = None, dark: bool = False, keep: object = True) -> go.Figure:
    """Top-1 accuracy over sparsity with 95 % intervals: a panel for each pattern, at most MOST_PANELS, a line for each healer.

    `found` is a summary of `app.sweep_rows.summary`: panel, healer, label, labels, steps, sparsity, top1, low, high (fractions), seeds,
    images. `dense` is the top-1 of the network before pruning.
    """
    panels, healers = list(dict.fromkeys(found["panel"]))[:MOST_PANELS], list(dict.fromkeys(found["healer"]))
    shown, styles = found[found["panel"].isin(panels)], looks(found, dark=dark)
    fig = theme.figure(title, dark=dark, height=440, keep=keep)
    top, bottom = min(100.0, 100 * max([*shown["high"], dense or 0.0]) + 3), max(0.0, 100 * shown["low"].min() - 4)  # no accuracy is above 100 %
    width = (1 + GAP) / len(panels) - GAP
    for place, panel in enumerate(panels):
        number = "" if place == 0 else str(place + 1)
        start = place * (width + GAP)
        ticks = sorted(shown.loc[shown["panel"] == panel, "sparsity"].unique())
        fig.update_layout({
            f"xaxis{number}": {
                "domain": [start, start + width], "anchor": f"y{number}", "range": [100 * ticks[0] - 3, 100 * ticks[-1] + 3], "tickmode": "array",
                "tickvals": [100 * s for s in ticks], "ticktext": [f"{100 * s:.3g}" for s in ticks],
                "title": {"text": "Sparsity of the prunable weights (%)" if len(panels) == 1 else f"Sparsity (%)<br>{panel}"},
            },
            f"yaxis{number}": {
                "anchor": f"x{number}", "range": [bottom, top],
                **({"matches": "y", "showticklabels": False} if place else {"title": {"text": "Top-1 accuracy (%)"}}),
            },
        })  # fmt: skip
        for aside, healer in enumerate(healers):
            rows = shown[(shown["panel"] == panel) & (shown["healer"] == healer)].sort_values("sparsity")
            if len(rows):
                line = _line(rows, styles[healer], ASIDE * (aside - (len(healers) - 1) / 2))
                first = not any(trace.legendgroup == healer for trace in fig.data)
                fig.add_trace(line.update(xaxis=f"x{number}", yaxis=f"y{number}", showlegend=first))
    if dense is not None:
        colour = theme.stage_colour("dense", dark)
        fig.add_shape(type="line", xref="paper", x0=0, x1=1, y0=100 * dense, y1=100 * dense, line={"color": colour, "width": 1, "dash": "dot"})
        fig.add_annotation(
            xref="paper", x=1, xanchor="right", y=100 * dense, yanchor="bottom", showarrow=False, text=f"dense {100 * dense:.1f} %",
            font={"size": 12, "color": colour},
        )  # fmt: skip
    fig = theme.legend_below(fig, room=24 if len(panels) == 1 else 42)
    return fig if len(panels) == 1 else fig.update_layout(legend_y=fig.layout.legend.y * 1.25)  # below titles of two lines


def _line(rows: pd.DataFrame, look: Look, aside: float) -> go.Scatter:
    label, healer = rows["label"].iloc[0], rows["healer"].iloc[0]
    return go.Scatter(
        x=100 * rows["sparsity"] + aside, y=100 * rows["top1"], mode="lines+markers", name=label, legendgroup=healer,
        line=look.line(), marker=look.marker(), cliponaxis=False,
        error_y={
            "array": 100 * (rows["high"] - rows["top1"]), "arrayminus": 100 * (rows["top1"] - rows["low"]), "thickness": 1.2, "width": 4,
            "color": theme.tint(look.colour, 0.7),
        },
        customdata=[[100 * row.sparsity, 100 * row.low, 100 * row.high, row.seeds, row.images] for row in rows.itertuples()],
        hovertemplate=f"{label}, %{{customdata[0]:.3g}} % sparsity<br>%{{y:.1f}} %, 95 % interval %{{customdata[1]:.1f}} to %{{customdata[2]:.1f}} %"
        "<br>seeds: %{customdata[3]}, n = %{customdata[4]}<extra>measured</extra>",
    )  # fmt: skip

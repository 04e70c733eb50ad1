"""How an n:m pattern or a solver came to its masks: what reordering kept, what solving saved, layer by layer over depth."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from app.charts import theme


def kept(rows: pd.DataFrame, *, dark: bool = False, keep: object = True) -> go.Figure:
    """Share of each layer's importance that the n:m pattern keeps: hollow in the order as it was, filled reordered.

    Columns: layer, block, depth, kept_before, kept_after, place, values_moved.
    """
    fig = theme.figure(_kept_title(rows), dark=dark, height=320, y="Importance kept (%)", keep=keep)
    places = theme.layer_axis(fig, rows, dark=dark)
    x = [places[layer] for layer in rows["layer"]]
    colour, quiet = theme.stage_colour("healed", dark), theme.ink(dark, quiet=True)
    for at, first, last in zip(x, 100 * rows["kept_before"], 100 * rows["kept_after"]):
        fig.add_scatter(x=[at, at], y=[first, last], mode="lines", line={"color": quiet, "width": 1}, showlegend=False, hoverinfo="skip")
    hover = rows.apply(_kept_hover, axis=1)
    for name, column, symbol, shade in (("as it was", "kept_before", "circle-open", quiet), ("reordered", "kept_after", "circle", colour)):
        fig.add_scatter(
            x=x, y=100 * rows[column], mode="markers", name=name, customdata=rows["layer"], hovertext=hover,
            hovertemplate="%{hovertext}<extra></extra>", marker={"color": shade, "symbol": symbol, "size": 8}, cliponaxis=False,
        )  # fmt: skip
    return fig


def saved(rows: pd.DataFrame, *, solver: str, dark: bool = False, keep: object = True) -> go.Figure:
    """By how much the solver changes each layer's outputs less than magnitude would, on the calibration images.

    Columns: layer, block, depth, cost, cost_magnitude.
    """
    less = 100 * (1 - rows["cost"] / rows["cost_magnitude"].where(rows["cost_magnitude"] > 0))
    middle = theme.number(float(less.median()))
    title = f"{solver} changes the outputs less than magnitude: {middle} % in the middle layer" if less.notna().any() else "No cost is known"
    fig = theme.figure(title, dark=dark, height=320, y="Less change than by magnitude (%)", keep=keep)
    places = theme.layer_axis(fig, rows, dark=dark)
    hover = [
        f"<b>{layer}</b><br>squared change {theme.number(cost)}, by magnitude {theme.number(magnitude)}"
        for layer, cost, magnitude in zip(rows["layer"], rows["cost"], rows["cost_magnitude"])
    ]
    fig.add_bar(
        x=[places[layer] for layer in rows["layer"]], y=less, customdata=rows["layer"], hovertext=hover, name="saved",
        hovertemplate="%{hovertext}<extra></extra>", marker={"color": theme.tint(theme.stage_colour("healed", dark), 0.75)},
    )  # fmt: skip
    return fig


def gathers(rows: pd.DataFrame) -> str:
    """What the new order costs when the network runs, in a sentence."""
    moved = rows[rows["values_moved"] > 0]
    folded = int((~rows["place"].isin(["gather", "unchanged"])).sum())
    told = f"In {folded} layer{'' if folded == 1 else 's'} an earlier layer's rows moved instead, which costs nothing." if folded else ""
    if moved.empty:
        return told or "No layer moves anything when it runs."
    who = "1 layer gathers its inputs when it runs" if len(moved) == 1 else f"{len(moved)} layers gather their inputs when they run"
    return f"{who}: {theme.count(moved['values_moved'].sum())} values an image. {told}".strip()


def _kept_title(rows: pd.DataFrame) -> str:
    weights = rows["elements"] if "elements" in rows else pd.Series(1, index=rows.index)
    before, after = ((rows[column] * weights).sum() / weights.sum() for column in ("kept_before", "kept_after"))
    if abs(after - before) < 5e-5:
        return f"Reordering keeps no more than before: {theme.percent(after)} of the importance"
    return f"Reordering keeps {theme.percent(after)} of the importance, before it {theme.percent(before)}"


def _kept_hover(row: pd.Series) -> str:
    moved = f"<br>gathers {theme.count(row['values_moved'])} values an image" if row["values_moved"] else f"<br>{row['place']}"
    return f"<b>{row['layer']}</b><br>kept {theme.percent(row['kept_before'], 2)} → {theme.percent(row['kept_after'], 2)}{moved}"

"""What a pruning choice takes from each layer, over depth."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from app.charts import theme

# What a bar can measure: (axis title, column of the whole, column of what stays or None to take the removed share).
MEASURES = {
    "weights": ("Weights of the layer", "weights"),
    "macs": ("Multiply-adds of the layer (M)", "macs_g"),
    "share": ("Weights lost (% of the layer)", None),
}


def budget(
    layers: pd.DataFrame,
    *,
    measure: str = "weights",
    selected: str = "",
    rule: str = "",
    by_hand: Mapping[str, str] | None = None,
    dark: bool = False,
) -> go.Figure:
    """Bars over depth: what goes (amber, darker for attention than for MLP) and what stays.

    `layers` is `WhatIf.layers` or a report's table 'layers'. `rule` is set where the split over layers is an estimate:
    bars are hatched then and say the rule on hover. Clicked bars carry the layer's name as customdata. Where the layers have
    a column edge_weight, the cause of a budget by MP edges, it stands on each bar as a mark, on an axis of its own at the right.
    `by_hand` ({layer: what was set}) marks the bars that do not follow the rule alone, and says so on hover.
    """
    title, whole = MEASURES[measure]
    fig = theme.figure(finding(layers), dark=dark, height=340, y=title, keep=(measure, len(layers)))
    places = theme.layer_axis(fig, layers, dark=dark)
    lost, stays = _parts(layers, measure)
    by_hand = by_hand or {}
    hover = _hover(layers, rule, by_hand)
    hatch = {"shape": "/", "fillmode": "overlay", "fgcolor": theme.paper(dark), "fgopacity": 0.4, "size": 7, "solidity": 0.2} if rule else {}
    for kind, name in theme.KIND_NAMES.items():
        mask = layers["kind"].eq(kind).to_numpy()
        if not mask.any():
            continue
        rows = layers[mask]
        colour = theme.tint(theme.stage_colour("pruned", dark), theme.KIND_OPACITY[kind])
        fig.add_bar(
            x=[places[layer] for layer in rows["layer"]], y=lost[mask], name=f"{name}, lost", customdata=rows["layer"], hovertext=hover[mask],
            hovertemplate="%{hovertext}<extra></extra>", unselected={"marker": {"opacity": 1}},
            marker={"color": colour, "pattern": hatch},
        )  # fmt: skip
    if whole is not None:
        fig.add_bar(
            x=[places[layer] for layer in layers["layer"]], y=stays, name="stays", customdata=layers["layer"], hovertext=hover,
            hovertemplate="%{hovertext}<extra></extra>", unselected={"marker": {"opacity": 1}},
            marker={"color": theme.tint(theme.stage_colour("dense", dark), 0.28)},
        )  # fmt: skip
    dense = layers[layers["note"].astype(bool)]
    if len(dense):
        fig.add_scatter(
            x=[places[layer] for layer in dense["layer"]], y=np.zeros(len(dense)), mode="markers", name="left dense", cliponaxis=False,
            marker=theme.marker("dense", dark=dark, size=8), customdata=dense["layer"], hovertext=dense["note"],
            hovertemplate="%{customdata}<br>left dense: %{hovertext}<extra></extra>",
        )  # fmt: skip
    if "edge_weight" in layers:
        _edge_weights(fig, layers, places, dark)
    if marked := [layer for layer in places if layer in by_hand]:
        _by_hand(fig, marked, places, dark)
    if measure == "share":
        fig.update_layout(yaxis_range=[0, 103])
    if selected in places:
        edge = {"color": theme.ink(dark), "width": 2}
        top = 100 if measure == "share" else (lost + stays)[layers["layer"].eq(selected).to_numpy()][0]
        fig.add_shape(type="rect", x0=places[selected] - 0.46, x1=places[selected] + 0.46, y0=0, y1=top, line=edge)
    fig.update_xaxes(fixedrange=True)
    fig.update_yaxes(fixedrange=True)
    return fig.update_layout(barmode="stack", legend_traceorder="normal")


def _edge_weights(fig: go.Figure, layers: pd.DataFrame, places: dict[str, int], dark: bool) -> None:
    """A mark of w on every bar, and a line at 1: above it a layer's edge raises its threshold, below it lowers it."""
    ink, weights = theme.ink(dark), layers["edge_weight"].to_numpy(float)
    top = 1.08 * max(1.0, weights.max())
    fig.add_scatter(
        x=[places[layer] for layer in layers["layer"]], y=weights, yaxis="y2", mode="markers", name="edge weight w", customdata=layers["layer"],
        marker={"symbol": "line-ew", "size": 11, "line": {"color": ink, "width": 2}}, cliponaxis=False,
        hovertemplate="%{customdata}<br>edge weight w = %{y:.2f}<extra></extra>",
    )  # fmt: skip
    level = {"color": theme.ink(dark, quiet=True), "width": 1, "dash": "dot"}
    fig.add_shape(type="line", xref="paper", x0=0, x1=1, yref="y2", y0=1, y1=1, line=level)
    ticks = [0.5 * i for i in range(int(2 * top) + 1)]
    fig.update_layout(
        yaxis2={
            "overlaying": "y", "side": "right", "range": [0, top], "showgrid": False, "fixedrange": True, "title": {"text": "Edge weight w"},
            "tickmode": "array", "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks],
        },
    )  # fmt: skip


def _by_hand(fig: go.Figure, marked: list[str], places: dict[str, int], dark: bool) -> None:
    """A pin under the axis of every layer that a person set."""
    ink = theme.ink(dark)
    fig.add_scatter(
        x=[places[layer] for layer in marked], y=np.zeros(len(marked)), mode="markers", name="set by hand", customdata=marked, cliponaxis=False,
        marker={"symbol": "triangle-up", "size": 11, "color": ink, "line": {"color": theme.paper(dark), "width": 1}}, hoverinfo="skip",
    )  # fmt: skip


def finding(layers: pd.DataFrame) -> str:
    """The chart's title: which block loses most, or that all lose the same."""
    touched = layers[~layers["note"].astype(bool) | (layers["removed"] > 0)]
    if touched.empty or touched["removed"].sum() == 0:
        return "Nothing is removed"
    share = touched["removed"] / touched["weights"]
    if share.max() - share.min() < 0.005:
        which = "Every layer" if len(touched) == len(layers) else "Every layer the pattern fits"
        return f"{which} loses {theme.percent(touched['removed'].sum() / touched['weights'].sum())}"
    sums = layers[layers["depth"] >= 0].groupby("depth")[["removed", "weights"]].sum()
    blocks = sums["removed"] / sums["weights"]
    if len(blocks) > 1 and blocks.max() - blocks.min() >= 0.005:
        return f"Block {blocks.idxmax()} loses most ({theme.percent(blocks.max())}), block {blocks.idxmin()} least ({theme.percent(blocks.min())})"
    kinds = layers.groupby("kind")[["removed", "weights"]].sum()
    kinds = (kinds["removed"] / kinds["weights"]).sort_values()
    first, last = (theme.KIND_NAMES[kind] for kind in (kinds.index[-1], kinds.index[0]))
    return f"{first} loses {theme.percent(kinds.iloc[-1])} in every block, {last} {theme.percent(kinds.iloc[0])}"


def _parts(layers: pd.DataFrame, measure: str) -> tuple[np.ndarray, np.ndarray]:
    """Heights of what goes and what stays."""
    weights, removed = layers["weights"].to_numpy(float), layers["removed"].to_numpy(float)
    if measure == "weights":
        return removed, weights - removed
    if measure == "macs":
        left = layers["macs_g_effective"].to_numpy(float) * 1e3
        return layers["macs_g"].to_numpy(float) * 1e3 - left, left
    return 100 * removed / weights, 100 * (1 - removed / weights)


def _hover(layers: pd.DataFrame, rule: str, by_hand: Mapping[str, str]) -> np.ndarray:
    lines = []
    for row in layers.itertuples():
        text = (
            f"<b>{row.layer}</b><br>loses {theme.count(row.removed)} of {theme.count(row.weights)} weights"
            f" ({theme.percent(row.removed / row.weights)})"
            f"<br>multiply-adds {theme.number(row.macs_g * 1e3)} → {theme.number(row.macs_g_effective * 1e3, 'M')}"
        )
        if "edge_weight" in layers:
            text += f"<br>edge weight w = {row.edge_weight:.2f}"
        if row.layer in by_hand:
            text += f"<br><b>by hand: {by_hand[row.layer]}</b>"
        lines.append(text + (f"<br>left dense: {row.note}" if row.note else "") + (f"<br><i>estimate: {rule}</i>" if rule else ""))
    return np.array(lines, dtype=object)

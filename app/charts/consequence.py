"""What a pruning choice is expected to do, over depth, on the axis of the budget: predicted drift (an estimate), and what is certain (a bound)."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from app.charts import theme

DRIFT = "Predicted drift (1 − cosine)"
BOUND = "‖Rv‖<sub>∞</sub> / ‖v‖<sub>2</sub> at most"


def drift(blocks: pd.DataFrame, layers: pd.DataFrame, *, rule: str, dark: bool = False) -> go.Figure:
    """Predicted drift after every block, hollow and dashed: an estimate by `rule`, which stands on hover.

    `blocks` and `layers` are those of a `Consequence` and of a `WhatIf`; a block stands in the middle of its layers.
    """
    fig = theme.figure(_drift_title(blocks), dark=dark, height=250, y=DRIFT, keep=len(layers))
    places = theme.layer_axis(fig, layers, dark=dark)
    middles = layers["layer"].map(places).groupby(layers["depth"]).mean()
    rows = blocks[blocks["depth"].isin(middles.index)]
    fig.add_scatter(
        x=rows["depth"].map(middles), y=rows["drift"], mode="lines+markers", name="predicted, not healed", cliponaxis=False,
        line={"color": theme.stage_colour("pruned", dark), "width": 2, "dash": theme.ORIGIN_DASH["estimate"]},
        marker=theme.marker("pruned", origin="estimate", dark=dark, size=8), customdata=rows["depth"],
        hovertemplate=f"after block %{{customdata}}<br>predicted drift %{{y:.3g}}<br><i>estimate: {_lines(rule)}</i><extra></extra>",
    )  # fmt: skip
    return _fixed(fig)


def certificate(layers: pd.DataFrame, shown: pd.DataFrame, *, selected: str = "", estimate: bool = False, dark: bool = False) -> go.Figure:
    """Over depth: by how much no output of a layer can move more, a unit of its input's norm. Where the split is an `estimate`, hollow and dashed.

    `layers` are those of a `Consequence`, `shown` those of its `WhatIf`, row by row. Marks carry the layer's name as customdata.
    """
    rows = shown[["layer", "block", "depth", "kind"]].assign(change_bound=layers["change_bound"], energy=layers["energy"])
    fig = theme.figure(_bound_title(rows, estimate), dark=dark, height=250, y=BOUND, keep=len(rows))
    places = theme.layer_axis(fig, rows, dark=dark)
    origin = "estimate" if estimate else "measured"  # a bound is as firm as a measurement, and as filled
    for kind, name in theme.KIND_NAMES.items():
        of_kind = rows[rows["kind"] == kind]
        if of_kind.empty:
            continue
        colour = theme.tint(theme.stage_colour("pruned", dark), theme.KIND_OPACITY[kind])
        marker = theme.marker("pruned", origin=origin, dark=dark, size=8) | {"color": colour, "line": {"color": colour, "width": 1.5}}
        fig.add_scatter(
            x=of_kind["layer"].map(places), y=of_kind["change_bound"], mode="markers", name=name, marker=marker, cliponaxis=False,
            customdata=of_kind[["layer", "energy"]].to_numpy(),
            hovertemplate="<b>%{customdata[0]}</b><br>‖Rv‖<sub>∞</sub> ≤ %{y:.3g} · ‖v‖<sub>2</sub><br>"
            "%{customdata[1]:.1%} of ‖W‖² goes<extra></extra>",
        )  # fmt: skip
    if selected in places:
        place = {"x0": places[selected], "x1": places[selected], "yref": "paper", "y0": 0, "y1": 1}
        fig.add_shape(type="line", **place, line={"color": theme.ink(dark, quiet=True), "width": 1, "dash": "dot"})
    return _fixed(fig)


def _fixed(fig: go.Figure) -> go.Figure:
    """No zoom, so that the axes of linked charts stay alike; 0 is always in view."""
    fig.update_xaxes(fixedrange=True)
    return fig.update_yaxes(fixedrange=True, rangemode="tozero")


def _drift_title(blocks: pd.DataFrame) -> str:
    """The finding: where the network is expected to leave its course fastest."""
    steps = blocks["drift"].diff().fillna(blocks["drift"])
    if blocks.empty or blocks["drift"].iloc[-1] <= 0:
        return "No drift is expected"
    return f"Block {blocks['depth'][steps.idxmax()]} is expected to add most drift"


def _bound_title(rows: pd.DataFrame, estimate: bool) -> str:
    known = rows.dropna(subset=["change_bound"])
    if known.empty or known["change_bound"].max() == 0:
        return "No output can change"
    most = known.loc[known["change_bound"].idxmax()]
    which = f"{theme.role(most['layer'])}, block {most['depth']}" if most["depth"] >= 0 else most["layer"]
    return f"{'Estimate' if estimate else 'Bound'}: outputs move by {theme.number(most['change_bound'])} at most ({which})"


def _lines(text: str) -> str:
    """A long sentence as hover shows it: broken at its commas."""
    return text.replace(", ", ",<br>").replace("; ", ";<br>")

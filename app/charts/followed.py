"""The spectrum of one layer followed through healing: dense, pruned and at a step, over the same bins."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from app.charts import theme
from app.charts.spectra import name


def layers(followed: pd.DataFrame) -> list[str]:
    """The layers followed, in depth order."""
    return list(dict.fromkeys(followed["layer"]))


def most_changed(followed: pd.DataFrame) -> str:
    """The layer whose spectrum pruning moved most."""
    ends = followed[followed["stage"] != "healing"].pivot(index="layer", columns="stage", values="counts")
    return max(layers(followed), key=lambda layer: moved(*ends.loc[layer, ["dense", "pruned"]]))


def moved(before: list[int], after: list[int]) -> float:
    """Share of the eigenvalues in other bins than before: half the sum of differences, 0 to 1.

    >>> moved([4, 0, 0], [1, 3, 0])
    0.75
    """
    if not before or not after:
        return 0.0
    return float(np.abs(np.array(after) - np.array(before)).sum() / 2 / sum(before))


def spectrum(followed: pd.DataFrame, layer: str, *, step: int, dark: bool = False, keep: object = True) -> go.Figure:
    """Dense as bars, pruned and the step as outlines; their bulk edges σ₊ as dotted lines. The axes are the same for every step.

    `followed` is the report's table 'healing_spectra'.
    """
    rows = followed[followed["layer"] == layer]
    ends = {stage: rows[rows["stage"] == stage].iloc[0] for stage in ("dense", "pruned")}
    now = rows[rows["step"] == step].iloc[0]
    dense, title = ends["dense"], _title({**ends, "now": now}, step)
    fig = theme.figure(title, dark=dark, height=360, x="Eigenvalue λ = s²/n (log scale)", y="Eigenvalues a bin", keep=keep)
    edges = np.geomspace(dense["low"], dense["high"], len(dense["counts"]) + 1) if dense["counts"] else np.zeros(0)
    if not len(edges):
        return fig
    slate = theme.stage_colour("dense", dark)
    fig.add_bar(
        x=(edges[1:] + edges[:-1]) / 2, width=np.diff(edges), y=dense["counts"], name="dense", marker={"color": theme.tint(slate, 0.45)},
        customdata=np.column_stack([edges[:-1], edges[1:]]),
        hovertemplate="λ %{customdata[0]:.3g} to %{customdata[1]:.3g}<br>%{y:.0f} dense eigenvalues<extra></extra>",
    )  # fmt: skip
    for row, stage, called, dash in ((now, "healed", f"step {step}", "solid"), (ends["pruned"], "pruned", "pruned", "dash")):
        if row["counts"]:
            fig.add_scatter(
                x=np.repeat(edges, 2)[1:-1], y=np.repeat(np.array(row["counts"], float), 2), mode="lines", name=called, hoverinfo="skip",
                line={"color": theme.stage_colour(stage, dark), "width": 2, "dash": dash},
            )  # fmt: skip
    for row, stage in ((dense, "dense"), (ends["pruned"], "pruned"), (now, "healed")):
        if row["sigma_plus"]:
            fig.add_vline(
                x=row["sigma_plus"] ** 2 / max(row["rows"], row["cols"]),
                line={"color": theme.stage_colour(stage, dark), "width": 1.4, "dash": "dot"},
            )
    fig.update_xaxes(type="log", range=[math.log10(edges[0]), math.log10(edges[-1])], exponentformat="power", dtick=1)
    fig.update_yaxes(range=[0, 1.06 * max(max(counts) for counts in rows["counts"] if counts)])
    return fig.update_layout(bargap=0)


def _title(found: dict[str, pd.Series], step: int) -> str:
    """How far the spectrum has come back."""
    of = {stage: theme.percent(moved(found["dense"]["counts"], row["counts"]), 0) for stage, row in found.items()}
    return f"{name(found['dense'].to_dict() | {'part': ''})}: pruning moved {of['pruned']} of the eigenvalues, at step {step} it is {of['now']}"

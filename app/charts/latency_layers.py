"""Where the time went: layer by layer, dense beside fast, and the fall from one to the other."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from app.charts import theme
from app.latency_rows import layers, spoken

KINDS = ("linear", "conv", "attention", "norm", "other")


def paired(dense: pd.DataFrame, fast: pd.DataFrame) -> pd.DataFrame:
    """Layer times of two executions beside each other, in the dense one's order: layer, kind, block, depth, dense, fast, saved (ms).

    A layer that only one of them has took no time in the other.
    """
    order = list(dict.fromkeys([*dense["layer"], *fast["layer"]]))
    both = pd.DataFrame({
        "layer": order,
        "kind": pd.concat([dense, fast]).drop_duplicates("layer").set_index("layer")["kind"].reindex(order).to_numpy(),
        **{name: rows.groupby("layer")["ms"].sum().reindex(order, fill_value=0.0).to_numpy() for name, rows in (("dense", dense), ("fast", fast))},
    })  # fmt: skip
    return layers(both.assign(saved=both["dense"] - both["fast"]))


def waterfall(pairs: pd.DataFrame, *, dense: str, fast: str, stage: str = "pruned", dark: bool = False, keep: object = True) -> go.Figure:
    """From the time of all layers of `dense` to that of `fast`, a step a layer in depth order: what it saved, or took more.

    `pairs` as `paired` gives them; `dense` and `fast` are the executions' labels.
    """
    total, left = pairs["dense"].sum(), pairs["fast"].sum()
    fig = theme.figure(waterfall_title(pairs), dark=dark, height=400, y="Time of a batch (ms)", keep=keep)
    place = theme.layer_axis(fig, pairs, dark=dark)
    x = pairs["layer"].map(place)
    before = total - pairs["saved"].cumsum().shift(fill_value=0.0)
    after = before - pairs["saved"]
    last = len(place)
    for name, part, at, colour in (("dense", total, -1, "dense"), ("fast", left, last, stage)):
        said = spoken(dense if name == "dense" else fast)
        fig.add_bar(
            x=[at], y=[part], name=said, width=0.9, marker_color=theme.stage_colour(colour, dark),
            hovertemplate=f"{said}<br>%{{y:.3g}} ms in all layers<extra>measured</extra>",
        )  # fmt: skip
    for name, rows, colour in (
        ("saved", pairs["saved"] >= 0, theme.tint(theme.stage_colour(stage, dark), 0.55)),
        ("took more", pairs["saved"] < 0, theme.ink(dark, quiet=True)),
    ):
        if rows.any():
            fig.add_bar(
                x=x[rows], base=pd.concat([before, after], axis=1).min(axis=1)[rows], y=pairs.loc[rows, "saved"].abs(), name=name,
                marker_color=colour,
                customdata=pairs.loc[rows, ["layer", "dense", "fast", "kind"]].to_numpy(),
                hovertemplate=f"%{{customdata[0]}} ({name})<br>%{{customdata[1]:.3g}} → %{{customdata[2]:.3g}} ms, %{{customdata[3]}}"
                "<extra>measured</extra>",
            )  # fmt: skip
    fig.update_layout(barmode="overlay", xaxis={"range": [-1.8, last + 0.8]})
    return theme.legend_below(fig)


def waterfall_title(pairs: pd.DataFrame) -> str:
    """Which kind of layer saved most of the time."""
    saved = pairs["dense"].sum() - pairs["fast"].sum()
    if saved <= 0:
        return f"All layers together take {theme.number(-saved, 'ms')} more" if saved < 0 else "No layer's time went anywhere"
    by_kind = pairs.groupby("kind")["saved"].sum()
    kind = {"linear": "linear layers", "conv": "convolutions", "norm": "norms", "other": "what is beside layers"}.get(
        by_kind.idxmax(), by_kind.idxmax()
    )
    share = by_kind.max() / saved
    if share > 1:
        return f"{theme.sentence(kind)} saved {theme.number(by_kind.max(), 'ms')}, others took {theme.number(by_kind.max() - saved, 'ms')} of it back"
    return f"{theme.number(saved, 'ms')} less, {theme.percent(share, 0)} of it in {kind}"


def side_by_side(pairs: pd.DataFrame, *, dense: str, fast: str, stage: str = "pruned", dark: bool = False, keep: object = True) -> go.Figure:
    """Time of each layer, dense beside fast, on the axis that all per-layer charts share. `pairs` as `paired` gives them."""
    most = pairs.loc[pairs["fast"].idxmax()] if len(pairs) else None
    title = f"The longest is now {most['layer']}, {theme.number(most['fast'], 'ms')}" if most is not None else "Which layer takes how long?"
    fig = theme.figure(title, dark=dark, height=320, y="Time of a batch (ms)", keep=keep)
    x = pairs["layer"].map(theme.layer_axis(fig, pairs, dark=dark))
    for column, label, colour in (("dense", dense, "dense"), ("fast", fast, stage)):
        fig.add_bar(
            x=x, y=pairs[column], name=spoken(label), marker_color=theme.stage_colour(colour, dark), customdata=pairs[["layer", "kind"]].to_numpy(),
            hovertemplate=f"%{{customdata[0]}}, %{{customdata[1]}}<br>{spoken(label)}: %{{y:.3g}} ms<extra>measured</extra>",
        )  # fmt: skip
    return theme.legend_below(fig)

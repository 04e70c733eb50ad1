"""Charts of one healing: the loss, how far each block is from its dense twin, and what it brought back."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from app.charts import theme


def loss_curve(losses: pd.DataFrame, *, dark: bool = False, keep: object = True) -> go.Figure:
    """Healing loss over optimiser steps, log scale. Columns: step, loss. Zero and negative losses cannot be drawn there and are left out."""
    shown = losses[losses["loss"] > 0].sort_values("step") if len(losses) else losses
    fig = theme.figure(_loss_title(shown), dark=dark, height=340, x="Healing step", y="Loss, log scale", keep=keep)
    if shown.empty:
        return fig
    colour = theme.stage_colour("healed", dark)
    fig.add_scatter(
        x=shown["step"], y=shown["loss"], mode="lines", line={"color": colour, "width": 2}, name="loss", showlegend=False,
        hovertemplate="step %{x}<br>loss %{y:.3g}<extra></extra>",
    )  # fmt: skip
    last = shown.iloc[-1]
    fig.add_scatter(
        x=[last["step"]], y=[last["loss"]], mode="markers+text", text=[theme.number(last["loss"])], textposition="top center",
        marker=theme.marker("healed", dark=dark), name="now", showlegend=False, hoverinfo="skip", cliponaxis=False,
    )  # fmt: skip
    fig.update_layout(margin_t=48)
    fig.update_yaxes(type="log", exponentformat="power")
    return fig


def _loss_title(losses: pd.DataFrame) -> str:
    if losses.empty:
        return "Does the loss fall?"
    first, last, step = losses["loss"].iloc[0], losses["loss"].iloc[-1], int(losses["step"].iloc[-1])
    if len(losses) > 1 and last < first:
        return f"The loss is {theme.number(first / last)}× smaller after {step} steps"
    return f"Loss after {step} steps: {theme.number(last)}"


def block_losses(losses: pd.DataFrame, *, dark: bool = False, keep: object = True) -> go.Figure:
    """Loss of each block (left to right by depth) at each recorded healing step (upwards). Columns: step, depth, loss."""
    fig = theme.figure("Which block is furthest from dense?", dark=dark, height=340, x="Block, by depth", y="Healing step", keep=keep)
    if losses.empty:
        return fig
    grid = losses.pivot_table(index="step", columns="depth", values="loss")
    worst = grid.iloc[-1]
    fig.update_layout(title_text=f"Block {worst.idxmax()} is furthest from dense: {theme.number(worst.max())} at step {grid.index[-1]}")
    fig.add_heatmap(
        x=[str(depth) for depth in grid.columns], y=grid.index, z=grid.to_numpy(), name="blocks",
        zmin=0, zmax=float(losses["loss"].max()), colorscale=theme.sequential(dark),
        colorbar={"title": {"text": "Block loss", "side": "right", "font": {"size": 12}}, "thickness": 12, "outlinewidth": 0},
        hovertemplate="block %{x}, step %{y}<br>loss %{z:.3g}<extra></extra>",
    )  # fmt: skip
    fig.update_layout(margin_t=48)
    fig.update_xaxes(type="category", showgrid=False)
    fig.update_yaxes(showgrid=False)
    return fig


def accuracy_by_stage(accuracy: pd.DataFrame, *, dark: bool = False, keep: object = True) -> go.Figure:
    """Top-1 accuracy of dense, pruned and healed, a dot and its 95 % Wilson interval each. Columns: stage, top1, low, high, images."""
    stages = [stage for stage in theme.STAGES if stage in set(accuracy["stage"])] if len(accuracy) else []
    fig = theme.figure(_accuracy_title(accuracy), dark=dark, height=260, x=f"Top-1 accuracy (%){_sample(accuracy)}", keep=keep)
    rows = accuracy.set_index("stage") if stages else accuracy
    for stage in stages:
        row = rows.loc[stage]
        top1, low, high = (100 * row[name] for name in ("top1", "low", "high"))
        fig.add_scatter(
            x=[top1], y=[stage.capitalize()], mode="markers+text", text=[f"{top1:.1f} %"], textposition="top center", name=stage, showlegend=False,
            marker=theme.marker(stage, dark=dark, size=13), cliponaxis=False,
            error_x={"array": [high - top1], "arrayminus": [top1 - low], "thickness": 2, "width": 7, "color": theme.stage_colour(stage, dark)},
            hovertemplate=f"{stage}: {top1:.1f} %<br>95 % interval {low:.1f} to {high:.1f} %<br>n = {int(row['images'])}<extra></extra>",
        )  # fmt: skip
    upwards = [stage.capitalize() for stage in reversed(stages)]
    fig.update_yaxes(categoryorder="array", categoryarray=upwards, showgrid=False, range=[-0.6, len(stages) - 0.3])
    fig.update_layout(margin_t=48)
    return fig


def _sample(accuracy: pd.DataFrame) -> str:
    return f", n = {int(accuracy['images'].iloc[0])}" if len(accuracy) else ""


def _accuracy_title(accuracy: pd.DataFrame) -> str:
    top1 = accuracy.set_index("stage")["top1"] if len(accuracy) else pd.Series(dtype=float)
    if {"dense", "healed"} <= set(top1.index) and top1["dense"] > 0:
        return f"Healed has {100 * top1['healed'] / top1['dense']:.1f} % of the dense accuracy"
    if {"dense", "pruned"} <= set(top1.index):
        return f"Pruning costs {100 * (top1['dense'] - top1['pruned']):.1f} pp"
    return "What is lost, what comes back?"

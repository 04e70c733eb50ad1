"""Prune–restore cycles before pruning: what each phase of training found and left."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from app.charts import theme

TRAINING = {"select": "selection", "tune": "training"}  # phases that train, in a cycle's order


def cycles(rows: pd.DataFrame, *, dark: bool = False, keep: object = True) -> go.Figure:
    """Training loss over the sparsity that the cycles reached: hollow where a phase began, filled where it ended.

    Columns of the report's table 'cycles': cycle, sparsity, phase, loss_first, loss_last, steps, weights_removed, restored.
    """
    trained = rows[rows["loss_last"].notna()] if "loss_last" in rows else rows.iloc[:0]
    fig = theme.figure(_title(rows, trained), dark=dark, height=340, x="Prunable weights removed (%)", y="Training loss", keep=keep)
    shades = {"select": theme.stage_colour("dense", dark), "tune": theme.stage_colour("pruned", dark)}
    for phase in dict.fromkeys(trained["phase"]) if len(trained) else ():
        shown = trained[trained["phase"] == phase]
        colour, name = shades.get(phase, theme.ink(dark)), TRAINING.get(phase, str(phase))
        at = 100 * shown["sparsity"]
        hover = shown.apply(_hover, axis=1)
        for _, row in shown.iterrows():  # what a phase of training brought down
            x = 100 * row["sparsity"]
            fig.add_scatter(
                x=[x, x], y=[row["loss_first"], row["loss_last"]], mode="lines", line={"color": theme.tint(colour, 0.5), "width": 1.5},
                showlegend=False, hoverinfo="skip",
            )  # fmt: skip
        fig.add_scatter(
            x=at, y=shown["loss_first"], mode="markers", name=f"{name} begins", hovertext=hover, hovertemplate="%{hovertext}<extra></extra>",
            marker={"color": colour, "symbol": "circle-open", "size": 8},
        )  # fmt: skip
        fig.add_scatter(
            x=at, y=shown["loss_last"], mode="lines+markers", name=f"{name} ends", hovertext=hover, hovertemplate="%{hovertext}<extra></extra>",
            marker={"color": colour, "symbol": "circle", "size": 8}, line={"color": colour, "width": 2},
        )  # fmt: skip
    fig.update_yaxes(rangemode="tozero")
    losses = trained[["loss_first", "loss_last"]].stack() if len(trained) else pd.Series(dtype=float)
    if len(losses) and 0 < losses.min() < losses.max() / 50:  # selection and training have losses of their own
        fig.update_yaxes(type="log", title_text="Training loss, log scale", dtick=1)
    return fig


def _title(rows: pd.DataFrame, trained: pd.DataFrame) -> str:
    if rows.empty:
        return "No cycle has run"
    reached, count = rows["sparsity"].iloc[-1], rows["cycle"].nunique()
    words = f"{count} cycles reach {theme.percent(reached)}" if count > 1 else f"1 cycle reaches {theme.percent(reached)}"
    ends = trained.groupby("cycle", sort=False)["loss_last"].last()
    return f"{words}; the loss goes from {theme.number(ends.iloc[0])} to {theme.number(ends.iloc[-1])}" if len(ends) > 1 else words


def _hover(row: pd.Series) -> str:
    gone = f"<br>{theme.count(row['weights_removed'])} weights removed" if row["weights_removed"] else ""
    back = f"<br>{theme.count(row['restored'])} restored" if row["restored"] else ""
    return (
        f"<b>cycle {row['cycle']}, {TRAINING.get(row['phase'], row['phase'])}</b>{gone}{back}"
        f"<br>{theme.count(row['steps'])} steps<br>loss {theme.number(row['loss_first'])} → {theme.number(row['loss_last'])}"
    )

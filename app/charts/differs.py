"""What one changed thing does: a group of bars for each value of the field that alone differs."""

from __future__ import annotations

from html import escape

import pandas as pd
import plotly.graph_objects as go

from app.charts import compare, theme

MEASURES = {"top1": ("Accuracy", "Top-1 accuracy (%)"), **compare.COSTS}


def by_value(
    figures: pd.DataFrame, values: dict[int, str], *, field: str, others: tuple[str, ...] = (), measure: str = "top1", dark: bool = False,
    keep: object = True,
) -> go.Figure:  # fmt: skip
    """Bars of `measure` for dense, pruned and healed, grouped by the value that each run has of `field`; numbers rise from left to right.

    `figures` has the columns of `starfish_lab.evidence.stages`. `others` are fields that change with the first. Accuracies have their 95 %
    Wilson interval. Runs of one value (the same recipe twice) stand side by side.
    """
    rows, values = figures.dropna(subset=[measure]), {run: escape(value, quote=False) for run, value in values.items()}
    runs = sorted((run for run in values if run in set(rows["run"])), key=lambda run: (*_rank(values[run]), run))
    repeated = pd.Series([values[run] for run in runs], dtype=object).duplicated(keep=False)
    names = {run: f"{values[run]}<br>run {run}" if twice else values[run] for run, twice in zip(runs, repeated)}
    fig = theme.figure(_title(rows, values, field, measure), dark=dark, height=360, x=_axis(field, others), y=MEASURES[measure][1], keep=keep)
    for stage in theme.STAGES:
        of_stage = rows[rows["stage"] == stage].set_index("run").reindex(runs)
        if of_stage[measure].notna().any():
            fig.add_trace(_bars(of_stage, names, stage, measure, dark))
    fig.update_layout(barmode="group", bargap=0.3, bargroupgap=0.08)
    fig.update_xaxes(type="category", categoryorder="array", categoryarray=list(names.values()), showgrid=False)
    return fig


def _axis(field: str, others: tuple[str, ...]) -> str:
    if not others:
        return field
    return f"{field}, and with it {others[0] if len(others) == 1 else f'{len(others)} other fields'}"


def _bars(rows: pd.DataFrame, names: dict[int, str], stage: str, measure: str, dark: bool) -> go.Bar:
    scale, unit = (100, " %") if measure == "top1" else (1, "")
    interval = {
        "array": 100 * (rows["high"] - rows["top1"]), "arrayminus": 100 * (rows["top1"] - rows["low"]), "thickness": 1.2, "width": 4,
        "color": theme.ink(dark),
    } if measure == "top1" else None  # fmt: skip
    return go.Bar(
        x=[names[run] for run in rows.index], y=scale * rows[measure], name=stage, marker={"color": theme.stage_colour(stage, dark)},
        error_y=interval, customdata=[[run] for run in rows.index],
        hovertemplate=f"run %{{customdata[0]}}, {stage}<br>%{{y:.4g}}{unit}<extra></extra>",
    )  # fmt: skip


def _title(rows: pd.DataFrame, values: dict[int, str], field: str, measure: str) -> str:
    """The finding of accuracies: which value does best, and whether these images tell it from the next."""
    name = field.rpartition(".")[2].replace("_", " ")
    final = rows[rows["stage"] != "dense"].drop_duplicates("run", keep="last").sort_values("top1", ascending=False)
    if measure != "top1" or len(final) < 2:
        return f"{MEASURES[measure][0]} by {name}"
    best, second = final.iloc[0], final.iloc[1]
    if second["high"] >= best["low"]:
        return f"{theme.sentence(name)} {values[best['run']]} and {values[second['run']]} are not resolved (n = {best['images']:.0f})"
    return f"{theme.sentence(name)} {values[best['run']]} keeps most: {theme.percent(best['top1'])}"


def _rank(value: str) -> tuple[int, float, str]:
    """Numbers before words, each in their order."""
    try:
        return 0, float(value), ""
    except ValueError:
        return 1, 0.0, value

"""Drift explained: which blocks healed, at any step that was looked at, and how drift and accuracy came back step by step."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from app import frame, state
from app.charts import drift, healing_drift
from starfish_lab.report import Report
from starfish_lab.store import Run

CAPTIONS = {
    "step": "Bars are the network at the chosen step, lines the pruned and the healed one, all on images that neither heal nor evaluate. "
    "The axis stays as it is for every step. Little drift is no promise of accuracy.",
    "steps": "Each row is a step that was looked at, from the pruned network upwards, the chosen one outlined; the background's colour is no drift. "
    "Steps lie further apart the later they are.",
    "accuracy": "A mark is the share of the first evaluation images answered right, its line the 95 % Wilson interval, the ring the chosen step. "
    "Neighbouring steps are not equally far apart.",
    "same": " Dense and pruned are lines, on the same images.",
    "all": " The plain line is dense on all of them.",
}


def there(report: Report) -> bool:
    """Whether a healing was looked at, so that it can be explained."""
    return "healing_drift" in report.tables and "healed" in set(report.frame("drift").get("stage", ()))


def at_step(run: Run, report: Report, step: int) -> None:
    """Drift over depth before, at the chosen step, and after."""
    seen, metric = report.frame("healing_drift"), _metric()
    fig = healing_drift.at_step(report.frame("drift"), seen, step=step, metric=metric, dark=frame.dark(), keep=f"{run.id} {metric}")
    frame.chart(fig, key=f"run_{run.id}_blocks_at_step", caption=CAPTIONS["step"], data=seen)


def over_steps(run: Run, report: Report, step: int) -> None:
    """Drift of every block at every step."""
    metric, seen = _metric(), report.frame("healing_drift")
    keep = f"{run.id} {metric}"
    fig = healing_drift.over_steps(report.frame("drift"), seen, step=step, metric=metric, dark=frame.dark(), keep=keep)
    frame.chart(fig, key=f"run_{run.id}_drift_steps", caption=CAPTIONS["steps"], data=seen, controls=_choose_metric)


def accuracy(run: Run, report: Report, step: int) -> None:
    """Accuracy at every step; nothing without labels."""
    looks = report.frame("healing_accuracy")
    if len(looks):
        fig = healing_drift.accuracy(looks, _dense(report), step=step, dark=frame.dark(), keep=run.id)
        of_dense = CAPTIONS["same" if "top1_dense" in looks else "all"]
        frame.chart(fig, key=f"run_{run.id}_accuracy_steps", caption=CAPTIONS["accuracy"] + of_dense, data=looks)


def figures(report: Report) -> list[go.Figure]:
    """The charts of all steps on white, for the run's page of charts."""
    if not there(report):
        return []
    looks = report.frame("healing_accuracy")
    found = [healing_drift.over_steps(report.frame("drift"), report.frame("healing_drift"))]
    return [*found, healing_drift.accuracy(looks, _dense(report))] if len(looks) else found


def live(events: pd.DataFrame) -> str:
    """The last look at a network that still heals, in a sentence; '' before the first. Columns of `events`: name, step, value."""
    blocks = events[events["name"].str.fullmatch(r"drift\.\d+")]
    if blocks.empty:
        return ""
    step = blocks["step"].max()
    last = blocks[blocks["step"] == step].set_index("name")["value"]
    said = f"After step {step} block {last.idxmax().removeprefix('drift.')} drifts most, by {last.max():.3g} (cosine distance on the drift images)"
    top1 = events[(events["name"] == "top1") & (events["step"] == step)]["value"]
    return f"{said}, and {100 * top1.iloc[-1]:.1f} % of the first evaluation images are right." if len(top1) else f"{said}."


def _metric() -> str:
    return state.get("drift_as", next(iter(drift.METRICS)), allowed=list(drift.METRICS))


def _choose_metric() -> None:
    names = list(drift.METRICS)
    tied = state.tie_value("drift_as", names[0], allowed=names)
    st.segmented_control("Drift as", names, format_func=lambda name: drift.METRICS[name][0], required=True, **tied)


def _dense(report: Report) -> float | None:
    accuracy = report.frame("accuracy")
    found = accuracy[accuracy["stage"] == "dense"]["top1"] if len(accuracy) else ()
    return float(found.iloc[0]) if len(found) else None

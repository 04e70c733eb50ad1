"""Drift explained: which blocks healed, at any step that was looked at, and how drift and accuracy came back step by step."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from app import frame, results, state
from app.charts import drift, healing_drift
from starfish_lab.report import Report
from starfish_lab.store import Run

CAPTIONS = {
    "step": "Bars are the network at the chosen step, lines the pruned and the healed one, all on images that neither heal nor evaluate. "
    "The axis stays as it is for every step. Little drift is no promise of accuracy.",
    "steps": "Each row is a step that was looked at, from the pruned network upwards; white is no distance from dense. "
    "Steps lie further apart the later they are.",
    "accuracy": "A mark is the share of the first evaluation images answered right, its line the 95 % Wilson interval; the plain line is dense on "
    "all of them. Neighbouring steps are not equally far apart.",
}


def there(report: Report) -> bool:
    """Whether a healing was looked at, so that it can be explained."""
    return "healing_drift" in report.tables and "healed" in set(report.frame("drift").get("stage", ()))


@st.fragment
def which_blocks(run: Run, report: Report) -> None:
    """Drift over depth before, at the chosen step, and after: only this part is drawn again when the step changes."""
    with frame.guard():
        drifted, seen = report.frame("drift"), report.frame("healing_drift")
        steps = [int(step) for step in dict.fromkeys(seen["step"])]
        metric, step = _metric(), _step(steps)
        fig = healing_drift.at_step(drifted, seen, step=step, metric=metric, dark=frame.dark(), keep=f"{run.id} {metric}")
        frame.chart(
            fig, key=f"run_{run.id}_blocks_at_step", caption=f"{_at(report, step)}{CAPTIONS['step']}", data=seen,
            controls=lambda: _scrubber(steps),
        )  # fmt: skip


def section(run: Run, report: Report) -> None:
    """Step by step, for those who want it all. Closed until asked for, and only then drawn."""
    if not there(report):
        return
    details = st.expander("How it healed: drift and accuracy step by step", on_change="rerun", key="healing_steps")
    if not details.open:
        return
    with details, frame.guard():
        _choose_metric()
        left, right = st.columns(2)
        with left:
            fig = healing_drift.over_steps(
                report.frame("drift"), report.frame("healing_drift"), metric=_metric(), dark=frame.dark(), keep=f"{run.id} {_metric()}"
            )
            frame.chart(fig, key=f"run_{run.id}_drift_steps", caption=CAPTIONS["steps"], data=report.frame("healing_drift"))
        looks = report.frame("healing_accuracy")
        if len(looks):
            with right:
                fig = healing_drift.accuracy(looks, _dense(report), dark=frame.dark(), keep=run.id)
                frame.chart(fig, key=f"run_{run.id}_accuracy_steps", caption=CAPTIONS["accuracy"], data=looks)


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


def _step(steps: list[int]) -> int:
    """The step chosen; where it was chosen for a run that was looked at at other steps, the nearest one."""
    asked = state.get("at_step", steps[-1])
    step = min(steps, key=lambda step: abs(step - asked))
    if step != asked:
        state.put("at_step", step, default=steps[-1])
    return step


def _scrubber(steps: list[int]) -> None:
    with st.container(width=360):
        tied = state.tie_value("at_step", steps[-1], allowed=steps)
        st.select_slider("Healing step", steps, help="Arrow keys move it too. Steps lie further apart the later they are.", **tied)


def _at(report: Report, step: int) -> str:
    """Time and accuracy at a step, in words."""
    seconds = report.frame("healing_drift").set_index("step")["seconds"].loc[[step]].iloc[0]
    looks = report.frame("healing_accuracy")
    looks = looks[looks["step"] == step] if len(looks) else looks
    when = f"**Step {step}, after {results.duration(seconds)} of healing"
    if looks.empty:
        return f"{when}.** "
    row = looks.iloc[0]
    return f"{when}: {100 * row['top1']:.1f} % of {row['images']:.0f} images right (95 %: {100 * row['low']:.1f} to {100 * row['high']:.1f} %).** "


def _dense(report: Report) -> float | None:
    accuracy = report.frame("accuracy")
    found = accuracy[accuracy["stage"] == "dense"]["top1"] if len(accuracy) else ()
    return float(found.iloc[0]) if len(found) else None

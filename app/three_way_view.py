"""Dense, pruned and at any step of healing that was looked at: one scrubber moves drift, accuracy, a spectrum and a strip of answers.

The step stands in the address bar (at_step=38), as does the layer (follow=blocks.3.attn.qkv). Only this part of the page is drawn
again when the step changes.
"""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from app import drift_view, frame, image_cards, results, state
from app.charts import followed
from app.image_cards import Answer, Card
from starfish_lab.report import Report
from starfish_lab.store import Run

STICKY = """<style>
:has(> .st-key-scrubber) {position: sticky; top: 3.6rem; z-index: 20; background: light-dark(#ffffff, #10161d)}
.st-key-scrubber {padding: .2rem 0 .3rem}
</style>"""
CAPTIONS = {
    "spectrum": "Bars are the dense layer's eigenvalues, the broken line the pruned layer's, the plain one those at the chosen step; dotted lines "
    "are the edges of their Marchenko–Pastur bulks. Whatever is below the axis stands in the first bin. "
    "That a spectrum comes back does not say that the answers do.",
    "strip": "The first images whose answer pruning flipped, and a few it kept: the share of either among these says nothing of all images. "
    "Marks are ● dense, ✕ pruned and ◆ the chosen step; ✓ is the label's class, percent the network's own confidence.",
}
OLD = (
    "This run was made before spectra and answers were followed through healing. **Clone** it and run it again to see them here: "
    "the looks cost little, and are counted apart."
)


@st.fragment
def draw(run: Run, report: Report, beside: Callable[[], None]) -> None:
    """The whole view; `beside` draws what stands left of the drift and does not move with the step."""
    with frame.guard():
        step = _scrubber(report)
        left, right = st.columns(2)
        with left:
            beside()
        with right:
            drift_view.at_step(run, report, step)
        _panels(run, report, step)


def _panels(run: Run, report: Report, step: int) -> None:
    """Step by step: open where there is more to see than drift and accuracy, else closed until asked for."""
    rich = bool(report.tables.get("healing_spectra"))
    details = st.expander("Dense, pruned, healed: step by step", expanded=rich, on_change="rerun", key="healing_steps")
    if not details.open:
        return
    with details:
        left, right = st.columns(2)
        with left:
            drift_view.over_steps(run, report, step)
        with right:
            drift_view.accuracy(run, report, step)
        if not rich:
            st.caption(OLD)
            return
        left, right = st.columns(2)
        with left:
            _spectrum(run, report, step)
        with right:
            _strip(report, step)


def _scrubber(report: Report) -> int:
    """The step, chosen once for everything below; it stays in view."""
    steps = [int(step) for step in dict.fromkeys(report.frame("healing_drift")["step"])]
    step = _step(steps)
    st.html(STICKY)
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium", key="scrubber"):
        with st.container(width=360):
            tied = state.tie_value("at_step", steps[-1], allowed=steps)
            st.select_slider("Healing step", steps, help="Arrow keys move it too. Steps lie further apart the later they are.", **tied)
        st.markdown(_at(report, step), width="stretch")
    return step


def _step(steps: list[int]) -> int:
    """The step chosen; where it was chosen for a run that was looked at at other steps, the nearest one."""
    asked = state.get("at_step", steps[-1])
    step = min(steps, key=lambda step: abs(step - asked))
    if step != asked:
        state.put("at_step", step, default=steps[-1])
    return step


def _at(report: Report, step: int) -> str:
    """Time and accuracy at a step, in words."""
    seconds = report.frame("healing_drift").set_index("step")["seconds"].loc[[step]].iloc[0]
    looks = report.frame("healing_accuracy")
    looks = looks[looks["step"] == step] if len(looks) else looks
    when = f"**Step {step}, after {results.duration(seconds)} of healing"
    if looks.empty:
        return f"{when}.**"
    row = looks.iloc[0]
    return f"{when}: {100 * row['top1']:.1f} % of {row['images']:.0f} images right (95 %: {100 * row['low']:.1f} to {100 * row['high']:.1f} %).**"


def _spectrum(run: Run, report: Report, step: int) -> None:
    table = report.frame("healing_spectra")
    layers = followed.layers(table)
    usual = followed.most_changed(table)
    layer = state.get("follow", usual, allowed=layers)
    fig = followed.spectrum(table, layer, step=step, dark=frame.dark(), keep=f"{run.id} {layer}")
    frame.chart(
        fig, key=f"run_{run.id}_spectrum_step", caption=CAPTIONS["spectrum"], data=table[table["layer"] == layer],
        controls=lambda: st.selectbox("Layer", layers, width=240, **state.tie_value("follow", usual, allowed=layers)),
    )  # fmt: skip


def _strip(report: Report, step: int) -> None:
    strip, looks = report.tables.get("strip", []), report.frame("healing_strip")
    if not strip:
        st.caption("These images have no labels, so no strip of answers was followed.")
        return
    names = {row["place"]: row["name"] for row in report.tables.get("classes", [])}
    now = looks[looks["step"] == step].set_index("image")
    right = sum(int(now.loc[row["image"], "answer"]) == row["dense"] for row in strip)
    st.markdown(f"**At step {step}, {right} of these {len(strip)} answers are the dense network's**")
    image_cards.draw((_card(row, now.loc[row["image"]], f"step {step}", names) for row in strip), small=True)
    st.caption(CAPTIONS["strip"])


def _card(row: dict, now, when: str, names: dict[int, str]) -> Card:
    found = [(stage, stage, row[stage], row[f"{stage}_confidence"]) for stage in ("dense", "pruned")]
    found.append(("healed", when, int(now["answer"]), now["confidence"]))
    answers = tuple(
        Answer(stage, who, names.get(place, f"class {place}"), confidence, place == row["label"]) for stage, who, place, confidence in found
    )
    return Card(row["name"], names.get(row["label"], f"class {row['label']}"), row["jpeg"], answers)

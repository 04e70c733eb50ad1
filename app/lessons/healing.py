"""Lesson 5: healing without labels. STARFISH on the starter, looked at step by step."""

from __future__ import annotations

import streamlit as st

from app import frame
from app.charts import healing_drift, theme
from app.lessons import quiz, work
from app.lessons.lesson import Lesson, Value, show
from starfish_lab.recipe import HealingChoice, MeasureChoice, Recipe
from starfish_lab.sweep.plan import Sweep

SPARSITY, STEPS = 0.9, 120
MEASURE = MeasureChoice(latency=False, spectra=False, certificates=False, snapshots=8)
WORK = work.Work(
    Sweep(recipe=Recipe(name="Lesson 5", healing=HealingChoice(method="starfish", steps=STEPS), measure=MEASURE), sparsities=(SPARSITY,)), "sweep",
    f"A worker prunes the bundled starter to {100 * SPARSITY:.0f} % and heals it with STARFISH in {STEPS} steps on 64 images whose labels "
    "it never opens: under a minute on a laptop.",
)  # fmt: skip
STEP = Value(name="heal_step", default=STEPS, limits=(0, STEPS))
CAPTIONS = {
    "blocks": "Bars are the network at the chosen step, lines the pruned and the healed one, on images that neither heal nor evaluate. "
    "Little drift is no promise of accuracy.",
    "accuracy": "A mark is the share of evaluation images answered right, its line the 95 % interval. Labels serve for this figure alone; "
    "healing sees none. Neighbouring steps are not equally far apart.",
}


def back() -> quiz.Answer | None:
    """How much of the dense accuracy is there again."""
    accuracy, comparisons = work.measured(WORK, "accuracy"), work.measured(WORK, "comparisons")
    if accuracy.empty:
        return None
    top1 = accuracy.set_index("stage")["top1"]
    pair = comparisons[(comparisons["first"] == "dense") & (comparisons["second"] == "healed")].iloc[0]
    lost = top1["dense"] - top1["pruned"]
    share = (top1["healed"] - top1["pruned"]) / lost if lost > 0 else 1.0
    right = 2 if not pair["resolved"] else int(share >= 0.5)
    return quiz.Answer(right=right, why=(
        f"Dense {theme.percent(top1['dense'])}, pruned {theme.percent(top1['pruned'])}, healed {theme.percent(top1['healed'])} of "
        f"{int(accuracy['images'].iloc[0])} images: {theme.percent(share, 0)} of what was lost is back. Healed against dense, the same images "
        f"compared one by one: {pair['verdict']}. The dense network's own inner states were teacher enough."
    ))  # fmt: skip


def halved() -> quiz.Answer | None:
    """When half of the drift was gone."""
    drift, seen = work.measured(WORK, "drift"), work.measured(WORK, "healing_drift")
    if seen.empty:
        return None
    pruned = drift[(drift["stage"] == "pruned") & (drift["tokens"] == "all")]["cosine_distance"].mean()
    means = seen.groupby("step")["cosine_distance"].mean()
    reached = means[means <= 0.5 * pruned]
    ends = f"Mean drift over the blocks was {theme.number(pruned)} pruned, and is {theme.number(float(means.iloc[-1]))} at the end"
    if reached.empty:
        return quiz.Answer(right=2, why=f"{ends}: less than half went.")
    step = int(reached.index[0])
    found = f"half of it was gone at the look after step {step} of {STEPS}, where it was {theme.number(float(reached.iloc[0]))}"
    return quiz.Answer(right=quiz.step_of(step / STEPS, (1 / 3, 2 / 3)), why=f"{ends}; {found}.")


BACK = quiz.Question(
    key="healing.back", ask=f"{STEPS} steps on 64 images without labels. How much of the accuracy that pruning lost comes back?",
    options=("less than half", "more than half, and still clearly below dense", "so much that these images cannot tell it from dense"),
    answer=back, then=lambda: STEP.put(STEPS),
)  # fmt: skip
HALVED = quiz.Question(
    key="healing.halved", ask="When is half of the drift gone?", options=("in the first third of the steps", "in the second third", "later or never"),
    answer=halved,
)  # fmt: skip


def figures() -> None:
    seen = work.measured(WORK, "healing_drift")
    steps = [int(step) for step in dict.fromkeys(seen["step"])]
    step = min(steps, key=lambda step: abs(step - STEP.get()))
    if step != STEP.get():
        STEP.put(step)
    st.select_slider("Healing step", steps, width=360, help="Arrow keys move it too. Steps lie further apart the later they are.", **STEP.tied())
    drift, looks = work.measured(WORK, "drift"), work.measured(WORK, "healing_accuracy")
    show(healing_drift.at_step(drift, seen, step=step, dark=frame.dark(), keep="lesson"), key="healing", caption=CAPTIONS["blocks"], data=seen)
    if len(looks):
        dense = work.measured(WORK, "accuracy").set_index("stage")["top1"]["dense"]
        show(healing_drift.accuracy(looks, float(dense), dark=frame.dark(), keep="lesson"), key="back", caption=CAPTIONS["accuracy"], data=looks)


LESSON = Lesson(slug="healing", short="Healing", values=(STEP,), questions=(BACK, HALVED), figures=figures, job=WORK)

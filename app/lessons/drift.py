"""Lesson 4: pruning breaks a network. Drift grows with depth and with sparsity, measured on the starter."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from app import frame
from app.charts import lessons_runs as charts
from app.charts import theme
from app.lessons import quiz, work
from app.lessons.lesson import Lesson, Value, show
from starfish_lab.recipe import HealingChoice, MeasureChoice, Recipe
from starfish_lab.sweep.plan import Sweep

SPARSITIES = (0.3, 0.5, 0.7, 0.8, 0.9)
MEASURE = MeasureChoice(latency=False, spectra=False, certificates=False, snapshots=0)
WORK = work.Work(
    Sweep(recipe=Recipe(name="Lesson 4", healing=HealingChoice(method="none"), measure=MEASURE), sparsities=SPARSITIES), "sweep",
    f"A worker prunes the bundled starter network {len(SPARSITIES)} times, from 30 % to 90 %, and compares every block with its dense twin: "
    "well under a minute on a laptop.",
)  # fmt: skip
SPARSITY = Value(name="drift_sparsity", default=0.9, allowed=SPARSITIES)
CAPTION = (
    "A line is one pruned network, a mark one block's output against the dense network's on the same images: 0 is the same direction, 1 a right "
    "angle. It says how far the inside has moved; how many answers that costs is in the sentence above."
)


def drifts() -> pd.DataFrame:
    """Drift of the pruned networks, all tokens together, with a column `sparsity`; empty until the runs are done."""
    drift = work.measured(WORK, "drift")
    return drift[(drift["stage"] == "pruned") & (drift["tokens"] == "all")] if len(drift) else drift


def deepest() -> quiz.Answer | None:
    """Which block has drifted most at 90 %."""
    drift = drifts()
    if drift.empty:
        return None
    at = drift[drift["sparsity"] == SPARSITIES[-1]].set_index("depth")["cosine_distance"].sort_index()
    worst, last = int(at.idxmax()), int(at.index[-1])
    return quiz.Answer(right=0 if worst == 0 else 2 if worst == last else 1, why=(
        f"It is block {worst}, with {theme.number(float(at.max()))}; the first block has {theme.number(float(at.iloc[0]))}, the last "
        f"{theme.number(float(at.iloc[-1]))}. Every block gets the wrong input that those before it made, and adds its own error."
    ))  # fmt: skip


def steeper() -> quiz.Answer | None:
    """What the step from 80 % to 90 % does to the mean drift, against the step from 70 % to 80 %."""
    drift = drifts()
    if drift.empty:
        return None
    mean = drift.groupby("sparsity")["cosine_distance"].mean()
    times = (mean[0.9] - mean[0.8]) / max(mean[0.8] - mean[0.7], 1e-12)
    at = {sparsity: theme.number(mean[sparsity]) for sparsity in (0.7, 0.8, 0.9)}
    return quiz.Answer(right=quiz.step_of(times, (0.8, 1.25)), why=(
        f"Averaged over blocks, drift was {at[0.7]} at 70 %, {at[0.8]} at 80 % and {at[0.9]} at 90 %: the last step added {times:.1f} times "
        f"what the one before did. Magnitude pruning takes the smallest weights first, so each further one is larger."
    ))  # fmt: skip


DEEPEST = quiz.Question(
    key="drift.deepest", ask="Every layer loses 90 % of its weights, the smallest ones. Which block's output ends furthest from the dense network's?",
    options=("the first", "one in the middle", "the last"), answer=deepest, then=lambda: SPARSITY.put(0.9),
)  # fmt: skip
STEEPER = quiz.Question(
    key="drift.steeper", ask="From 70 % to 80 % drift grew by some amount. The step from 80 % to 90 % adds …",
    options=("less than that", "about the same again", "more than that"), answer=steeper,
)  # fmt: skip


def figures() -> None:
    drift, chosen = drifts(), SPARSITY.get()
    st.select_slider("Removed from every layer", SPARSITIES, format_func=lambda s: theme.percent(s, 0), width=320, **SPARSITY.tied())
    st.markdown(_accuracy(chosen))
    show(charts.drift_by_sparsity(drift, chosen=chosen, dark=frame.dark()), key="drift", caption=CAPTION, data=drift)


def _accuracy(sparsity: float) -> str:
    """What it costs in answers, with intervals."""
    table = work.measured(WORK, "accuracy")
    rows = table[table["sparsity"] == sparsity].to_dict("records")
    told = ", ".join(f"{row['stage']} {100 * row['top1']:.1f} % ({100 * row['low']:.1f} to {100 * row['high']:.1f})" for row in rows)
    return f"**Top-1 at {theme.percent(sparsity, 0)}:** {told}, n = {rows[0]['images']}, 95\u00a0% intervals."


LESSON = Lesson(slug="drift", short="Drift", values=(SPARSITY,), questions=(DEEPEST, STEEPER), figures=figures, job=WORK)

"""Lesson 6: sparsity is not speed. The same zeros as a mask and cut out for real, timed here; 2:4 from the literature."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from app import frame, latency_rows, published
from app.charts import lessons_runs as charts
from app.lessons import quiz, work
from app.lessons.lesson import Lesson, Value, show
from starfish_lab.latency.plan import LatencyPlan
from starfish_lab.recipe import PruningChoice, Recipe

BATCHES = (1, 16)
HALF = Recipe(name="Lesson 6", pruning=PruningChoice(pattern="structured", sparsity=0.5))
WORK = work.Work(
    LatencyPlan(recipe=HALF, executions=("masked", "sliced"), batches=BATCHES, seconds=0.5, min_iterations=30, layers=False), "latency",
    "A worker times the starter dense, with half of its hidden units and Q/K dimensions masked, and with the same ones cut out, in turns: "
    "about half a minute.",
)  # fmt: skip
BATCH = Value(name="speed_batch", default=BATCHES[-1], allowed=BATCHES)
NAMES = {"masked": "Half masked, shapes kept", "sliced": "The same half cut out"}
CAPTION = (
    "1× is dense in the same precision. Filled: measured on {device}, with the 95 % interval of the paired ratio. Hollow: published for "
    "other networks on other cards, once against the baseline their authors chose and once against dense in the same precision. It does not say "
    "how fast another network is here."
)


def measured() -> pd.DataFrame:
    """Latency rows of the measurement, with the columns that `latency_rows.whole` promises; empty until it is done."""
    rows = work.measured(WORK, "latency")
    return latency_rows.timed(latency_rows.whole(rows)) if len(rows) else rows


def masked() -> quiz.Answer | None:
    """What a mask alone gains at the larger batch."""
    row = _row("masked")
    if row is None:
        return None
    right = 0 if row["speedup_high"] < 1.1 or row["speedup_low"] <= 1 <= row["speedup_high"] else quiz.step_of(row["speedup"], (1.1, 1.6))
    return quiz.Answer(right=right, why=(
        f"{row['speedup']:.2f}× ({row['speedup_low']:.2f} to {row['speedup_high']:.2f}) at batch {BATCHES[-1]}. The kernel multiplies by a zero as "
        f"slowly as by any other number, and the shapes have not changed."
    ))  # fmt: skip


def sliced() -> quiz.Answer | None:
    """What cutting out gains, against what the MACs promise."""
    row, dense = _row("sliced"), _row("dense")
    if row is None or dense is None:
        return None
    promised = dense["macs_g"] / row["macs_g"]
    right = 0 if row["speedup_low"] <= 1.02 else 2 if row["speedup_high"] >= promised else 1
    reason = "What does not shrink with the matrices, such as norms, reading memory and starting kernels, keeps its time."
    if right == 0:
        reason = "The interval reaches down to 1, so no gain is resolved here: there is none, or a busy machine hides it."
    gain = f"time {row['speedup']:.2f}× ({row['speedup_low']:.2f} to {row['speedup_high']:.2f})"
    return quiz.Answer(right=right, why=f"MACs fell {promised:.2f}×, {gain} at batch {BATCHES[-1]}. {reason}")


MASKED = quiz.Question(
    key="speed.masked", ask="A mask sets half of the hidden units to zero; the matrices keep their shapes. How much faster does the network run?",
    options=("not noticeably", "about 1.3 times", "about twice"), answer=masked, then=lambda: BATCH.put(BATCHES[-1]),
)  # fmt: skip
SLICED = quiz.Question(
    key="speed.sliced", ask="Now the same units are cut out: really smaller matrices, fewer MACs. The clock gains …",
    options=("nothing that can be measured", "less than the MACs promise", "as much as the MACs promise, or more"), answer=sliced,
)  # fmt: skip


def figures() -> None:
    rows = measured()
    st.segmented_control("Images at a time", BATCHES, required=True, **BATCH.tied())
    table = pd.concat([_here(rows), _literature()], ignore_index=True)
    caption = CAPTION.format(device=rows["device_name"].iloc[0])
    show(charts.speedups(table, dark=frame.dark()), key="speed", caption=caption, data=table)


def _row(execution: str) -> dict | None:
    """The row of an execution at the larger batch."""
    rows = measured()
    found = rows[(rows["execution"] == execution) & (rows["batch"] == BATCHES[-1])] if len(rows) else rows
    return found.iloc[0].to_dict() if len(found) else None


def _here(rows: pd.DataFrame) -> pd.DataFrame:
    """What was measured at the chosen batch, as the chart takes it."""
    at = rows[(rows["batch"] == BATCH.get()) & rows["execution"].isin(list(NAMES))]
    return pd.DataFrame([
        dict(label=NAMES[row.execution], origin="measured", ratio=row.speedup, low=row.speedup_low, high=row.speedup_high,
             source=f"run {row.run}, {row.device_name}, batch {row.batch}")
        for row in at.itertuples()
    ])  # fmt: skip


def _literature() -> pd.DataFrame:
    """Published 2:4 on an A40: as claimed, and against dense in the same precision."""
    found = []
    for h in published.headlines("A40", "ViT-B/16"):
        for ratio, against in ((h["ratio"], "as published"), (h["matched"], "same precision")):
            if ratio is not None:
                found.append(
                    dict(
                        label=f"2:4 on an A40, {against}",
                        origin="literature",
                        ratio=ratio,
                        low=None,
                        high=None,
                        source=f"{h['where']}; {h['source']}",
                    )
                )
    return pd.DataFrame(found).astype({"low": float, "high": float})


LESSON = Lesson(slug="speed", short="Speed", values=(BATCH,), questions=(MASKED, SLICED), figures=figures, job=WORK)

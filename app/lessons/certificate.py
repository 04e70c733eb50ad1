"""Lesson 7: reading a certificate. Which labels provably stay when the starter is pruned a little, and what the others do."""

from __future__ import annotations

import streamlit as st

from app import frame
from app.charts import certificates as charts
from app.charts import theme
from app.lessons import quiz, work
from app.lessons.lesson import Lesson, Value, show
from starfish_lab.recipe import HealingChoice, MeasureChoice, Recipe
from starfish_lab.sweep.plan import Sweep

SPARSITIES = (0.3, 0.5, 0.6, 0.7, 0.8)
MEASURE = MeasureChoice(latency=False, spectra=False, certificates=True, snapshots=0)
WORK = work.Work(
    Sweep(recipe=Recipe(name="Lesson 7", healing=HealingChoice(method="none"), measure=MEASURE), sparsities=SPARSITIES), "sweep",
    f"A worker prunes the bundled starter {len(SPARSITIES)} times, from 30 % to 80 %, and certifies it on the evaluation images: under a minute on "
    "a laptop.",
)  # fmt: skip
SPARSITY = Value(name="certified_at", default=0.5, allowed=SPARSITIES)
CAPTIONS = {
    "margins": "A mark is an image. Above the diagonal its margin exceeds twice the largest change of any logit, so its label stays for certain. "
    "Below it a label may stay all the same, and of images not measured this says nothing.",
    "shares": "Full colour is certain, pale stayed without being certain, hollow changed. The head alone is a question of its own: it is put into "
    "the otherwise dense network.",
}


def others() -> quiz.Answer | None:
    """Of the images that were not certified at 80 %, how many changed their label."""
    row = _network(SPARSITIES[-1])
    if row is None:
        return None
    open_ = int(row["images"] - row["certified"])
    changed = int(row["changed"] - row["flipped"])
    right = 2 - quiz.step_of(changed / open_, (0.25, 0.75)) if open_ else 2
    return quiz.Answer(right=right, why=(
        f"{int(row['certified'])} of {int(row['images'])} images are certified, {open_} are not, and of those {changed} changed their label. "
        f"Without a certificate a label is not doomed, it is only not proven. Of the certified ones {int(row['flipped'])} changed."
    ))  # fmt: skip


def accuracy() -> quiz.Answer | None:
    """Whether accuracy may have moved by more than the bound at 50 %."""
    row = _network(SPARSITY.default)
    if row is None:
        return None
    bound, moved = float(row["accuracy_change_bound"]), abs(float(row["accuracy_change"]))
    return quiz.Answer(right=int(moved <= bound), why=(
        f"It moved by {theme.number(100 * moved)} pp where the certificate allows {theme.number(100 * bound)} pp. That is the share of images "
        f"whose logits change enough to turn right into wrong, or wrong into right: no others can."
    ))  # fmt: skip


OTHERS = quiz.Question(
    key="certificate.others", ask="At 80 % some images are not certified. How many of those really changed their label?",
    options=("nearly all", "about half", "few or none"), answer=others, then=lambda: SPARSITY.put(SPARSITIES[-1]),
)  # fmt: skip
ACCURACY = quiz.Question(
    key="certificate.accuracy", ask="At 50 % the certificate says by how much top-1 can move on these images. Can the measured change be larger?",
    options=("yes, it is a typical value", "no, it is a bound"), answer=accuracy, then=lambda: SPARSITY.put(SPARSITY.default),
)  # fmt: skip


def figures() -> None:
    chosen = SPARSITY.get()
    st.select_slider("Removed from every layer", SPARSITIES, format_func=lambda s: theme.percent(s, 0), width=320, **SPARSITY.tied())
    tables = (work.measured(WORK, name) for name in ("certificate_images", "certificates"))
    images, rows = (table[table["sparsity"] == chosen].reset_index(drop=True) for table in tables)
    show(charts.margins(images, rows, dark=frame.dark(), keep="lesson"), key="margins", caption=CAPTIONS["margins"], data=images)
    show(charts.shares(rows, dark=frame.dark(), keep="lesson"), key="shares", caption=CAPTIONS["shares"], data=rows)


def _network(sparsity: float) -> dict | None:
    """The certificate of the whole pruned network."""
    rows = work.measured(WORK, "certificates")
    found = rows[(rows["sparsity"] == sparsity) & (rows["scope"] == "network") & (rows["stage"] == "pruned")] if len(rows) else rows
    return found.iloc[0].to_dict() if len(found) else None


LESSON = Lesson(slug="certificate", short="Certificate", values=(SPARSITY,), questions=(OTHERS, ACCURACY), figures=figures, job=WORK)

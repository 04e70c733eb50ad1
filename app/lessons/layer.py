"""Lesson 3: what a trained layer looks like, and the same entries in random order."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from app import frame, profiles
from app.charts import spectra as charts
from app.charts import theme
from app.lessons import quiz
from app.lessons.lesson import Lesson, Value, show
from starfish_lab.recipe import ModelChoice

ROLES = ("q", "k", "v", "proj", "fc1", "fc2")
BLOCK = Value(name="trained_block", default=1, limits=(0, 5))
ROLE = Value(name="trained_role", default="fc1", allowed=ROLES)
CONTROL = Value(name="trained_control", default=False)
ASKED = (1, "fc1")  # the matrix that the questions are about
CAPTION = (
    "Grey bars are the trained matrix's eigenvalues, the line is the Marchenko–Pastur bulk fitted to them, diamonds are spikes beyond its edge. "
    "It does not say which of them matter for the answers."
)


def matrices() -> pd.DataFrame:
    """The starter's spectra, indexed by block and role; empty where there is no profile."""
    profile = profiles.find(ModelChoice())
    if profile is None:
        return pd.DataFrame()
    table = charts.add_role(profile.spectra)
    inside = table[(table["depth"] >= 0) & table["role"].isin(ROLES)]
    return inside.set_index(["depth", "role"], drop=False)


def shuffled() -> quiz.Answer | None:
    """How many spikes the same entries keep in random order."""
    table = matrices()
    if table.empty:
        return None
    row = table.loc[ASKED]
    share = row["control_spikes"] / row["spikes"]
    return quiz.Answer(right=2 - quiz.step_of(share, (0.25, 0.75)), why=(
        f"{int(row['control_spikes'])} of {int(row['spikes'])} remain. The entries are the same, so are their mean and variance; what is gone "
        f"is their order. The largest singular value fell from {theme.number(row['top'])} to {theme.number(row['control_top'])}, where noise of that "
        f"strength ends near {theme.number(row['control_sigma_plus'])}. Spikes are what training wrote into the order."
    ))  # fmt: skip


def energy() -> quiz.Answer | None:
    """What the spikes hold of Σs²."""
    table = matrices()
    if table.empty:
        return None
    row = table.loc[ASKED]
    share = row["spikes"] / min(row["rows"], row["cols"])
    times = row["spike_energy"] / share
    return quiz.Answer(right=quiz.step_of(times, (1.5, 3.0)), why=(
        f"{int(row['spikes'])} of {int(min(row['rows'], row['cols']))} singular values, {theme.percent(share)}, hold "
        f"{theme.percent(row['spike_energy'])} of Σs²: {times:.1f} times their share. A few directions carry much of what the layer does."
    ))  # fmt: skip


def _control() -> None:
    BLOCK.put(ASKED[0])
    ROLE.put(ASKED[1])
    CONTROL.put(True)


SHUFFLED = quiz.Question(
    key="layer.shuffled", ask="All entries of fc1 in block 1 are put into random order. How many of its spikes remain?",
    options=("nearly all", "about half", "few or none"), answer=shuffled, then=_control,
)  # fmt: skip
ENERGY = quiz.Question(
    key="layer.energy", ask="Of this layer's energy, the sum of all squared singular values, its spikes hold …",
    options=("about their share in number", "up to three times that", "more than three times that"), answer=energy,
)  # fmt: skip


def figures() -> None:
    table = matrices()
    if table.empty:
        st.info("The starter's profile is missing in this copy of the lab: `assets/starter/profile.json`.", icon=":material/info:")
        return
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        st.slider("Block, by depth", *BLOCK.limits, width=200, **BLOCK.tied())
        st.segmented_control("Matrix", ROLES, required=True, **ROLE.tied())
        st.toggle("Same entries in random order", **CONTROL.tied())
    row = table.loc[(BLOCK.get(), ROLE.get())]
    fig = charts.spectrum(row, dark=frame.dark(), control=CONTROL.get(), height=420)
    show(fig, key="layer", caption=f"**{theme.sentence(row['verdict'])}.** {CAPTION}{_beside(row) if CONTROL.get() else ''}")


def _beside(row: pd.Series) -> str:
    return (
        f" The amber line is the control: the same {int(row['rows'] * row['cols']):,} numbers, permuted. What the spikes held is spread over its "
        f"bulk, whose own edge is at σ₊ = {theme.number(row['control_sigma_plus'])}: it has {int(row['control_spikes'])} spikes where the trained "
        f"matrix has {int(row['spikes'])}."
    )


LESSON = Lesson(slug="layer", short="Layer", values=(BLOCK, ROLE, CONTROL), questions=(SHUFFLED, ENERGY), figures=figures)

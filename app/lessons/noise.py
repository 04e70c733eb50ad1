"""Lesson 1: noise has a shape. Random matrices and the Marchenko–Pastur law, live."""

from __future__ import annotations

import numpy as np
import pandas as pd
import streamlit as st

from app import frame
from app.charts import lessons as charts
from app.charts import theme
from app.lessons import quiz
from app.lessons.lesson import Lesson, Value, show
from starfish_lab.lessons import noise
from starfish_lab.spectra import marchenko_pastur as mp

P = Value(name="noise_p", default=200, allowed=(25, 50, 100, 200, 400))
GAMMA = Value(name="noise_gamma", default=0.5, limits=(0.1, 1.0))
SIGMA = Value(name="noise_sigma", default=1.0, limits=(0.5, 2.0))
ENTRIES = Value(name="noise_entries", default="gaussian", allowed=tuple(noise.ENTRIES))
SEED = Value(name="noise_seed", default=1, limits=(1, 9999))
NAMES = {"gaussian": "Gaussian", "signs": "Only + and −", "uniform": "Uniform"}
CAPTION = (
    "Bars are the eigenvalues of the matrix just drawn, the line is the law, which knows only σ and γ. It is no fit, and it promises nothing for "
    "the single largest value: that strays a little past the edge."
)


@st.cache_data(max_entries=128, show_spinner=False)
def drawn(p: int, gamma: float, sigma: float, entries: str, seed: int) -> np.ndarray:
    """Ascending eigenvalues of one matrix of noise."""
    return noise.eigenvalues(p, round(p / gamma), sigma=sigma, entries=entries, seed=seed)


def wider() -> quiz.Answer:
    """How wide the bulk is with 2 and with 8 columns a row."""
    before, after = (drawn(200, gamma, 1.0, "gaussian", SEED.get()) for gamma in (0.5, 0.125))
    widths = [float(values[-1] - values[0]) for values in (before, after)]
    laws = [4 * np.sqrt(gamma) for gamma in (0.5, 0.125)]
    right = quiz.step_of(widths[1] / widths[0], (0.9, 1.1))
    return quiz.Answer(right=right, why=(
        f"From λ = {theme.number(before[0])} to {theme.number(before[-1])} before, from {theme.number(after[0])} to {theme.number(after[-1])} now: "
        f"the width went from {theme.number(widths[0])} to {theme.number(widths[1])}. The law says 4σ²√γ, {theme.number(laws[0])} and "
        f"{theme.number(laws[1])}: each eigenvalue averages over more columns."
    ))  # fmt: skip


def doubled() -> quiz.Answer:
    """How far the largest eigenvalue goes when every entry doubles."""
    before, after = (float(drawn(200, 0.5, sigma, "gaussian", SEED.get())[-1]) for sigma in (1.0, 2.0))
    return quiz.Answer(right=quiz.closest(after / before, (1, 2, 4)), why=(
        f"The largest eigenvalue went from {theme.number(before)} to {theme.number(after)}, {theme.number(after / before)} times as far: λ is a "
        f"squared singular value, so it follows the variance σ². The law's edge σ²(1 + √γ)² went from {theme.number(mp.edges(0.5)[1])} "
        f"to {theme.number(mp.edges(0.5, 4.0)[1])}."
    ))  # fmt: skip


def _to(gamma: float, sigma: float):
    def move() -> None:
        for value, wanted in ((P, 200), (GAMMA, gamma), (SIGMA, sigma), (ENTRIES, "gaussian")):
            value.put(wanted)

    return move


WIDER = quiz.Question(
    key="noise.wider", ask="The matrix keeps its 200 rows and gets four times as many columns, 1,600 instead of 400. The bulk of its eigenvalues …",
    options=("gets narrower", "stays as wide", "gets wider"), answer=wider, then=_to(0.125, 1.0),
)  # fmt: skip
DOUBLED = quiz.Question(
    key="noise.doubled", ask="Back at 400 columns every entry is doubled, so σ is 2 instead of 1. The upper edge of the bulk …",
    options=("stays where it is", "moves twice as far out", "moves four times as far out"), answer=doubled, then=_to(0.5, 2.0),
)  # fmt: skip


def figures() -> None:
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        st.select_slider("Rows p", P.allowed, width=150, **P.tied())
        st.slider("Aspect ratio γ = p/n", *GAMMA.limits, step=0.025, width=190, **GAMMA.tied())
        st.slider("Standard deviation σ", *SIGMA.limits, step=0.1, width=170, **SIGMA.tied())
        st.segmented_control("Entries", list(NAMES), format_func=NAMES.get, required=True, **ENTRIES.tied())
        st.button("Draw again", icon=":material/casino:", key="noise_again", on_click=lambda: SEED.put(SEED.get() % 9999 + 1))
    p, gamma, sigma = P.get(), GAMMA.get(), SIGMA.get()
    n = round(p / gamma)
    values = drawn(p, gamma, sigma, ENTRIES.get(), SEED.get())
    off = noise.distance(values, p / n, sigma)
    fig = charts.noise(values, gamma=p / n, sigma=sigma, shape=(p, n), distance=off, dark=frame.dark())
    show(fig, key="noise", caption=CAPTION, data=pd.DataFrame({"eigenvalue": values}))


LESSON = Lesson(slug="noise", short="Noise", values=(P, GAMMA, SIGMA, ENTRIES, SEED), questions=(WIDER, DOUBLED), figures=figures)

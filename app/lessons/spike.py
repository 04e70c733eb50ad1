"""Lesson 2: a spike escapes the bulk. The transition of Baik, Ben Arous and Péché, live."""

from __future__ import annotations

import numpy as np
import pandas as pd
import streamlit as st

from app import frame
from app.charts import lessons as charts
from app.lessons import quiz
from app.lessons.lesson import Lesson, Value, show
from starfish_lab.lessons import spike
from starfish_lab.spectra import marchenko_pastur as mp

THETA = Value(name="spike_theta", default=1.2, limits=(0.0, 3.0))
GAMMA = Value(name="spike_gamma", default=0.5, limits=(0.1, 1.0))
P = Value(name="spike_p", default=300, allowed=(50, 100, 200, 300))
SEED = Value(name="spike_seed", default=1, limits=(1, 9999))
WEAK, STRONG = 0.6, 2.0  # strengths that the questions ask about, at γ = 0.5
CAPTION = (
    "The same noise for every θ: only the planted signal moves. A filled diamond is further out than noise of this size comes once in a "
    "thousand matrices, a hollow one is not; the dashed line is where theory puts it in a very large matrix."
)
OVERLAP = (
    "1 means that the largest eigenvalue's vector is the planted direction, 0 that it knows nothing of it. Theory, dashed, is for a matrix "
    "without end; a small one is rounded at the threshold."
)


@st.cache_resource(max_entries=32, show_spinner=False)
def planted(p: int, gamma: float, seed: int) -> spike.Planted:
    """Noise and directions, shared by all sessions; nothing changes them."""
    return spike.Planted(p, round(p / gamma), seed=seed)


@st.cache_data(max_entries=64, show_spinner=False)
def curve(p: int, gamma: float, seed: int) -> pd.DataFrame:
    """Largest eigenvalue and overlap over the strength of the signal, with theory's: theta, value, overlap, expected_value, expected."""
    rows = []
    for theta in np.linspace(*THETA.limits, 31):
        (value, overlap), theory = planted(p, gamma, seed).largest(theta), spike.expected(theta, gamma)
        rows.append(dict(theta=float(theta), value=value, overlap=overlap, expected_value=theory.value, expected=theory.overlap))
    return pd.DataFrame(rows)


def weak() -> quiz.Answer:
    """Whether a signal below the threshold shows."""
    found, limit = planted(300, 0.5, SEED.get()).largest(WEAK), spike.clear_of_noise(300, 600)
    return quiz.Answer(right=int(found.value <= limit), why=(
        f"The largest eigenvalue is {found.value:.2f}; noise alone stays under {limit:.2f} in all but one of a thousand matrices. "
        f"The threshold $\\gamma^{{1/4}}$ is {spike.threshold(0.5):.2f} and θ is {WEAK:g}. The signal is in the matrix all the same; the overlap "
        f"of the largest eigenvalue's vector with it is {found.overlap:.2f}."
    ))  # fmt: skip


def strong() -> quiz.Answer:
    """Where a strong signal's eigenvalue stands against its own strength."""
    found, theory = planted(300, 0.5, SEED.get()).largest(STRONG), spike.expected(STRONG, 0.5).value
    right = quiz.step_of(found.value / STRONG**2, (0.97, 1.03))
    return quiz.Answer(right=right, why=(
        f"It stands at {found.value:.2f}; theory says (1 + θ²)(γ + θ²)/θ² = {theory:.2f}. Noise does not blur it around θ² = {STRONG**2:g} but "
        f"adds to it, θ² + 1 + γ + γ/θ², so what stands outside the bulk looks stronger than it is."
    ))  # fmt: skip


def _to(theta: float):
    def move() -> None:
        for value, wanted in ((THETA, theta), (GAMMA, 0.5), (P, 300)):
            value.put(wanted)

    return move


HIDDEN = quiz.Question(
    key="spike.weak", ask=f"A signal of strength θ = {WEAK:g} is planted in 300 × 600 noise. Does an eigenvalue stand clear of the bulk?",
    options=("Yes, a small one", "No, the bulk swallows it"), answer=weak, then=_to(WEAK),
)  # fmt: skip
FURTHER = quiz.Question(
    key="spike.strong", ask=f"Now θ = {STRONG:g}, so that alone, without noise, its eigenvalue were θ² = {STRONG**2:g}. In noise it stands …",
    options=("closer to the bulk than that", f"at {STRONG**2:g}", "further out than that"), answer=strong, then=_to(STRONG),
)  # fmt: skip


def figures() -> None:
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        st.slider("Strength of the signal θ", *THETA.limits, step=0.05, width=240, **THETA.tied())
        st.slider("Aspect ratio γ = p/n", *GAMMA.limits, step=0.05, width=190, **GAMMA.tied())
        st.select_slider("Rows p", P.allowed, width=150, **P.tied())
        st.button("Draw again", icon=":material/casino:", key="spike_again", on_click=lambda: SEED.put(SEED.get() % 9999 + 1))
    p, theta, gamma, seed = P.get(), THETA.get(), GAMMA.get(), SEED.get()
    values, theory = planted(p, gamma, seed).eigenvalues(theta), spike.expected(theta, gamma)
    limit, least = spike.clear_of_noise(p, round(p / gamma)), spike.threshold(gamma)
    fig = charts.spiked(values, gamma=gamma, expected=theory.value, limit=limit, seen=theta > least, dark=frame.dark())
    said = _said(theta, least, float(values[-1]), theory.value, mp.edges(gamma)[1])
    show(fig, key="spike", caption=f"**{said}** {CAPTION}", data=pd.DataFrame({"eigenvalue": values}))
    along = curve(p, gamma, seed)
    show(charts.transition(along, theta=theta, gamma=gamma, dark=frame.dark()), key="overlap", caption=OVERLAP, data=along)


def _said(theta: float, least: float, top: float, theory: float, edge: float) -> str:
    if theta > least:
        return f"θ = {theta:.2f} is above the threshold {least:.2f}: theory puts the spike at {theory:.2f}, here it is at {top:.2f}."
    return f"θ = {theta:.2f} is below the threshold {least:.2f}: the largest eigenvalue, {top:.2f}, is the edge's own ({edge:.2f})."


LESSON = Lesson(slug="spike", short="Spike", values=(THETA, GAMMA, P, SEED), questions=(HIDDEN, FURTHER), figures=figures)

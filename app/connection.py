"""What the pages do while the store or the runners do not answer: one sentence at the top, and back by themselves."""

from __future__ import annotations

import streamlit as st

from app import state
from starfish_lab.errors import LabError

EVERY = "3s"
AGAIN = "This page looks again every three seconds and comes back by itself."


def away() -> str:
    """Why the store does not answer just now; '' where it does."""
    try:
        state.store().workers()
    except LabError as error:
        return str(error)
    return ""


def stand_by() -> None:
    """Where the store is away, says so and ends the page, which is drawn again as soon as the store answers."""
    if problem := away():
        st.error(f"{problem} {AGAIN}", icon=":material/cloud_off:")
        watch()
        st.stop()


def watch() -> None:
    """Draws the page again once the store, which is away, answers."""
    st.fragment(_look, run_every=EVERY)()


def _look() -> None:
    if not away():
        st.rerun()

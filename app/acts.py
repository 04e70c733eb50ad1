"""The buttons that launch, stop or change something: greyed out for who may only look. The store refuses such an act in any case."""

from __future__ import annotations

import streamlit as st

from app import state

LOOKS = "You may look at everything. Launching and changing take the role runner: ask an admin for it."


def button(label: str, *, disabled: bool = False, help: str | None = None, **kwargs: object) -> bool:
    """`st.button`, for those with the role runner; True where it was just pressed."""
    looks = not state.person().may("runner")
    return st.button(label, disabled=disabled or looks, help=LOOKS if looks else help, **kwargs)

"""Prune & heal: launch the chosen recipe, watch it live, see dense, pruned and healed side by side.

The address bar says which run is watched (run=14); without one it is the newest that is queued or running, and
where nothing runs, or new=1 asks for it, the launch form. parent=12 starts the form from run 12's recipe.
"""

from __future__ import annotations

import contextlib

import streamlit as st

from app import frame, launch, profiles, run_view, state
from starfish_lab.errors import LabError, StoreError


def shown_run():
    """The run in the address bar, else the newest active one, else None."""
    wanted = state.get("run", 0)
    if wanted:
        try:
            return state.store().run(wanted)
        except (StoreError, OverflowError):
            st.warning(f"The link asks for run {wanted}, and the store has no such run. It may have been deleted; the others are under Runs.")
            state.put("run", None)
    if state.get("new", False):
        return None
    active = [state.store().runs(status=status, limit=1) for status in ("running", "queued")]
    newest = [int(runs["id"].iloc[0]) for runs in active if len(runs)]
    return state.store().run(max(newest)) if newest else None


def form() -> None:
    """The figures that the choice promises, the recipe in short words, and the one button."""
    profile = profiles.find()
    if profile is not None:
        frame.figures(frame.stage_rows(profile))
    launch.form()


def promised(run) -> None:
    """The figures that a run's recipe promises. A weights file that is gone by now must not hide the run."""
    with contextlib.suppress(LabError):
        profile = profiles.find(run.recipe.model)
        if profile is not None:
            frame.figures(frame.stage_rows(profile, recipe=run.recipe))


run = shown_run()
if run is None:
    form()
elif run.kind == "bakeoff":
    launch.open_bakeoff(run)
elif run.active:
    promised(run)
    state.put("run", run.id)  # so that the link finds it again, and its end does not bring back the form
    run_view.follow(run)
else:
    run_view.ended(run)

"""Prune & heal: launch the chosen recipe, watch it live, see dense, pruned and healed side by side.

The address bar says which run is watched (run=14); without one it is the newest that is queued or running (those of sweeps are
watched on Runs), and where nothing runs, or new=1 asks for it, the launch form. parent=12 starts the form from run 12's recipe.
"""

from __future__ import annotations

import contextlib

import pandas as pd
import streamlit as st

from app import faster_card, frame, launch, profiles, run_view, state, sweep_form
from starfish_lab.errors import LabError, StoreError

MOST_ACTIVE = 1000  # of one status, among which the newest of no sweep is looked for


def shown_run():
    """The run in the address bar, else the newest active one that is of no sweep, else None."""
    wanted = state.get("run", 0)
    if wanted:
        try:
            return state.store().run(wanted)
        except (StoreError, OverflowError):
            st.warning(f"The link asks for run {wanted}, and the store has no such run. It may have been deleted; the others are under Runs.")
            state.put("run", None)
    if state.get("new", False):
        return None
    active = pd.concat([state.store().runs(status=status, limit=MOST_ACTIVE) for status in ("running", "queued")])
    newest = active.loc[~active["parent"].isin(state.store().runs(kind="sweep")["id"]), "id"].astype(int) if len(active) else ()
    return state.store().run(max(newest)) if len(newest) else None


def form() -> None:
    """The figures that the choice promises, the recipe in short words, the one button, and below it many runs as one."""
    profile = profiles.find()
    if profile is not None:
        frame.figures(faster_card.expected(frame.stage_rows(profile), profile))
    launch.form(told=(lambda recipe: faster_card.draw(profile, recipe)) if profile is not None else None)
    sweep_form.draw()


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
elif run.kind == "sweep":
    launch.open_sweep(run)
elif run.active:
    promised(run)
    state.put("run", run.id)  # so that the link finds it again, and its end does not bring back the form
    run_view.follow(run)
else:
    run_view.ended(run)

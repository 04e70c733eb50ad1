"""Bake-off: all chosen healers on one calibration tensor, how little data is enough, how sparse it can get.

The address bar says which tab (axis=images), which healers (healers_all=…) and which bake-off is shown (bake_all=14); without one it
is the newest of the tab on this network.
"""

from __future__ import annotations

import streamlit as st

from app import bakeoff_form, bakeoff_measured, bakeoff_rows, bakeoff_view, frame, launch, profiles, results, state
from starfish_lab import settings
from starfish_lab.errors import LabError, StoreError

KNOWN = 100  # newest bake-offs that are looked through
EMPTY = {
    "all": "No bake-off here yet. One press heals one pruned network with every chosen healer, on the same images, and puts them side by side: "
    "how much of the dense accuracy each recovers, in what time and memory, and which of them these images tell apart.",
    "images": "No bake-off here yet. One press heals with a few images, then with more and more, and marks where more change nothing.",
    "sparsity": "No bake-off here yet. One press prunes further and further, and shows up to where each healer brings the network back.",
}


@st.cache_resource(max_entries=8, show_spinner=False)
def _axes(url: str) -> dict[tuple[int, float], str]:
    """The tab of each bake-off seen so far; `url` keeps stores apart."""
    return {}


def of_tab(axis: str) -> list[int]:
    """Numbers of the bake-offs of a tab, the newest first, those of the chosen network before others."""
    runs = state.store().runs(kind="bakeoff", limit=KNOWN)
    seen, found = _axes(settings.database_url()), []
    for row in runs.itertuples():
        known = (int(row.id), row.created_at)
        if known not in seen:
            seen[known] = bakeoff_rows.axis(state.store().run(int(row.id)).plan)
        if seen[known] == axis:
            found.append((row.model != state.choice().model, -int(row.id)))
    return [-number for _, number in sorted(found)]


def shown(axis: str):
    """The bake-off to show, with a way to choose another; None where there is none."""
    numbers = of_tab(axis)
    name = f"bake_{axis}"
    wanted = state.get(name, 0)
    if wanted and wanted not in numbers:
        st.warning(
            f"The link asks for bake-off {wanted}, and this tab has none of that number: it may have been deleted.", icon=":material/link_off:"
        )
        state.put(name, None)
    if not numbers:
        return None
    several = len(numbers) > 1
    chosen = st.selectbox("Bake-off", numbers, format_func=_short, **state.tie_value(name, numbers[0])) if several else numbers[0]
    try:
        return state.store().run(chosen)
    except (StoreError, OverflowError):
        return None


def _short(number: int) -> str:
    try:
        run = state.store().run(number)
    except LabError:
        return str(number)
    what = results.pattern(run.recipe.pruning) if not run.plan.sparsities else run.recipe.pruning.pattern
    return f"{number} · {run.name or run.recipe.model.name}, {what} · {results.count(len(run.plan.healers), 'healer')} · {run.status}"


profile = profiles.find()
if profile is not None:
    frame.figures(frame.stage_rows(profile))
axes = list(bakeoff_form.AXES)
axis = st.segmented_control(
    "Question", axes, required=True, format_func=bakeoff_form.AXES.get, label_visibility="collapsed", **state.tie_value("axis", "all", allowed=axes)
)
plan = bakeoff_form.draw(axis)
if plan is not None:
    launch.queue(plan, kind="bakeoff", name=f"bake_{axis}")
    st.rerun()
if text := st.session_state.pop("said", None):
    st.info(text, icon=":material/info:")
run = shown(axis)
if run is not None:
    bakeoff_view.show(run, axis)
elif not bakeoff_measured.there():
    st.markdown(EMPTY[axis])
bakeoff_measured.section(axis)

"""Gallery: images whose answer pruning flipped and what healing made of them, class by class; and a picture of one's own.

The address bar says which run (run=12), which part (gallery=classes) and what is chosen in it.
"""

from __future__ import annotations

import streamlit as st

from app import frame, gallery_view, own_picture_view, profiles, results, state
from starfish_lab.report import LARGE
from starfish_lab.store import Run

KNOWN = 200  # newest finished runs on offer
PARTS = {"images": "Images", "classes": "Classes", "own": "My own picture"}


def page() -> None:
    run = chosen()
    if run is None:
        _empty()
        return
    frame.figures(results.figure_rows(state.store().report(run.id, without=LARGE), device=run.device or ""))
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        choose(run)
        tied = state.tie_value("gallery", "images", allowed=list(PARTS))
        part = st.segmented_control("Show", list(PARTS), format_func=PARTS.get, required=True, **tied)
    if part == "own":
        own_picture_view.show(run)
        return
    found = gallery_view.of(run)
    if found["images"].empty:
        _without(run)
    elif part == "classes":
        gallery_view.show_classes(run, found)
    else:
        gallery_view.show_images(run, found)


def chosen() -> Run | None:
    """The run in the link, else the newest that is done, which is put there so that the link stays about it; None where there is none."""
    done = state.store().runs(status="done", limit=KNOWN)
    wanted = state.get("run", 0)
    if wanted and wanted not in set(done["id"]):
        older = state.store().runs(status="done", ids=[wanted]) if 0 < wanted < 2**31 else done.head(0)
        if older.empty:
            st.warning(f"The link asks for run {wanted}, and there is no finished run of that number with a network. The newest is shown.")
            wanted = 0
    if not wanted and done.empty:
        return None
    wanted = wanted or int(done["id"].iloc[0])
    state.put("run", wanted)
    return state.store().run(wanted)


def choose(run: Run) -> None:
    """The chooser of runs."""
    done = state.store().runs(status="done", limit=KNOWN)
    labels = {int(row["id"]): results.short(row) for row in done.to_dict("records")}
    labels.setdefault(run.id, f"Run {run.id}")
    st.selectbox("Run", list(labels), format_func=labels.get, width=320, **state.tie_value("run", 0))


def _without(run: Run) -> None:
    """Why there is nothing to show, and how to get it."""
    report = state.store().report(run.id, without=LARGE)
    with st.container(border=True):
        if report.tables.get("accuracy"):
            st.subheader("This run kept no answers", anchor=False)
            st.markdown(
                "It was made before runs kept what each network answered to each image. **Clone** it on its own page and run it again: "
                "the answers and some thumbnails come with it."
            )
        else:
            st.subheader("The images of this run have no labels", anchor=False)
            st.markdown("Without labels nobody asked the networks for all answers. A picture of your own can still be shown to all three.")


def _empty() -> None:
    """What will be here, and the button that brings it."""
    profile = profiles.find()
    if profile is not None:
        frame.figures(frame.stage_rows(profile))
    with st.container(border=True):
        st.subheader("Which answers did pruning flip?", anchor=False)
        st.markdown("Every finished run shows here the images it got wrong, those that healing brought back, and what each class lost.")
        if st.button("Go to Prune & heal", type="primary", icon=":material/healing:", key="first"):
            state.put("new", True)
            st.switch_page("views/prune_and_heal.py")


page()

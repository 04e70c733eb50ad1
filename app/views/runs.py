"""Runs: what was tried, by whom, with what result; the place to cancel, clone, delete and choose what to compare.

With view=sweeps in the link it shows sweeps, of which sweep=12 is the chosen one.
"""

from __future__ import annotations

import time

import pandas as pd
import streamlit as st

from app import acts, bakeoff_rows, decisions_view, frame, launch, profiles, results, state, sweep_view
from app.review import lineage, lineage_view
from starfish_lab.errors import StoreError
from starfish_lab.store.people import VERDICTS

SHOWN = 200  # rows in the browser at once
KNOWN = 1000  # newest runs that the filters look through
STATUSES = ("queued", "paused", "running", "done", "failed", "cancelled")
VIEWS = {"runs": "Runs", "sweeps": "Sweeps"}
APART = ("profile", "merging", "picture", "sweep")  # kinds that are no rows here: made by the way, or shown as sweeps
BARS = "Accuracy"
HEALING = ("experiment", "bakeoff")  # kinds that heal; of others the method of the recipe says nothing
# What 'done' is called where it leaves no healed network.
DONE = {"latency": "timed", "layer_times": "layers timed", "bakeoff": "baked", "sensitivity": "measured"}


def decided(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs with a column `decision`, the newest of each or UNDECIDED."""
    newest = decisions_view.newest(state.store().decisions(runs["id"])).set_index("run")["decision"]
    return runs.assign(decision=[newest.get(run, decisions_view.UNDECIDED) for run in runs["id"]])


def listed(runs: pd.DataFrame) -> pd.DataFrame:
    """The table a person sees, one row a run."""
    bars = (100 * runs[["top1_dense", "top1_pruned", "top1_healed"]].fillna(0)).round(1).to_numpy().tolist()
    seconds = runs["seconds"].where(runs["status"] == "done", runs["finished_at"].fillna(time.time()) - runs["started_at"])
    return pd.DataFrame({
        "Run": runs["id"], "Name": runs["name"], "Status": [_status(row) for row in runs.itertuples()],
        "Method": runs["method"].map(bakeoff_rows.label).where(runs["kind"].isin(HEALING), "timed only"),
        "Pattern": runs["pattern"].replace("n_m", "n:m"),
        "Sparsity (%)": 100 * runs["sparsity_prunable"].fillna(runs["sparsity"]), "Of all (%)": 100 * runs["sparsity_all"],
        **_percent(runs, "pruned", "healed"), BARS: bars,
        "Decision": runs["decision"].where(runs["decision"] != decisions_view.UNDECIDED, None).str.capitalize(),
        "Model": runs["model"], **_percent(runs, "dense"),
        "Seconds": seconds, "Submitted": pd.to_datetime(runs["created_at"], unit="s", utc=True), "From": runs["parent"], "Owner": runs["owner"],
    })  # fmt: skip


def _percent(runs: pd.DataFrame, *stages: str) -> dict[str, pd.Series]:
    return {f"{stage.capitalize()} (%)": 100 * runs[f"top1_{stage}"] for stage in stages}


def _status(row) -> str:
    if row.status == "running" and pd.notna(row.steps) and row.steps:
        return f"{row.stage} {int(row.step)}/{int(row.steps)}" if row.kind != "bakeoff" else f"baking {row.stage.partition(':')[0]}"
    return DONE.get(row.kind, "done") if row.status == "done" else row.status


def _number(help: str, *, width: int = 84, format: str = "%.1f"):
    return st.column_config.NumberColumn(format=format, width=width, help=help)


COLUMNS = {
    "Run": st.column_config.NumberColumn(pinned=True, width=52),
    "Name": st.column_config.TextColumn(width=110),
    "Status": st.column_config.TextColumn(width=92),
    "Method": st.column_config.TextColumn(width=150),
    "Pattern": st.column_config.TextColumn(width=96),
    "Sparsity (%)": _number("Removed share of the prunable weights.", width=92),
    "Dense (%)": _number("Top-1 accuracy of the dense network.", width=78),
    "Pruned (%)": _number("Top-1 accuracy after pruning, before healing."),
    "Healed (%)": _number("Top-1 accuracy after healing.", width=82),
    BARS: st.column_config.BarChartColumn(y_min=0, y_max=100, width=80, help="Top-1 accuracy of dense, pruned and healed, 0 to 100 %."),
    "Decision": st.column_config.TextColumn(width=90, help="The newest one of a person, with its reason on the page of the run."),
    "Of all (%)": _number("Removed share of all parameters.", width=76),
    "Model": st.column_config.TextColumn(width=94),
    "Seconds": _number("Of all stages; of a running one, so far.", format="%.0f"),
    "Submitted": st.column_config.DatetimeColumn(format="distance"),
    "From": _number("The run it was cloned from.", width=60, format="%d"),
}


def filters(runs: pd.DataFrame) -> pd.DataFrame:
    """One row of filters; what they leave."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        status = st.pills("Status", STATUSES, selection_mode="multi", **state.tie_value("status", ()))
        known = sorted(runs["model"].unique())
        model = state.get("of_model", "")
        options = ["", *known] if model in known or not model else ["", model, *known]
        model = st.selectbox("Model", options, format_func=lambda name: name or "Any", width=190, **state.tie_value("of_model", ""))
        verdicts = ("", *VERDICTS, decisions_view.UNDECIDED)
        tied = state.tie_value("decided", "", allowed=verdicts)
        verdict = st.selectbox("Decision", verdicts, format_func=lambda name: name.capitalize() or "Any", width=140, **tied)
        text = st.text_input("Search", placeholder="name, method, owner …", width=200, **state.tie_value("find", ""))
    if status:
        runs = runs[runs["status"].isin(status)]
    if model:
        runs = runs[runs["model"] == model]
    if verdict:
        runs = runs[runs["decision"] == verdict]
    if text:
        words = runs["id"].astype(str) + " " + runs["name"] + " " + runs["method"] + " " + runs["owner"] + " " + runs["pattern"] + " " + runs["model"]
        runs = runs[words.str.contains(text, case=False, regex=False)]
    return runs


def table(runs: pd.DataFrame) -> None:
    """The newest of what is left, and which of them are chosen. Rows are remembered by number, so a new run shifts no choice."""
    shown = runs.head(SHOWN)
    ids = [int(i) for i in shown["id"]]
    chosen = state.ids("runs")
    key = f"runs.{hash(tuple(ids))}"
    st.session_state["runs.shown"] = ids

    def choose() -> None:
        rows = st.session_state[key]["selection"]["rows"]
        here = st.session_state["runs.shown"]
        kept = [run for run in state.ids("runs") if run not in here]
        state.put("runs", (*kept, *(here[row] for row in rows if row < len(here))))

    selected = [ids.index(run) for run in chosen if run in ids]
    frame.table(
        listed(shown), placeholder="–", key=key, on_select=choose, selection_mode="multi-row", height=min(560, 38 + 35 * max(len(shown), 3)),
        selection_default={"selection": {"rows": selected, "columns": [], "cells": []}}, column_config=COLUMNS,
    )  # fmt: skip
    whole = f"{len(runs)} run{'' if len(runs) == 1 else 's'}" if len(runs) < KNOWN else f"more than {KNOWN:,} runs"
    st.caption(f"Newest {len(shown)} of {whole}. Narrow the filters to reach older ones." if len(runs) > len(shown) else whole)


def actions(runs: pd.DataFrame) -> None:
    """What can be done with the chosen runs."""
    store = state.store()
    here = runs[runs["id"].isin(state.ids("runs"))]
    one = int(here["id"].iloc[0]) if len(here) == 1 else None
    active = [int(i) for i in here.loc[here["status"].isin(["queued", "paused", "running"]), "id"]]
    done = [int(i) for i in here.loc[(here["status"] == "done") & (here["kind"] == "experiment"), "id"]]
    recipes = int((here["kind"] != "bakeoff").sum())  # a bake-off is more than a recipe
    resting = [int(i) for i in here.loc[here["status"] != "running", "id"]]
    with frame.actions():
        st.caption(f"{len(here)} chosen" if len(here) else "Choose runs by the boxes on the left.", width="content")
        if active and acts.button("Cancel", icon=":material/stop_circle:", key="cancel"):
            for run in active:
                state.backend().cancel(run)
            st.rerun()
        if resting:
            with st.popover("Delete", icon=":material/delete:"):
                st.markdown(f"Delete {results.runs(resting)} with all figures and networks? Nothing brings them back.")
                if acts.button("Delete for good", key="delete", type="primary"):
                    _delete(resting)
        hint = "Open its recipe in the form, to change and launch."
        if recipes == 1 == len(here) and st.button("Clone", icon=":material/content_copy:", key="clone", help=hint):
            launch.clone(store.run(one))
        if one is not None and st.button("Open", icon=":material/open_in_new:", key="open"):
            state.put("run", one)
            st.switch_page("views/prune_and_heal.py")
        if st.button("Compare", type="primary", icon=":material/compare_arrows:", key="compare", disabled=not done):
            state.put("runs", done)
            st.switch_page("views/compare.py")
    if len(here):
        decisions_view.of_runs([int(i) for i in here["id"]])
    if one is not None:
        _lineage(runs, one)


def _delete(chosen: list[int]) -> None:
    kept = []
    for run in chosen:
        try:
            state.store().delete(run)
        except StoreError as error:
            kept.append(run)
            st.error(str(error))
    state.put("runs", [run for run in state.ids("runs") if run not in chosen or run in kept])
    if not kept:
        st.rerun()


def _lineage(runs: pd.DataFrame, run: int) -> None:
    members = runs[runs["id"].isin(lineage.family(runs, run))]
    if len(members) > 1:
        lineage_view.section(members, chosen=[run], key=f"lineage_{run}")


def empty() -> None:
    """What will be here, and the button that brings it."""
    with st.container(border=True):
        st.subheader("No runs yet", anchor=False)
        st.markdown("Every run of Prune & heal stands here, with its accuracy before and after healing. The bundled starter takes a minute or two.")
        if st.button("Go to Prune & heal", type="primary", icon=":material/healing:", key="first"):
            state.put("new", True)
            st.switch_page("views/prune_and_heal.py")


def page(running: bool) -> None:
    """The table; drawn again every few seconds while something runs."""
    with frame.guard():
        runs = state.store().runs(kind=None, limit=KNOWN)
        runs = decided(runs[~runs["kind"].isin(APART)])
        if runs.empty:
            empty()
            return
        left = filters(runs)
        table(left)
        actions(runs)
        if running and not runs["status"].isin(["queued", "running"]).any():
            st.rerun()


profile = profiles.find()
if profile is not None:
    frame.figures(frame.stage_rows(profile))
view = "runs"
if state.get("view", "runs") == "sweeps" or state.store().numbers(kind="sweep", limit=1):
    tied = state.tie_value("view", "runs", allowed=list(VIEWS))
    view = st.segmented_control("Show", list(VIEWS), required=True, format_func=VIEWS.get, label_visibility="collapsed", **tied)
active = any(state.store().numbers(status=status, limit=1) for status in ("queued", "running"))
st.fragment(sweep_view.page if view == "sweeps" else page, run_every="3s" if active else None)(active)

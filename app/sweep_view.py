"""Sweeps on the page Runs: a row a sweep, and of the chosen one how far it is, its picture, its runs, and what can be done with all of them."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from app import acts, bakeoff_rows, frame, launch, results, run_view, state, sweep_rows
from app.charts import sweep as charts
from starfish_lab import settings
from starfish_lab.errors import LabError, StoreError
from starfish_lab.store import Run

KNOWN = 200  # newest sweeps that are listed
CAPTION = (
    "A line is a healer, a mark the mean of its seeds with the 95 % interval of the evaluation images; marks stand a little aside so as not to "
    "hide each other. It does not say what longer healing or other images would bring."
)
COLUMNS = {
    "Sweep": st.column_config.NumberColumn(pinned=True, width=60),
    "Name": st.column_config.TextColumn(width=120),
    "Status": st.column_config.TextColumn(width=84),
    "Ended": st.column_config.ProgressColumn(format="%.0f %%", min_value=0, max_value=100, width=110, help="Of its runs: done, failed or cancelled."),
    "Runs": st.column_config.NumberColumn(width=60),
    "What": st.column_config.TextColumn(width=420),
    "Model": st.column_config.TextColumn(width=110),
    "Submitted": st.column_config.DatetimeColumn(format="distance"),
}
CHILDREN = {
    "run": st.column_config.NumberColumn("Run", pinned=True, width=60),
    "status": st.column_config.TextColumn("Status", width=84),
    "panel": "Pattern",
    "sparsity": st.column_config.NumberColumn("Sparsity", format="percent"),
    "healer": "Healer",
    "seed": "Seed",
    "top1": st.column_config.NumberColumn("Top-1", format="percent"),
    "low": st.column_config.NumberColumn("from", format="percent", help="95 % interval of the evaluation images."),
    "high": st.column_config.NumberColumn("to", format="percent"),
    "macs_g": st.column_config.NumberColumn("MACs (G)", format="%.3g"),
    "seconds": st.column_config.NumberColumn("Seconds", format="%.0f"),
    "adopted": st.column_config.CheckboxColumn("Adopted", help="The store had this very run already, so it was not done again."),
}


def page(running: bool) -> None:
    """The list of sweeps and the chosen one; drawn again every few seconds while something runs."""
    with frame.guard():
        sweeps = state.store().runs(kind="sweep", limit=KNOWN)
        if sweeps.empty:
            empty()
            return
        chosen = _list(sweeps)
        _show(state.store().run(chosen), sweeps.set_index("id").loc[chosen, "model"])
        if running and not sweeps["status"].isin(["queued", "running"]).any():
            st.rerun()


def empty() -> None:
    """What will be here, and the button that brings it."""
    with st.container(border=True):
        st.subheader("No sweeps yet", anchor=False)
        st.markdown("A sweep runs one recipe at several sparsities, patterns, healers and seeds, and shows all in one picture. What is done counts.")
        if st.button("Plan a sweep", type="primary", icon=":material/grid_on:", key="plan_sweep"):
            for name in ("new", "sweeping"):
                state.put(name, True)
            st.switch_page("views/prune_and_heal.py")


def _list(sweeps: pd.DataFrame) -> int:
    """The table of sweeps; the number of the chosen one, the newest where the link names none."""
    ids = [int(number) for number in sweeps["id"]]
    wanted = state.get("sweep", ids[0])
    if wanted not in ids:
        st.warning(f"The link asks for sweep {wanted}, and there is none of that number: it may have been deleted.", icon=":material/link_off:")
        state.put("sweep", None)
        wanted = ids[0]
    key = f"sweeps.{hash(tuple(ids))}"

    def choose() -> None:
        rows = st.session_state[key]["selection"]["rows"]
        state.put("sweep", ids[rows[0]] if rows and rows[0] < len(ids) else None)

    shown = pd.DataFrame({
        "Sweep": sweeps["id"], "Name": sweeps["name"], "Status": sweeps["status"], "Ended": (100 * sweeps["step"] / sweeps["steps"]).astype(float),
        "Runs": sweeps["steps"], "What": [_asked(settings.database_url(), int(row.id), row.created_at) for row in sweeps.itertuples()],
        "Model": sweeps["model"], "Submitted": pd.to_datetime(sweeps["created_at"], unit="s", utc=True), "Owner": sweeps["owner"],
    })  # fmt: skip
    frame.table(
        shown, key=key, on_select=choose, selection_mode="single-row", column_config=COLUMNS, height=min(300, 38 + 35 * max(len(shown), 2)),
        selection_default={"selection": {"rows": [ids.index(wanted)], "columns": [], "cells": []}},
    )  # fmt: skip
    return wanted


@st.cache_data(max_entries=1000, show_spinner=False)
def _asked(url: str, number: int, created_at: float) -> str:
    """What a sweep varies, which never changes; `url` and `created_at` keep sweeps of one number apart."""
    try:
        return sweep_rows.asked(state.store().run(number).plan)
    except LabError:
        return "–"


def _show(run: Run, model: str) -> None:
    """One sweep: how far, what can be done, its picture, its runs."""
    rows = figures(run.id)
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.subheader(f"Sweep {run.id}{': ' + run.name if run.name else ''}", anchor=False, width="content")
        st.badge(run.status, color=run_view.COLOURS[run.status])
        st.caption(f"{model} · {_asked(settings.database_url(), run.id, run.created_at)}", width="content")
    left = f" · {results.duration(run.seconds_left)} left at this pace" if run.seconds_left is not None else ""
    st.progress(run.step / max(run.steps, 1), text=sweep_rows.told(rows) + left)
    if run.error:
        st.warning(run.error, icon=":material/error:")
    _actions(run, rows)
    found = sweep_rows.summary(rows)
    if len(found):
        fig = charts.accuracy(found, title=sweep_rows.title(found), dense=sweep_rows.dense(rows), dark=frame.dark(), keep=run.id)
        more = list(dict.fromkeys(found["panel"]))[charts.MOST_PANELS :]
        frame.chart(fig, key=f"sweep_{run.id}", data=found, caption=CAPTION + (f" Not shown, but in the table: {', '.join(more)}." if more else ""))
    elif not run.active:
        st.info("There is no accuracy to show: these images have no labels, or nothing ran to its end.")
    _children(run, rows)


def figures(sweep: int) -> pd.DataFrame:
    """The runs of a sweep with what those that are done have measured."""
    rows = state.store().sweep_runs(sweep)
    done = tuple(int(run) for run in rows.loc[rows["status"] == "done", "run"])
    return sweep_rows.figured(rows, *_measured(settings.database_url(), done))


@st.cache_data(max_entries=32, show_spinner=False)
def _measured(url: str, done: tuple[int, ...]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Accuracies and totals of finished runs, which never change; `url` keeps stores apart."""
    return state.store().table(done, "accuracy"), state.store().table(done, "totals")


def _actions(run: Run, rows: pd.DataFrame) -> None:
    """All runs of a sweep paused, resumed, cancelled or tried again as one; its front to Compare."""
    store, status = state.store(), set(rows["status"])
    front = sweep_rows.front(rows)
    with frame.actions():
        if not run.active and run.status != "paused":
            with st.popover("Delete", icon=":material/delete:"):
                st.markdown(f"Delete sweep {run.id} with the runs that it made? Those it adopted stay. Nothing brings the others back.")
                if acts.button("Delete for good", key="delete_sweep", type="primary"):
                    _do(store.delete, run.id)
        if status & {"failed", "cancelled"} and acts.button("Try failed again", icon=":material/replay:", key="retry_sweep"):
            _do(store.retry, run.id)
        if (run.active or run.status == "paused") and acts.button("Cancel", icon=":material/stop_circle:", key="cancel_sweep"):
            _do(store.request_cancel, run.id)
        if run.status == "paused" and acts.button("Resume", icon=":material/play_circle:", key="resume_sweep"):
            _do(store.resume, run.id)
        hint = "Runs that wait are held back; those at work go on to their end."
        if "queued" in status and run.status != "paused" and acts.button("Pause", icon=":material/pause_circle:", key="pause_sweep", help=hint):
            _do(store.pause, run.id)
        hint = "Opens on Compare the runs that no other beats in accuracy and multiply-adds."
        if st.button("Compare the front", type="primary", icon=":material/compare_arrows:", key="compare_sweep", disabled=not front, help=hint):
            state.put("runs", front)
            st.switch_page("views/compare.py")


def _do(what, number: int) -> None:
    try:
        what(number)
    except StoreError as error:
        st.error(str(error), icon=":material/error:")
        return
    st.rerun()


def _children(run: Run, rows: pd.DataFrame) -> None:
    """The runs of a sweep, closed until asked for; a chosen one opens."""
    details = st.expander(f"The {results.count(len(rows), 'run')} of this sweep", on_change="rerun", key=f"sweep_children_{run.id}")
    if not details.open:
        return
    with details:
        shown = rows.assign(healer=rows["healer"].map(bakeoff_rows.label))
        event = frame.table(
            shown, key=f"sweep_{run.id}_runs", column_config=CHILDREN, column_order=list(CHILDREN), on_select="rerun", selection_mode="single-row",
            placeholder="–", height=min(420, 38 + 35 * max(len(rows), 2)),
        )  # fmt: skip
        chosen = [int(rows["run"].iloc[row]) for row in event.selection.rows if row < len(rows)]
        with frame.actions():
            st.caption("Choose a run by the box on the left to open or clone it.", width="content")
            if chosen and st.button("Clone", icon=":material/content_copy:", key="clone_child"):
                launch.clone(state.store().run(chosen[0]))
            if chosen and st.button(f"Open run {chosen[0]}", icon=":material/open_in_new:", key="open_child"):
                state.put("run", chosen[0])
                st.switch_page("views/prune_and_heal.py")

"""Results files: a measurement made on another machine comes in, one made here goes out, and the plan to take there."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pandas as pd
import streamlit as st

from app import state
from starfish_lab.errors import LabError
from starfish_lab.latency import importing, results_file
from starfish_lab.latency.plan import LatencyPlan

COMMAND = "python -m starfish_lab latency plan.json --out results.json"
ELSEWHERE = "Where a GPU stands alone, only the library is needed there. Take the plan along, run this, and bring the results here."


def popover(runs: pd.DataFrame, plan: LatencyPlan | None) -> None:
    """The door for files: upload one, download those on show. `runs` is the store's list of the runs on show."""
    with st.popover("Files", icon=":material/swap_vert:"):
        st.file_uploader(
            "Results of another machine (JSON)", type="json", key="results_file", on_change=_uploaded, help="As `latency --out` writes them."
        )
        st.caption(ELSEWHERE)
        st.code(COMMAND, language="bash", wrap_lines=True)
        if plan is not None:
            st.download_button(
                "plan.json", plan.to_json, file_name="plan.json", mime="application/json", icon=":material/download:", on_click="ignore"
            )
        for run in runs.loc[runs["kind"] == "latency", "id"].astype(int):
            st.download_button(
                f"Results of run {run}", lambda run=run: exported(run), file_name=f"latency_run_{run}.json", mime="application/json",
                icon=":material/download:", on_click="ignore", key=f"results.{run}",
            )  # fmt: skip


def said() -> None:
    """What came of the last upload, once."""
    if text := st.session_state.pop("results_error", None):
        st.error(text, icon=":material/upload_file:")
    if text := st.session_state.pop("results_said", None):
        st.info(text, icon=":material/upload_file:")


def origin(runs: pd.DataFrame) -> None:
    """Which of the runs on show were measured elsewhere and brought here as a file."""
    brought = runs.loc[importing.brought(runs), "id"].astype(int).tolist()
    if brought:
        said = f"run {brought[0]}" if len(brought) == 1 else f"runs {', '.join(map(str, brought))}"
        st.badge(
            f"{said}: imported", icon=":material/upload_file:", color="gray", help="Measured on another machine and brought here as a results file."
        )


def exported(run: int) -> str:
    """A finished measurement as the text of a results file. Raises LabError where it lacks what such a file needs."""
    store = state.store()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "results.json"
        results_file.write(path, store.report(run), store.run(run).plan)
        return path.read_text(encoding="utf-8")


def imported(content: bytes, name: str) -> int:
    """Keep a results file as a finished run and return its number. Raises LabError where it is no whole results file."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        raise LabError(f"{name} is no results file: it is not text. {results_file.AGAIN}") from None
    report, plan = results_file.parse(text, name=name)
    return importing.keep(state.store(), report, plan, name=name)


def _uploaded() -> None:
    """A file was dropped on the page: it becomes a run, or the reason why not is shown and nothing changes."""
    file = st.session_state["results_file"]
    if file is None:
        return
    try:
        run = imported(file.getvalue(), file.name)
    except LabError as error:
        st.session_state["results_error"] = str(error)
        return
    row = state.store().table([run], "latency").iloc[0]
    for name in ("timed", "lines"):
        state.put(name, None)
    state.put("card", row["device_name"])
    state.put("network", state.store().run(run).recipe.model.name)
    st.session_state["results_said"] = f"{file.name} is kept as run {run}, measured on {row['device_name']}."

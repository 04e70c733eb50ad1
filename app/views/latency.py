"""Latency: is it really faster, on which machine, and compared with what."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import streamlit as st

from app import frame, launch, profiles, published, results, state
from app.charts import latency as charts
from starfish_lab import literature, settings
from starfish_lab.errors import LabError

KNOWN = 200  # newest done runs whose timings are read
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
SWEEP = (
    "Higher is faster; filled marks were measured here with their 95 % interval, hollow ones are published. "
    "Lines of different machines, precisions or authors are not to be compared with each other."
)
MACS = (
    "On the dashed line a network is as much faster as it has fewer multiply-adds; on 1 it is as fast as dense. "
    "It shows this machine at this batch size, not others."
)
_number = st.column_config.NumberColumn
COLUMNS = {
    "run": _number("Run", width="small"), "stage": "Stage", "execution": "Execution", "batch": _number("Batch"),
    "latency_ms_p50": _number("p50 (ms)", format="%.3g"), "latency_ms_p90": _number("p90 (ms)", format="%.3g"),
    "latency_ms_p99": _number("p99 (ms)", format="%.3g"), "images_per_s": _number("Images/s", format="%.4g"),
    "faster": st.column_config.TextColumn("Speed-up (×)", help="Over dense, with its 95 % interval; both were timed in turns in one process."),
    "dtype": "Precision", "threads": "Threads", "iterations": "Iterations", "note": "Note",
}  # fmt: skip


@st.cache_data(max_entries=8, show_spinner=False)
def measured(url: str, ids: tuple[int, ...]) -> pd.DataFrame:
    """Latency rows of finished runs, which never change; `url` keeps stores apart."""
    return state.store().table(ids, "latency")


def pick(timings: pd.DataFrame, published_rows: pd.DataFrame) -> tuple[str, str]:
    """Card and network. Measured machines first, then those of the literature."""
    here = list(dict.fromkeys(timings["device_name"])) if len(timings) else []
    covered = {gpu for name in here for gpu in published.cards(name)}
    cards = [*here, *(gpu for gpu in sorted(published_rows["gpu"].unique()) if gpu not in covered)]
    with st.container(horizontal=True, vertical_alignment="bottom"):
        card = st.selectbox(
            "Machine",
            cards,
            format_func=lambda name: name if name in here else f"{name} (literature)",
            **state.tie_value("card", cards[0], allowed=cards),
        )
        models = list(dict.fromkeys([
            *(timings.loc[timings["device_name"] == card, "model"] if len(timings) else ()),
            *sorted(published_rows.loc[published_rows["gpu"].isin(published.cards(card)), "model"].unique()),
        ]))  # fmt: skip
        wanted = (state.choice().model, *published.names(state.choice().model), "ViT-B/16")
        usual = next((model for model in wanted if model in models), models[0])
        if state.get("network", usual) not in models:
            state.put("network", None)  # left over from another card
        model = st.selectbox("Network", models, **state.tie_value("network", usual))
    return card, model


def sweep(rows: pd.DataFrame, hollow: pd.DataFrame, card: str, model: str) -> None:
    """The main figure: images a second over batch size."""
    if rows.empty:
        st.markdown(f"**Nothing was measured on an {card} here.** Every figure below is published, none is ours.")
    else:
        runs = [int(run) for run in rows["run"].unique()]
        wanted = [run for run in state.ids("timed") if run in runs] or runs[:1]
        if len(runs) > 1:
            tied = _tied("timed_runs", wanted, "timed")
            st.multiselect("Runs", runs, format_func=lambda run: f"run {run}", max_selections=4, **tied)
        rows = rows[rows["run"].isin(wanted)]
    fig = charts.batch_sweep(rows, hollow, device=card, dark=frame.dark(), keep=f"{card} {model}")
    frame.chart(fig, key="batch_sweep", caption=SWEEP, data=pd.concat([rows, hollow]))
    for note in dict.fromkeys(rows["note"].dropna()) if "note" in rows else ():
        if note:
            st.markdown(f"**{note[0].upper()}{note[1:]}**")
    if len(rows):
        _table(rows)


def _table(rows: pd.DataFrame) -> None:
    def faster(row) -> str:
        return "" if row.stage == "dense" or row.speedup != row.speedup else f"{row.speedup:.2f} ({row.speedup_low:.2f} to {row.speedup_high:.2f})"

    shown = rows.assign(faster=[faster(row) for row in rows.itertuples()])
    frame.table(shown, key="latency", column_config=COLUMNS, column_order=[name for name in COLUMNS if name in shown])


def literature_table(hollow: pd.DataFrame, card: str, model: str) -> None:
    """What the published figures compare."""
    table = published.ratios(hollow)
    if text := published.statement(card, model, table):
        st.markdown(text)
    if len(table):
        names = {"batch": "Batch", "headline": "2:4 over mixed precision (×)", "matched": "2:4 over dense, same precision (×)"}
        formats = {
            name: st.column_config.NumberColumn(names.get(name, name), format="%.3f" if name in ("headline", "matched") else "%.5g") for name in table
        }
        frame.table(table, key="published_latency", column_config=formats)
        st.caption(f"Images/s. Source: {hollow['source'].iloc[0]}")


def against_macs(timings: pd.DataFrame, runs: pd.DataFrame) -> None:
    """Measured speed-up beside what MACs promise."""
    found = results.speedups(timings, runs)
    if found.empty:
        return
    batches = [int(batch) for batch in sorted(found["batch"].unique())]
    batch = (
        st.segmented_control("Speed-up at batch size", batches, required=True, **state.tie_value("at_batch", batches[-1], allowed=batches))
        if len(batches) > 1
        else batches[0]
    )
    shown = found[found["batch"] == batch]
    frame.chart(charts.speedup_against_macs(shown, dark=frame.dark(), keep=batch), key="speedup_against_macs", caption=MACS, data=shown)


def _tied(key: str, shown, name: str, default=None) -> dict[str, object]:
    """Tie a choice of several numbers to the page's own value `name`."""
    if st.session_state.get(key) != list(shown):
        st.session_state[key] = list(shown)
    return {"key": key, "on_change": lambda: state.put(name, st.session_state[key], default=default)}


def measure() -> None:
    """The button, and how far a measurement is."""
    if waiting := state.get("timing", 0):
        try:
            run = state.store().run(waiting)
        except (LabError, OverflowError):
            state.put("timing", None)
        else:
            st.fragment(_timing, run_every="1s" if run.active else None)(run.id)
    words = state.get("batches", (1, 8, 32))
    sizes = tuple(int(word) for word in words if str(word).isdigit() and int(word) in BATCHES) or (1, 8, 32)
    with frame.actions():
        chosen = st.pills("Batch sizes", BATCHES, selection_mode="multi", **_tied("batch_sizes", sizes, "batches", [1, 8, 32]))
        recipe = launch.current()
        pressed = st.button(
            "Measure latency", type="primary", icon=":material/timer:", key="measure", disabled=not chosen,
            help=f"Times {recipe.model.name}, dense and with {results.pattern(recipe.pruning)}, in turns. No images, no healing.",
        )  # fmt: skip
    if pressed:
        launch.submit(replace(recipe, measure=replace(recipe.measure, latency=True, batch_sizes=tuple(sorted(chosen)))), kind="latency")


def _timing(run_id: int) -> None:
    with frame.guard():
        run = state.store().run(run_id)
        if run.status == "failed":
            st.error(f"Run {run_id} stopped: {run.error}", icon=":material/error:")
        elif run.status == "queued" and state.backend().capacity().empty:
            st.warning(f"No worker is running, so the measurement waits in the queue as run {run_id}. Start one: `python -m starfish_lab worker`")
        elif run.active:
            share = min(1.0, run.step / run.steps) if run.step and run.steps else 0.0
            left = f", {results.duration(run.seconds_left)} left" if run.seconds_left is not None else ""
            st.progress(share, text=f"Run {run_id}: {'waiting' if run.status == 'queued' else run.stage or 'starting'}{left}")
        elif run.status == "done":
            state.put("timing", None)
            st.rerun()


profile = profiles.find()
if profile is not None:
    frame.figures(frame.stage_rows(profile))
done = state.store().runs(kind=None, status="done", limit=KNOWN)
timings = measured(settings.database_url(), tuple(int(i) for i in done["id"]))
if len(timings):
    timings = timings.merge(done[["id", "model"]], left_on="run", right_on="id").drop(columns="id")
hollow = literature.latencies()
card, model = pick(timings, hollow)
ours = timings[(timings["device_name"] == card) & (timings["model"] == model)] if len(timings) else timings
theirs = hollow[hollow["gpu"].isin(published.cards(card)) & (hollow["model"].isin([model, *published.names(model)]))]
sweep(ours, theirs, card, model)
measure()
against_macs(ours, done)
literature_table(theirs, card, model)

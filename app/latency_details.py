"""What lies below the batch sweep, one look at a time: figures, layers, roofline, accuracy, MACs. Each is read only when asked for."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from app import frame, latency_intensity, latency_rows, published, state
from app.charts import latency as sweeps
from app.charts import latency_accuracy, latency_layers, latency_roofline
from app.latency_rows import spoken, word
from starfish_lab.latency.comparable import covered

LOOKS = {
    "figures": "All figures", "layers": "Where the time goes", "roofline": "Roofline", "accuracy": "Accuracy", "macs": "MACs",
    "pair": "Comparable?", "sensors": "Sensors", "published": "Published",
}  # fmt: skip
MACS = (
    "On the dashed line a network is as much faster as it has fewer multiply-adds; on 1 it is as fast as dense run the same way. "
    "It shows this machine at this batch size, not others."
)
FRONT = (
    "Up and to the left is better; the grey line joins marks that no other measured mark beats, and hollow ones are published. "
    "What was timed after pruning alone stands at its healed accuracy, since healing leaves every zero; rounding in fp16 and bf16 is not looked at."
)
FALL = (
    "From left to right by depth, each bar is what one layer saved, from the dense time of all layers to the fast one's. "
    "Layers are timed one by one, which costs time of its own: the sums are not the sweep's latency."
)
BESIDE = "A pair of bars a layer, dense and fast. What stands in no layer (residual sums, reshapes) is not drawn unless the lab gave it a row."
ROOF = (
    "Under the slanted part of a roof memory is the limit, under the flat part arithmetic; roofs are measured on this device. "
    "How many bytes a pass moves is estimated: each layer reads its weights and inputs and writes its outputs once."
)
_number = st.column_config.NumberColumn
_text = st.column_config.TextColumn
COLUMNS = {
    "run": _number("Run", width="small"), "stage": "Stage", "said": _text("Execution", width="medium"), "batch": _number("Batch", width="small"),
    "latency_ms_p50": _number("p50 (ms)", format="%.3g"), "latency_ms_p90": _number("p90 (ms)", format="%.3g"),
    "latency_ms_p99": _number("p99 (ms)", format="%.3g"), "rate": _text("Images/s", width="medium", help="With its 95 % interval."),
    "faster": _text("Same precision (×)", width="medium", help="Over dense in the same precision and mode, with its 95 % interval; timed in turns."),
    "faster_best": _text("Best dense (×)", width="medium", help="Over the fastest dense execution at this batch size, with its 95 % interval."),
    "best": _text("Best dense is", width="medium"), "tflops": _number("TFLOP/s", format="%.3g"),
    "peak_share": _number("Of the peak", format="percent", help="Share of the device's measured peak in this precision."),
    "joules_per_image": _number("J/image", format="%.3g"), "energy_method": "Energy by", "memory_mb": _number("Memory (MB)", format="%.4g"),
    "largest_difference": _number("Difference", format="%.1e", help="Largest difference of logits to the masked network, over the largest logit."),
    "tolerance": _number("Allowed", format="%.1e", help="What rounding alone may do in this precision."),
    "top1_agreement": _number("Same answers", format="percent", help="Share of images on which it answers as the masked network does."),
    "iterations": _number("Iterations"),
    "covers": _text("Interval covers", help="Processes differ by more than the rounds of one show; only fresh starts tell by how much."),
    "threads": _number("Threads"), "fingerprint": _text("Fingerprint"), "note": _text("Note", width="large"),
}  # fmt: skip


def look() -> str:
    """Which look is asked for; '' while all are closed."""
    key, wanted = "value.look", state.get("look", "", allowed=("", *LOOKS))
    if st.session_state.get(key) != (wanted or None):
        st.session_state[key] = wanted or None
    st.pills("Look closer", list(LOOKS), format_func=LOOKS.get, key=key, on_change=lambda: state.put("look", st.session_state[key] or ""))
    return wanted


def batch_of(rows: pd.DataFrame) -> int:
    """The batch size that a look is about, by default the largest."""
    batches = [int(batch) for batch in sorted(rows["batch"].unique())]
    if state.get("at_batch", batches[-1]) not in batches:
        state.put("at_batch", None)  # of another run
    if len(batches) == 1:
        return batches[0]
    return st.segmented_control("Batch size", batches, required=True, **state.tie_value("at_batch", batches[-1]))


def figures(rows: pd.DataFrame) -> None:
    """Every measured row in a table; columns that no row has are left out."""

    def interval(row, name: str, form: str) -> str:
        value, low, high = (getattr(row, name + end) for end in ("", "_low", "_high"))
        return "" if value != value else f"{value:{form}} ({low:{form}} to {high:{form}})"

    pruned = [row.stage != "dense" for row in rows.itertuples()]
    shown = rows.assign(
        said=[spoken(label) for label in rows["execution"]], rate=[interval(row, "images_per_s", ",.4g") for row in rows.itertuples()],
        faster=[interval(row, "speedup", ".2f") if other else "" for row, other in zip(rows.itertuples(), pruned)],
        faster_best=[interval(row, "speedup_best", ".2f") if other else "" for row, other in zip(rows.itertuples(), pruned)],
        best=[spoken(label) if other else "" for label, other in zip(rows["best_dense"], pruned)], memory_mb=rows["memory_bytes"] / 1e6,
        covers=[covered(row) for row in rows.to_dict("records")],
    )  # fmt: skip
    there = [name for name in COLUMNS if name in shown and not shown[name].isna().all() and not shown[name].eq("").all()]
    frame.table(shown[there], key="latency", column_config={name: COLUMNS[name] for name in there}, placeholder="–")


def layers(rows: pd.DataFrame, times: pd.DataFrame) -> None:
    """The waterfall and its layers, dense beside fast."""
    if times.empty:
        _absent("These runs have no layer times.", "Measure latency keeps them, of what is not compiled.")
        return
    runs = [int(run) for run in dict.fromkeys(times["run"])]
    with st.container(horizontal=True, vertical_alignment="bottom"):
        run = runs[0] if len(runs) == 1 else st.selectbox("Run", runs, **_remembered("layers_of", runs[0], runs))
        times = times[times["run"] == run]
        batches = sorted(int(batch) for batch in times["batch"].unique())
        batch = batches[-1] if len(batches) == 1 else st.selectbox("Batch size", batches, **_remembered("layers_batch", batches[-1], batches))
        times = times[times["batch"] == batch]
        names = {word(label): label for label in dict.fromkeys(times["execution"])}
        dense = [name for name, label in names.items() if label.startswith("dense")] or list(names)
        others = [name for name in names if name not in dense] or list(names)
        others.sort(key=lambda name: name.startswith("masked"))  # a mask moves no time: shown first is what may
        first = st.selectbox("Dense", dense, format_func=lambda name: spoken(names[name]), **_remembered("base", dense[0], dense))
        usual = next((name for name in others if _precision(name) == _precision(first)), others[0])
        second = st.selectbox("Beside", others, format_func=lambda name: spoken(names[name]), **_remembered("fast", usual, others))
    pairs = latency_layers.paired(*(times[times["execution"] == names[name]] for name in (first, second)))
    stages = rows.loc[(rows["run"] == run) & (rows["execution"] == names[second]), "stage"]
    options = dict(dense=names[first], fast=names[second], stage=stages.iloc[0] if len(stages) else "pruned", dark=frame.dark())
    keep = f"{run} {batch} {first} {second}"
    frame.chart(latency_layers.waterfall(pairs, **options, keep=keep), key="latency_waterfall", caption=FALL, data=pairs)
    frame.chart(latency_layers.side_by_side(pairs, **options, keep=keep), key="latency_layers", caption=BESIDE, data=pairs)


def roofline(rows: pd.DataFrame, peaks: pd.DataFrame) -> None:
    """Each execution under the device's measured roofs."""
    known = rows.dropna(subset=["tflops"])
    if known.empty:
        _absent("These runs have no TFLOP/s.", "Measure latency counts them.")
        return
    batch = batch_of(known)
    points, why = latency_intensity.points(known[known["batch"] == batch])
    if points.empty:
        st.info(why, icon=":material/query_stats:")
        return
    if peaks.empty:
        st.caption("This device's peak was not measured in these runs, so no roof is drawn.")
    fig = latency_roofline.roofline(points, peaks, batch=batch, dark=frame.dark(), keep=batch)
    frame.chart(fig, key="latency_roofline", caption=ROOF, data=points)
    if why:
        st.caption(why)


def accuracy(rows: pd.DataFrame, runs: pd.DataFrame, hollow: pd.DataFrame, card: str) -> None:
    """Accuracy against latency: every run of this network on this device that has both."""
    batch = batch_of(pd.concat([rows[["batch"]], hollow[["batch"]]]) if len(rows) else hollow)
    recipes = state.store().recipes(set(rows["run"]) | set(runs.loc[runs["images"].notna(), "id"])) if len(rows) else {}
    points = latency_rows.with_accuracy(rows[rows["batch"] == batch], runs, recipes) if len(rows) else pd.DataFrame()
    theirs = published.timed_accuracies(hollow, batch)
    if points.empty and theirs.empty:
        _absent("No timed run has an accuracy here.", "Run the same recipe under Prune & heal with labelled images; its accuracy then stands here.")
        return
    fig = latency_accuracy.accuracy_against_latency(points, theirs, device=card, batch=batch, dark=frame.dark(), keep=f"{card} {batch}")
    frame.chart(fig, key="accuracy_against_latency", caption=FRONT, data=points if len(points) else theirs)
    merged = int(rows.loc[rows["batch"] == batch, "merged"].sum() - points["merged"].sum()) if len(points) else 0
    if merged:
        st.caption(f"{merged} with merged tokens left out: the recipe merges none, so no run has measured their accuracy.")
    if len(theirs):
        st.caption("Published accuracy and published timing come from the same authors; that both are of one checkpoint is not said.")
    _unresolved(points)


def _unresolved(points: pd.DataFrame) -> None:
    """Whether these images tell the most accurate pruned network from dense, in words."""
    if points.empty or not {"dense"} < set(points["stage"]):
        return
    dense = points[points["stage"] == "dense"].iloc[0]
    best = points[points["stage"] != "dense"].sort_values("top1").iloc[-1]
    if best["high"] >= dense["low"] and dense["high"] >= best["low"]:
        st.markdown(f"The most accurate pruned network against dense: **not resolved (n = {int(best['images'])})**, their intervals overlap.")


def against_macs(rows: pd.DataFrame, runs: pd.DataFrame) -> None:
    """Measured speed-up beside what MACs promise."""
    found = latency_rows.ratios_of_macs(rows, runs)
    if found.empty:
        _absent("Nothing pruned was timed beside dense here.", "Choose what goes on Explore, then Measure latency.")
        return
    batch = batch_of(found)
    shown = found[found["batch"] == batch]
    frame.chart(sweeps.speedup_against_macs(shown, dark=frame.dark(), keep=batch), key="speedup_against_macs", caption=MACS, data=shown)


def _absent(what: str, how: str) -> None:
    """What is missing, and what brings it."""
    st.info(f"{what} {how}", icon=":material/info:")


def _precision(name: str) -> str:
    """Precision and mode at the end of a label's word: what two executions should share to be compared."""
    return name.partition(".")[2]


def _remembered(name: str, usual, known: list) -> dict[str, object]:
    """Tie a picker to the page's own value; what another run left there gives way to the usual."""
    if state.get(name, usual) not in known:
        state.put(name, None)
    return state.tie_value(name, usual)

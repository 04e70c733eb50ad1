"""Compare: which run to take, and how sure that is. Accuracy against cost, drift over depth, what differs."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from app import agreement_view, frame, profiles, published, results, state
from app.charts import compare as charts
from app.charts import drift

KNOWN = 200  # newest done runs on offer
MOST = 20
FRONT = (
    "Up and to the left is better; marks joined by the grey line are beaten by no other chosen mark. "
    "Where intervals overlap, these images do not tell the marks apart."
)
TIMED = (
    "Further left is faster, and each run was timed in turns with its own dense network: compare the two marks of one run. "
    "Marks of different runs also differ by what else their machine was doing."
)
DRIFT = (
    "A row a run, a column a block, white is no drift; both panels share one scale. "
    "It shows distance on the drift images, not whether answers are right."
)


def choose(done: pd.DataFrame) -> pd.DataFrame:
    """The runs to compare, in the order chosen; only those that are done."""
    by_id = {int(row["id"]): row for row in done.to_dict("records")}
    wanted = state.ids("runs")
    missing = [run for run in wanted if run not in by_id]
    if missing:
        st.warning(f"Left out, because there is no finished run of that number: {', '.join(map(str, missing))}.")
        state.put("runs", [run for run in wanted if run in by_id])
    if len(wanted) - len(missing) > MOST:
        st.warning(f"At most {MOST} runs are compared at once: the first {MOST} of the link were taken.")
        state.put("runs", [run for run in wanted if run in by_id][:MOST])
    st.multiselect(
        "Runs", list(by_id), format_func=lambda run: results.short(by_id[run]) if run in by_id else str(run), max_selections=MOST,
        placeholder="Choose finished runs", **_tied_ids(),
    )  # fmt: skip
    return done.set_index("id", drop=False).loc[list(state.ids("runs"))]


def _tied_ids() -> dict[str, object]:
    """The multiselect holds numbers where the address bar holds text."""
    key = "value.runs"
    st.session_state[key] = list(state.ids("runs"))
    return {"key": key, "on_change": lambda: state.put("runs", st.session_state[key])}


def against_cost(runs: pd.DataFrame) -> None:
    """The main figure."""
    ids = list(runs["id"])
    with st.container(horizontal=True, vertical_alignment="bottom"):
        cost = st.segmented_control(
            "Cost",
            list(charts.COSTS),
            format_func=lambda name: charts.COSTS[name][0],
            required=True,
            **state.tie_value("cost", "macs_g", allowed=charts.COSTS),
        )
        models = runs["model"].unique()
        hint = "Of the same network, hollow, each with its source. Others measured them, on their images."
        literature = st.toggle("Published figures", help=hint, **state.tie_value("published", False))
    store = state.store()
    points = results.points(runs, cost=cost, latency=store.table(ids, "latency"), seconds=store.table(ids, "seconds"))
    figures = published.accuracies(models, runs, cost=cost) if literature else None
    if points.empty:
        st.info("None of the chosen runs has an accuracy and this cost. Accuracy needs labelled images; latency needs a measurement at batch 1.")
    else:
        fig = charts.accuracy_against_cost(points, cost=cost, literature=figures, dark=frame.dark(), keep=f"{cost} {ids}")
        frame.chart(fig, key="accuracy_against_cost", caption=TIMED if cost == "latency_ms" else FRONT, data=points)
    if literature and (figures is None or figures.empty):
        st.caption(f"No published figure of {', '.join(models)} has a value on this axis.")
    unresolved(points)


def unresolved(points: pd.DataFrame) -> None:
    """Which of the best runs these images cannot tell apart, in words."""
    final = points[points["stage"] != "dense"].sort_values("top1", ascending=False).drop_duplicates("run") if len(points) else points
    if len(final) < 2:
        return
    best = final.iloc[0]
    close = final.iloc[1:][final.iloc[1:]["high"] >= best["low"]]
    if close.empty:
        st.markdown(f"Run {best['run']} is the most accurate, and its interval stands clear of all others (n = {best['images']}).")
        return
    others = ", ".join(str(run) for run in close["run"])
    st.markdown(
        f"Run {best['run']} has the highest accuracy, {100 * best['top1']:.1f} %. Against run{'s' if len(close) > 1 else ''} {others} "
        f"that is **not resolved (n = {best['images']})**: their intervals overlap."
    )


def drift_over_depth(runs: pd.DataFrame) -> None:
    """Where each run drifts, one scale for all."""
    rows = state.store().table(runs["id"], "drift")
    if rows.empty:
        st.info("The chosen runs have no drift.")
        return
    with st.container(horizontal=True, vertical_alignment="bottom"):
        names = list(drift.METRICS)
        tied = state.tie_value("drift_as", names[0], allowed=names)
        metric = st.segmented_control("Drift as", names, format_func=lambda name: drift.METRICS[name][0], required=True, **tied)
        groups = ["all", *(group for group in ("class", "patch") if group in set(rows["tokens"]))]
        tokens = st.segmented_control(
            "Tokens", groups, format_func=drift.TOKENS.get, required=True, **state.tie_value("tokens", "all", allowed=groups)
        )
    labels = {int(row["id"]): f"run {row['id']}" for row in runs.to_dict("records")}
    fig = drift.by_run(rows, labels, metric=metric, tokens=tokens, dark=frame.dark(), keep=f"{metric} {tokens}")
    frame.chart(fig, key="drift_by_run", caption=DRIFT, data=rows)


def details(runs: pd.DataFrame) -> None:
    """Tables, each read only when asked for."""
    names = ["What differs", "Accuracy", "Layers", "Latency", "Time spent"]
    wanted = st.segmented_control("Tables", names, default=names[0], key="compare_tables")
    ids, store = list(runs["id"]), state.store()
    if wanted == "What differs":
        table = results.differences({run: store.run(run).recipe for run in ids})
        if table.empty:
            st.caption("The recipes are alike in every field." if len(ids) > 1 else "Choose a second run to see what differs.")
        else:
            frame.table(table, key="what_differs")
    elif wanted == "Accuracy":
        accuracy, pairs = store.table(ids, "accuracy"), store.table(ids, "comparisons")
        if accuracy.empty:
            st.caption("The chosen runs have no accuracy: their images carry no labels.")
        else:
            frame.table(accuracy, key="accuracy", column_config=_PERCENT)
        if len(pairs):
            frame.table(pairs, key="verdicts", column_config=_VERDICTS)
            st.caption("Exact McNemar test on the images both stages answered. It compares stages of one run; between runs, see the intervals.")
    elif wanted:
        frame.table(
            store.table(ids, {"Layers": "layers", "Latency": "latency", "Time spent": "seconds"}[wanted]), key=wanted.lower().replace(" ", "_")
        )


_PERCENT = {name: st.column_config.NumberColumn(format="percent") for name in ("top1", "top5", "low", "high")}
_VERDICTS = {
    "difference_pp": st.column_config.NumberColumn("difference (pp)", format="%.1f"),
    "p_value": st.column_config.NumberColumn("p", format="%.2g"),
}


def empty(some: bool) -> None:
    """What will be here, and the button that brings it."""
    with st.container(border=True):
        st.subheader("Nothing chosen to compare" if some else "No finished runs yet", anchor=False)
        st.markdown("Chosen runs stand here by accuracy and cost, with their drift over depth and what differs between their recipes.")
        if some and st.button("Choose under Runs", type="primary", icon=":material/checklist:", key="to_runs"):
            st.switch_page("views/runs.py")
        if not some and st.button("Go to Prune & heal", type="primary", icon=":material/healing:", key="first"):
            st.switch_page("views/prune_and_heal.py")


profile = profiles.find()
if profile is not None:
    frame.figures(frame.stage_rows(profile))
finished = state.store().runs(status="done", limit=KNOWN)
older = [run for run in state.ids("runs") if run not in set(finished["id"])]
if older:  # a link may name runs older than those on offer
    finished = state.store().runs(status="done", limit=1_000_000)
if finished.empty:
    empty(some=False)
else:
    chosen = choose(finished)
    if chosen.empty:
        empty(some=True)
    else:
        against_cost(chosen)
        drift_over_depth(chosen)
        details(chosen)
    agreement_view.section(list(chosen["id"]))

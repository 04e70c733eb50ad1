"""Compare: which run to take, and how sure that is. Accuracy against cost, drift over depth, what differs, and what to take along."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from app import agreement_view, decisions_view, frame, profiles, published, results, state
from app.charts import compare as charts
from app.charts import drift
from app.review import clone_view, differs_view, lineage_view, sharing

KNOWN = 200  # newest done runs on offer
MOST = 50
FRONT = (
    "Up and to the left is better; marks joined by the grey line are beaten by no other chosen mark. "
    "Where intervals overlap, these images do not tell the marks apart."
)
TIMED = (
    "Further left is faster, and each run was timed in turns with its own dense network: compare the two marks of one run. "
    "Marks of different runs also differ by what else their machine was doing."
)
DRIFT = (
    "A row a run, a column a block, the colour of the paper is no drift; both panels share one scale. "
    "It shows distance on the drift images, not whether answers are right."
)
SHOWS = {  # under the main figure, one at a time, as the address bar says
    "differs": "What differs", "lineage": "Lineage", "decisions": "Decisions", "clone": "Clone with one change", "accuracy": "Accuracy",
    "layers": "Layers", "latency": "Latency", "seconds": "Time spent",
}  # fmt: skip


def offered() -> pd.DataFrame:
    """The newest finished runs, and those that the link names although they are older."""
    store = state.store()
    newest = store.runs(status="done", limit=KNOWN)
    known = set(newest["id"])
    older = [run for run in state.ids("runs") if run not in known]
    return pd.concat([newest, store.runs(status="done", ids=older, limit=len(older))], ignore_index=True) if older else newest


def choose(done: pd.DataFrame) -> pd.DataFrame:
    """The runs to compare, in the order chosen; only those that are done."""
    by_id = {int(row["id"]): row for row in done.to_dict("records")}
    wanted = state.ids("runs")
    missing = [run for run in wanted if run not in by_id]
    if missing:
        st.warning(_left_out(missing), icon=":material/link_off:")
        state.put("runs", [run for run in wanted if run in by_id])
    if len(wanted) - len(missing) > MOST:
        st.warning(f"At most {MOST} runs are compared at once: the first {MOST} of the link were taken.")
        state.put("runs", [run for run in wanted if run in by_id][:MOST])
    st.multiselect(
        "Runs", list(by_id), format_func=lambda run: results.short(by_id[run]) if run in by_id else str(run), max_selections=MOST,
        placeholder="Choose finished runs", **_tied_ids(),
    )  # fmt: skip
    return done.set_index("id", drop=False).loc[list(state.ids("runs"))].reset_index(drop=True)


def _left_out(missing: list[int]) -> str:
    """Why runs of a link are not shown: they are there but not finished, were deleted, or never were."""
    store = state.store()
    there = store.runs(kind=None, ids=missing, limit=len(missing))
    last = next(iter(store.numbers(limit=1)), 0)
    unfinished = [int(run) for run in there["id"]]
    deleted = [run for run in missing if run not in unfinished and run < last]
    never = [run for run in missing if run not in unfinished and run not in deleted]
    said = [f"run {row.id} is {'no experiment' if row.status == 'done' else row.status}" for row in there.itertuples()]
    said += [f"{results.runs(deleted)} {'was' if len(deleted) == 1 else 'were'} deleted since"] if deleted else []
    said += [f"there is no finished run of that number: {', '.join(map(str, never))}"] if never else []
    return f"Left out of the comparison: {'; '.join(said)}."


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
    others = ", ".join(str(run) for run in close["run"][:8]) + (f" and {len(close) - 8} others" if len(close) > 8 else "")
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
    """What is asked for below the main figure, and only that is read."""
    ids, store = [int(run) for run in runs["id"]], state.store()
    tied = state.tie_value("show", "differs", allowed=list(SHOWS))
    wanted = st.segmented_control("Show", list(SHOWS), format_func=SHOWS.get, required=True, **tied)
    if wanted == "differs":
        recipes = store.recipes(ids)
        differs_view.section(runs, {run: recipes[run] for run in ids})
    elif wanted == "lineage":
        lineage_view.section(runs, chosen=ids)
    elif wanted == "decisions":
        decisions_view.of_runs(ids)
    elif wanted == "clone":
        clone_view.section(ids, {row["id"]: results.short(row) for row in runs.to_dict("records")})
    elif wanted == "accuracy":
        _accuracy(store.table(ids, "accuracy"), store.table(ids, "comparisons"))
    else:
        frame.table(store.table(ids, wanted), key=wanted)


def _accuracy(accuracy: pd.DataFrame, pairs: pd.DataFrame) -> None:
    if accuracy.empty:
        st.caption("The chosen runs have no accuracy: their images carry no labels.")
    else:
        frame.table(accuracy, key="accuracy", column_config=_PERCENT)
    if len(pairs):
        frame.table(pairs, key="verdicts", column_config=_VERDICTS)
        st.caption("Exact McNemar test on the images both stages answered. It compares stages of one run; between runs, see the intervals.")


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
finished = offered()
if finished.empty:
    empty(some=False)
else:
    chosen = choose(finished)
    if chosen.empty:
        empty(some=True)
    else:
        with frame.actions():
            sharing.buttons(chosen)
        against_cost(chosen)
        details(chosen)
        drift_over_depth(chosen)
    agreement_view.section(list(chosen["id"]))

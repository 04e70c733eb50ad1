"""What differs among the chosen runs, on a page: a table, and bars where one thing alone differs."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from app import frame, state
from app.charts import differs as charts
from app.review import differs
from starfish_lab import evidence

BARS = (
    "A group of bars is a value of what alone differs, lines are 95 % Wilson intervals of accuracy. "
    "It does not say what other seeds or images would answer."
)
COLUMNS = {
    "Run": st.column_config.NumberColumn(pinned=True, width=60),
    "Name": st.column_config.TextColumn(width=120),
    "Top-1": st.column_config.NumberColumn(format="percent", help="Of the last stage: healed, or pruned where nothing was healed."),
    "MACs (G)": st.column_config.NumberColumn(format="%.3g", help="Effective multiply-adds of one image, of the last stage."),
}


def section(runs: pd.DataFrame, recipes: dict[int, dict]) -> None:
    """Differences only, a row a run beside what it reached; every field, a row a field, where asked for."""
    found = differs.table(recipes)
    ids, store = list(recipes), state.store()
    figures = evidence.stages(runs, store.table(ids, "latency"), store.table(ids, "seconds"))
    if one := differs.alone(found):
        _bars(figures, one)
    every = st.toggle("All fields", help="Also those in which the recipes are alike; a row a field.", **state.tie_value("all_fields", False))
    if every:
        frame.table(_named(differs.table(recipes, every=True)), key="all_fields")
    elif found.empty:
        st.caption("The recipes are alike in every field." if len(ids) > 1 else "Choose a second run to see what differs.")
    else:
        last = evidence.figures.last(figures).set_index("run").reindex(ids)
        reached = {"Top-1": last["top1"].to_numpy(), "MACs (G)": last["macs_g"].to_numpy()}
        shown = pd.DataFrame({"Run": ids, "Name": list(runs["name"]), **differs.columns(found), **reached})
        frame.table(shown, key="what_differs", column_config=COLUMNS)


def _named(table: pd.DataFrame) -> pd.DataFrame:
    return table.rename(columns=lambda run: f"run {run}").rename_axis("field").reset_index()


def _bars(figures: pd.DataFrame, one: differs.Alone) -> None:
    there = [name for name in charts.MEASURES if figures[name].notna().any()]
    if not there:
        return

    def measure() -> str:
        tied = state.tie_value("bars", there[0], allowed=there)
        return st.segmented_control("Bars show", there, format_func=lambda name: charts.MEASURES[name][0], required=True, **tied)

    shown = state.get("bars", there[0], allowed=there)
    fig = charts.by_value(figures, one.values, field=one.field, others=one.others, measure=shown, dark=frame.dark(), keep=f"{one.field} {shown}")
    data = figures.assign(field=one.field, value=figures["run"].map(one.values))
    frame.chart(fig, key="by_value", caption=BARS, data=data, controls=measure)

"""Where runs come from, on a page: the graph, whose marks lead to their runs."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from app import frame, state
from app.charts import lineage as charts
from app.review import lineage

CAPTION = (
    "A row is a run, from its dense network to what it made of it; a dotted line leads to a run cloned from another's recipe, a thick one to a run "
    "that goes on from another's network. Click a mark to open its run. Order says nothing about which is better."
)


def section(runs: pd.DataFrame, *, chosen: list[int], key: str = "lineage") -> None:
    """The graph of these rows of the store's list and all that they come from."""
    store = state.store()
    while wanted := lineage.missing(runs):
        parents = store.runs(kind=None, ids=wanted, limit=len(wanted))
        if parents.empty:  # what is missing was deleted
            break
        runs = pd.concat([runs, parents], ignore_index=True)
    runs = runs[runs["kind"] == "experiment"]
    found = lineage.graph(runs, store.recipes(runs["id"]))
    fig = charts.lineage(found.nodes, found.edges, names=found.names, changes=found.changes, chosen=tuple(chosen), dark=frame.dark(), keep=chosen)
    clicked = frame.chart(fig, key=key, caption=CAPTION, data=found.nodes, select=True)
    if clicked:
        state.put("run", int(clicked[0]))
        st.switch_page("views/prune_and_heal.py")

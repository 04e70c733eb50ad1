"""Paper: every published row as a recipe, beside what was measured here, and the MAC ledger."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from app import frame, launch, ledger_view, paper_runs, profiles, published, state
from app.charts import paper as charts
from starfish_lab import presets, settings
from starfish_lab.errors import RecipeError
from starfish_lab.recipe import Recipe

KNOWN = 500  # newest done runs that are looked through
ALL = "All methods"
CURVES = (
    "Hollow marks are published, filled ones were measured here with their 95 % interval. "
    "A measured row speaks for the published one only where it was made on the same evaluation images with the same settings."
)
_number = st.column_config.NumberColumn
COLUMNS = {
    "method": "Method", "pattern": "Pattern", "sparsity": _number("Sparsity", format="percent"), "top1": _number("Published (%)", format="%.2f"),
    "change": _number("Change (pp)", format="%+.2f", help="Published, against the published dense figure."),
    "here": st.column_config.TextColumn("Measured here (%)", help="The newest run of this row, with half of its 95 % interval."),
    "run": _number("Run"), "differs": st.column_config.TextColumn("Run differs in", help="Fields of its recipe other than the row's."),
    "doubt": st.column_config.TextColumn("In doubt", help="Why, and where the recipe departs from the authors, stands below the chosen row."),
    "source": "Source",
}  # fmt: skip


@st.cache_resource(max_entries=8, show_spinner=False)
def _seen(url: str) -> dict[tuple[int, str, str], tuple[str, str]]:
    """What published row each run looked at so far is of; `url` keeps stores apart."""
    return {}


def identities(done: pd.DataFrame) -> dict[int, tuple[str, str]]:
    """{run: (published row, what differs)} of networks that have published rows; only runs not seen before are read."""
    seen, rows = _seen(settings.database_url()), done[done["model"].isin(paper_runs.networks())]
    known = {int(run): (int(run), recipe_hash, name) for run, recipe_hash, name in zip(rows["id"], rows["recipe_hash"], rows["name"])}
    for run, recipe in state.store().recipes(run for run in known if known[run] not in seen).items():
        seen[known[run]] = paper_runs.identity(Recipe.from_dict(recipe))
    return {run: seen[key] for run, key in known.items() if key in seen}


def pick(table: pd.DataFrame) -> tuple[str, str]:
    """Network and method."""
    networks = list(dict.fromkeys(table["model"]))
    usual = next((name for name in published.names(state.choice().model) if name in networks), networks[0])
    with st.container(horizontal=True, vertical_alignment="bottom"):
        network = st.selectbox("Network", networks, **state.tie_value("paper_network", usual, allowed=networks))
        methods = [ALL, *dict.fromkeys(table.loc[table["model"] == network, "method"])]
        if state.get("paper_method", ALL) not in methods:
            state.put("paper_method", None)  # of another network
        method = st.selectbox("Method", methods, **state.tie_value("paper_method", ALL))
    return network, method


def rows_of(table: pd.DataFrame, network: str, method: str) -> pd.DataFrame:
    return table[(table["model"] == network) & (table["method"].eq(method) if method != ALL else True)]


def listing(rows: pd.DataFrame, measured: pd.DataFrame) -> str:
    """The table; returns the key of the chosen row, '' for none."""
    shown = rows.merge(measured[["key", "run", "top1", "low", "high", "images", "differs"]], on="key", how="left", suffixes=("", "_here"))
    shown["change"] = shown["top1"] - shown["dense_top1"]
    shown["here"] = [_interval(row) if pd.notna(row.run) else "" for row in shown.itertuples()]
    shown["run"], shown["differs"] = shown["run"].astype("Int64"), shown["differs"].fillna("")
    shown["doubt"] = ["doubtful" if presets.note(key).startswith("Doubtful") else "" for key in shown["key"]]
    keys = list(shown["key"])
    chosen = state.get("row", "")
    widget = f"paper.{hash(tuple(keys))}"

    def choose() -> None:
        picked = st.session_state[widget]["selection"]["rows"]
        state.put("row", keys[picked[0]] if picked else None)

    frame.table(
        shown, key=widget, column_config=COLUMNS, column_order=list(COLUMNS), placeholder="–", on_select=choose, selection_mode="single-row",
        selection_default={"selection": {"rows": [keys.index(chosen)] if chosen in keys else [], "columns": [], "cells": []}},
        height=min(520, 38 + 35 * max(len(shown), 3)),
    )  # fmt: skip
    return chosen if chosen in keys else ""


def _interval(row) -> str:
    return f"{100 * row.top1_here:.2f} ± {50 * (row.high - row.low):.2f}, n = {row.images:,.0f}"


def row_actions(key: str) -> None:
    """What there is to know of the chosen row, and the button that opens it."""
    with frame.actions():
        if not key:
            st.caption("Choose a row by the box on its left to open it as a recipe.", width="content")
        elif state.choice().images == "starter":
            st.caption("The images are digits: choose ImageNet's folder in the sidebar to measure this row.", width="content")
        pressed = st.button("Open this row", type="primary", icon=":material/open_in_new:", key="open_row", disabled=not key)
    if key:
        row = presets.presets().set_index("key").loc[key]
        how = row["pattern"] if ":" in row["pattern"] else f"{row['sparsity']:.0%}"
        st.markdown(f"**{row['model']}, {row['method']}, {how}**: published {row['top1']:.2f} % of {row['dense_top1']:.2f} % dense.")
        st.caption(presets.note(key))
    if pressed:
        try:
            launch.open_recipe(presets.recipe_of(key, state.recipe().images), preset=key)
        except RecipeError as error:
            st.error(str(error), icon=":material/rule:")


profile = profiles.find()
if profile is not None:
    frame.figures(frame.stage_rows(profile))
table = presets.presets()
network, method = pick(table)
done = state.store().runs(status="done", limit=KNOWN)
measured = paper_runs.measured(done, identities(done))
rows = rows_of(table, network, method)
mine = measured[measured["key"].isin(rows["key"])]
fig = charts.accuracy_against_sparsity(rows, mine, model=network, dark=frame.dark(), keep=f"{network} {method}")
below = charts.lowest(rows, mine)
hidden = f" Untrained figures below {below:.0f} % lie under the chart: choose their method to see them." if below is not None else ""
frame.chart(fig, key="accuracy_against_sparsity", caption=CURVES + hidden, data=rows.merge(mine, on="key", how="left", suffixes=("", "_measured")))
row_actions(listing(rows, mine))
st.subheader("MAC ledger", anchor=False)
if profile is None:
    st.caption("The ledger of the chosen network appears once it has a profile: Explore makes one.")
else:
    st.caption(f"Of {state.choice().model} as chosen on Explore, not of the row above: open the row to see its own.")
    ledger_view.section(profile)

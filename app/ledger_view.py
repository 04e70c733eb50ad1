"""The MAC ledger of the present choice, for any page: `section(profile)`."""

from __future__ import annotations

import streamlit as st

from app import basis, frame, state
from app.charts import ledger as charts
from starfish_lab import ledger, whatif
from starfish_lab.errors import LabError
from starfish_lab.whatif import Profile

CAPTION = (
    "Amber is left, grey is saved; figures follow from shapes and zeros. They do not say how fast it runs: Latency measures that. Counters such as "
    "fvcore and thop leave out the products inside attention and count zeros as work."
)
_number = st.column_config.NumberColumn
COLUMNS = {
    "layer": "Layer", "tokens_paper": _number("Positions, as published", format="%d"), "tokens_true": _number("Positions, true", format="%d"),
    "dense_m": _number("Dense (M)", format="%.4g"),
    "paper_m": _number("As published (M)", format="%.4g", help="Tokens at the block's input, zeros free."),
    "true_m": _number("True (M)", format="%.4g", help="Tokens as run, zeros free."),
    "kernels_m": _number("Kernels of today (M)", format="%.4g"), "others_m": _number("fvcore, thop (M)", format="%.4g"),
    "removed": _number("Zeros", format="percent"), "why_dense": "Gains nothing because",
}  # fmt: skip
SHOWN = {"dense_macs": "dense_m", "paper_effective": "paper_m", "effective": "true_m", "sparse_execution": "kernels_m", "others_count": "others_m"}


def section(profile: Profile) -> None:
    """What the present choice costs by every way of counting, and layer by layer below."""
    try:
        recipe = basis.current()
        predicted = whatif.predict(profile, recipe.pruning, start=recipe.start, tokens=recipe.tokens)
        removed = dict(zip(predicted.layers["layer"], predicted.layers["sparsity"]))
        found = ledger.of_profile(profile, recipe.pruning, recipe.tokens, removed)
    except LabError as error:
        st.caption(f"{error} The ledger shows the dense network.")
        recipe, found = None, ledger.of_profile(profile)
    totals = ledger.totals(found, recipe.pruning if recipe else None)
    frame.chart(charts.conventions(totals, dark=frame.dark(), keep=profile.facts["name"]), key="ledger", caption=CAPTION, data=totals)
    if st.toggle("Layer by layer", **state.tie_value("ledger_layers", False)):
        millions = found.assign(**{short: found[name] / 1e6 for name, short in SHOWN.items()})
        frame.table(millions, key="ledger_table", column_config=COLUMNS, column_order=list(COLUMNS))

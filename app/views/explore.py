"""Explore: what a sparsity would take from each layer, and what remains, before anything runs."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from app import frame, launch, state
from app.charts import budget, spectra, theme
from starfish_lab.healing import METHODS
from starfish_lab.pruning import BUDGETS, SCORES
from starfish_lab.whatif import Profile, WhatIf

PATTERNS = {"unstructured": "Unstructured", "n_m": "N:M", "structured": "Structured"}
BUDGET_NAMES = {"uniform": "Uniform", "global": "Global", "mp_edge": "By MP edge"}
UNITS = {"mlp": "MLP units", "qk": "Q/K dimensions"}
PARTS = {"qkv": "q, k, v together"}
PATTERN_HELP = "Unstructured: any weight may go. N:M: N of every M weights in a row stay. Structured: whole units go."
SPARSITY_HELP = "Share of the prunable weights (structured: of the units) that goes."
BUDGET_HELP = (
    "Who loses how much. Uniform: every layer the same share. Global: the least important weights, wherever they are. "
    "By MP edge: less where a layer's spectrum holds more than noise."
)
MEASURES = {"weights": "Weights", "macs": "MACs", "share": "Share lost"}
SPEED = {
    "unstructured": "mask only: no speed-up expected",
    "n_m": "mask only: no speed-up expected without hardware for it",
    "structured": "sliced: really smaller; a run measures how much faster",
}


def page() -> None:
    profile = frame.profile()
    predicted = frame.prediction(profile)
    frame.figures(frame.stage_rows(profile, predicted))
    _controls()
    if predicted is None:
        return
    selected = _selected(predicted.layers)
    with st.container(key="pair"):
        left, right = st.columns([3, 2], gap="medium")
        with left:
            _budget(predicted, selected)
        with right:
            _spectrum(profile, selected)
    _launch(predicted)
    _details(predicted)


def _controls() -> None:
    """What is pruned, how much, and by which rule."""
    chosen = state.choice()
    budgets = [*BUDGET_NAMES, *(name for name in BUDGETS.names() if name not in BUDGET_NAMES)]
    with st.container(horizontal=True, vertical_alignment="top", gap="medium"):
        st.segmented_control("Pattern", list(PATTERNS), format_func=PATTERNS.get, required=True, help=PATTERN_HELP, **state.tie("pattern"))
        if chosen.pattern == "n_m":
            st.number_input("Keep N", 1, 63, step=1, width=110, help="Weights that stay in every group.", **state.tie("keep"))
            st.number_input("of M", 2, 64, step=1, width=110, help="Size of a group: consecutive input weights.", **state.tie("group"))
        else:
            st.slider("Sparsity", 0.05, 0.99, step=0.01, format="percent", width=250, help=SPARSITY_HELP, **state.tie("sparsity"))
        if chosen.pattern == "structured":
            st.pills("Units", list(UNITS), selection_mode="multi", format_func=UNITS.get, **state.tie("units"))
        if chosen.pattern == "unstructured":
            st.selectbox("Budget", budgets, format_func=lambda name: BUDGET_NAMES.get(name, name), width=150, help=BUDGET_HELP, **state.tie("budget"))
        scores = SCORES.names()
        st.selectbox("Score", scores, format_func=str.capitalize, width=140, help="\n\n".join(map(SCORES.describe, scores)), **state.tie("score"))


def _selected(layers: pd.DataFrame) -> str:
    """The layer whose spectrum is shown: the clicked one, else the first."""
    wanted = state.get("layer", "")
    return wanted if wanted in set(layers["layer"]) else layers["layer"].iloc[0]


def _budget(predicted: WhatIf, selected: str) -> None:
    measure = state.get("show", "weights", allowed=list(MEASURES))
    rule = predicted.notes[0] if predicted.estimate and predicted.notes else ""
    clicked = frame.chart(
        budget.budget(predicted.layers, measure=measure, selected=selected, rule=rule, dark=frame.dark()),
        key="budget",
        select=True,
        data=predicted.layers,
        controls=lambda: _switch("Bars show", MEASURES, "show"),
        caption="A bar is a layer, in the order the network computes: amber goes, grey stays; click one for its spectrum. "
        + ("Hatched: estimated from the profile. " if rule else "")
        + "It does not say how much accuracy these weights carry: a run does.",
    )
    if clicked and clicked != selected:
        state.put("layer", clicked)
        st.rerun()


def _spectrum(profile: Profile, selected: str) -> None:
    rows = profile.spectra[profile.spectra["layer"] == selected].set_index("part", drop=False)
    if rows.empty:
        st.caption(f"{selected} has no spectrum in this profile.")
        return
    parts = {part: PARTS.get(part, part) for part in rows.index}
    part = state.get("part", rows.index[0])
    if part not in parts:  # of the layer that was selected before
        part = rows.index[0]
        state.put("part", None)
    row = rows.loc[part]
    frame.chart(
        spectra.spectrum(row, dark=frame.dark()),
        key="spectrum",
        controls=lambda: len(parts) > 1 and _switch("Part", parts, "part"),
        caption=f"**{theme.sentence(row['verdict'])}.** Inside the shaded bulk the matrix looks like noise; spikes beyond the edge are what it "
        "learned. It does not say which single weights matter.",
    )


def _switch(label: str, names: dict[str, str], value: str) -> None:
    """A small switch under a chart, kept in the address bar; the first name is the default."""
    st.segmented_control(
        label, list(names), format_func=names.get, required=True, label_visibility="collapsed", **state.tie_value(value, next(iter(names)))
    )


def _launch(predicted: WhatIf) -> None:
    """What it comes to, in words, and the button that does it."""
    chosen, totals = state.choice(), predicted.totals
    dense = predicted.layers[predicted.layers["note"].astype(bool) & (predicted.layers["removed"] == 0)]
    share = theme.percent(totals["sparsity_prunable"])
    gone = f"**{share}** of prunable weights, **{theme.percent(totals['sparsity_all'])}** of all parameters go"
    with frame.actions():
        st.caption(f"{gone} · {SPEED[chosen.pattern]}", width="stretch", text_alignment="right")
        if st.button("Prune & heal", type="primary", icon=":material/healing:", help=_healing()):
            launch.queue(state.recipe())
            st.switch_page("views/prune_and_heal.py")
    for note in predicted.notes[predicted.estimate :]:  # the rule of an estimate stands in the chart
        st.caption(note)
    for reason, rows in dense.groupby("note", sort=False):
        st.caption(f"{len(rows)} layers stay dense, {reason}: {', '.join(rows['layer'].head(6))}{' …' if len(rows) > 6 else ''}")


def _healing() -> str:
    chosen = state.choice()
    steps = f"{chosen.steps} steps" if chosen.steps else "10 epochs"
    return f"{METHODS.describe(chosen.healing)} {steps} on {chosen.calibration} unlabelled images."


def _details(predicted: WhatIf) -> None:
    details = st.expander("Every layer", on_change="rerun", key="details")
    if not details.open:
        return
    with details:
        for note in predicted.notes:
            st.caption(note)
        frame.table(
            predicted.layers, key="layers",
            column_config={
                "layer": "Layer", "block": None, "depth": "Block", "kind": "Kind",
                "weights": st.column_config.NumberColumn("Weights", format="localized"),
                "removed": st.column_config.NumberColumn("Lost", format="localized"),
                "sparsity": st.column_config.ProgressColumn("Share lost", min_value=0, max_value=1, format="percent"),
                "macs_g": st.column_config.NumberColumn("MACs (G)", format="%.3g"),
                "macs_g_effective": st.column_config.NumberColumn("MACs left (G)", format="%.3g"), "note": "Left dense because",
            },
        )  # fmt: skip


page()

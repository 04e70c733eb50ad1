"""Explore: what a sparsity would take from each layer, and what remains, before anything runs.

Spectrum, budget and consequence are one linked figure: a slider that moves reruns this fragment, not the page around it.
"""

from __future__ import annotations

import pandas as pd
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from app import (
    acts,
    basis,
    consequence_view,
    edge_view,
    explore_controls,
    faster_card,
    faster_rows,
    frame,
    launch,
    layers_editor,
    ledger_view,
    results,
    sensitivity_view,
    state,
)  # fmt: skip
from app.charts import budget, theme
from starfish_lab.healing import METHODS
from starfish_lab.prediction.card import ESTIMATE, Card
from starfish_lab.recipe import Recipe
from starfish_lab.whatif import Profile, WhatIf

MEASURES = {"weights": "Weights", "macs": "MACs", "share": "Share lost"}
SPEED = {
    "unstructured": "mask only: no speed-up expected",
    "n_m": "mask only: no speed-up without hardware for it",
    "structured": "sliced: really smaller; a run measures how much faster",
    "kept": "mask only: no speed-up expected",
}


def page() -> None:
    _linked(frame.profile())


@st.fragment
def _linked(profile: Profile) -> None:
    """Everything that a slider moves."""
    with frame.guard():
        predicted = frame.prediction(profile)
        frame.figures(faster_card.expected(frame.stage_rows(profile, predicted), profile))
        place = explore_controls.draw(profile)
        if predicted is None:
            return
        with place:
            said = _launch()
        selected = _selected(predicted.layers)
        with st.container(key="pair"):
            left, right = st.columns([3, 2], gap="medium")
            with left:
                _budget(predicted, selected)
            with right:
                edge_view.draw(profile, selected, predicted)
            consequence_view.draw(profile, predicted, selected)
        _notes(predicted)
        card = faster_card.draw(profile, basis.current())
        said.caption(_comes_to(predicted, card), width="stretch", text_alignment="right")
        layers_editor.draw(profile, predicted)
        _ledger(profile)
        sensitivity_view.expander(profile)


def _selected(layers: pd.DataFrame) -> str:
    """The layer whose spectrum is shown: the clicked one, else the first."""
    wanted = state.get("layer", "")
    return wanted if wanted in set(layers["layer"]) else layers["layer"].iloc[0]


def _budget(predicted: WhatIf, selected: str) -> None:
    measure = state.get("show", "weights", allowed=list(MEASURES))
    rule = predicted.notes[0] if predicted.estimate and predicted.notes else ""
    by_hand = {layer: f"edge σ₊ {theme.number(edge)}" for layer, edge in edge_view.moved_edges(predicted).items()}
    by_hand |= {layer: theme.percent(share) for layer, share in layers_editor.set_by_hand(predicted).items()}
    clicked = frame.chart(
        budget.budget(predicted.layers, measure=measure, selected=selected, rule=rule, by_hand=by_hand, dark=frame.dark()),
        key="budget",
        select=True,
        data=predicted.layers,
        controls=lambda: edge_view.switch("Bars show", MEASURES, "show"),
        caption="A bar is a layer, in the order the network computes: amber goes, grey stays; click one for its spectrum. "
        + ("Hatched: estimated from the profile. " if rule else "")
        + ("▲: set by hand. " if by_hand else "")
        + (f"{edge_view.cause(predicted)} " if "edge_weight" in predicted.layers else "")
        + "It does not say how much accuracy these weights carry: a run does.",
    )
    if clicked and clicked != selected:
        state.put("layer", clicked)
        st.rerun()


def _launch() -> DeltaGenerator:
    """The button that does it. Returns room beside it for what it comes to, which the card further down decides."""
    recipe = basis.current()
    said = st.empty()
    if origin := basis.origin():
        hint = "What no page shows (seeds, options, layers) comes from it. Press to let go of it."
        st.button(f"On {origin}", type="tertiary", icon=":material/close:", help=hint, on_click=basis.let_go)
    hint = f"{METHODS.describe(recipe.healing.method)} {results.healing(recipe)}"
    if acts.button("Prune & heal", type="primary", icon=":material/healing:", key="launch_here", help=hint):
        launch.queue(recipe)
        st.switch_page("views/prune_and_heal.py")
    return said


def _notes(predicted: WhatIf) -> None:
    """What comes before pruning, what the prediction rests on, and which layers stay dense, with the reason."""
    dense = predicted.layers[predicted.layers["note"].astype(bool) & (predicted.layers["removed"] == 0)]
    for text in (results.before(basis.current()), *predicted.notes[predicted.estimate :]):  # the rule of an estimate stands in the chart
        if text:
            st.caption(text)
    for reason, rows in dense.groupby("note", sort=False):
        st.caption(f"{len(rows)} layers stay dense, {reason}: {', '.join(rows['layer'].head(6))}{' …' if len(rows) > 6 else ''}")


def _comes_to(predicted: WhatIf, card: Card | None) -> str:
    """What goes, and what to expect of the clock, in words."""
    prunable, whole = (theme.percent(predicted.totals[f"sparsity_{of}"]) for of in ("prunable", "all"))
    return f"**{prunable}** of prunable weights, **{whole}** of all parameters go · {_speed(basis.current(), card)}"


def _speed(recipe: Recipe, card: Card | None) -> str:
    if card is not None and card.kind == ESTIMATE:
        headline = faster_rows.headline(card)
        return f"{card.execution}, batch {card.batch}: {headline[0].lower()}{headline[1:]}"
    said = SPEED[recipe.pruning.pattern]
    return f"{said}; merged tokens really go: a run measures it" if any(recipe.tokens.r) else said


def _ledger(profile: Profile) -> None:
    details = st.expander("Multiply-adds, by every way of counting", on_change="rerun", key="ledger_details")
    if details.open:
        with details:
            ledger_view.section(profile)


page()

"""The form of the page Bake-off: which healers, on what axis, how often; and the plan it stands for."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache

import streamlit as st

from app import acts, bakeoff_rows, frame, launch, results, state
from starfish_lab import settings
from starfish_lab.bakeoff.plan import BakeOff
from starfish_lab.errors import RecipeError
from starfish_lab.healing import healers
from starfish_lab.recipe import HealingChoice

AXES = {"all": "All healers", "images": "How little data is enough?", "sparsity": "How sparse can it get?"}
USUAL = {
    "all": ("none", "least_squares", "aligned", "logit_distillation", "starfish", "starfish_plus"),
    "images": ("least_squares", "logit_distillation", "starfish", "starfish_plus"),
    "sparsity": ("none", "least_squares", "logit_distillation", "starfish", "starfish_plus"),
}
IMAGES = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 5000)
SPARSITIES = {"unstructured": (0.3, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95), "structured": (0.25, 0.375, 0.5, 0.625, 0.75)}
USUAL_SPARSITIES = {"unstructured": ("0.3", "0.5", "0.75", "0.9", "0.95"), "structured": ("0.25", "0.5", "0.75")}
MOST = 24
RATES = (0.3, 1.0, 3.0)
SEEDS_HELP = "Each seed draws other calibration images and shuffles anew. Three show how much luck there is, and take three times as long."
TUNE_HELP = "Each healer that trains first tries a third, once and three times its own learning rate, judged without labels on a fifth of the images."


def draw(axis: str) -> BakeOff | None:
    """The form and its button; the plan where the button was just pressed, else None."""
    with st.container(border=True):
        chosen = _healers(axis)
        values = _values(axis)
        first, second, third = st.columns([1, 1, 2], vertical_alignment="bottom")
        hint = "Optimiser steps of every healer that trains. 0: whole epochs, so that fewer images mean fewer steps."
        first.number_input("Steps", 0, 1_000_000, step=50, help=hint, **state.tie("steps"))
        seeds = second.segmented_control("Seeds", (1, 3), required=True, help=SEEDS_HELP, **state.tie_value("seeds", 1, allowed=(1, 3)))
        tuned = third.toggle("Tune each learning rate", help=TUNE_HELP, **state.tie_value("tuned", False))
    plan, problem = _plan(axis, chosen, values, range(seeds), RATES if tuned else ())
    if problem:
        st.error(problem, icon=":material/rule:")
    with frame.actions():
        if plan is not None:
            st.caption(_said(plan), width="content")
        pressed = acts.button("Heal with all", type="primary", icon=":material/healing:", key="heal_all", disabled=plan is None)
    return plan if pressed else None


def recipe():
    """What all healers share: the choice of the pages; of the healing only the steps, the images and how the machine computes. Raises RecipeError."""
    found = launch.current()
    h, usual = found.healing, HealingChoice()
    shared = replace(usual, steps=h.steps, images=h.images, precision=h.precision, compile=h.compile, teacher=h.teacher)
    return replace(found, healing=shared)


def available() -> int | None:
    """How many calibration images there are at most; None where that is not known before a run."""
    chosen = state.choice()
    return _digits() - chosen.drift if chosen.images == "starter" else None


def _plan(axis: str, chosen: list[str], values: list, seeds: range, rates: tuple) -> tuple[BakeOff | None, str]:
    """The plan, or why there is none. Nothing chosen is no error: the button waits."""
    if not chosen or (axis != "all" and not values):
        return None, ""
    try:
        axes = {} if axis == "all" else {"images" if axis == "images" else "sparsities": tuple(values)}
        return BakeOff(recipe=recipe(), healers=tuple(chosen), seeds=tuple(seeds), rates=rates, **axes), ""
    except RecipeError as error:
        return None, str(error)


def _healers(axis: str) -> list[str]:
    """The chosen healers, in the order chosen. What the link names and nobody knows is told and left out."""
    known = healers.names()
    usual = tuple(name for name in USUAL[axis] if name in known)
    name = f"healers_{axis}"
    wanted = state.get(name, usual)
    chosen = [healer for healer in wanted if healer in known][:MOST]
    if len(chosen) < len(wanted):
        st.warning(f"The link names healers that do not exist, or more than {MOST}: these were left out.", icon=":material/link_off:")
        state.put(name, chosen, default=list(usual))
    key = f"value.{name}"
    if st.session_state.get(key) != chosen:
        st.session_state[key] = chosen
    st.multiselect(
        "Healers", known, format_func=_offered, max_selections=MOST, key=key, placeholder="Choose healers",
        on_change=lambda: state.put(name, st.session_state[key] or ("",), default=list(usual)),
        help="A method that trains, a repair without training, or both: repair + method. Each is taken with the settings of its source.",
    )  # fmt: skip
    return chosen


def _offered(healer: str) -> str:
    return bakeoff_rows.label(healer) + (" (labels)" if healers.labels(healer) else "")


def _values(axis: str) -> list:
    """The values on the axis that a tab is about."""
    if axis == "images":
        most = available()
        offered = [n for n in IMAGES if most is None or n < most] + ([most] if most else [])
        usual = tuple(str(n) for n in offered if n <= (most or 512))
        return _pills("Calibration images", "axis_images", [str(n) for n in offered], usual, int, "Each number takes the first of the same images.")
    if axis == "sparsity":
        pattern = state.choice().pattern
        if pattern not in SPARSITIES:
            st.info("An N:M pattern has one sparsity. Choose unstructured or structured here to vary it.", icon=":material/rule:")
        options = [*SPARSITIES, *([] if pattern in SPARSITIES else [pattern])]
        st.segmented_control("Pattern", options, required=True, format_func=results.name, **state.tie("pattern"))
        if pattern not in SPARSITIES:
            return []
        offered = [str(s) for s in SPARSITIES[pattern]]
        hint = "Of the prunable weights; structured: of the units."
        return _pills("Sparsity", f"axis_{pattern}", offered, USUAL_SPARSITIES[pattern], float, hint, lambda word: f"{100 * float(word):g} %")
    return []


def _pills(label: str, name: str, offered: list[str], usual: tuple[str, ...], kind: type, hint: str, show=str) -> list:
    wanted = [word for word in state.get(name, usual) if word in offered]
    key = f"value.{name}"
    if st.session_state.get(key) != wanted:
        st.session_state[key] = wanted
    st.pills(label, offered, selection_mode="multi", format_func=show, help=hint, key=key,
             on_change=lambda: state.put(name, st.session_state[key] or ("",), default=list(usual)))  # fmt: skip
    return sorted(map(kind, wanted))


def _said(plan: BakeOff) -> str:
    """How much work it is, in a few words."""
    cells = plan.cells()
    training = sum(cell.steps > 0 for cell in cells)
    tuning = f", {len(plan.rates)} learning rates tried for each that trains" if plan.rates else ""
    pruning = results.pattern(plan.recipe.pruning) if not plan.sparsities else plan.recipe.pruning.pattern
    return f"{results.count(len(cells), 'healing')} ({training} train) of {plan.recipe.model.name}, {pruning}{tuning}"


@cache
def _digits() -> int:
    """The starter's images that may calibrate or show drift."""
    card = json.loads((settings.ASSETS / "starter" / "card.json").read_text())
    return len(card["split"]["calibration"])

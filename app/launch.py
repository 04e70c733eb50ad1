"""Submitting a run: the form on Prune & heal, the recipe it starts from, and the guard against launching twice."""

from __future__ import annotations

from dataclasses import replace

import streamlit as st

from app import frame, results, state
from app.sidebar import SOURCES
from starfish_lab.errors import LabError, RecipeError
from starfish_lab.healing import METHODS
from starfish_lab.recipe import HealingChoice, Recipe

USUAL = HealingChoice()
LIMITS = {"batch": (1, 65_536), "lr": (1e-7, 1.0)}


def form() -> None:
    """The recipe in short words, how it is healed, and the button."""
    _said()
    with st.container(border=True):
        _what()
        _how()
    try:
        recipe = current()
    except RecipeError as error:
        st.error(str(error), icon=":material/rule:")
        recipe = None
    _twin(recipe)
    with frame.actions():
        _open_file()
        pressed = st.button("Prune & heal", type="primary", icon=":material/healing:", disabled=recipe is None, key="launch")
    if pressed and recipe is not None:
        submit(recipe)


def submit(recipe: Recipe, *, kind: str = "experiment", parent: int | None = None) -> None:
    """Queue a run and show it on this page."""
    queue(recipe, kind=kind, parent=parent)
    st.rerun()


def queue(recipe: Recipe, *, kind: str = "experiment", parent: int | None = None) -> None:
    """Queue a run and put it into the address bar. A browser that has this very recipe queued or running gets that run instead."""
    launched = st.session_state.setdefault("launched", {})
    key = (kind, recipe.fingerprint())
    if _active(launched.get(key)):
        st.session_state["said"] = f"Run {launched[key]} does exactly this already, so it was not started a second time."
    else:
        launched[key] = state.backend().submit(recipe, kind, parent=parent or state.get("parent", 0) or None, owner=_owner())
    for name in ("new", "parent"):
        state.put(name, None)
    state.put("run" if kind == "experiment" else "timing", launched[key])


def current() -> Recipe:
    """The experiment to launch: what the pages say, over the recipe that was opened or cloned. Raises RecipeError."""
    chosen = state.recipe()
    healing = replace(chosen.healing, batch_size=_own("batch", USUAL.batch_size), learning_rate=_own("lr", USUAL.learning_rate))
    return results.merged(_base(), replace(chosen, name=state.get("name", ""), healing=healing))


def clone(run) -> None:
    """Start the form from a run's recipe; the new run becomes its child."""
    _adopt(run.recipe)
    st.session_state.pop("opened", None)
    state.put("parent", run.id)
    state.put("run", None)
    state.put("new", True)
    st.switch_page("views/prune_and_heal.py")


def _adopt(recipe: Recipe) -> None:
    state.adopt(recipe)
    state.put("name", recipe.name)
    state.put("batch", recipe.healing.batch_size, default=USUAL.batch_size)
    state.put("lr", recipe.healing.learning_rate, default=USUAL.learning_rate)


def _base() -> Recipe:
    """The recipe that the form started from: an opened file's, the parent's, or the default."""
    if "opened" in st.session_state:
        return st.session_state["opened"]
    parent = state.get("parent", 0)
    if parent:
        try:
            return state.store().run(parent).recipe
        except (LabError, OverflowError):
            state.put("parent", None)
    return Recipe()


def _own(name: str, default: float) -> float:
    """A value of this form, from the address bar; nonsense there becomes the default."""
    low, high = LIMITS[name]
    value = state.get(name, default)
    if not low <= value <= high:
        state.put(name, None)
        st.warning(f"The link says {name} = {value:g}; expected was a number from {low:g} to {high:g}. Used instead: {default:g}.")
        return default
    return value


def _what() -> None:
    """What is pruned, in one line, and where to change it."""
    chosen = state.choice()
    asked = {name: getattr(chosen, name) for name in ("pattern", "sparsity", "keep", "group", "units")}
    gone = results.pattern(state.recipe(replace(state.DEFAULTS, **asked)).pruning)
    name = "The starter" if chosen.model == "starter" else chosen.model
    with st.container(horizontal=True, vertical_alignment="top"):
        st.markdown(
            f"**{name}** ({chosen.weights} weights) loses **{gone}**: "
            f"{chosen.score.replace('_', ' ')} score, {chosen.budget.replace('_', ' ')} budget. "
            f"It is healed on **{chosen.calibration} images** ({SOURCES[chosen.images].partition(' (')[0].lower()}).",
            width="stretch",
        )
        hint = "Pattern, sparsity, score and budget are chosen on Explore."
        if st.button("Change what goes", key="to_explore", type="tertiary", icon=":material/tune:", help=hint):
            st.switch_page("views/explore.py")


def _how() -> None:
    """Healing method and its few numbers."""
    first, second, third = st.columns(3)
    first.selectbox("Healing", METHODS.names(), format_func=lambda name: name.replace("_", " "), **state.tie("healing"))
    heals = state.choice().healing != "none"
    hint = "Optimiser steps. 0: 10 epochs over the calibration images."
    second.number_input("Steps", 0, 1_000_000, step=50, disabled=not heals, help=hint, **state.tie("steps"))
    third.text_input("Name", max_chars=80, placeholder="optional", **state.tie_value("name", ""))
    st.caption(METHODS.describe(state.choice().healing))
    with st.expander("Batch size and learning rate"):
        left, right = st.columns(2)
        _own("batch", USUAL.batch_size)
        _own("lr", USUAL.learning_rate)
        tied = state.tie_value("batch", USUAL.batch_size)
        left.number_input("Batch size", *LIMITS["batch"], step=8, disabled=not heals, help="Calibration images in a step.", **tied)
        hint = f"Of the first step; it falls to {USUAL.final_learning_rate:g} along a cosine."
        tied = state.tie_value("lr", USUAL.learning_rate)
        right.number_input("Learning rate", *LIMITS["lr"], step=1e-4, format="%.1e", disabled=not heals, help=hint, **tied)


def _open_file() -> None:
    """Where the recipe comes from, and the door for another."""
    parent = state.get("parent", 0)
    if "opened" in st.session_state or parent:
        origin = f"run {parent}" if "opened" not in st.session_state else "a recipe file"
        hint = "Press to let go of it: what only the recipe says (seeds, options, layers) goes back to the defaults."
        if st.button(f"From {origin}", type="tertiary", icon=":material/close:", help=hint):
            st.session_state.pop("opened", None)
            state.put("parent", None)
            st.rerun()
    with st.popover("Open a recipe", icon=":material/upload_file:"):
        hint = "As downloaded from a run, or printed by `python -m starfish_lab recipe`."
        st.file_uploader("Recipe (JSON)", type="json", key="recipe_file", on_change=_opened, help=hint)


def _opened() -> None:
    """A file was dropped on the page: its recipe becomes the choice, or the reason why not is shown and nothing changes."""
    file = st.session_state["recipe_file"]
    if file is None:
        return
    try:
        recipe = Recipe.from_json(file.getvalue().decode("utf-8"))
        _adopt(recipe)
    except UnicodeDecodeError:
        st.session_state["recipe_error"] = f"{file.name} is no text, so it is no recipe. Expected was a run's JSON file. The choice is as it was."
    except LabError as error:
        st.session_state["recipe_error"] = f"{error} The choice is as it was."
    else:
        st.session_state["opened"] = recipe
        state.put("parent", None)


def _twin(recipe: Recipe | None) -> None:
    """Whether the same is queued or running already, from any browser, or done."""
    if recipe is None:
        return
    runs = state.store().runs(limit=200)
    same = runs[(runs["recipe_hash"] == recipe.fingerprint()) & runs["status"].isin(["queued", "running", "done"])]
    if same.empty:
        return
    run = int(same["id"].iloc[0])
    said = {"queued": "waits in the queue with", "running": "is at work on", "done": "has done"}[same["status"].iloc[0]]
    with st.container(horizontal=True, vertical_alignment="center"):
        st.caption(f"Run {run} {said} this very recipe.", width="content")
        if st.button(f"Show run {run}", type="tertiary", key="twin"):
            state.put("run", run)
            st.rerun()


def _said() -> None:
    if text := st.session_state.pop("said", None):
        st.info(text, icon=":material/info:")
    if text := st.session_state.pop("recipe_error", None):
        st.error(text, icon=":material/error:")


def _active(run_id: int | None) -> bool:
    if run_id is None:
        return False
    try:
        return state.store().run(run_id).active
    except LabError:
        return False


def _owner() -> str:
    """The signed-in person's address, where the lab asks people to sign in."""
    return str(st.user.get("email") or "")

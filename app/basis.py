"""The recipe behind the pages: what was opened or cloned, with the choice and the healing form on top of it."""

from __future__ import annotations

from dataclasses import replace

import streamlit as st

from app import results, state
from starfish_lab import presets
from starfish_lab.errors import LabError
from starfish_lab.recipe import AUGMENTATIONS, OPTIMISERS, HealingChoice, Recipe

USUAL = HealingChoice()

# What the healing form keeps for itself: name in the address bar → field, and the values it may have (from a tuple of texts, or between two numbers).
HEALING = {
    "batch": ("batch_size", (1, 65_536)),
    "lr": ("learning_rate", (1e-7, 1.0)),
    "epochs": ("epochs", (1, 10_000)),
    "warmup": ("warmup", (0, 1_000_000)),
    "decay": ("weight_decay", (0.0, 1.0)),
    "optimiser": ("optimiser", OPTIMISERS),
    "trains": ("trains", ("weights", "all")),
    "on": ("images", ("calibration", "training")),
    "augment": ("augmentation", AUGMENTATIONS),
    "precision": ("precision", ("float32", "bf16")),
}


def current() -> Recipe:
    """The experiment to launch: what the pages say, over the recipe that was opened or cloned. Raises RecipeError."""
    chosen = state.recipe()
    own = {field: state.get(name, getattr(USUAL, field), **_checks(values)) for name, (field, values) in HEALING.items()}
    final = min(USUAL.final_learning_rate, own["learning_rate"])
    healing = replace(chosen.healing, final_learning_rate=final, **own)
    return results.merged(base(), replace(chosen, name=state.get("name", ""), healing=healing))


def adopt(recipe: Recipe) -> None:
    """Put everything that pages show of a recipe into the choice and the form."""
    state.adopt(recipe)
    state.put("name", recipe.name)
    for name, (field, _) in HEALING.items():
        state.put(name, getattr(recipe.healing, field), default=getattr(USUAL, field))


def tie(name: str) -> dict[str, object]:
    """Keyword arguments that tie a widget to one of HEALING."""
    field, values = HEALING[name]
    return state.tie_value(name, getattr(USUAL, field), **_checks(values))


def base() -> Recipe:
    """The recipe that the form started from: an opened one, a published row's, the parent's, or the default."""
    if "opened" in st.session_state:
        return st.session_state["opened"]
    if key := state.get("preset", ""):  # the link of a published row, in a browser that has not opened it itself
        try:
            return presets.recipe_of(key)
        except LabError:
            state.put("preset", None)
    parent = state.get("parent", 0)
    if parent:
        try:
            return state.store().run(parent).recipe
        except (LabError, OverflowError):
            state.put("parent", None)
    return Recipe()


def origin() -> str:
    """Where the recipe behind the pages comes from, in words; '' for the default."""
    if "opened" in st.session_state:
        name = st.session_state["opened"].name
        return f"the recipe '{name}'" if name else "an opened recipe"
    if state.get("preset", ""):
        return f"the recipe '{base().name}'"
    parent = state.get("parent", 0)
    return f"run {parent}" if parent else ""


def let_go() -> None:
    """Forget the opened recipe or the parent; the choice stays."""
    st.session_state.pop("opened", None)
    state.put("parent", None)
    state.put("preset", None)


def opened(recipe: Recipe, *, preset: str = "") -> None:
    """Make a recipe the one behind the pages; `preset` is the key of a published row, by which a link finds it again."""
    adopt(recipe)
    st.session_state["opened"] = recipe
    state.put("parent", None)
    state.put("preset", preset)


def _checks(values: tuple) -> dict[str, object]:
    return {"allowed": values} if isinstance(values[0], str) else {"limits": values}

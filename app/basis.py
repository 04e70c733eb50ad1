"""The recipe behind the pages: what was opened or cloned, with the choice and the healing form on top of it."""

from __future__ import annotations

from dataclasses import replace

import streamlit as st

from app import merging, state
from starfish_lab import presets
from starfish_lab.errors import LabError
from starfish_lab.healing import METHODS, REPAIRS, healers
from starfish_lab.recipe import AUGMENTATIONS, OPTIMISERS, PRECISIONS, SCHEDULES, TRAINS, HealingChoice, Recipe

# What the healing form keeps for itself: name in the address bar → field, and the values it may have: one of them, or between two numbers.
HEALING = {
    "batch": ("batch_size", (1, 65_536)),
    "lr": ("learning_rate", (1e-7, 1.0)),
    "final": ("final_learning_rate", (0.0, 1.0)),
    "epochs": ("epochs", (1, 10_000)),
    "warmup": ("warmup", (0, 1_000_000)),
    "schedule": ("schedule", SCHEDULES),
    "average": ("average", (0.0, 0.99999)),
    "decay": ("weight_decay", (0.0, 1.0)),
    "clip": ("gradient_clip", (0.0, 1_000.0)),
    "optimiser": ("optimiser", OPTIMISERS),
    "trains": ("trains", TRAINS),
    "on": ("images", ("calibration", "training")),
    "shuffle": ("order", ("fixed", "shuffled")),
    "augment": ("augmentation", AUGMENTATIONS),
    "teacher": ("teacher", ("exact", "half")),
    "precision": ("precision", PRECISIONS),
    "compile": ("compile", (False, True)),
}
OPTIONS = {"heal": (METHODS, "method", "options"), "repair": (REPAIRS, "repair", "repair_options")}  # in the address bar as heal_temperature


def healer(method: str, repair: str) -> str:
    """The name of a repair and a method as one healer.

    >>> healer("starfish", "none"), healer("none", "dense"), healer("starfish", "dense")
    ('starfish', 'dense', 'dense+starfish')
    """
    return healers.name(HealingChoice(method=method, repair=repair))


def usual(method: str, repair: str) -> HealingChoice:
    """What the form starts from: the settings that this repair and this method are known with."""
    return healers.choice(healer(method, repair), HealingChoice())


def current() -> Recipe:
    """The experiment to launch: what the pages say, over the recipe that was opened or cloned. Raises RecipeError.

    A page asks for it many times a run, so the last answer is kept for as long as nothing that it came from changes.
    """
    given = (state.choice(), dict(st.session_state["values"]), st.session_state.get("opened"))
    known = st.session_state.get("current")
    if known is None or known[0] != given:
        known = given, _current()
        st.session_state["current"] = known
    return known[1]


def _current() -> Recipe:
    chosen = state.recipe()
    known = _usual_now()
    own = {field: state.get(name, getattr(known, field), **_checks(values)) for name, (field, values) in HEALING.items()}
    own["final_learning_rate"] = min(own["final_learning_rate"], own["learning_rate"])
    for kind, (_, _, field) in OPTIONS.items():
        defaults = options(kind)
        found = {option: state.get(f"{kind}_{option}", default) for option, default in defaults.items()}
        own[field] = getattr(known, field) | {option: _plain(value) for option, value in found.items() if value != defaults[option]}
    return merging.merged(base(), replace(chosen, name=state.get("name", ""), healing=replace(chosen.healing, **own)))


def options(kind: str) -> dict[str, object]:
    """{option: default} of the chosen healer ('heal') or repair ('repair') that a control can show."""
    entries, part, field = OPTIONS[kind]
    known = _usual_now()
    return merging.shown_options(entries, getattr(known, part), getattr(known, field))


def adopt(recipe: Recipe) -> None:
    """Put everything that pages show of a recipe into the choice and the form."""
    state.adopt(recipe)
    state.put("name", recipe.name)
    known = _usual_now()
    for name, (field, _) in HEALING.items():
        state.put(name, getattr(recipe.healing, field), default=getattr(known, field))
    for kind, (entries, part, field) in OPTIONS.items():
        given = entries.options(getattr(recipe.healing, part)) | getattr(recipe.healing, field)
        for option, default in options(kind).items():
            state.put(f"{kind}_{option}", type(default)(given[option]), default=default)


def tie(name: str) -> dict[str, object]:
    """Keyword arguments that tie a widget to one of HEALING."""
    field, values = HEALING[name]
    return state.tie_value(name, getattr(_usual_now(), field), **_checks(values))


def tie_option(kind: str, option: str, **checks: object) -> dict[str, object]:
    """Keyword arguments that tie a widget to an option of the chosen healer or repair."""
    return state.tie_value(f"{kind}_{option}", options(kind)[option], **checks)


def forget_options(kind: str) -> None:
    """Back to the defaults of the chosen healer or repair, before another one takes its place."""
    for option in options(kind):
        state.put(f"{kind}_{option}", None)


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


def _usual_now() -> HealingChoice:
    chosen = state.choice()
    return usual(chosen.healing, chosen.repair)


def _plain(value: object) -> object:
    """An option that takes words or whole numbers, such as STARFISH's blocks, holds its numbers as words in the form."""
    return int(value) if isinstance(value, str) and value.isdecimal() else value


def _checks(values: tuple) -> dict[str, object]:
    return {"allowed": values} if isinstance(values[0], str | bool) else {"limits": values}

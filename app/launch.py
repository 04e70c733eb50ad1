"""Submitting a run: the form on Prune & heal, the recipe it starts from, and the guard against launching twice."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from app import acts, bakeoff_rows, basis, frame, healing_controls, results, state
from app.sidebar import SOURCES
from starfish_lab.errors import LabError, RecipeError
from starfish_lab.plain_data import Plan
from starfish_lab.pruning import SOLVERS
from starfish_lab.recipe import Recipe

current = basis.current
SHOWN_AS = {"experiment": "run", "sweep": "sweep"}  # by what name the address bar holds a run of a kind; others are timings


def form(told: Callable[[Recipe], None] | None = None) -> None:
    """The recipe in short words, how it is healed, what `told` says of it before it runs, and the button."""
    _said()
    try:
        recipe, problem = current(), ""
    except RecipeError as error:
        recipe, problem = None, str(error)
    with st.container(border=True):
        if recipe is not None:
            _what(recipe)
        healing_controls.draw()
    if problem:
        st.error(problem, icon=":material/rule:")
    elif told is not None:
        told(recipe)
    _twin(recipe)
    with frame.actions():
        _open_file()
        pressed = acts.button("Prune & heal", type="primary", icon=":material/healing:", disabled=recipe is None, key="launch")
    if pressed and recipe is not None:
        submit(recipe)


def submit(task: Plan, *, kind: str = "experiment", parent: int | None = None, name: str = "") -> None:
    """Queue a run and show it on this page."""
    queue(task, kind=kind, parent=parent, name=name)
    st.rerun()


def queue(task: Plan, *, kind: str = "experiment", parent: int | None = None, name: str = "") -> None:
    """Queue a run and put it into the address bar, under `name` where given.

    A browser that has this very task queued or running gets that run instead.
    """
    launched = st.session_state.setdefault("launched", {})
    key = (kind, task.fingerprint())
    if _active(launched.get(key)):
        st.session_state["said"] = f"Run {launched[key]} does exactly this already, so it was not started a second time."
    else:
        launched[key] = state.backend().submit(task, kind, parent=parent or state.get("parent", 0) or None)
    for known in ("new", "parent"):
        state.put(known, None)
    state.put(name or SHOWN_AS.get(kind, "timing"), launched[key])


def clone(run) -> None:
    """Start the form from a run's recipe; the new run becomes its child."""
    basis.let_go()
    basis.adopt(run.recipe)
    state.put("parent", run.id)
    _to_form()


def open_bakeoff(run) -> None:
    """Show a bake-off on its page, on the tab that it belongs to."""
    axis = bakeoff_rows.axis(run.plan)
    state.put("run", None)
    state.put("axis", axis, default="all")
    state.put(f"bake_{axis}", run.id)
    st.switch_page("views/bake_off.py")


def open_sweep(run) -> None:
    """Show a sweep on the page Runs."""
    state.put("run", None)
    state.put("view", "sweeps")
    state.put("sweep", run.id)
    st.switch_page("views/runs.py")


def open_recipe(recipe: Recipe, *, preset: str = "") -> None:
    """Show a recipe in the form, ready to change and launch; what no page shows of it is kept.

    `preset` is the key of a published row (`starfish_lab.presets`) where the recipe is one: its link then works anywhere.
    """
    basis.opened(recipe, preset=preset)
    _to_form()


def _to_form() -> None:
    state.put("run", None)
    state.put("new", True)
    st.switch_page("views/prune_and_heal.py")


def _what(recipe: Recipe) -> None:
    """What is pruned and what comes before and after, in short sentences, and where to change it."""
    pruning = recipe.pruning
    name = "The starter" if recipe.model.name == "starter" else recipe.model.name
    rule = "" if pruning.pattern == "kept" else f": {_rule(recipe)}"
    with st.container(horizontal=True, vertical_alignment="top"):
        gone = f"**{name}** ({recipe.model.weights} weights) loses **{results.pattern(pruning)}**{rule}."
        images = f"Images: {SOURCES[recipe.images.source].partition(' (')[0].lower()}."
        st.markdown(" ".join(filter(None, [gone, results.before(recipe), results.healing(recipe), images])), width="stretch")
        hint = "Start, pattern, sparsity, score, budget and merging are chosen on Explore."
        if st.button("Change what goes", key="to_explore", type="tertiary", icon=":material/tune:", help=hint):
            st.switch_page("views/explore.py")


def _rule(recipe: Recipe) -> str:
    """By which score or solver, which budget where there is one to choose, and whether layers were set by hand."""
    pruning = recipe.pruning
    what = "solver" if pruning.score in SOLVERS.names() else "score"
    budget = f", {results.name(pruning.budget)} budget" if pruning.pattern == "unstructured" else ""
    by_hand = " and what was set by hand" if pruning.layers or pruning.options.get("edges") else ""
    return f"{results.name(pruning.score)} {what}{budget}{by_hand}"


def _open_file() -> None:
    """Where the recipe comes from, and the door for another."""
    if origin := basis.origin():
        hint = "Press to let go of it: what only the recipe says (seeds, options, layers) goes back to the defaults."
        if st.button(f"From {origin}", type="tertiary", icon=":material/close:", help=hint):
            basis.let_go()
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
        basis.opened(Recipe.from_json(file.getvalue().decode("utf-8")))
    except UnicodeDecodeError:
        st.session_state["recipe_error"] = f"{file.name} is no text, so it is no recipe. Expected was a run's JSON file. The choice is as it was."
    except LabError as error:
        st.session_state["recipe_error"] = f"{error} The choice is as it was."


def twin(recipe: Recipe) -> tuple[int, str] | None:
    """The newest run, of those that a list shows at once, that does or has done this very recipe, and a sentence that says so; None where none."""
    runs = state.store().runs(limit=200)
    same = runs[(runs["recipe_hash"] == recipe.fingerprint()) & runs["status"].isin(["queued", "running", "done"])]
    if same.empty:
        return None
    run = int(same["id"].iloc[0])
    does = {"queued": "waits in the queue with", "running": "is at work on", "done": "has done"}[same["status"].iloc[0]]
    return run, f"Run {run} {does} this very recipe."


def _twin(recipe: Recipe | None) -> None:
    """Whether the same is queued or running already, from any browser, or done."""
    found = None if recipe is None else twin(recipe)
    if found is None:
        return
    run, said = found
    with st.container(horizontal=True, vertical_alignment="center"):
        st.caption(said, width="content")
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

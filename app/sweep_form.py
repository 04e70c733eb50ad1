"""The control for a sweep on Prune & heal: the same recipe at several sparsities, patterns, healers and seeds, launched as one."""

from __future__ import annotations

import streamlit as st

from app import acts, bakeoff_rows, basis, devices, frame, launch, results, state, sweep_rows
from app.charts import theme
from starfish_lab.errors import LabError
from starfish_lab.healing import healers
from starfish_lab.pruning import rules
from starfish_lab.sweep.plan import Sweep

SPARSITIES = ("0.3", "0.5", "0.6", "0.7", "0.75", "0.8", "0.85", "0.9", "0.95")
PATTERNS = ("unstructured", "structured", "2:4")
SEEDS = (1, 2, 3, 5)
MOST_HEALERS = 12
KNOWN = 1000  # newest runs among which those that are done already, and those that speak for the time, are looked for
HELP = {
    "patterns": "How weights go. An N:M pattern has one sparsity, so it runs once for each healer and seed.",
    "sparsities": "Of the prunable weights; structured: of the units.",
    "healers": "A method that trains, a repair without training, or both: repair + method. Each is taken with the settings of its source.",
    "seeds": "Each seed draws other calibration images and shuffles anew. Three show how much luck there is, and take three times as long.",
}


def draw() -> None:
    """Closed until asked for; the link remembers that it is open, and what was chosen in it."""
    key = "value.sweeping"
    if key not in st.session_state:
        st.session_state[key] = state.get("sweeping", False)
    place = st.expander("Sweep: several sparsities, patterns, healers and seeds as one", icon=":material/grid_on:", key=key, on_change=_opened)
    if not place.open:
        return
    with place:
        plan, problem = _chosen()
        if problem:
            st.error(problem, icon=":material/rule:")
        with frame.actions():
            if plan is not None:
                st.caption(_said(plan), width="stretch", text_alignment="right")
            pressed = acts.button("Launch sweep", icon=":material/grid_on:", key="launch_sweep", disabled=plan is None)
    if pressed:
        launch.queue(plan, kind="sweep")
        state.put("view", "sweeps")
        st.switch_page("views/runs.py")


def _opened() -> None:
    state.put("sweeping", bool(st.session_state["value.sweeping"]), default=False)


def _chosen() -> tuple[Sweep | None, str]:
    """The plan of what is chosen, or why there is none. Nothing chosen is no error: the button waits."""
    chosen = state.choice()
    usual = chosen.pattern if chosen.pattern in PATTERNS else "unstructured"
    with st.container(key="sweep"):
        first, second = st.columns([2, 5])
        third, fourth = st.columns([5, 2])
    with first:
        patterns = _pills("Patterns", "sweep_patterns", PATTERNS, (usual,), theme.sentence)
    with second:
        sparsities = _pills("Sparsities", "sweep_sparsities", SPARSITIES, ("0.5", "0.75", "0.9"), lambda text: f"{100 * float(text):g} %")
    with third:
        healed_by = _healers()
    with fourth:
        seeds = st.segmented_control("Seeds", SEEDS, required=True, help=HELP["seeds"], **state.tie_value("sweep_seeds", 1, allowed=SEEDS))
    if not (patterns and healed_by and (sparsities or set(patterns) <= {"2:4"})):
        return None, ""
    own = (basis.healer(chosen.healing, chosen.repair),)
    try:
        plan = Sweep(
            recipe=basis.current(), sparsities=tuple(map(float, sparsities)), patterns=tuple(patterns), seeds=tuple(range(seeds)),
            healers=() if tuple(healed_by) == own else tuple(healed_by),  # alone it keeps what the form above says of it
        )  # fmt: skip
        for recipe in plan.recipes():
            rules.check(recipe.pruning)  # a score that does not go with a pattern would fail run by run
        return plan, ""
    except LabError as error:
        return None, str(error)


def _pills(label: str, name: str, offered: tuple[str, ...], usual: tuple[str, ...], show) -> list[str]:
    """Several of a few words, kept in the link; what the link has and nobody offers is left out."""
    wanted = tuple(word for word in state.get(name, usual) if word in offered)
    state.put(name, wanted, default=usual)
    hint = HELP[name.removeprefix("sweep_")]
    return st.pills(label, offered, selection_mode="multi", format_func=show, help=hint, wrap=True, **state.tie_value(name, usual))


def _healers() -> list[str]:
    chosen = state.choice()
    usual = tuple(dict.fromkeys(("none", basis.healer(chosen.healing, chosen.repair))))
    known = healers.names()
    wanted = tuple(name for name in state.get("sweep_healers", usual) if name in known)[:MOST_HEALERS]
    state.put("sweep_healers", wanted, default=usual)
    return st.multiselect(
        "Healers", known, max_selections=MOST_HEALERS, help=HELP["healers"], placeholder="Choose healers",
        format_func=lambda name: bakeoff_rows.label(name) + (" (labels)" if healers.labels(name) else ""),
        **state.tie_value("sweep_healers", usual),
    )  # fmt: skip


def _said(plan: Sweep) -> str:
    """How many runs it is, how many of them are there already, and about how long the others take."""
    store, recipes = state.store(), plan.recipes()
    runs = store.runs(limit=KNOWN)
    there = set(runs.loc[runs["status"].isin(["done", "queued", "running"]), "recipe_hash"])
    ahead = [recipe for recipe in recipes if recipe.fingerprint() not in there]
    text = f"**{results.count(len(recipes), 'run')}**"
    if len(ahead) < len(recipes):
        text += f", {len(recipes) - len(ahead)} of them done or in the queue already and adopted"
    if not ahead:
        return f"{text}: nothing is left to launch"
    alive, _ = devices.capacity()
    workers, done = max(1, len(devices.fits(plan.device, alive))), runs[runs["status"] == "done"]
    seconds, rule = sweep_rows.seconds_ahead(ahead, done, store.recipes(done["id"]), workers=workers)
    if seconds is None:
        return f"{text}. How long it takes is not known: no similar run has finished yet"
    return f"{text}. About {results.duration(seconds)} on {results.count(workers, 'worker')}: an estimate, {rule}"

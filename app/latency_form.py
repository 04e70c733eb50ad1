"""Launching a measurement of latency: how to run the pruned network, at which batch sizes, where; and how far it is."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import streamlit as st

from app import acts, devices, frame, latency_files, latency_plans, launch, results, state
from app.latency_plans import BATCHES, MERGING, MODES, USUAL_BATCHES
from app.latency_rows import spoken, word
from starfish_lab.errors import LabError, RecipeError
from starfish_lab.execution.choice import PRECISIONS, Execution
from starfish_lab.latency.plan import LatencyPlan, usual
from starfish_lab.recipe import Recipe

MERGING_SAID = {"none": "All tokens", "also": "Merged too", "only": "Merged only"}
MERGED_HELP = "Tokens merge by the recipe's schedule, 8 a block where it has none. The dense baselines keep all their tokens."
DENSE_HELP = "The dense network is always timed with it, in every precision and mode chosen here: the title compares with the best of them."


def measure(card: str, shown: pd.DataFrame, *, literature_only: bool) -> None:
    """The button, what it will time in short words, and how far a measurement is.

    `card` is the machine on show, `shown` the store's list of the runs on show, which may be saved as files.
    """
    _progress()
    latency_files.said()
    try:
        recipe, problem = launch.current(), ""
    except RecipeError as error:
        recipe, problem = None, str(error)
    if problem:
        st.error(problem, icon=":material/rule:")
        return
    alive, _ = devices.capacity()
    with frame.actions():
        _elsewhere(card, recipe, literature_only)
        said = st.empty()
        with st.popover("Executions", icon=":material/tune:"):
            plan, refused = _form(recipe, _kind(recipe.device, alive))
        latency_files.popover(shown, plan)
        if plan is not None:
            said.caption(_said(plan, recipe, alive), width="content")
        pressed = acts.button(
            "Measure latency", type="primary", icon=":material/timer:", key="measure", disabled=plan is None,
            help=f"Times {recipe.model.name}, dense and with {results.pattern(recipe.pruning)}, in turns. No images, no healing.",
        )  # fmt: skip
    for reason, which in refused.items():
        st.caption(f"Left out: {'; '.join(which[:4])}{' …' if len(which) > 4 else ''}, because {reason}.")
    if pressed and plan is not None:
        launch.submit(plan, kind="latency")


def _form(recipe: Recipe, kind: str) -> tuple[LatencyPlan | None, dict[str, list[str]]]:
    """The plan, None where nothing is left to time, and {reason: executions} of what was left out."""
    offered = latency_plans.ways()
    known = [Execution.of(label) for label in usual(recipe)]
    ways_by_word = {word(label): label for label in offered}
    own = list(dict.fromkeys(word(replace(one, precision="float32", merged=False, compile=False).label) for one in known))
    ways = _pills("Run as", "ways", list(ways_by_word), own, lambda name: spoken(ways_by_word[name]), DENSE_HELP)
    precisions = _pills("Precisions", "precisions", list(PRECISIONS), list(dict.fromkeys(one.precision for one in known)), str)
    modes = _pills("Modes", "modes", list(MODES), ["eager"], str.capitalize, "Compiled: torch.compile, whose first pass takes a minute or more.")
    merged = st.segmented_control(
        "Tokens", MERGING, required=True, format_func=MERGING_SAID.get, help=MERGED_HELP,
        **state.tie_value("merged", "only" if any(one.merged for one in known) else "none", allowed=MERGING),
    )  # fmt: skip
    batches = _pills("Batch sizes", "batches", [str(batch) for batch in BATCHES], [str(batch) for batch in USUAL_BATCHES], str)
    wanted = latency_plans.executions([ways_by_word[name] for name in ways], precisions, modes, merged)
    fit, refused = latency_plans.sorted_out(wanted, recipe, kind)
    if not fit or not batches:
        return None, refused
    labels = tuple(execution.label for execution in fit)
    return LatencyPlan(recipe=recipe, executions=labels, batches=tuple(sorted(map(int, batches)))), refused


def _pills(label: str, name: str, offered: list[str], own: list[str], show, hint: str | None = None) -> list[str]:
    """Several of what is offered, kept in the address bar under `name`."""
    wanted = [choice for choice in state.get(name, tuple(own)) if choice in offered]
    key = f"value.{name}"
    if st.session_state.get(key) != wanted:
        st.session_state[key] = wanted
    chosen = st.pills(
        label, offered, selection_mode="multi", format_func=show, help=hint, key=key,
        on_change=lambda: state.put(name, st.session_state[key] or ("",), default=own),
    )  # fmt: skip
    return list(chosen)


def _said(plan: LatencyPlan, recipe: Recipe, alive) -> str:
    """How much is timed and where, in a few words."""
    asked = len(plan.asked())
    counted = f"{results.count(asked, 'execution')}, {len(plan.contestants()) - asked} dense; batch {', '.join(map(str, plan.batches))}"
    if len(able := devices.fits(recipe.device, alive)):
        return f"{counted}; on {' or '.join(dict.fromkeys(able['device']))}"
    return f"{counted}; waits for {'a worker' if recipe.device == 'auto' else devices.label(recipe.device)}"


def _elsewhere(card: str, recipe: Recipe, literature_only: bool) -> None:
    """Where a card is known from papers only: the door to measuring on one."""
    wanted = f"gpu:{card}"
    hint = "Runs then wait for a node that has one."
    if (
        literature_only
        and recipe.device != wanted
        and st.button(f"Ask for an {card}", type="tertiary", icon=":material/memory:", key="ask", help=hint)
    ):
        state.change(device=wanted)
        st.rerun()


def _kind(wanted: str, alive) -> str:
    """What kind of device a run goes to: 'cpu', 'mps', 'cuda', or '' where several may take it or none is known."""
    if wanted.startswith(("gpu:", "cuda")):
        return "cuda"
    if wanted in ("cpu", "mps"):
        return wanted
    kinds = {str(device).partition(":")[0] for device in alive["device"]}
    return kinds.pop() if len(kinds) == 1 else ""


def _progress() -> None:
    """How far the measurement launched last is; nothing where there is none."""
    if waiting := state.get("timing", 0):
        try:
            run = state.store().run(waiting)
        except (LabError, OverflowError):
            state.put("timing", None)
        else:
            st.fragment(_timing, run_every="1s" if run.active else None)(run.id)


def _timing(run_id: int) -> None:
    with frame.guard():
        run = state.store().run(run_id)
        if run.status == "failed":
            st.error(f"Run {run_id} stopped: {run.error}", icon=":material/error:")
        elif run.status == "queued" and (waits := devices.waits(run.wants, devices.capacity()[0])):
            st.warning(f"No worker is free for it, so the measurement stands in the queue as run {run_id} and {waits}.", icon=":material/schedule:")
        elif run.active:
            share = min(1.0, run.step / run.steps) if run.step and run.steps else 0.0
            left = f", {results.duration(run.seconds_left)} left" if run.seconds_left is not None else ""
            st.progress(share, text=f"Run {run_id}: {'waiting' if run.status == 'queued' else run.stage or 'starting'}{left}")
        elif run.status == "done":
            state.put("timing", None)
            st.rerun()

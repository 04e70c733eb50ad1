"""What each kind of run is to do: the one list of kinds, and the plan that each holds.

A plan's class is imported when the first run of its kind is read, so that the store needs no other room to open.
"""

from __future__ import annotations

from importlib import import_module

from starfish_lab.errors import StoreError
from starfish_lab.healing import healers
from starfish_lab.plain_data import Plan
from starfish_lab.recipe import Recipe

SWEEP = "sweep"  # the one kind that no worker does: its runs are
TASKS = {
    "experiment": "starfish_lab.recipe:Recipe",
    "profile": "starfish_lab.recipe:Recipe",
    "merging": "starfish_lab.recipe:Recipe",
    "picture": "starfish_lab.gallery.plan:PicturePlan",
    "layer_times": "starfish_lab.recipe:Recipe",
    "latency": "starfish_lab.latency.plan:LatencyPlan",
    "sensitivity": "starfish_lab.sensitivity.plan:Sensitivity",
    "bakeoff": "starfish_lab.bakeoff.plan:BakeOff",
    SWEEP: "starfish_lab.sweep.plan:Sweep",
}
KINDS = tuple(TASKS)


def plan_class(kind: str) -> type[Plan]:
    """The class of the plans of a kind. Raises StoreError where there is no such kind."""
    if kind not in TASKS:
        raise StoreError(f"There is no kind of run '{kind}'. Choose one of: {', '.join(KINDS)}.")
    room, _, name = TASKS[kind].partition(":")
    return getattr(import_module(room), name)


def check(task: Plan, kind: str) -> None:
    """Raise StoreError unless the plan is what a run of this kind does."""
    expected = plan_class(kind)
    if not isinstance(task, expected):
        raise StoreError(f"A run of the kind '{kind}' takes a {expected.WHAT}, not a {getattr(task, 'WHAT', type(task).__name__)}.")


def read(text: str, kind: str) -> Plan:
    """The plan that a run holds."""
    return plan_class(kind).from_json(text)


def recipe_of(task: Plan) -> Recipe:
    """The recipe of a plan: itself, or what all that it asks for share."""
    return task if isinstance(task, Recipe) else task.recipe


def listed(task: Plan) -> dict[str, object]:
    """What a list of runs shows of a plan, by column of the store, so that it parses none."""
    recipe, pruning = recipe_of(task), recipe_of(task).pruning
    asked = getattr(task, "healers", ())
    return {
        "name": task.name, "wants": recipe.device, "model": recipe.model.name, "weights": recipe.model.weights,
        "pattern": pruning.pattern, "score": pruning.score, "budget": pruning.budget,
        "method": f"{len(asked)} healers" if asked else healers.name(recipe.healing),
        "sparsity": max(getattr(task, "sparsities", ()), default=recipe.asked_sparsity),
    }  # fmt: skip

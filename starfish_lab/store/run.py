"""One row of the list of runs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property

import sqlalchemy as sa

from starfish_lab.plain_data import Plan
from starfish_lab.recipe import Recipe
from starfish_lab.store import tasks
from starfish_lab.store.schema import RUNS


@dataclass(frozen=True)
class Run:
    """One row of the list of runs. Times are seconds since 1970 (UTC)."""

    id: int
    kind: str
    name: str
    status: str  # queued, paused, running, done, failed or cancelled
    owner: str
    parent: int | None
    recipe_json: str
    wants: str  # the recipe's device
    device: str | None  # the worker's
    worker: str | None
    attempt: int
    cancel: bool  # asked to stop
    created_at: float
    started_at: float | None
    finished_at: float | None
    stage: str | None
    step: int | None
    steps: int | None
    seconds_left: float | None
    error: str | None
    artefact: str | None  # folder or address of the healed network

    @cached_property
    def plan(self) -> Plan:
        """What was submitted, and can be again: a recipe, or the plan of its kind."""
        return tasks.read(self.recipe_json, self.kind)

    @cached_property
    def recipe(self) -> Recipe:
        """What the run does; of a bake-off, a sweep or a timing, what all its parts share."""
        return tasks.recipe_of(self.plan)

    @property
    def active(self) -> bool:
        """Not at its end: worth polling."""
        return self.status in ("queued", "paused", "running")

    @staticmethod
    def columns() -> list[sa.Column]:
        names = [f.name for f in dataclasses.fields(Run)]
        return [RUNS.c.recipe.label("recipe_json") if name == "recipe_json" else RUNS.c[name] for name in names]

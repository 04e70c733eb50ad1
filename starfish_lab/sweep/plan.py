"""What a sweep runs, as plain data, JSON both ways. Imports no torch.

>>> sweep = Sweep(sparsities=(0.5, 0.75), patterns=("unstructured", "2:4"), healers=("starfish", "none"))
>>> Sweep.from_json(sweep.to_json()) == sweep
True
>>> [(point.pattern, point.sparsity) for point in sweep.points if point.healer == "none"]
[('unstructured', 0.5), ('unstructured', 0.75), ('2:4', 0.5)]
"""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass, replace
from functools import cached_property

from starfish_lab.checks import is_fraction, is_whole, several
from starfish_lab.errors import RecipeError
from starfish_lab.healing import healers
from starfish_lab.recipe import ONE_SPARSITY, PruningChoice, Recipe, RecipePlan, seeded

MOST = 1000  # runs of one sweep


@dataclass(frozen=True)
class Point:
    """What one run of a sweep prunes and heals. `pattern` is an entry of the registry, n:m patterns by their numbers, such as '2:4'."""

    pattern: str
    sparsity: float
    score: str
    budget: str
    healer: str
    seed: int


@dataclass(frozen=True, kw_only=True)
class Sweep(RecipePlan):
    """A recipe at every combination of what is listed; a list left empty takes the recipe's own. Frozen; validated when made.

    sparsities : fractions removed. A pattern with one sparsity of its own, n:m or 'kept', stands once whatever they are
    patterns : as in the recipe, or n:m patterns by their numbers: '2:4'
    scores, budgets : as in the recipe
    healers : names as in `healing.healers`
    seeds : each draws the images and seeds everything else anew
    """

    KEY = "starfish_lab_sweep"
    WHAT = "sweep"

    recipe: Recipe = Recipe()
    sparsities: tuple[float, ...] = ()
    patterns: tuple[str, ...] = ()
    scores: tuple[str, ...] = ()
    budgets: tuple[str, ...] = ()
    healers: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        several("sparsities", self.sparsities, is_fraction, "fractions between 0 and 1")
        several("seeds", self.seeds, lambda seed: is_whole(seed, 0), "whole numbers of at least 0")
        for name in ("patterns", "scores", "budgets", "healers"):
            several(name, getattr(self, name), lambda entry: isinstance(entry, str), "names")
        asked = math.prod(map(len, self._lists()))
        if asked > MOST:
            raise RecipeError(f"This sweep asks for {asked} runs: at most {MOST} make one. Leave some values out, or make several sweeps.")
        self.points  # noqa: B018 - builds every recipe: raises where one cannot be run

    @cached_property
    def points(self) -> dict[Point, Recipe]:
        """Every run once, with its recipe, in the order in which they are queued."""
        found: dict[Point, Recipe] = {}
        for values in itertools.product(*self._lists()):
            recipe = self._recipe(*values)
            _, _, score, budget, _, seed = values
            point = Point(_named(recipe.pruning), recipe.asked_sparsity, score, budget, healers.name(recipe.healing), seed)
            found.setdefault(point, recipe)
        return found

    def recipes(self) -> list[Recipe]:
        """The recipes of all runs."""
        return list(self.points.values())

    def _lists(self) -> tuple[tuple, ...]:
        own, healing = self.recipe.pruning, self.recipe.healing
        return (
            self.patterns or (_named(own),), self.sparsities or (own.sparsity,), self.scores or (own.score,), self.budgets or (own.budget,),
            self.healers or (healers.name(healing),), self.seeds or (healing.seed,),
        )  # fmt: skip

    def _recipe(self, pattern: str, sparsity: float, score: str, budget: str, healer: str, seed: int) -> Recipe:
        recipe = self.recipe
        chosen = {"score": score, "budget": budget, **_pattern(pattern)}
        if chosen["pattern"] not in ONE_SPARSITY:
            chosen["sparsity"] = sparsity
        healing = healers.choice(healer, recipe.healing) if self.healers else recipe.healing
        found = replace(recipe, pruning=replace(recipe.pruning, **chosen), healing=healing)
        return seeded(found, seed) if self.seeds else found


def _pattern(name: str) -> dict[str, object]:
    """Fields of PruningChoice for a pattern: '2:4' is the pattern n_m that keeps 2 of every 4."""
    numbers = re.fullmatch(r"(\d+):(\d+)", name)
    return {"pattern": "n_m", "keep": int(numbers[1]), "group": int(numbers[2])} if numbers else {"pattern": name}


def _named(pruning: PruningChoice) -> str:
    return f"{pruning.keep}:{pruning.group}" if pruning.pattern == "n_m" else pruning.pattern

"""What a sensitivity run measures, as plain data, JSON both ways. Imports no torch.

>>> plan = Sensitivity.of(Recipe())
>>> Sensitivity.from_json(plan.to_json()) == plan, plan.steps()
(True, (0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.99))
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Self

from starfish_lab import checks
from starfish_lab.errors import RecipeError
from starfish_lab.recipe import PruningChoice, Recipe, RecipePlan

LEVELS = (0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.99)
ON = ("drift", "evaluation")
PATTERNS = ("unstructured", "n_m", "structured")  # 'kept' has one level


@dataclass(frozen=True, kw_only=True)
class Sensitivity(RecipePlan):
    """Every prunable layer alone, or every group of units, at every level. Frozen; validated when made.

    recipe : model, images, the score or solver, pattern, layers in and out, device and name; nothing else of it counts (see `of`)
    levels : sparsities, under 'structured' shares of the units; of the pattern n:m, whose groups have levels of their own, they play no part
    on : which images show the damage: 'drift' (no labels are used) or 'evaluation' (labelled images then show accuracy too)
    images : so many of the evaluation images at most, the first of them
    """

    KEY = "starfish_lab_sensitivity"
    WHAT = "sensitivity plan"

    recipe: Recipe = Recipe()
    levels: tuple[float, ...] = LEVELS
    on: str = "drift"
    images: int = 512

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", tuple(sorted(set(self.levels))))
        checks.several("levels", self.levels, checks.is_fraction, "sparsities above 0 and below 1", empty=False)
        checks.one_of("on", self.on, ON)
        checks.whole("images", self.images)
        if (pattern := self.recipe.pruning.pattern) not in PATTERNS:
            raise RecipeError(
                f"Sensitivity is measured at several sparsities, and the pattern '{pattern}' has one alone. Choose one of: {', '.join(PATTERNS)}."
            )

    @classmethod
    def of(cls, recipe: Recipe, **changes: object) -> Self:
        """The plan for a recipe, with nothing in it that cannot change the curves, so that equal questions have equal fingerprints."""
        given, usual = recipe.pruning, PruningChoice()
        kept = ("score", "score_options", "pattern", "include", "exclude", "seed")
        kept += {"n_m": ("group", "indivisible"), "structured": ("units",)}.get(given.pattern, ())
        pruning = replace(usual, **{name: getattr(given, name) for name in kept}, keep=1 if given.pattern == "n_m" else usual.keep)
        images = recipe.images if changes.get("on") == "evaluation" else replace(recipe.images, training=0)  # training takes no drift image
        return cls(recipe=Recipe(name=recipe.name, model=recipe.model, images=images, pruning=pruning, device=recipe.device), **changes)

    def steps(self) -> tuple[float, ...]:
        """The levels that the pattern has."""
        group = self.recipe.pruning.group
        return self.levels if self.recipe.pruning.pattern != "n_m" else tuple(1 - keep / group for keep in range(group - 1, 0, -1))

    def choice(self, level: float) -> PruningChoice:
        """How all layers are pruned at a level; each is then looked at alone."""
        pruning = self.recipe.pruning
        if pruning.pattern != "n_m":
            return replace(pruning, sparsity=level)
        return replace(pruning, keep=round(pruning.group * (1 - level)))

    def fingerprint(self) -> str:
        """As of every plan, but the device does not count: curves measured on one serve all."""
        return super(Sensitivity, replace(self, recipe=replace(self.recipe, device="auto"))).fingerprint()

    def cells(self) -> str:
        """What one layer at one level depends on: all of the plan but which other levels it asks for."""
        content = {"recipe": replace(self.recipe, name="", device="auto").fingerprint(), "on": self.on, "images": self.images}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

"""What a bake-off compares, as plain data, JSON both ways. Imports no torch.

>>> plan = BakeOff(healers=("starfish", "dense+starfish"), seeds=(0,), images=(16, 64), rates=())
>>> BakeOff.from_json(plan.to_json()) == plan
True
>>> [(cell.healer, cell.images) for cell in plan.cells()]
[('starfish', 16), ('dense+starfish', 16), ('starfish', 64), ('dense+starfish', 64)]
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field, replace

from starfish_lab.checks import is_fraction, is_number, is_whole, several
from starfish_lab.errors import RecipeError
from starfish_lab.healing import healers
from starfish_lab.recipe import ONE_SPARSITY, HealingChoice, Recipe, RecipePlan, seeded

REFERENCE = "starfish"  # whom every healer is compared with
LONGEST = 44  # characters of a healer's name, so that the store can name live figures by its label


@dataclass(frozen=True)
class Cell:
    """One healing of a bake-off. `steps` is 0 for a repair alone, which has none."""

    healer: str
    seed: int
    sparsity: float
    images: int
    steps: int

    @property
    def label(self) -> str:
        """Short and unique within a bake-off; what live figures are named by.

        >>> Cell("starfish", 0, 0.75, 400, 130).label
        'starfish|0|0.75|400|130'
        """
        return f"{self.healer}|{self.seed}|{self.sparsity:g}|{self.images}|{self.steps}"

    @classmethod
    def of(cls, label: str) -> Cell:
        """The cell of a label."""
        healer, seed, sparsity, images, steps = label.split("|")
        return cls(healer, int(seed), float(sparsity), int(images), int(steps))


@dataclass(frozen=True, kw_only=True)
class BakeOff(RecipePlan):
    """Healers side by side on the same pruned networks. Frozen; validated when made.

    recipe : model, images, pruning, precision and whatever else all healers share; its healing is what a healer has not of its own
    healers : names as in `healing.healers`, or of `options`
    options : {name: fields of HealingChoice} over the healer's own; with the key 'healer' the name stands for a variant of that healer,
        e.g. {"starfish, bf16": {"healer": "starfish", "precision": "bf16"}}
    images : numbers of calibration images, each the first of those drawn; none: recipe.images.calibration. As many as the largest of
        all these are drawn
    sparsities : none: that of the recipe
    steps : optimiser steps; none: those of the recipe, or its epochs over the images
    seeds : each draws the images and seeds everything else anew
    rates : multiples of the healer's own learning rate that are tried; none: it is taken as it is
    tuning_steps : steps of a try; None: as many as the healing has
    held_out : share of the calibration images on which a try is judged, without labels
    """

    KEY = "starfish_lab_bakeoff"
    WHAT = "bake-off"

    recipe: Recipe = Recipe()
    healers: tuple[str, ...] = (REFERENCE, "logit_distillation", "cross_entropy", "none")
    options: dict[str, dict[str, object]] = field(default_factory=dict)
    images: tuple[int, ...] = ()
    sparsities: tuple[float, ...] = ()
    steps: tuple[int, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    rates: tuple[float, ...] = (0.3, 1.0, 3.0)
    tuning_steps: int | None = None
    held_out: float = 0.2

    def __post_init__(self) -> None:
        several("healers", self.healers, _short, f"names of at most {LONGEST} characters without '|', such as 'starfish'", empty=False)
        several("images", self.images, lambda n: is_whole(n, 1), "whole numbers of at least 1")
        several("sparsities", self.sparsities, is_fraction, "fractions between 0 and 1")
        several("steps", self.steps, lambda n: is_whole(n, 1), "whole numbers of at least 1")
        several("seeds", self.seeds, lambda n: is_whole(n, 0), "whole numbers of at least 0", empty=False)
        several("rates", self.rates, lambda r: is_number(r) and r > 0, "multiples above 0")
        if self.tuning_steps is not None and not is_whole(self.tuning_steps, 1):
            raise RecipeError(f"tuning_steps is {self.tuning_steps!r}: give a whole number of at least 1, or null for as many as healing has.")
        if not is_number(self.held_out) or not 0 < self.held_out <= 0.5:
            raise RecipeError(f"held_out is {self.held_out!r}: give a share above 0 and at most 0.5, such as 0.2.")
        if len(self.sparsities) > 1 and self.recipe.pruning.pattern in ONE_SPARSITY:
            raise RecipeError(f"The pattern '{self.recipe.pruning.pattern}' has one sparsity. Leave sparsities empty, or choose another pattern.")
        if not isinstance(self.options, dict):
            raise RecipeError(f"options is {self.options!r}: give an object of healers and their fields.")
        for name in (*self.healers, *self.options):
            self.choice(name)  # raises where the name or a field is wrong

    @property
    def drawn(self) -> int:
        """How many calibration images each seed draws."""
        return max(self.recipe.images.calibration, *self.images, 1)

    @property
    def fewest(self) -> int:
        """The fewest calibration images of any cell: those on which masks are made, so that no cell's masks know images that it may not."""
        return min(self.images, default=self.recipe.images.calibration)

    def healer_of(self, name: str) -> str:
        """The healer that a name stands for, as `healing.healers` knows it."""
        given = self.options.get(name, {})
        return given.get("healer", name) if isinstance(given, dict) else name

    def choice(self, name: str) -> HealingChoice:
        """How a healer heals: what it is known with, then the fields of `options`. Raises RecipeError for what does not exist."""
        own = healers.choice(self.healer_of(name), self.recipe.healing)
        given = self.options.get(name, {})
        if not isinstance(given, dict):
            raise RecipeError(f"options of '{name}' are {given!r}: give an object of fields, such as {{\"learning_rate\": 0.001}}.")
        fixed = sorted({"method", "repair", "steps", "epochs", "seed"} & set(given))
        if fixed:
            raise RecipeError(f"options of '{name}' set {fixed[0]}, which the bake-off decides. Choose healers, steps and seeds there.")
        changed = {key: value for key, value in given.items() if key != "healer"}
        healing = dataclasses.asdict(own)
        for key in ("options", "repair_options"):
            if isinstance(changed.get(key), dict):
                changed[key] = {**healing[key], **changed[key]}
        return Recipe.from_dict({**self.recipe.to_dict(), "healing": {**healing, **changed}}).healing

    def cell_choice(self, cell: Cell) -> HealingChoice:
        """How the cell heals, at its healer's own learning rate."""
        return replace(self.choice(cell.healer), steps=cell.steps or None, seed=cell.seed)

    def cell_recipe(self, seed: int, sparsity: float) -> Recipe:
        """What all cells of a seed and a sparsity share: images and pruned network."""
        recipe = self.recipe
        images, pruning = replace(recipe.images, calibration=self.drawn), replace(recipe.pruning, sparsity=sparsity)
        return seeded(replace(recipe, images=images, pruning=pruning), seed)

    def cells(self) -> list[Cell]:
        """Every healing once, in the order in which they run: one seed and sparsity after the other, all healers on the same images together."""
        found: dict[Cell, None] = {}
        for seed in self.seeds:
            for sparsity in self.sparsities or (self.recipe.pruning.sparsity,):
                for images in self.images or (self.recipe.images.calibration,):
                    for steps in self.steps or (None,):
                        for healer in self.healers:
                            found[Cell(healer, seed, sparsity, images, self._steps(healer, images, steps))] = None
        return list(found)

    def _steps(self, healer: str, images: int, steps: int | None) -> int:
        if not healers.trains(self.healer_of(healer)):
            return 0
        return steps if steps is not None else self.choice(healer).total_steps(images)


def _short(name: object) -> bool:
    return isinstance(name, str) and 0 < len(name) <= LONGEST and "|" not in name

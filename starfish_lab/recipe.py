"""The complete description of one experiment, as plain data, JSON both ways.

>>> recipe = Recipe()
>>> Recipe.from_json(recipe.to_json()) == recipe
True
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace

from starfish_lab.checks import at_least, is_number, one_of, whole
from starfish_lab.errors import RecipeError
from starfish_lab.healing.choice import AUGMENTATIONS, OPTIMISERS, PRECISIONS, SCHEDULES, TRAINS, HealingChoice
from starfish_lab.jobs import accelerators
from starfish_lab.plain_data import Plan

__all__ = [
    "AUGMENTATIONS", "ONE_SPARSITY", "OPTIMISERS", "PRECISIONS", "SCHEDULES", "SOURCES", "TRAINS", "WEIGHTS", "HealingChoice", "ImagesChoice",
    "MeasureChoice", "ModelChoice", "PruningChoice", "Recipe", "StartChoice", "TokensChoice", "edit", "seeded",
]  # fmt: skip

WEIGHTS = ("bundled", "pretrained", "file", "random")
SOURCES = ("starter", "folder", "csv", "imagenet", "imagenette")
ONE_SPARSITY = ("n_m", "kept")  # patterns that remove a share of their own


@dataclass(frozen=True, kw_only=True)
class ModelChoice:
    """Which network, and where its weights come from.

    `name` is 'starter' or a timm name. `weights` is one of 'bundled' (the starter's own), 'pretrained'
    (timm downloads them), 'file' (`path`: .safetensors, or .pt/.pth holding tensors only) and 'random'.
    `preprocessing` overrides keys of timm's data config: input_size, mean, std, interpolation, crop_pct.
    """

    name: str = "starter"
    weights: str = "bundled"
    path: str | None = None
    preprocessing: dict[str, object] = field(default_factory=dict)
    seed: int = 0  # of random weights

    def validate(self) -> None:
        one_of("model.weights", self.weights, WEIGHTS)
        if (self.name == "starter") != (self.weights == "bundled"):
            raise RecipeError(
                f"Model '{self.name}' with weights '{self.weights}': bundled weights exist for 'starter' alone, "
                "and 'starter' has no others. Choose 'pretrained', 'file' or 'random' for a timm network."
            )
        if (self.weights == "file") != (self.path is not None):
            raise RecipeError("model.path goes with model.weights = 'file', and the other way round.")


@dataclass(frozen=True, kw_only=True)
class ImagesChoice:
    """Which images calibrate (labels unused), show drift, and evaluate. The three never overlap.

    `source`: 'starter' (handwritten digits), 'folder' (a sub-folder a class), 'csv' (`path` a folder or zip,
    `csv` a table of file and label), 'imagenet' (a validation folder by class), 'imagenette' (torchvision
    downloads it into `path`). Calibration and drift images come from `calibration_path` / `calibration_csv`
    where given, else from the same source as the evaluation images. `evaluation` None means all that remain.
    `order` is 'seeded' (a shuffle by `seed`) or 'first' (as listed) for the evaluation images. `training` images, labelled,
    are for what trains longer than healing does (prune–restore cycles, distillation): 0 means the calibration images
    themselves, None all that remain where those come from.
    """

    source: str = "starter"
    path: str | None = None
    csv: str | None = None
    file_column: str = "file"
    label_column: str = "label"
    calibration_path: str | None = None
    calibration_csv: str | None = None
    calibration: int = 64
    drift: int = 64
    evaluation: int | None = None
    training: int | None = 0
    order: str = "seeded"
    seed: int = 0

    def validate(self) -> None:
        one_of("images.source", self.source, SOURCES)
        one_of("images.order", self.order, ("seeded", "first"))
        at_least("images.calibration", self.calibration, 1)
        at_least("images.drift", self.drift, 4)  # debiased CKA divides by n (n - 3)
        if self.evaluation is not None:
            at_least("images.evaluation", self.evaluation, 1)
        if self.training is not None:
            at_least("images.training", self.training, 0)
        if self.source != "starter" and self.path is None:
            raise RecipeError(f"images.source '{self.source}' needs images.path: the folder or zip that holds the images.")
        if self.source == "csv" and self.csv is None:
            raise RecipeError("images.source 'csv' needs images.csv: a table with one row an image.")


@dataclass(frozen=True, kw_only=True)
class StartChoice:
    """The network that pruning starts from, where that is not the dense one.

    `method` names a registry entry: 'dense'; 'file' (`path`: weights of a pruned network); or a way to prune in cycles with
    training between them, from `step` on in equal steps up to `sparsity`. Its zeros stay zero whatever pattern follows, but
    for those that a solver gives new values. Each phase of a cycle trains for `steps`
    optimiser steps (None: one epoch over the training images) on batches of `batch_size`. `options` go to the method.
    """

    method: str = "dense"
    path: str | None = None
    sparsity: float = 0.35
    step: float = 0.05
    steps: int | None = None
    batch_size: int = 128
    options: dict[str, object] = field(default_factory=dict)
    seed: int = 0

    def validate(self) -> None:
        from starfish_lab.pruning import STARTS

        STARTS.check(self.method)
        if (self.method == "file") != (self.path is not None):
            raise RecipeError("start.path goes with start.method = 'file', and the other way round.")
        if not 0 < self.step <= self.sparsity < 1:
            raise RecipeError(
                f"start.sparsity {self.sparsity:g} is reached in steps of start.step {self.step:g}: "
                "both must be above 0, the sparsity below 1 and no smaller than a step."
            )
        if self.steps is not None:
            at_least("start.steps", self.steps, 1)
        at_least("start.batch_size", self.batch_size, 1)

    def grid(self) -> list[float]:
        """The sparsity after each cycle.

        >>> StartChoice(sparsity=0.12).grid()
        [0.05, 0.1, 0.12]
        """
        whole = int(self.sparsity / self.step + 1e-9)
        found = [round(self.step * (i + 1), 10) for i in range(whole)]
        return found if abs(found[-1] - self.sparsity) < 1e-9 else [*found, self.sparsity]


@dataclass(frozen=True, kw_only=True)
class TokensChoice:
    """Token merging in the pruned network (ToMe, arXiv 2210.09461); the dense network keeps all its tokens.

    `r` tokens disappear between attention and MLP: empty for none, one number for every block, or one number a block;
    where tokens run out r is clamped. `proportional` adds log(size) of a merged token to its attention logits.
    """

    r: tuple[int, ...] = ()
    proportional: bool = True

    def validate(self) -> None:
        for count in self.r:
            at_least("tokens.r", count, 0)


@dataclass(frozen=True, kw_only=True)
class PruningChoice:
    """Which weights go.

    `score` names a registry entry of scores, or of solvers (which choose masks and new values together: CAST, SparseGPT);
    `budget` and `pattern` name registry entries. `sparsity` is the fraction of prunable weights removed
    (unstructured; what the start has removed counts) or the fraction of units removed (structured); the pattern 'n_m' ignores it and
    keeps `keep` of every `group` consecutive input weights; the pattern 'kept' removes nothing beyond what the start lacks.
    `units` says what 'structured' removes: 'mlp', 'qk' or both. `include` and `exclude` are glob patterns over layer names,
    added to and taken from the prunable layers. `layers` ({name or glob: sparsity, from 0 to below 1}) sets layers by hand under the pattern
    'unstructured': the budget shares out the rest so that `sparsity` still holds. `indivisible` says what happens to layers an n:m
    pattern does not fit: 'dense' leaves them and names them, 'refuse' stops the run. `permutation` reorders the inputs of each layer
    before an n:m pattern is chosen. `options` go to the budget, `score_options` to the score or solver, `permutation_options` to the
    permutation.
    """

    score: str = "magnitude"
    budget: str = "uniform"
    pattern: str = "unstructured"
    sparsity: float = 0.9
    keep: int = 2
    group: int = 4
    units: tuple[str, ...] = ("mlp", "qk")
    multiple: int = 1  # structured: as many units stay of each group, dimensions of each head, as are a multiple of it
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    layers: dict[str, float] = field(default_factory=dict)
    indivisible: str = "dense"
    permutation: str = "none"
    options: dict[str, object] = field(default_factory=dict)
    score_options: dict[str, object] = field(default_factory=dict)
    permutation_options: dict[str, object] = field(default_factory=dict)
    seed: int = 0  # of the random score, and of what a solver draws

    def validate(self) -> None:
        from starfish_lab.pruning import BUDGETS, PATTERNS, PERMUTATIONS, SCORES, SOLVERS

        if self.score not in (known := (*SCORES.names(), *SOLVERS.names())):
            raise RecipeError(f"There is no pruning score '{self.score}'. Choose one of: {', '.join(known)}.")
        BUDGETS.check(self.budget)
        PATTERNS.check(self.pattern)
        PERMUTATIONS.check(self.permutation)
        one_of("pruning.indivisible", self.indivisible, ("dense", "refuse"))
        if not 0 < self.sparsity < 1:
            raise RecipeError(
                f"pruning.sparsity is {self.sparsity:g}: 0 removes nothing and 1 removes everything. Choose a fraction between them, such as 0.5."
            )
        for name, share in self.layers.items():
            if not (is_number(share) and 0 <= share < 1):
                raise RecipeError(f"pruning.layers gives '{name}' the sparsity {share!r}: give a fraction from 0, which keeps it dense, to below 1.")
        if not 1 <= self.keep < self.group:
            raise RecipeError(
                f"The pattern {self.keep}:{self.group} keeps {self.keep} of every {self.group} weights: keep at least 1, fewer than the group."
            )
        for unit in self.units:
            one_of("pruning.units", unit, ("mlp", "qk"))
        whole("pruning.multiple", self.multiple)
        if self.pattern == "structured" and not self.units:
            raise RecipeError("pruning.units is empty: a structured pattern removes 'mlp' units, 'qk' dimensions or both.")


@dataclass(frozen=True, kw_only=True)
class MeasureChoice:
    """What is measured besides accuracy and drift, and how long for; `snapshots` are looks at the network while it heals, 0 for none."""

    latency: bool = True
    batch_sizes: tuple[int, ...] = (1, 8)
    seconds: float = 2.0  # at least, of timed iterations for each network and batch size
    spectra: bool = True
    certificates: bool = True
    snapshots: int = 6

    def validate(self) -> None:
        at_least("measure.snapshots", self.snapshots, 0)
        if not self.batch_sizes:
            raise RecipeError("measure.batch_sizes is empty: name at least one batch size, such as 1.")
        for size in self.batch_sizes:
            at_least("measure.batch_sizes", size, 1)
        if self.seconds <= 0:
            raise RecipeError(f"measure.seconds is {self.seconds:g}: give a time above 0.")


@dataclass(frozen=True, kw_only=True)
class Recipe(Plan):
    """One experiment. Frozen: change it with `dataclasses.replace`. Validated when made."""

    KEY = "starfish_lab_recipe"
    WHAT = "recipe"

    name: str = ""
    model: ModelChoice = ModelChoice()
    images: ImagesChoice = ImagesChoice()
    start: StartChoice = StartChoice()
    tokens: TokensChoice = TokensChoice()
    pruning: PruningChoice = PruningChoice()
    healing: HealingChoice = HealingChoice()
    measure: MeasureChoice = MeasureChoice()
    device: str = "auto"  # auto, cpu, mps, cuda, cuda:N or gpu:NAME, such as gpu:A40: the worker that may run it

    def __post_init__(self) -> None:
        for part in (self.model, self.images, self.start, self.tokens, self.pruning, self.healing, self.measure):
            part.validate()
        if not accelerators.valid(self.device):
            raise RecipeError(f"device is {self.device!r}. Give auto, cpu, mps, cuda, cuda:N, or a GPU by its name such as gpu:A40.")

    @property
    def asked_sparsity(self) -> float:
        """The sparsity that pruning is asked for: n:m and 'kept' have their own. Of a start from a file nothing is known before it runs."""
        from starfish_lab.pruning import STARTS

        pruning, start = self.pruning, self.start
        if pruning.pattern == "n_m":
            return 1 - pruning.keep / pruning.group
        if pruning.pattern == "kept":
            return start.sparsity if STARTS.constant(start.method, "TRAINS", False) else 0.0
        return pruning.sparsity


def seeded(recipe: Recipe, seed: int) -> Recipe:
    """The recipe with its images drawn, and everything but random weights seeded, anew."""
    parts = {name: replace(getattr(recipe, name), seed=seed) for name in ("images", "start", "pruning", "healing")}
    return replace(recipe, **parts)


class RecipePlan(Plan):
    """A plan around one recipe, whose name and device are its own."""

    recipe: Recipe

    @property
    def name(self) -> str:
        return self.recipe.name

    @property
    def device(self) -> str:
        return self.recipe.device


def edit(recipe: Recipe, changes: list[str]) -> Recipe:
    """A recipe with fields changed, each given as 'field=value' with the value in JSON or as plain text.

    >>> edit(Recipe(), ["pruning.sparsity=0.5", "healing.method=none"]).pruning.sparsity
    0.5
    """
    data = recipe.to_dict()
    for change in changes:
        path, equals, text = change.partition("=")
        *parents, last = path.strip().split(".")
        place = data
        for parent in parents:
            place = place.get(parent) if isinstance(place, dict) else None
        if not equals or not isinstance(place, dict):
            raise RecipeError(f"'{change}' changes nothing: write FIELD=VALUE with a field such as pruning.sparsity.")
        try:
            place[last] = json.loads(text)
        except ValueError:
            place[last] = text
    return Recipe.from_dict(data)

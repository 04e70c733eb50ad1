"""An opened recipe with what a person chooses on the pages on top of it. Rows in, rows out; no Streamlit."""

from __future__ import annotations

from dataclasses import replace

from app import results
from starfish_lab.healing import METHODS, REPAIRS
from starfish_lab.pruning import SOLVERS, rules
from starfish_lab.recipe import HealingChoice, PruningChoice, Recipe, StartChoice
from starfish_lab.registry import Registry

PAGE_OPTIONS = ("signal", "beta", "edges")  # of a budget, which pages show
SOLVER_OPTIONS = ("alpha", "prior", "free_restoration", "sequential", "update", "damping")  # likewise of a solver
ORDER_OPTIONS = ("importance", "gather")  # and of a permutation


def merged(base: Recipe, chosen: Recipe) -> Recipe:
    """`base` with every field that a person chooses on the pages taken from `chosen`.

    What only a recipe file can say (preprocessing, seeds, layers in and out, options, measures) stays as in `base`, unless
    the method that the options were for is another one now.
    """
    model, images, healing = chosen.model, chosen.images, chosen.healing
    return replace(
        base, name=chosen.name, device=chosen.device,
        model=replace(base.model, name=model.name, weights=model.weights, path=model.path),
        images=replace(
            base.images, source=images.source, path=images.path, csv=images.csv, label_column=images.label_column,
            calibration_path=images.calibration_path, calibration_csv=images.calibration_csv,
            calibration=images.calibration, drift=images.drift, evaluation=images.evaluation, training=images.training,
        ),
        start=_merged_start(base, chosen),
        tokens=base.tokens if results.merged_tokens(base.tokens) == results.merged_tokens(chosen.tokens) else replace(base.tokens, r=chosen.tokens.r),
        pruning=_merged_pruning(base.pruning, chosen.pruning),
        healing=_merged_healing(base.healing, healing),
    )  # fmt: skip


def _merged_healing(base: HealingChoice, chosen: HealingChoice) -> HealingChoice:
    """Seed as in the base; options that pages show from the choice, the others as in the base where they are of the same healer."""
    return replace(
        chosen, seed=base.seed,
        options=_over(
            base.options if base.method == chosen.method else {}, chosen.options, tuple(shown_options(METHODS, chosen.method)),
            METHODS.options(chosen.method),
        ),
        repair_options=_over(
            base.repair_options if base.repair == chosen.repair else {}, chosen.repair_options, tuple(shown_options(REPAIRS, chosen.repair)),
            REPAIRS.options(chosen.repair),
        ),
    )  # fmt: skip


def shown_options(entries: Registry, entry: str, known: dict[str, object] | None = None) -> dict[str, object]:
    """{option: default} of a registry entry that one control can show: switches, numbers and words; `known` replaces defaults.

    >>> shown_options(METHODS, "logit_distillation"), shown_options(METHODS, "logit_distillation", {"temperature": 4.0})
    ({'temperature': 2.0}, {'temperature': 4.0})
    """
    usual = entries.options(entry) | (known or {})
    return {option: value for option, value in usual.items() if isinstance(value, bool | int | float | str)}


def _merged_start(base: Recipe, chosen: Recipe) -> StartChoice:
    start = chosen.start
    kept = base.start.options if base.start.method == start.method else {}
    return replace(
        base.start, method=start.method, path=start.path, sparsity=start.sparsity, step=min(base.start.step, start.sparsity), options=kept
    )  # fmt: skip


def _merged_pruning(base: PruningChoice, chosen: PruningChoice) -> PruningChoice:
    return replace(
        base, score=chosen.score, budget=chosen.budget, pattern=chosen.pattern, sparsity=chosen.sparsity,
        keep=chosen.keep, group=chosen.group, units=chosen.units, multiple=chosen.multiple, layers=chosen.layers,
        permutation=chosen.permutation,
        options=_over(base.options if base.budget == chosen.budget else {}, chosen.options, PAGE_OPTIONS, {}),
        score_options=_over(
            base.score_options if base.score == chosen.score else {}, chosen.score_options,
            SOLVER_OPTIONS if chosen.score in SOLVERS.names() else (), rules.score_options(chosen.score),
        ),
        permutation_options=_over(
            base.permutation_options if base.permutation == chosen.permutation else {}, chosen.permutation_options,
            ORDER_OPTIONS, rules.permutation_options(chosen.permutation),
        ),
    )  # fmt: skip


def _over(base: dict[str, object], chosen: dict[str, object], shown: tuple[str, ...], usual: dict[str, object]) -> dict[str, object]:
    """Options with those that pages show taken from the choice. Where that changes nothing the opened recipe's own stay, 1 and 1.0 being equal."""
    made = {key: value for key, value in base.items() if key not in shown} | chosen
    return base if usual | made == usual | base else made

"""Arithmetic and refusals that masks and what-if answers share, so that the two cannot disagree. No torch here."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

import numpy as np

from starfish_lab.errors import RecipeError
from starfish_lab.pruning import BUDGETS, PERMUTATIONS, SCORES, SOLVERS
from starfish_lab.recipe import PruningChoice

# What every solver takes besides its own options: whether later layers see what earlier ones have become, and how many random
# rows of each layer's inputs in a batch enter its second moments.
DRIVER_OPTIONS = {"sequential": False, "rows": 4096}
# What every permutation takes besides its own options: what makes a weight important, and whether inputs are also reordered where
# that costs a gather when the network runs.
REORDERING_OPTIONS = {"importance": "activation", "gather": True}
BY_LAYER = ("unstructured", "structured")  # patterns under which a layer, or a group of units, can lose a share of its own
NO_ZEROS = "The network that pruning starts from has no zeros in its prunable layers, so nothing is removed."
_GIVEN = {"activations", "gradients", "generator", "segments", "taps"}  # what the run hands over, no option of a recipe


def check(choice: PruningChoice) -> None:
    """Raise RecipeError for choices that are valid one by one but not together."""
    choice.validate()
    if choice.permutation != "none" and choice.pattern != "n_m":
        raise RecipeError(
            f"The order of a layer's inputs matters to the pattern 'n_m' alone, so the permutation '{choice.permutation}' has nothing to decide "
            f"under '{choice.pattern}'. Choose pruning.permutation 'none', or pruning.pattern 'n_m'."
        )
    if choice.layers and choice.pattern not in BY_LAYER:
        raise RecipeError(
            f"pruning.layers sets the sparsity of single layers, but the pattern '{choice.pattern}' takes a share of its own from each. "
            f"Leave pruning.layers empty, or choose pruning.pattern {' or '.join(map(repr, BY_LAYER))}."
        )
    if choice.pattern == "kept":
        return
    if choice.pattern in ("n_m", "structured") and choice.budget != "uniform":
        raise RecipeError(
            f"The pattern '{choice.pattern}' takes the same share from every layer, so the budget '{choice.budget}' has nothing to decide. "
            "Choose pruning.budget 'uniform', or pruning.pattern 'unstructured'."
        )
    fitting = patterns_of(choice.score)
    if fitting and choice.pattern not in fitting:
        kind = "solver" if is_solver(choice) else "score"
        raise RecipeError(
            f"The {kind} '{choice.score}' goes with the pattern {' or '.join(map(repr, fitting))}, not with '{choice.pattern}'. "
            f"Choose pruning.pattern {fitting[0]!r}, or the score 'magnitude'."
        )
    _check_options(f"The budget '{choice.budget}'", "pruning.options", choice.options, BUDGETS.options(choice.budget))
    kind = "solver" if is_solver(choice) else "score"
    _check_options(f"The {kind} '{choice.score}'", "pruning.score_options", choice.score_options, score_options(choice.score))
    if choice.score_options.get("rows", 1) < 1:
        raise RecipeError(f"pruning.score_options.rows is {choice.score_options['rows']}: give a whole number of at least 1.")
    known = permutation_options(choice.permutation)
    _check_options(f"The permutation '{choice.permutation}'", "pruning.permutation_options", choice.permutation_options, known)


def is_solver(choice: PruningChoice) -> bool:
    """Whether masks come from a solver, which chooses new values of the weights too, rather than from scores."""
    return choice.score in SOLVERS.names()


def patterns_of(score: str) -> tuple[str, ...]:
    """Patterns that a score or solver is made for; empty where it goes with every one."""
    return (SOLVERS if score in SOLVERS.names() else SCORES).constant(score, "PATTERNS", ())


def score_options(score: str) -> dict[str, object]:
    """What `pruning.score_options` may say under a score or solver: {option: default}."""
    if score in SOLVERS.names():
        paired = SOLVERS.constant(score, "MOMENTS") == "paired"  # it walks through the networks itself
        return SOLVERS.options(score) | ({} if paired else DRIVER_OPTIONS)
    return {name: default for name, default in SCORES.options(score).items() if name not in _GIVEN}


def permutation_options(permutation: str) -> dict[str, object]:
    """What `pruning.permutation_options` may say under a permutation: {option: default}."""
    return {name: default for name, default in PERMUTATIONS.options(permutation).items() if name not in _GIVEN} | REORDERING_OPTIONS


def _check_options(owner: str, where: str, given: Mapping[str, object], known: Mapping[str, object]) -> None:
    for name, value in given.items():
        if name not in known:
            raise RecipeError(f"{owner} has no option '{name}'. Its options: {', '.join(known) or 'none'}.")
        default = known[name]
        wanted = {bool: bool, int: int, float: (int, float), str: str}.get(type(default), object)
        if not isinstance(value, wanted) or (isinstance(value, bool) and wanted not in (bool, object)):
            raise RecipeError(f"{where}.{name} is {value!r}: give a value like its default, {default!r}.")


def by_layer(field: str, given: Mapping[str, float], layers: Collection[str]) -> dict[str, float]:
    """{layer: value} of what a recipe's `field` gives to names or globs: a layer's own name counts first, then the last glob that fits.

    Raises RecipeError where one fits no layer.

    >>> by_layer("pruning.layers", {"*.fc1": 0.5, "1.fc1": 0.25}, ["0.fc1", "1.fc1", "1.fc2"])
    {'0.fc1': 0.5, '1.fc1': 0.25}
    """
    found = {layer: value for name, value in given.items() for layer in layers if fnmatchcase(layer, name)}
    for name in given:
        if name not in layers and not any(fnmatchcase(layer, name) for layer in layers):
            some = ", ".join(list(layers)[:3])
            raise RecipeError(f"{field} names '{name}', which fits none of the {len(layers)} prunable layers. Name one of them, such as {some}.")
    return found | {layer: given[layer] for layer in found if layer in given}


def removed_in_all(sizes: Iterable[int], sparsity: float) -> int:
    """How many weights an unstructured mask removes: round(sparsity · Σ sizes)."""
    return round(sparsity * sum(sizes))


def apportion(shares: np.ndarray, total: int) -> np.ndarray:
    """Whole numbers that sum to `total`, each within one of its share (largest remainder; ties go to the first).

    >>> apportion(np.array([1.5, 2.5, 6.0]), 10).tolist()
    [2, 2, 6]
    """
    whole = np.floor(shares).astype(np.int64)
    largest_first = np.argsort(whole - shares, kind="stable")
    whole[largest_first[: total - whole.sum()]] += 1
    return whole


def apportion_by_threshold(
    scores: Mapping[str, np.ndarray], sizes: Mapping[str, int], total: int, divisors: Mapping[str, float] | None = None
) -> dict[str, int]:
    """How many of the `total` smallest scores lie in each layer.

    `scores[layer]` holds scores ≥ 0, each standing for sizes[layer] / len weights (one weight where all scores are given);
    a layer's scores are divided by `divisors[layer]` first. Equal scores at the threshold are shared out in proportion.

    Non-negative float32 numbers are ordered as their bit patterns are, so two histograms (upper, then lower 16 bits)
    find the threshold exactly, in linear time and without one array of all scores.
    """

    def bits(layer: str) -> np.ndarray:
        values = np.ravel(scores[layer])
        scaled = values / np.float32(divisors[layer]) if divisors else values
        return scaled.astype(np.float32, copy=False).view(np.uint32)

    weight = {layer: sizes[layer] / np.size(scores[layer]) for layer in scores}
    upper = sum(np.bincount(bits(layer) >> 16, minlength=1 << 16) * weight[layer] for layer in scores)
    high, before = _reach(upper, total)
    lower = np.zeros(1 << 16)
    for layer in scores:
        values = bits(layer)
        lower += np.bincount(values[values >> 16 == high] & 0xFFFF, minlength=1 << 16) * weight[layer]
    low, _ = _reach(lower, total - before)
    threshold = np.uint32(high << 16 | low)

    below, tied = np.array([[np.sum(bits(layer) < threshold), np.sum(bits(layer) == threshold)] * np.array(weight[layer]) for layer in scores]).T
    shares = below + tied * (total - below.sum()) / tied.sum()
    return dict(zip(scores, apportion(shares, total).tolist(), strict=True))


def _reach(histogram: np.ndarray, total: float) -> tuple[int, float]:
    """The first filled bin at which the running sum reaches `total` (or the last one), and the sum before it."""
    filled = np.flatnonzero(histogram)
    running = np.cumsum(histogram[filled])
    place = min(int(np.searchsorted(running, total)), len(filled) - 1)
    return int(filled[place]), float(running[place] - histogram[filled[place]])


def n_m_misfit(in_features: int, conv_groups: int, group: int, outputs: int | None = None) -> str:
    """Why a keep:group pattern does not fit a layer, '' where it does (arXiv 2606.02608, Online Resource 2).

    `in_features` are a Linear's inputs or a convolution's input channels (weight.shape[1]); a convolution's weight is
    unfolded channel by channel, and its groups run over the unfolded columns. `outputs` (weight.shape[0]) of less than a
    group do not fit either; None leaves them out of it.
    """
    if conv_groups != 1:
        return "a grouped convolution has no input channels to run groups over"
    if in_features % group:
        return f"its {in_features} inputs are not divisible by {group}"
    if in_features < 4:
        return f"its {in_features} inputs are fewer than 4"
    return f"its {outputs} outputs are fewer than {group}" if outputs is not None and outputs < group else ""


def refuse_misfits(misfits: Mapping[str, str], layers: int, choice: PruningChoice) -> None:
    """Raise RecipeError where an n:m pattern may not, or can only, leave layers dense."""
    pattern = f"{choice.keep}:{choice.group}"
    alike = {reason: [layer for layer in misfits if misfits[layer] == reason] for reason in dict.fromkeys(misfits.values())}
    named = "; ".join(f"{', '.join(found[:3])}{f' and {len(found) - 3} more' if len(found) > 3 else ''}: {reason}" for reason, found in alike.items())
    if misfits and choice.indivisible == "refuse":
        raise RecipeError(
            f"The pattern {pattern} does not fit {named}. Exclude these layers, or set pruning.indivisible to 'dense' to leave them dense."
        )
    if len(misfits) == layers:
        raise RecipeError(f"The pattern {pattern} fits no prunable layer: {named}. Choose a group that divides the layers' inputs.")


def units_removed(units: int, sparsity: float, least: int = 1, multiple: int = 1) -> int:
    """Units that go from a group of `units`: the nearest whole number, but `least` stay, or an eighth of a group too small for that.

    Of a group that loses any, and is no smaller than `multiple`, the nearest multiple of it stays that is not fewer than these.

    >>> units_removed(768, 0.3), units_removed(768, 0.3, multiple=16), units_removed(768, 0.999, multiple=16), units_removed(8, 0.5, multiple=16)
    (230, 224, 752, 4)
    """
    fewest = max(1, min(least, units // 8))
    gone = min(round(sparsity * units), units - fewest)
    if multiple == 1 or gone == 0 or units < multiple:
        return gone
    steps = max(-(-fewest // multiple), (2 * (units - gone) + multiple) // (2 * multiple))
    return units - min(units, steps * multiple)


def units_going(choice: PruningChoice, kind: str, units: int, share: float | None = None) -> int:
    """Units that the pattern 'structured' takes from a layer ('mlp') or dimensions from a head ('qk'): some scores keep a number of them.

    `share` is that of this group; None: the recipe's sparsity.
    """
    least = SCORES.constant(choice.score, "LEAST", {}).get(kind, 1)
    return units_removed(units, choice.sparsity if share is None else share, least, choice.multiple)


@dataclass(frozen=True)
class Plan:
    """Which unit groups and attention layers lose units, which prunable layers stay dense for what reason, and remarks.

    shares : what groups (by their producer) and attentions (by their qkv layer) lose that have a share of their own
    """

    groups: list
    attentions: list
    left_dense: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    shares: dict[str, float] = field(default_factory=dict)


def plan_structured(choice: PruningChoice, groups: Iterable, attentions: Iterable, layers: Iterable[str], refusal: str) -> Plan:
    """What a structured pattern removes. A unit goes from all its layers or stays in all of them.

    `groups` have attributes producer and consumer, `attentions` have qkv (dataclasses or rows); `layers` are the prunable
    layers; `refusal` says why the network has no removable units, ''  where it has. The recipe's `layers` name a group by its
    producer and an attention by its qkv layer; others lose the recipe's sparsity. Raises RecipeError where nothing is left.
    """
    if refusal:
        raise RecipeError(f"No units can be removed here: {refusal}. Choose an unstructured or n:m pattern.")
    layers = set(layers)
    groups = list(groups) if "mlp" in choice.units else []
    attentions = list(attentions) if "qk" in choice.units else []
    whole = [group for group in groups if {group.producer, group.consumer} <= layers]
    left = {}
    for group in groups:
        for layer, partner in ((group.producer, group.consumer), (group.consumer, group.producer)):
            if layer in layers and partner not in layers:
                left[layer] = f"its units go together with those of {partner}, which is excluded"
    for group in whole:  # a layer may stand in two groups
        left.pop(group.producer, None), left.pop(group.consumer, None)
    plan = Plan(whole, [a for a in attentions if a.qkv in layers], left, tuple(_missing(choice, groups, attentions)))
    if not plan.groups and not plan.attentions:
        reason = " ".join(plan.notes) or "The layers that hold them are excluded."
        raise RecipeError(f"There are no units to remove. {reason} Choose other pruning.units, exclude less, or take an unstructured or n:m pattern.")
    names = [*(group.producer for group in plan.groups), *(attention.qkv for attention in plan.attentions)]
    return replace(plan, shares=by_layer("pruning.layers", choice.layers, names))


@dataclass(frozen=True)
class Sizes:
    """What a structured pattern leaves: outputs and inputs (weight.shape[:2]) of every prunable layer, and what goes besides.

    dims : {attention: Q/K dimensions that go from each head}
    beside : parameters that go and are no weights of the layers
    """

    outputs: dict[str, int]
    inputs: dict[str, int]
    dims: dict[str, int]
    beside: int
    plan: Plan


def structured_sizes(choice: PruningChoice, groups: Iterable, attentions: Iterable, layers: Iterable, refusal: str) -> Sizes:
    """Sizes of the layers (with attributes layer, rows and in_features) under a structured pattern; the rest as for `plan_structured`."""
    layers = list(layers)
    plan = plan_structured(choice, groups, attentions, [row.layer for row in layers], refusal)
    outputs, inputs = {row.layer: row.rows for row in layers}, {row.layer: row.in_features for row in layers}
    beside, dims = 0, {}
    for group in plan.groups:
        gone = units_going(choice, "mlp", group.units, plan.shares.get(group.producer))
        outputs[group.producer] -= gone
        inputs[group.consumer] -= gone
        beside += gone * group.beside
    for attention in plan.attentions:
        gone = units_going(choice, "qk", attention.head_dim, plan.shares.get(attention.qkv))
        outputs[attention.qkv] -= 2 * attention.heads * gone
        beside += attention.heads * gone * attention.beside
        dims[attention.name] = gone
    return Sizes(outputs, inputs, dims, beside, plan)


def _missing(choice: PruningChoice, groups: list, attentions: list) -> Iterable[str]:
    if "mlp" in choice.units and not groups:
        yield "This network has no MLP units or inner channels that can be removed alone."
    if "qk" in choice.units and not attentions:
        yield "This network has no attention layers with Q/K dimensions to remove."

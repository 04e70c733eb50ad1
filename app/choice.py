"""The choice that follows a person from page to page, as plain values, and the recipe it stands for. No Streamlit."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from app import results
from app.merging import ORDER_OPTIONS, SOLVER_OPTIONS
from starfish_lab.checks import is_number
from starfish_lab.errors import RecipeError
from starfish_lab.healing import METHODS, REPAIRS
from starfish_lab.jobs.accelerators import DEVICE
from starfish_lab.pruning import BUDGETS, PATTERNS, PERMUTATIONS, SCORES, SOLVERS, STARTS, rules
from starfish_lab.pruning.budgets.mp_edge import SIGNALS
from starfish_lab.recipe import SOURCES, WEIGHTS, HealingChoice, ImagesChoice, ModelChoice, PruningChoice, Recipe, StartChoice, TokensChoice


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What the pages are about, in plain values. Empty text and 0 mean 'not given'."""

    model: str = "starter"
    weights: str = "bundled"
    path: str = ""  # of a weights file
    images: str = "starter"
    images_path: str = ""
    images_csv: str = ""
    label_column: str = "label"  # of both tables
    calibration_path: str = ""
    calibration_csv: str = ""
    calibration: int = 64
    drift: int = 64
    evaluation: int = 0  # 0: all that remain
    training: int = 0  # 0: the calibration images; -1: all that remain
    start: str = "dense"
    start_path: str = ""
    start_sparsity: float = 0.35
    merge: int = 0  # tokens that every block merges
    score: str = "magnitude"
    budget: str = "uniform"
    pattern: str = "unstructured"
    sparsity: float = 0.9
    keep: int = 2
    group: int = 4
    units: tuple[str, ...] = ("mlp", "qk")
    multiple: int = 1
    permutation: str = "none"
    signal: str = "auto"  # of the budget by MP edge; auto: the regime's
    beta: str = "auto"
    layers: tuple[str, ...] = ()  # set by hand: name or glob~sparsity
    edges: tuple[str, ...] = ()  # of the budget by MP edge, moved by hand: name or glob~σ₊
    alpha: float = 0.0  # from here to `damping`: of the solver, as far as it has such an option
    prior: str = "mean_cost"
    free_restoration: bool = True
    sequential: bool = False
    update: bool = True
    damping: float = 0.01
    importance: str = "activation"  # of the permutation, as `gather`
    gather: bool = True
    repair: str = "none"  # before training
    healing: str = "starfish"
    steps: int = 200  # 0: as many epochs as the recipe says
    device: str = "auto"


# Names in the address bar, where they differ from the field's.
SHORT = {
    "path": "file", "images_path": "folder", "images_csv": "table", "label_column": "labels", "calibration_path": "cal_folder",
    "calibration_csv": "cal_table",
    "calibration": "cal", "evaluation": "eval", "training": "train", "group": "of", "healing": "heal",
    "start_path": "start_file", "start_sparsity": "start_at", "permutation": "order", "free_restoration": "restore",
}  # fmt: skip
ALLOWED = {
    "weights": lambda: WEIGHTS,
    "images": lambda: SOURCES,
    "start": STARTS.names,
    "score": lambda: (*SCORES.names(), *SOLVERS.names()),
    "budget": BUDGETS.names,
    "pattern": PATTERNS.names,
    "units": lambda: ("mlp", "qk"),
    "permutation": PERMUTATIONS.names,
    "signal": lambda: ("auto", *SIGNALS),
    "prior": lambda: SOLVERS.constant("cast", "PRIORS"),
    "importance": lambda: IMPORTANCES,
    "repair": REPAIRS.names,
    "healing": METHODS.names,
}
RANGES = {
    "calibration": (1, 1_000_000), "drift": (4, 1_000_000), "evaluation": (0, 10_000_000), "training": (-1, 10_000_000),
    "start_sparsity": (0.05, 0.95), "merge": (0, 1024), "sparsity": (0.01, 0.99), "keep": (1, 63), "group": (2, 64), "steps": (0, 1_000_000),
    "multiple": (1, 256), "alpha": (0.0, 1000.0), "damping": (1e-6, 100.0),
}  # fmt: skip
_BY_HAND = r"[\w.*?\[\]!\-]{1,200}~"  # a layer's name or glob; what stands in a link as it is
_LAYER, _EDGE = _BY_HAND + r"0(\.\d{1,17})?", _BY_HAND + r"\d{1,6}(\.\d{1,17})?"
FORMS = {
    "model": r"[A-Za-z0-9_.\-]{1,100}", "device": DEVICE, "beta": r"auto|\d{1,2}(\.\d{1,6})?",
    "layers": f"{_LAYER}(,{_LAYER})*", "edges": f"{_EDGE}(,{_EDGE})*",
}  # fmt: skip
SAID = {"layers": "layers and their sparsities such as blocks.0.mlp.fc1~0.5", "edges": "layers and their edges such as blocks.0.mlp.fc1~0.7"}
DEFAULTS = Choice()

IMPORTANCES = ("activation", "absolute", "energy")  # as `pruning.permutation.IMPORTANCES`, which needs torch


def recipe(c: Choice) -> Recipe:
    """The experiment that the choice describes. Raises RecipeError with a text to show as it stands."""
    if c.weights == "file" and not c.path:
        raise RecipeError("Weights from a file need its path: give it under Weights in the sidebar, or choose another origin.")
    if c.images != "starter" and not c.images_path:
        raise RecipeError(f"Images from '{c.images}' need a folder or zip: give its path under Images in the sidebar.")
    if c.start == "file" and not c.start_path:
        raise RecipeError("A start from a file needs its path: give it on Explore under More, or start from the dense network.")
    options: dict[str, object] = {} if c.signal == "auto" else {"signal": c.signal}
    options |= {} if c.beta == "auto" else {"beta": float(c.beta)}
    options |= {"edges": by_name(c.edges)} if c.edges else {}
    return Recipe(
        model=ModelChoice(name=c.model, weights=c.weights, path=c.path or None),
        images=ImagesChoice(
            source=c.images, path=c.images_path or None, csv=c.images_csv or None, label_column=c.label_column or DEFAULTS.label_column,
            calibration_path=c.calibration_path or None, calibration_csv=c.calibration_csv or None,
            calibration=c.calibration, drift=c.drift, evaluation=c.evaluation or None, training=None if c.training < 0 else c.training,
        ),
        start=StartChoice(method=c.start, path=c.start_path or None, sparsity=c.start_sparsity),
        tokens=TokensChoice(r=(c.merge,) if c.merge else ()),
        pruning=PruningChoice(
            score=c.score, budget=c.budget, pattern=c.pattern, sparsity=c.sparsity, keep=c.keep, group=c.group, units=c.units,
            multiple=c.multiple,
            layers=by_name(c.layers), permutation=c.permutation, options=options, score_options=_chosen(c, solver_options(c)),
            permutation_options=_chosen(c, order_options(c)),
        ),
        healing=HealingChoice(method=c.healing, repair=c.repair, steps=c.steps or None),
        device=c.device,
    )  # fmt: skip


def by_name(words: tuple[str, ...]) -> dict[str, float]:
    """{layer or glob: value} of words such as 'blocks.0.mlp.fc1~0.5'.

    >>> by_name(("*.fc1~0.5",)), as_words({"*.fc1": 0.5})
    ({'*.fc1': 0.5}, ('*.fc1~0.5',))
    """
    return {name: float(value) for name, _, value in (word.rpartition("~") for word in words)}


def as_words(given: dict[str, float]) -> tuple[str, ...]:
    """The other way round."""
    return tuple(f"{name}~{np.format_float_positional(value, trim='-')}" for name, value in given.items())


def solver_options(c: Choice) -> tuple[str, ...]:
    """The fields of the choice that are options of its solver; none where a score or nothing decides."""
    if c.pattern == "kept" or c.score not in SOLVERS.names():
        return ()
    return tuple(name for name in SOLVER_OPTIONS if name in rules.score_options(c.score))


def order_options(c: Choice) -> tuple[str, ...]:
    """The fields of the choice that are options of its permutation."""
    return () if c.permutation == "none" else ORDER_OPTIONS


def _chosen(c: Choice, names: tuple[str, ...]) -> dict[str, object]:
    """{option: value} of those that are not as by default."""
    return {name: getattr(c, name) for name in names if getattr(c, name) != getattr(DEFAULTS, name)}


def _of(names: tuple[str, ...], given: dict[str, object]) -> dict[str, object]:
    """What the choice holds of a recipe's options: the given ones in the choice's types, else the defaults."""
    return {name: type(getattr(DEFAULTS, name))(given.get(name, getattr(DEFAULTS, name))) for name in names}


def values(known: Recipe) -> dict[str, object]:
    """What the choice holds of a recipe: {field: value}."""
    m, i, p, h, begun = known.model, known.images, known.pruning, known.healing, known.start
    signal, beta = p.options.get("signal"), p.options.get("beta")
    return dict(
        model=m.name, weights=m.weights, path=m.path or "", images=i.source, images_path=i.path or "", images_csv=i.csv or "",
        label_column=i.label_column, calibration_path=i.calibration_path or "", calibration_csv=i.calibration_csv or "",
        calibration=i.calibration, drift=i.drift, evaluation=i.evaluation or 0, training=-1 if i.training is None else i.training,
        start=begun.method, start_path=begun.path or "", start_sparsity=begun.sparsity, merge=results.merged_tokens(known.tokens),
        score=p.score, budget=p.budget, pattern=p.pattern, sparsity=p.sparsity, keep=p.keep, group=p.group, units=p.units,
        multiple=p.multiple,
        permutation=p.permutation, signal=signal or "auto", beta="auto" if beta is None else f"{beta:g}",
        layers=as_words(p.layers), edges=as_words(_edges(p.options)),
        healing=h.method, repair=h.repair, steps=h.steps or 0, device=known.device,
        **_of(SOLVER_OPTIONS, p.score_options if p.score in SOLVERS.names() else {}), **_of(ORDER_OPTIONS, p.permutation_options),
    )  # fmt: skip


def _edges(options: dict[str, object]) -> dict[str, float]:
    """The edges moved by hand, where the options hold what may be such."""
    given = options.get("edges")
    return given if isinstance(given, dict) and all(map(is_number, given.values())) else {}


def suits(score: str) -> tuple[str, ...]:
    """The patterns that a score or solver works with."""
    entries = SOLVERS if score in SOLVERS.names() else SCORES
    return entries.constant(score, "PATTERNS") or tuple(PATTERNS.names())


def consistent(c: Choice, *, pattern_first: bool = False) -> Choice:
    """What cannot stand together gives way: the pattern to the score, or with `pattern_first` the score to the pattern.

    Bundled weights belong to the starter alone, a path to weights from a file; n:m keeps fewer than it looks at, and only
    its inputs are reordered; 'kept' needs something that is done before pruning.
    """
    if c.model == "starter":
        c = replace(c, weights="bundled", path="")
    elif c.weights == "bundled":
        c = replace(c, weights="pretrained")
    if c.weights != "file":
        c = replace(c, path="")
    if c.images == "starter":
        c = replace(c, images_path="", images_csv="", label_column=DEFAULTS.label_column, calibration_path="", calibration_csv="")
    if c.start != "file":
        c = replace(c, start_path="")
    if not STARTS.constant(c.start, "TRAINS", False):
        c = replace(c, start_sparsity=DEFAULTS.start_sparsity)
    if c.pattern == "kept" and c.start == "dense" and not c.merge:
        c = replace(c, pattern=DEFAULTS.pattern)
    if c.pattern != "kept" and c.pattern not in suits(c.score):
        c = replace(c, score=DEFAULTS.score) if pattern_first else replace(c, pattern=suits(c.score)[0])
    if c.pattern != "unstructured":  # the other patterns take the same share from every layer, unless it is given
        c = replace(c, budget=DEFAULTS.budget)
    if c.pattern != "structured":
        c = replace(c, multiple=DEFAULTS.multiple)
    if c.pattern not in rules.BY_LAYER:
        c = replace(c, layers=())
    if c.budget != "mp_edge":
        c = replace(c, signal=DEFAULTS.signal, beta=DEFAULTS.beta, edges=())
    if c.pattern != "n_m":
        c = replace(c, permutation=DEFAULTS.permutation)
    idle = {*SOLVER_OPTIONS, *ORDER_OPTIONS} - {*solver_options(c), *order_options(c)}
    c = replace(c, **{name: getattr(DEFAULTS, name) for name in idle})
    return replace(c, keep=min(c.keep, c.group - 1), units=c.units or DEFAULTS.units)

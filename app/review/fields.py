"""The fields of a recipe, each with its kind and what it may be, and a recipe with one of them changed. No Streamlit."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Callable, Iterable

from starfish_lab.errors import RecipeError
from starfish_lab.healing import METHODS, REPAIRS
from starfish_lab.pruning import BUDGETS, PATTERNS, PERMUTATIONS, SCORES, SOLVERS, STARTS, rules
from starfish_lab.recipe import AUGMENTATIONS, OPTIMISERS, PRECISIONS, SCHEDULES, SOURCES, TRAINS, WEIGHTS, Recipe

FLAG, WHOLE, NUMBER, CHOICE, TEXT, LIST, OPTIONS = "flag", "whole", "number", "choice", "text", "list", "options"
CHOICES: dict[str, Callable[[], Iterable[str]]] = {
    "model.weights": lambda: WEIGHTS, "images.source": lambda: SOURCES, "images.order": lambda: ("seeded", "first"),
    "start.method": STARTS.names, "pruning.score": lambda: (*SCORES.names(), *SOLVERS.names()), "pruning.budget": BUDGETS.names,
    "pruning.pattern": PATTERNS.names, "pruning.permutation": PERMUTATIONS.names, "pruning.indivisible": lambda: ("dense", "refuse"),
    "healing.method": METHODS.names, "healing.repair": REPAIRS.names, "healing.schedule": lambda: SCHEDULES,
    "healing.optimiser": lambda: OPTIMISERS, "healing.trains": lambda: TRAINS, "healing.images": lambda: ("calibration", "training"),
    "healing.order": lambda: ("fixed", "shuffled"), "healing.augmentation": lambda: AUGMENTATIONS, "healing.teacher": lambda: ("exact", "half"),
    "healing.precision": lambda: PRECISIONS,
}  # fmt: skip
_KINDS = {bool: FLAG, int: WHOLE, float: NUMBER, str: TEXT, tuple: LIST, dict: OPTIONS}


@dataclasses.dataclass(frozen=True)
class Field:
    """One field of a recipe: its path as `--set` takes it, its present value, its kind, and where it is a choice what there is."""

    path: str
    value: object
    kind: str
    choices: tuple[str, ...] = ()
    optional: bool = False  # may be empty


def fields(recipe: Recipe) -> list[Field]:
    """Every field but the name, in the recipe's own order.

    >>> found = {field.path: field for field in fields(Recipe())}
    >>> found["pruning.sparsity"].kind, found["healing.steps"].optional, found["healing.optimiser"].choices
    ('number', True, ('adam', 'adamw', 'sgd'))
    """
    found = []
    for part in dataclasses.fields(recipe):
        value = getattr(recipe, part.name)
        if dataclasses.is_dataclass(value):
            hints = typing.get_type_hints(type(value))
            found += [_field(f"{part.name}.{inner.name}", getattr(value, inner.name), hints[inner.name]) for inner in dataclasses.fields(value)]
        elif part.name != "name":
            found.append(_field(part.name, value, str))
    return found


def changed(recipe: Recipe, path: str, value: object) -> Recipe:
    """The recipe with one field changed, validated as any recipe is. Raises RecipeError in a sentence to show."""
    data = recipe.to_dict()
    *parents, last = path.split(".")
    place = data
    for parent in parents:
        place = place[parent]
    if last not in place:
        raise RecipeError(f"{path} is not a field of a recipe. Choose one of the list.")
    place[last] = value
    found = Recipe.from_dict(data)
    rules.check(found.pruning)
    if found.fingerprint() == recipe.fingerprint():
        raise RecipeError(f"{path} is {value!r} already: give another value.")
    return found


def parse(field: Field, text: str) -> object:
    """What a person typed for a field of the kinds text, list and options. Raises RecipeError.

    >>> parse(Field("measure.batch_sizes", (1, 8), LIST), "1, 4"), parse(Field("pruning.units", ("mlp",), LIST), "mlp, qk")
    ([1, 4], ['mlp', 'qk'])
    """
    text = text.strip()
    if field.optional and not text:
        return None
    if field.kind == LIST:
        return [int(word) if word.lstrip("-").isdecimal() else word for word in text.replace(",", " ").split()]
    if field.kind == OPTIONS:
        try:
            found = json.loads(text or "{}")
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise RecipeError(f'{field.path} takes options as a JSON object, such as {{"temperature": 2.0}}.')
        return found
    return text


def shown(field: Field) -> str:
    """A value of the kinds text, list and options as a person types it."""
    if field.kind == LIST:
        return ", ".join(map(str, field.value))
    return json.dumps(field.value) if field.kind == OPTIONS else str(field.value or "")


def _field(path: str, value: object, hint: object) -> Field:
    optional = isinstance(hint, types.UnionType)  # only 'X | None' occurs
    hint = typing.get_args(hint)[0] if optional else hint
    if path in CHOICES:
        return Field(path, value, CHOICE, tuple(CHOICES[path]()), optional)
    return Field(path, value, _KINDS[typing.get_origin(hint) or hint], optional=optional)

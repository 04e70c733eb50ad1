"""What differs among recipes, found by itself. Plain recipes in, rows out; no Streamlit."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache

import pandas as pd

from starfish_lab.recipe import Recipe

ABSENT = "–"  # an option that a recipe leaves to its method


def flat(recipe: dict) -> dict[str, object]:
    """{'pruning.sparsity': 0.9, …}: every field but the name, of a recipe as `Recipe.to_dict` or the store gives it.

    A field that an older recipe lacks has its default. Options are fields of their own, as in healing.options.temperature.
    """
    return _walk(_whole(_defaults(), recipe), "")


def table(recipes: dict[int, dict], *, every: bool = False) -> pd.DataFrame:
    """A row a field in which the recipes differ (with `every`: all of them), a column a run; values as texts."""
    known = [{field: text(value) for field, value in flat(recipe).items()} for recipe in recipes.values()]
    fields = dict.fromkeys(field for recipe in known for field in recipe)
    rows = {field: [recipe.get(field, ABSENT) for recipe in known] for field in fields}
    kept = {field: row for field, row in rows.items() if every or len(set(row)) > 1}
    return pd.DataFrame.from_dict(kept, orient="index", columns=list(recipes), dtype=object)


def between(first: dict, second: dict) -> dict[str, tuple[str, str]]:
    """{field: its two values} of the fields in which two recipes differ."""
    one, other = ({field: text(value) for field, value in flat(recipe).items()} for recipe in (first, second))
    pairs = {field: (one.get(field, ABSENT), other.get(field, ABSENT)) for field in {**one, **other}}
    return {field: pair for field, pair in pairs.items() if pair[0] != pair[1]}


def columns(found: pd.DataFrame) -> dict[str, list[str]]:
    """{heading: a value for each run} of `table`; fields of one name that agree in all runs share a heading.

    >>> print(*columns(pd.DataFrame({1: ["0", "0"], 2: ["7", "7"]}, index=["images.seed", "healing.seed"])))
    seed (images, healing)
    """
    groups: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for field, row in found.iterrows():
        part, _, name = field.rpartition(".")
        groups.setdefault((name, tuple(row)), []).append(part)
    headings = [f"{name} ({', '.join(parts)})" if len(parts) > 1 else f"{parts[0]}.{name}".lstrip(".") for (name, _), parts in groups.items()]
    return {heading: list(values) for heading, (_, values) in zip(headings, groups)}


@dataclass(frozen=True)
class Alone:
    """One thing that alone differs: its field, the value of each run, and the fields that change with it."""

    field: str
    values: dict[int, str]
    others: tuple[str, ...] = ()


def alone(found: pd.DataFrame) -> Alone | None:
    """The one thing in which the runs of `table` differ, or None.

    Fields count as one where they part the runs in the same way and there are at least three parts: another healer brings its own
    learning rate. Two runs that differ in two fields differ in two things.
    """
    if found.empty:
        return None
    parted = {field: tuple(pd.factorize(row)[0]) for field, row in found.iterrows()}
    first = next(iter(parted))
    several = len(parted) > 1
    if several and (len(set(parted.values())) > 1 or max(parted[first]) < 2):
        return None
    return Alone(first, {int(run): value for run, value in found.loc[first].items()}, tuple(parted)[1:])


def changes(parent: dict, child: dict, most: int = 2) -> str:
    """What a child changed, in a few words: 'sparsity 0.9 → 0.5'; '' for nothing.

    >>> base = Recipe().to_dict()
    >>> changes(base, base | {"pruning": base["pruning"] | {"sparsity": 0.5}})
    'sparsity 0.9 → 0.5'
    """
    said = [f"{field.rpartition('.')[2].replace('_', ' ')} {old} → {new}" for field, (old, new) in between(parent, child).items()]
    return ", ".join(said[:most]) + (f" and {len(said) - most} more" if len(said) > most else "")


def text(value: object) -> str:
    """A value as `--set` takes it.

    >>> text(None), text(True), text(0.9), text((1, 8)), text("mlp")
    ('null', 'true', '0.9', '[1, 8]', 'mlp')
    """
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:.10g}"
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)


@cache
def _defaults() -> dict[str, object]:
    return Recipe().to_dict()


def _whole(defaults: dict, known: dict) -> dict:
    """`known` with the defaults of what it lacks."""
    found = {**defaults, **known}
    for key, value in defaults.items():
        if isinstance(value, dict) and isinstance(known.get(key), dict):
            found[key] = _whole(value, known[key])
    return found


def _walk(data: dict, where: str) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in data.items():
        if where + key in (Recipe.KEY, "name"):
            continue
        found |= _walk(value, f"{where}{key}.") if isinstance(value, dict) else {where + key: value}
    return found

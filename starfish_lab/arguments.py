"""What several commands take on the command line."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from starfish_lab.errors import LabError
from starfish_lab.plain_data import Plan
from starfish_lab.recipe import Recipe, edit

P = TypeVar("P", bound=Plan)


def comma_separated(kind: Callable) -> Callable[[str], tuple]:
    """An argparse type: 'a, b' becomes a tuple of `kind`, '' an empty one.

    >>> comma_separated(int)("0, 1,2")
    (0, 1, 2)
    """

    def parsed(text: str) -> tuple:
        return tuple(kind(part.strip()) for part in text.split(",") if part.strip())

    parsed.__name__ = f"comma-separated {kind.__name__}"  # what argparse says of a wrong value
    return parsed


def recipe_of(arguments: argparse.Namespace) -> Recipe:
    """The recipe that `recipe` (a file or a published row's key; without it, the default one) and `--set` describe."""
    return edit(_opened(arguments.recipe) if arguments.recipe else Recipe(), arguments.set)


def plan_of(arguments: argparse.Namespace, kind: type[P], otherwise: Callable[[Recipe], P]) -> P:
    """The plan in the file, as --show prints it, with `--set` changing its recipe; where there is none, what `otherwise` makes of the recipe."""
    try:
        data = json.loads(Path(arguments.recipe).read_text()) if arguments.recipe else None
    except (OSError, ValueError):  # a key of presets, or a broken file, which `recipe_of` names
        data = None
    if not isinstance(data, dict) or kind.KEY not in data:
        return otherwise(recipe_of(arguments))
    found = kind.from_dict(data)
    return replace(found, recipe=edit(found.recipe, arguments.set))


def _opened(name: str) -> Recipe:
    from starfish_lab import presets

    if not Path(name).exists() and name in set(presets.presets()["key"]):
        return presets.recipe_of(name)
    try:
        return Recipe.from_json(Path(name).read_text())
    except OSError as error:
        raise LabError(
            f"The recipe {name} cannot be read: {error.strerror}. Give the path of a recipe JSON file, or a key that `presets` lists."
        ) from None

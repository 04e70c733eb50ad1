"""Checks of the values of a recipe's fields and options: each raises a RecipeError that names the field and what it may be."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from starfish_lab.errors import RecipeError


def one_of(field: str, value: object, allowed: Sequence[str]) -> None:
    """Raise RecipeError unless the value of a recipe's `field`, such as 'healing.options.loss', is one of those allowed."""
    if value not in allowed:
        raise RecipeError(f"{field} is {value!r}. Choose one of: {', '.join(allowed)}.")


def at_least(field: str, value: int, least: int) -> None:
    """Raise RecipeError if the value is below `least`."""
    if value < least:
        raise RecipeError(f"{field} is {value}: give a whole number of at least {least}.")


def number(field: str, value: object, least: float, most: float = math.inf) -> None:
    """Raise RecipeError unless the value is a number from `least` to `most`."""
    if not is_number(value) or not least <= value <= most or math.isinf(value):
        allowed = f"of at least {least:g}" if most == math.inf else f"from {least:g} to {most:g}"
        raise RecipeError(f"{field} is {value!r}: give a number {allowed}.")


def whole(field: str, value: object, least: int = 1) -> None:
    """Raise RecipeError unless the value is a whole number of at least `least`."""
    if not is_whole(value, least):
        raise RecipeError(f"{field} is {value!r}: give a whole number of at least {least}.")


def flag(field: str, value: object) -> None:
    """Raise RecipeError unless the value is true or false."""
    if not isinstance(value, bool):
        raise RecipeError(f"{field} is {value!r}: give true or false.")


def several(field: str, values: object, fits: Callable[[object], bool], expected: str, *, empty: bool = True) -> None:
    """Raise RecipeError unless `values` is a tuple of different values that fit."""
    known = values if isinstance(values, tuple) else ()
    if not isinstance(values, tuple) or not all(map(fits, known)) or len(set(known)) < len(values) or not (values or empty):
        raise RecipeError(f"{field} is {values!r}: give {'a list' if empty else 'at least one'} of {expected}, each once.")


def is_whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_fraction(value: object) -> bool:
    """Above 0 and below 1, such as a sparsity."""
    return is_number(value) and 0 < value < 1

"""Dataclasses of plain data: built from parsed JSON, their fields checked, every wrong one named in words."""

from __future__ import annotations

import dataclasses
import types
import typing

from starfish_lab.errors import RecipeError


def build(cls: type, data: object, where: str):
    """A dataclass from a dict: unknown keys and wrong types are named, missing keys keep their defaults."""
    if not isinstance(data, dict):
        raise RecipeError(f"{where.rstrip('.')} must be an object of fields, not {data!r}.")
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(data) - set(hints))
    if unknown:
        raise RecipeError(f"{where}{unknown[0]} is not a field of a recipe. Known here: {', '.join(hints)}.")
    return cls(**{key: _convert(hints[key], value, where + key) for key, value in data.items()})


def _convert(hint: object, value: object, where: str):
    if dataclasses.is_dataclass(hint):
        return build(hint, value, where + ".")
    if isinstance(hint, types.UnionType):  # only 'X | None' occurs
        return None if value is None else _convert(typing.get_args(hint)[0], value, where)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list | tuple):
            raise RecipeError(f"{where} must be a list, not {value!r}.")
        return tuple(_convert(typing.get_args(hint)[0], item, where) for item in value)
    wanted = typing.get_origin(hint) or hint
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
        raise RecipeError(f"{where} must be of type {wanted.__name__}, not {value!r}.")
    return value

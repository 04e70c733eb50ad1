"""Dataclasses of plain data, JSON both ways: built with every field checked, and every wrong one named in words."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
import typing
from typing import ClassVar, Self

from starfish_lab.errors import RecipeError


class Plan:
    """What a run is to do: base of frozen dataclasses that are kept as JSON.

    A subclass sets KEY, the JSON's first key, whose value is VERSION, and WHAT, its name in sentences. A field that is a plan itself
    keeps its own key, and counts by its own fingerprint.
    """

    KEY: ClassVar[str]
    WHAT: ClassVar[str]
    VERSION: ClassVar[int] = 1

    def to_dict(self) -> dict[str, object]:
        return {self.KEY: self.VERSION, **dataclasses.asdict(self), **{name: plan.to_dict() for name, plan in self._plans().items()}}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def from_dict(cls, data: object) -> Self:
        """A plan from parsed JSON; missing fields keep their defaults. Raises RecipeError naming the first field that is wrong."""
        if not isinstance(data, dict) or data.get(cls.KEY) != cls.VERSION:
            raise RecipeError(f'This is no {cls.WHAT}: expected a JSON object with "{cls.KEY}": {cls.VERSION}.')
        return build(cls, {k: v for k, v in data.items() if k != cls.KEY}, "")

    @classmethod
    def from_json(cls, text: str) -> Self:
        try:
            data = json.loads(text)
        except ValueError as error:
            raise RecipeError(f"This {cls.WHAT} is not valid JSON: {error}.") from None
        return cls.from_dict(data)

    def fingerprint(self) -> str:
        """12 hex digits that change with anything that can change a result; the name does not count.

        Fields at their defaults do not count either, so that one added later leaves the runs of before what they were.
        """
        content = {self.KEY: self.VERSION, **_departures(self)}
        content.pop("name", None)
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=dataclasses.asdict).encode()).hexdigest()[:12]

    def _plans(self) -> dict[str, Plan]:
        return {f.name: value for f in dataclasses.fields(self) if isinstance(value := getattr(self, f.name), Plan)}


def _departures(value: object) -> dict[str, object]:
    """{field: value} of a dataclass where it is not the default; a plan within counts by its fingerprint."""
    found = {}
    for field in dataclasses.fields(value):
        own = getattr(value, field.name)
        usual = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if isinstance(own, Plan):
            found[field.name] = own.fingerprint()
        elif dataclasses.is_dataclass(own):
            found[field.name] = _departures(own)
        elif own != usual:
            found[field.name] = own
    return found


def build(cls: type, data: object, where: str):
    """A dataclass from a dict: unknown keys and wrong types are named, missing keys keep their defaults."""
    if not isinstance(data, dict):
        raise RecipeError(f"{where.rstrip('.')} must be an object of fields, not {data!r}.")
    hints = typing.get_type_hints(cls)
    known = [field.name for field in dataclasses.fields(cls)]
    unknown = sorted(set(data) - set(known))
    if unknown:
        raise RecipeError(f"{where}{unknown[0]} is not a field of a {getattr(cls, 'WHAT', 'recipe')}. Known here: {', '.join(known)}.")
    return cls(**{key: _convert(hints[key], value, where + key) for key, value in data.items()})


def _convert(hint: object, value: object, where: str):
    if isinstance(hint, type) and issubclass(hint, Plan):
        return hint.from_dict(value)
    if dataclasses.is_dataclass(hint):
        return build(hint, value, where + ".")
    if isinstance(hint, types.UnionType):  # only 'X | None' occurs
        return None if value is None else _convert(typing.get_args(hint)[0], value, where)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list | tuple):
            raise RecipeError(f"{where} must be a list, not {value!r}.")
        return tuple(_convert(typing.get_args(hint)[0], item, where) for item in value)
    if typing.get_origin(hint) is dict and isinstance(value, dict) and (of := typing.get_args(hint)[1]) is not object:
        return {key: _convert(of, item, f"{where}.{key}") for key, item in value.items()}
    wanted = typing.get_origin(hint) or hint
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
        raise RecipeError(f"{where} must be of type {wanted.__name__}, not {value!r}.")
    return value

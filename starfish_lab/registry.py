"""A registry is a folder: each file in it is one method, registered by being there.

Names and one-line descriptions are read without importing the files, so a page can list
every method while only a worker ever loads torch.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from functools import cached_property
from pathlib import Path
from types import ModuleType

from starfish_lab.errors import RecipeError


class Registry:
    """The methods of one kind.

    Parameters
    ----------
    package : dotted name of the folder whose files are the entries
    provides : name of the function that every file defines
    kind : what an entry is called in messages, e.g. 'healing method'
    """

    def __init__(self, package: str, *, provides: str, kind: str):
        self.package, self.provides, self.kind = package, provides, kind
        self._folder = Path(__file__).resolve().parent.joinpath(*package.split(".")[1:])

    def names(self) -> list[str]:
        """Entries in alphabetical order. A trailing underscore keeps Python keywords usable as names."""
        return sorted(self._files)

    def describe(self, name: str) -> str:
        """First line of the entry's docstring."""
        docstring = ast.get_docstring(ast.parse(self._file(name).read_text())) or ""
        return docstring.partition("\n")[0]

    def module(self, name: str) -> ModuleType:
        """The entry's module, imported."""
        return importlib.import_module(f"{self.package}.{self._file(name).stem}")

    def get(self, name: str):
        """The entry's function."""
        return getattr(self.module(name), self.provides)

    def options(self, name: str) -> dict[str, object]:
        """Keyword-only options of the entry that have defaults: {option: default}."""
        parameters = inspect.signature(self.get(name)).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is not p.empty}

    def check(self, name: str) -> None:
        """Raise RecipeError unless the entry exists."""
        self._file(name)

    @cached_property
    def _files(self) -> dict[str, Path]:
        return {path.stem.rstrip("_"): path for path in self._folder.glob("*.py") if path.stem != "__init__"}

    def _file(self, name: str) -> Path:
        if name not in self._files:
            raise RecipeError(f"There is no {self.kind} '{name}'. Choose one of: {', '.join(self.names())}.")
        return self._files[name]

"""A registry is a folder: each file in it is one method, registered by being there.

Names, one-line descriptions, options and plain constants are read without importing the files, so a page can list
every method while only a worker ever loads torch.
"""

from __future__ import annotations

import ast
import importlib
from functools import cache, cached_property
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
        docstring = ast.get_docstring(self._tree(name)) or ""
        return docstring.partition("\n")[0]

    def constant(self, name: str, constant: str, default: object = None) -> object:
        """A plain value that the entry's file assigns to `constant`, read without importing it; `default` where it assigns none."""
        for node in self._tree(name).body:
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0] if isinstance(node, ast.Assign) else None
            if isinstance(target, ast.Name) and target.id == constant:
                return ast.literal_eval(node.value)
        return default

    def module(self, name: str) -> ModuleType:
        """The entry's module, imported."""
        return importlib.import_module(f"{self.package}.{self._file(name).stem}")

    def get(self, name: str):
        """The entry's function."""
        return getattr(self.module(name), self.provides)

    def options(self, name: str) -> dict[str, object]:
        """Keyword-only options of the entry that have defaults: {option: default}. Read without importing it."""
        function = next(node for node in self._tree(name).body if isinstance(node, ast.FunctionDef) and node.name == self.provides)
        found = {}
        for argument, default in zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True):
            if default is not None:
                found[argument.arg] = self.constant(name, default.id) if isinstance(default, ast.Name) else ast.literal_eval(default)
        return found

    def check(self, name: str) -> None:
        """Raise RecipeError unless the entry exists."""
        self._file(name)

    def _tree(self, name: str) -> ast.Module:
        return _parsed(self._file(name))

    @cached_property
    def _files(self) -> dict[str, Path]:
        return {path.stem.rstrip("_"): path for path in self._folder.glob("*.py") if path.stem != "__init__"}

    def _file(self, name: str) -> Path:
        if name not in self._files:
            raise RecipeError(f"There is no {self.kind} '{name}'. Choose one of: {', '.join(self.names())}.")
        return self._files[name]


@cache
def _parsed(path: Path) -> ast.Module:
    """A file's syntax tree; pages ask for it many times over."""
    return ast.parse(path.read_text(encoding="utf-8"))

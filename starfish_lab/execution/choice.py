"""A way to run a network, as plain data with a label that reads both ways. No torch here."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

from starfish_lab.checks import flag, one_of
from starfish_lab.errors import RecipeError
from starfish_lab.execution import BACKENDS
from starfish_lab.recipe import TokensChoice

__all__ = ["DENSE", "PRECISIONS", "USUAL", "Execution", "merging_of"]

DENSE = "dense"  # the network before pruning: no backend, the baseline of all
PRECISIONS = ("float32", "tf32", "fp16", "bf16", "autocast")
USUAL = TokensChoice(r=(8,))  # merged tokens a block, where the recipe says nothing (arXiv 2210.09461)
COMPILED, CHANNELS_LAST, MERGED = "compiled", "channels last", "merged"


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How a network is run.

    `backend` names an entry of BACKENDS, which turns masks into speed, or is 'dense', the network before pruning. `options` go to the
    backend; those left out take its defaults. `merged` lets tokens merge by the recipe's schedule, r = 8 where it has none.
    `precision` is 'float32' (products too), 'tf32' (factors of products rounded to 10 bits), 'fp16' and 'bf16' (weights and images),
    or 'autocast' (float32 weights, bf16 products: the baseline of arXiv 2606.02608). `compile` runs the network through torch.compile;
    `channels_last` lays images and convolutions out so.

    >>> Execution(backend="sliced", merged=True, precision="bf16", compile=True).label
    'merged+sliced, bf16, compiled'
    >>> Execution.of("semi_structured(cutlass), fp16").options
    {'kernel': 'cutlass'}
    """

    backend: str = "masked"
    options: dict[str, object] = field(default_factory=dict)
    merged: bool = False
    precision: str = "float32"
    compile: bool = False
    channels_last: bool = False

    def __post_init__(self) -> None:
        if self.backend != DENSE and self.backend not in BACKENDS.names():
            raise RecipeError(f"There is no execution '{self.backend}'. Choose one of: {', '.join((DENSE, *BACKENDS.names()))}.")
        one_of("execution.precision", self.precision, PRECISIONS)
        for name in ("merged", "compile", "channels_last"):
            flag(f"execution.{name}", getattr(self, name))
        known = {} if self.backend == DENSE else BACKENDS.options(self.backend)
        for name, value in self.options.items():
            if name not in known:
                raise RecipeError(f"execution.options.{name} is no option of '{self.backend}'. Its options: {', '.join(known) or 'none'}.")
            one_of(f"execution.options.{name}", value, choices(self.backend, name))
        object.__setattr__(self, "options", {**known, **self.options})

    def __hash__(self) -> int:
        return hash(self.label)

    @property
    def label(self) -> str:
        """Short, and of this execution alone; `of` reads it."""
        values = ", ".join(str(value) for value in self.options.values())
        backend = self.backend + (f"({values})" if values else "")
        name = backend if not self.merged else MERGED if self.backend == "masked" else f"{MERGED}+{backend}"
        said = [self.precision] * (self.precision != "float32") + [COMPILED] * self.compile + [CHANNELS_LAST] * self.channels_last
        return ", ".join([name, *said])

    @classmethod
    def of(cls, label: str) -> Execution:
        """The execution of a label; what it leaves out has its default. Raises RecipeError that names the word it does not know."""
        name, values, words = _parts(label)
        merged = name == MERGED or name.startswith(f"{MERGED}+")
        backend = name.removeprefix(MERGED).removeprefix("+") or "masked" if merged else name
        known = list(BACKENDS.options(backend)) if backend in BACKENDS.names() else []
        if len(values) > len(known):
            raise RecipeError(f"'{label}' gives '{backend}' the options {', '.join(values)}. Its options: {', '.join(known) or 'none'}.")
        found = {"backend": backend, "merged": merged, "options": dict(zip(known, values))}
        for word in words:
            if word in PRECISIONS:
                found["precision"] = word
            elif word in (COMPILED, CHANNELS_LAST):
                found["compile" if word == COMPILED else "channels_last"] = True
            else:
                expected = ", ".join((*PRECISIONS, COMPILED, CHANNELS_LAST))
                raise RecipeError(f"The execution '{label}' says '{word}' after its backend. What may stand there: {expected}.")
        return cls(**found)


def merging_of(tokens: TokensChoice) -> TokensChoice:
    """How tokens merge in an execution that merges them: as the recipe says, or 8 a block where it says nothing."""
    return tokens if any(tokens.r) else replace(tokens, r=USUAL.r)


def choices(backend: str, option: str) -> tuple[str, ...]:
    """What an option of a backend may be: the constant of its file, such as KERNELS for `kernel`."""
    return tuple(BACKENDS.constant(backend, f"{option.upper()}S", ()))


def _parts(label: str) -> tuple[str, list[str], list[str]]:
    """'name(values), word, word' → the name, the values, the words."""
    found = re.fullmatch(r"\s*([\w+]+)\s*(?:\(([^()]*)\))?\s*(?:,(.*))?", label)
    if not found:
        raise RecipeError(f"'{label}' is no execution. Write a backend and what it runs in, such as 'sliced, bf16, compiled'.")
    name, values, words = found.groups(default="")
    values, words = ([word.strip() for word in text.split(",")] if text.strip() else [] for text in (values, words))
    return name, values, words

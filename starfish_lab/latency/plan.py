"""What a latency run times, as plain data, JSON both ways. Imports no torch.

>>> plan = LatencyPlan(executions=("sliced, bf16, compiled",), batches=(64,))
>>> LatencyPlan.from_json(plan.to_json()) == plan
True
>>> [execution.label for execution in plan.contestants()]
['dense, bf16', 'dense, bf16, compiled', 'sliced, bf16, compiled']
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import product
from typing import Self

from starfish_lab import checks
from starfish_lab.errors import RecipeError
from starfish_lab.execution.choice import DENSE, PRECISIONS, Execution
from starfish_lab.recipe import Recipe, RecipePlan

STARTS, FEWEST_STARTS = 8, 3  # usual; at least, where time runs out


@dataclass(frozen=True, kw_only=True)
class LatencyPlan(RecipePlan):
    """Executions raced against each other and against the dense network. Frozen; validated when made.

    recipe : model, pruning, tokens, device and name; healing and images do not count, since weights do not decide how long they take
    executions : labels of `execution.choice.Execution`, e.g. 'merged+sliced, bf16, compiled'
    batches : images at a time; batch 1 is the scenario 'single', larger ones 'offline'
    seconds, min_iterations : at least so much is timed of each execution at each batch, the second unless it takes five times `seconds`
    starts : fresh processes that share the seconds, one after the other; 1 times in this process alone, and its intervals then know
        nothing of how processes differ. Where the time is spent (slow networks, and what every process compiles anew) FEWEST_STARTS do
    layers : also time layer by layer (apart from the race, at the largest batch, what is not compiled)
    """

    KEY = "starfish_lab_latency"
    WHAT = "latency plan"

    recipe: Recipe = Recipe()
    executions: tuple[str, ...] = ("masked",)
    batches: tuple[int, ...] = (1, 8, 32)
    seconds: float = 2.0
    min_iterations: int = 200
    starts: int = STARTS
    layers: bool = True

    def __post_init__(self) -> None:
        if not self.executions or not self.batches:
            raise RecipeError("A latency plan names at least one execution, such as 'masked', and at least one batch size, such as 1.")
        object.__setattr__(self, "executions", _unique(Execution.of(label).label for label in self.executions))
        object.__setattr__(self, "batches", tuple(sorted(set(self.batches))))
        for batch in self.batches:
            checks.whole("batches", batch)
        checks.number("seconds", self.seconds, 0.001)
        checks.whole("min_iterations", self.min_iterations)
        checks.whole("starts", self.starts)

    @classmethod
    def of(cls, recipe: Recipe, **changes: object) -> Self:
        """The plan that a recipe alone asks for: how its pattern runs, at its batch sizes."""
        own = {"executions": usual(recipe), "batches": recipe.measure.batch_sizes, "seconds": recipe.measure.seconds}
        return cls(recipe=recipe, **{**own, **changes})

    @classmethod
    def from_dict(cls, data: object) -> Self:
        """A plan from parsed JSON. A recipe is one too: latency runs were kept as recipes once."""
        if isinstance(data, dict) and Recipe.KEY in data:
            return cls.of(Recipe.from_dict(data))
        return super().from_dict(data)

    def asked(self) -> list[Execution]:
        """The executions, without the dense baselines that come with them."""
        return [Execution.of(label) for label in self.executions]

    def contestants(self) -> list[Execution]:
        """All that is raced: the dense network in every precision and layout asked for, eager and (if any execution is) compiled, then the
        executions.
        """
        asked = self.asked()
        dense = [
            Execution(backend=DENSE, precision=precision, compile=compiled, channels_last=channels_last)
            for precision, channels_last in product(PRECISIONS, (False, True))
            for compiled in sorted({False, *(execution.compile for execution in asked)})
            if any((execution.precision, execution.channels_last) == (precision, channels_last) for execution in asked)
        ]
        return [*dense, *(execution for execution in asked if execution not in dense)]


def baseline(execution: Execution) -> Execution:
    """The dense network of the same precision, eagerness and layout."""
    return replace(execution, backend=DENSE, options={}, merged=False)


def usual(recipe: Recipe) -> tuple[str, ...]:
    """Executions that suit a recipe: the fastest its pattern allows, or the mask alone.

    >>> usual(Recipe())
    ('masked',)
    """
    pruning = recipe.pruning
    halves = pruning.pattern == "n_m" and (pruning.keep, pruning.group) == (2, 4)
    backend = "sliced" if pruning.pattern == "structured" else "semi_structured" if halves else "masked"
    precision = "fp16" if halves else "float32"  # float32 has no 2:4 format
    merged = any(recipe.tokens.r)
    found = ["masked"] * halves + [Execution(backend=backend, precision=precision, merged=merged).label]
    return tuple(found)


def spread(labels: Iterable[str], precisions: Iterable[str] = (), *, compiled: bool = False) -> tuple[str, ...]:
    """Every label in every precision, and compiled too if asked for; without precisions the labels keep their own.

    >>> spread(["masked", "sliced"], ["bf16"], compiled=True)
    ('masked, bf16', 'masked, bf16, compiled', 'sliced, bf16', 'sliced, bf16, compiled')
    """
    found = []
    for execution in map(Execution.of, labels):
        for precision in precisions or [execution.precision]:
            for compile in sorted({execution.compile, compiled}):
                found.append(replace(execution, precision=precision, compile=compile).label)
    return _unique(found)


def _unique(labels: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(labels))

"""A learning rate for every healer, found without labels: tries heal on a part of the calibration images and are judged on the rest.

What is judged is the mean KL divergence of the dense network's answers to the healed network's. Labels serve only the training of
a healer that trains with labels; evaluation images serve nothing here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import LongTensor, Tensor

from starfish_lab.bakeoff.listening import Quiet
from starfish_lab.errors import LabError, RecipeError
from starfish_lab.healing.heal import heal
from starfish_lab.measure.divergence import kl, log_answers
from starfish_lab.models.network import Network
from starfish_lab.progress import Reporter
from starfish_lab.pruning.masks import Masks
from starfish_lab.recipe import HealingChoice


@dataclass(frozen=True)
class Tuned:
    """The multiple of the healer's own rate that did best, a row a try, and what the search cost."""

    multiple: float
    rows: list[dict[str, object]]
    seconds: float


def split(images: int, held_out: float) -> tuple[slice, slice]:
    """The images a try trains on, the first ones, and those it is judged on, at least one of each.

    >>> split(10, 0.2)
    (slice(0, 8, None), slice(8, 10, None))
    """
    if images < 2:
        raise RecipeError("One image cannot both heal and judge. Give at least two calibration images, or leave rates empty.")
    judges = min(images - 1, max(1, round(images * held_out)))
    return slice(0, images - judges), slice(images - judges, images)


def at(choice: HealingChoice, multiple: float) -> HealingChoice:
    """The choice with its whole schedule of learning rates multiplied."""
    return replace(choice, learning_rate=multiple * choice.learning_rate, final_learning_rate=multiple * choice.final_learning_rate)


def tune(
    dense: Network, student: Network, masks: Masks, images: Tensor, labels: LongTensor | None, choice: HealingChoice, *,
    multiples: Sequence[float], held_out: float, device: str = "cpu", reporter: Reporter | None = None,
    tried: Callable[[int, float], None] = lambda number, divergence: None,
) -> Tuned:  # fmt: skip
    """Try every multiple of `choice.learning_rate` and take the one with the smallest divergence; the networks are left as they are.

    images : the calibration images (n, C, H, W) of the cell; `labels` (n,) only for a method that trains with them, else None
    multiples : one alone is taken untried
    tried : hears the number of a try, from 1, and its divergence

    Rows: multiple, learning_rate, kl (None where training diverged), seconds, chosen, note. The repair runs once for all tries.
    Raises RecipeError where every try diverged.
    """
    if len(multiples) == 1:
        return Tuned(multiples[0], [], 0.0)
    began, quiet = time.perf_counter(), Quiet(reporter or Reporter())
    healing, judging = split(len(images), held_out)
    expected = log_answers(dense, images[judging], device=device)
    repaired = student.copy()
    if choice.repair != "none":
        alone = replace(choice, method="none", options={})
        heal(dense, repaired, masks, images[healing], alone, device=device, reporter=quiet)
    rows: list[dict[str, object]] = []
    for number, multiple in enumerate(multiples, start=1):
        started, found, note = time.perf_counter(), None, ""
        trial, attempt = repaired.copy(), at(replace(choice, repair="none", repair_options={}), multiple)
        try:
            heal(dense, trial, masks, images[healing], attempt, labels=None if labels is None else labels[healing], device=device, reporter=quiet)
            found = kl(expected, log_answers(trial, images[judging], device=device))
        except LabError as error:
            note = str(error)
        if found is not None and not math.isfinite(found):
            found, note = None, "The healed network's answers are no numbers."
        if found is not None:
            tried(number, found)
        seconds = time.perf_counter() - started
        rows.append({"multiple": multiple, "learning_rate": attempt.learning_rate, "kl": found, "seconds": seconds, "chosen": False, "note": note})
    converged = [row for row in rows if row["kl"] is not None]
    if not converged:
        rates = ", ".join(format(row["learning_rate"], "g") for row in rows)
        raise RecipeError(f"No learning rate of {rates} healed: {rows[0]['note']}")
    best = min(converged, key=lambda row: row["kl"])
    best["chosen"] = True
    return Tuned(best["multiple"], rows, time.perf_counter() - began)

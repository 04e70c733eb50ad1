"""How fast a healing step is here, by batch size, precision and compilation: measured, so that what pays is known and not guessed.

Every candidate runs the recipe's own healing, by `heal` itself, for a few steps on noise of the network's input size with the
teacher's answers cached: what most steps of a long run are. Two steps warm up, the median of the others counts. `seconds` is
what the recipe's training would take: everything up to the end of the first step, compiling with it, then all its images at
the measured rate. So torch.compile is recommended only where the run is long enough to earn back what compiling costs.

Another batch size at equal epochs takes another number of steps and ends elsewhere, so two rows are recommended: the
fastest of all, and the fastest at the recipe's own batch size.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from statistics import median

import pandas as pd
import torch
from torch import Tensor

from starfish_lab import tokens
from starfish_lab.errors import LabError, RecipeError
from starfish_lab.healing.heal import heal
from starfish_lab.measure import hardware
from starfish_lab.measure.memory import Peak
from starfish_lab.models.loading import load
from starfish_lab.models.network import Network, prunable
from starfish_lab.progress import Reporter
from starfish_lab.pruning import ranking
from starfish_lab.pruning.masks import Masks
from starfish_lab.recipe import HealingChoice, Recipe

WARM_UP = 2  # steps that are not counted
MULTIPLES = (1, 2, 4)  # of the recipe's batch size, where no sizes are asked for


def main(recipe: Recipe, *, batch_sizes: tuple[int, ...] = (), steps: int = 5, reporter: Reporter | None = None) -> pd.DataFrame:
    """The table of `measure` for a recipe, on the device it asks for; no images are needed.

    Masks are by magnitude at the recipe's sparsity, whatever its score and pattern: a step takes as long under any mask.
    Raises RecipeError for batch sizes or steps below 1, or where the recipe heals by 'none'.
    """
    device = hardware.choose_device(recipe.device)
    dense = load(recipe.model)
    student = dense.copy()
    tokens.merge(student, recipe.tokens)
    weights = {name: layer.weight.detach() for name, layer in prunable(student, recipe.pruning.include, recipe.pruning.exclude).items()}
    kept = {name: torch.ones(weight.shape, dtype=torch.bool) for name, weight in weights.items()}
    masks = ranking.without_smallest(weights, kept, round(recipe.pruning.sparsity * sum(weight.numel() for weight in weights.values())))
    images = recipe.images.training if recipe.healing.images == "training" and recipe.images.training else recipe.images.calibration
    sizes = batch_sizes or tuple(factor * recipe.healing.batch_size for factor in MULTIPLES)
    rows = measure(dense, student, masks, recipe.healing, images=images, batch_sizes=sizes, steps=steps, device=device, reporter=reporter)
    return pd.DataFrame(rows)


def measure(
    dense: Network, student: Network, masks: Masks, choice: HealingChoice, *, images: int, batch_sizes: tuple[int, ...],
    steps: int = 5, device: str = "cpu", reporter: Reporter | None = None,
) -> list[dict[str, object]]:  # fmt: skip
    """A row a candidate; the networks are left as they are.

    images : how many a whole run heals on, for `seconds`
    batch_sizes : to try, each in every precision of the device, with torch.compile and without
    steps : timed ones of each candidate

    Columns: batch_size, precision, compile, images_per_s, step_ms, startup_s (up to the end of the first step), seconds (of the
    whole training), peak_memory_gb (None where the system does not tell), recommended ('fastest', 'at this batch size', both
    or ''), note. A candidate that fails has a note and no figures.
    """
    if choice.method == "none":
        raise RecipeError("healing.method is 'none', which takes no steps. Choose a method whose speed to measure, such as 'starfish'.")
    if steps < 1 or min(batch_sizes) < 1:
        raise RecipeError(f"{steps} steps on batches of {min(batch_sizes)}: give whole numbers of at least 1.")
    reporter = reporter or Reporter()
    work = choice.total_steps(images) * choice.batch_size if choice.steps else choice.epochs * images
    candidates = list(_candidates(choice, batch_sizes, steps + WARM_UP, device))
    rows = []
    for done, candidate in enumerate(candidates, 1):
        reporter.check()
        rows.append(_row(dense, student, masks, candidate, work, device))
        reporter.progress(done, len(candidates))
    _recommend(rows, choice.batch_size)
    return rows


def _candidates(choice: HealingChoice, batch_sizes: tuple[int, ...], steps: int, device: str) -> Iterator[HealingChoice]:
    tf32 = device.startswith("cuda") and torch.cuda.get_device_capability(device)[0] >= 8
    for size, precision, compiled in product(batch_sizes, ("float32", *["tf32"] * tf32, "bf16"), (False, True)):
        yield replace(
            choice, batch_size=size, precision=precision, compile=compiled, steps=steps, repair="none", repair_options={},
            images="calibration", order="fixed", augmentation="none",
        )  # fmt: skip


def _row(dense: Network, student: Network, masks: Masks, choice: HealingChoice, work: int, device: str) -> dict[str, object]:
    row = {"batch_size": choice.batch_size, "precision": choice.precision, "compile": choice.compile}
    figures = dict.fromkeys(("images_per_s", "step_ms", "startup_s", "seconds", "peak_memory_gb"))
    clock = _Clock(device)
    try:
        with Peak(device) as peak:
            heal(dense, student.copy(), masks, _noise(dense, choice.batch_size), choice, labels=_labels(dense, choice), device=device, reporter=clock)
    except LabError as error:
        return row | figures | {"recommended": "", "note": str(error)}
    finally:
        if device.startswith("cuda"):
            torch.cuda.empty_cache()
    step = median(after - before for before, after in zip(clock.times[WARM_UP:], clock.times[WARM_UP + 1 :]))
    startup = clock.times[1] - clock.times[0]
    figures |= {
        "images_per_s": choice.batch_size / step, "step_ms": 1e3 * step, "startup_s": startup,
        "seconds": startup + max(0, work - choice.batch_size) * step / choice.batch_size,
        "peak_memory_gb": None if peak.bytes is None else peak.bytes / 1e9,
    }  # fmt: skip
    return row | figures | {"recommended": "", "note": clock.refusal}


def _recommend(rows: list[dict[str, object]], batch_size: int) -> None:
    """Mark the rows that take least time; one whose compilation failed ran without it and is no candidate."""
    measured = [row for row in rows if not row["note"]]
    for words, among in (("fastest", measured), ("at this batch size", [row for row in measured if row["batch_size"] == batch_size])):
        if among:
            best = min(among, key=lambda row: row["seconds"])
            best["recommended"] = f"{best['recommended']}, {words}".removeprefix(", ")


class _Clock(Reporter):
    """The time when healing began and after every step, once the device has done all that was asked of it."""

    def __init__(self, device: str):
        self._cuda = device if device.startswith("cuda") else None
        self.times = [time.perf_counter()]
        self.refusal = ""

    def progress(self, step: int, steps: int) -> None:
        if self._cuda:
            torch.cuda.synchronize(self._cuda)
        self.times.append(time.perf_counter())

    def note(self, text: str) -> None:
        if text.startswith("torch.compile"):
            self.refusal = text


def _noise(network: Network, count: int) -> Tensor:
    return torch.randn(count, *network.preprocessing.input_size, generator=torch.Generator().manual_seed(0))


def _labels(network: Network, choice: HealingChoice) -> Tensor:
    return torch.arange(choice.batch_size) % max(1, network.num_classes)

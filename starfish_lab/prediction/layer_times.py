"""The table that predictions are made from: what every distinct piece of a network takes on a device. Job kind 'layer_times'.

The network runs whole, dense and in the forms that its shapes can take (`forms`). Every piece is timed where it stands: with its weights
where the pass before has left them and its input where the piece before it has. Forms take turns in rounds, so that heat and clocks
touch all alike, and in every round the pass is also timed as a whole, with no hook in it.

Table `layer_times`, a row a distinct piece of a form, batch and precision:

    form              'dense', 'sliced 50%', 'merged r=8' …
    kind, variant, kernel, m, n, k    of `pieces.Piece`, m for the whole batch; kind 'pass' is the whole forward pass
    count             how many pieces of the form have this shape
    batch, precision
    ms, ms_low, ms_high   of one such piece: median over rounds, and the 95 % interval of that median by the order of the rounds
    rounds, model, device, device_name, fingerprint, threads, measured_on (day, UTC)
"""

from __future__ import annotations

import datetime
import math
from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
import torch

from starfish_lab.errors import LabError
from starfish_lab.execution import precision as arithmetic
from starfish_lab.execution.build import Ready, ready
from starfish_lab.execution.choice import DENSE
from starfish_lab.measure import hardware, latency
from starfish_lab.models.loading import load
from starfish_lab.models.network import Network
from starfish_lab.prediction import forms, recording
from starfish_lab.prediction.forms import ROUNDS, SECONDS
from starfish_lab.prediction.pieces import Piece
from starfish_lab.progress import Reporter
from starfish_lab.pruning.masks import Masks
from starfish_lab.pruning.prune import make_masks, pruned
from starfish_lab.recipe import PruningChoice, Recipe
from starfish_lab.report import Report

WARM = 3  # passes before the first round


@dataclass
class _Running:
    """A form at work: seconds of whole passes, and in every round of every piece."""

    name: str
    ready: Ready
    pieces: list[Piece] = field(default_factory=list)
    passes: list[float] = field(default_factory=list)
    rounds: list[list[float]] = field(default_factory=list)


def run(
    recipe: Recipe, *, reporter: Reporter | None = None, device: str = "auto", precisions: tuple[str, ...] = (), seconds: float = SECONDS
) -> Report:
    """Time the pieces of `recipe.model` at `recipe.measure.batch_sizes`: a report with `layer_times`, and notes on what could not be timed.

    Tokens merge as `recipe.tokens` says, or the usual way. Weights do not matter, shapes do. `precisions`: those to time; without them
    those of `forms.precisions`. A batch that does not fit into memory is left out and noted.
    """
    reporter, report = reporter or Reporter(), Report()
    device = hardware.choose_device(device)
    reporter.stage("load")
    dense = load(recipe.model)
    reporter.stage("layer times")
    facts = hardware.fingerprint(device)
    constant = {
        "model": dense.name, "device": device, **{key: facts[key] for key in ("device_name", "fingerprint", "threads")},
        "measured_on": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }  # fmt: skip
    wanted = precisions or [one for one in forms.precisions(device) if not arithmetic.refuses(one, device=device)]
    batches, notes = sorted(set(recipe.measure.batch_sizes)), []
    for i, precision in enumerate(wanted):
        built = build(dense, recipe, device=device, precision=precision, notes=notes, reporter=reporter)
        for j, batch in enumerate(batches):
            try:
                rows = measure(built, batch, device=device, seconds=seconds, reporter=reporter)
                report.add("layer_times", [row | constant | {"precision": precision} for row in rows])
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
                notes.append(f"Batch {batch} in {precision} does not fit into the memory of {device} and was left out of the layer times.")
            reporter.progress(i * len(batches) + j + 1, len(wanted) * len(batches))
    for note in dict.fromkeys(notes):
        reporter.note(note)
        report.add("notes", [{"note": note}])
    return report


def build(dense: Network, recipe: Recipe, *, device: str, precision: str, notes: list[str], reporter: Reporter | None = None) -> dict[str, Ready]:
    """{name: form, ready to run}. Why others are missing goes to `notes`. The dense form must run, else its LabError is raised."""
    found: dict[str, Ready] = {}
    masks: dict[tuple | None, Masks] = {None: {}}
    for form in forms.forms(recipe, precision, cuda=device.startswith("cuda"), most=_mergeable(dense)):
        (reporter or Reporter()).check()
        try:
            key = _key(form.pruning)
            if key not in masks:
                masks[key] = make_masks(dense, form.pruning).masks
            student = pruned(dense, masks[key]) if masks[key] else dense
            found[form.name] = ready(dense, student, masks[key], form.execution, device=device, tokens=form.tokens)
        except LabError as error:
            if form.execution.backend == DENSE and not form.execution.merged:
                raise
            notes.append(f"{form.name} is not timed in {precision}: {error}")
    return found


def _key(choice: PruningChoice | None) -> tuple | None:
    return choice and (choice.pattern, choice.sparsity)


def _mergeable(dense: Network) -> int:
    """Tokens that the first block could merge at most; 0 where nothing can."""
    return getattr(getattr(dense.module, "patch_embed", None), "num_patches", 0) // 2


def measure(
    built: dict[str, Ready], batch: int, *, device: str, seconds: float = SECONDS, reporter: Reporter | None = None
) -> list[dict[str, object]]:
    """Rows of the table at one batch size, without precision and device."""
    reporter = reporter or Reporter()
    running = [_Running(name, form) for name, form in built.items()]
    size = next(iter(built.values())).network.preprocessing.input_size
    noise = torch.randn(batch, *size, generator=torch.Generator().manual_seed(0))
    images = running[0].ready.module.inputs(noise)
    for form in running:
        form.pieces = recording.pieces(form.ready.network, lambda form=form: form.ready.module(images))
        for _ in range(WARM):
            reporter.check()
            _pass(form, images, device)
    spent, rounds = 0.0, 0
    while rounds < ROUNDS[0] or (spent < seconds * len(running) and rounds < ROUNDS[1]):
        for form in running:
            reporter.check()
            spent += _pass(form, images, device)  # brings into the caches what other forms have driven out
            form.passes.append(_pass(form, images, device))
            form.rounds.append(recording.timed(form.ready.network, lambda form=form: form.ready.module(images), device=device))
            spent += form.passes[-1] + sum(form.rounds[-1])
        rounds += 1
    return [row | {"batch": batch} for form in running for row in _rows(form, batch)]


def _pass(form: _Running, images: torch.Tensor, device: str) -> float:
    """Seconds of one forward pass until its answer is there."""
    return latency.timer_of(device, single=True)(lambda: form.ready.module(images), 1)[0]


def _rows(form: _Running, batch: int) -> list[dict[str, object]]:
    """A row a distinct piece, and one for the whole pass."""
    alike: dict[tuple, list[int]] = defaultdict(list)
    for place, piece in enumerate(form.pieces):
        alike[piece.shape].append(place)
    taken = np.array(form.rounds)  # (rounds, pieces) seconds
    rows = [{"form": form.name, "kind": "pass", "variant": "", "kernel": "", "m": 0, "n": 0, "k": 0, "count": 1, **_summary(np.array(form.passes))}]
    for (kind, variant, kernel, m, n, k), where in alike.items():
        shape = {"kind": kind, "variant": variant, "kernel": kernel, "m": m * batch, "n": n, "k": k, "count": len(where)}
        rows.append({"form": form.name, **shape, **_summary(taken[:, where].mean(axis=1))})
    return rows


def _summary(seconds: np.ndarray) -> dict[str, object]:
    """Median of rounds in ms, and its 95 % interval: how many rounds lie below the median is binomial (normal approximation)."""
    ordered = np.sort(seconds) * 1e3
    count = len(ordered)
    reach = 0.98 * math.sqrt(count)  # 1.96 standard deviations
    low, high = max(0, math.floor(count / 2 - reach)), min(count - 1, math.ceil(count / 2 + reach))
    return {"ms": float(np.median(ordered)), "ms_low": float(ordered[low]), "ms_high": float(ordered[high]), "rounds": count}

"""One cell of a bake-off: a rate is tuned, the pruned network heals under the clock, and what came of it is measured.

The clock runs over repair and training and nothing else; peak memory is that of the same stretch. Tuning has its own clock. A cell
that was cut off starts again from its beginning, so that its seconds, memory and curve are of one piece.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import groupby

from starfish_lab.bakeoff.bench import Bench, drift_rows, mean_distance
from starfish_lab.bakeoff.clock import Clock
from starfish_lab.bakeoff.listening import Healing, Looks, Quiet
from starfish_lab.bakeoff.plan import BakeOff, Cell
from starfish_lab.bakeoff.tuning import Tuned, at, tune
from starfish_lab.errors import ImagesError, LabError, RecipeError
from starfish_lab.healing import healers
from starfish_lab.healing.heal import HealingResult, heal
from starfish_lab.healing.watching import Watch, images_seen, look_at
from starfish_lab.measure.accuracy import Predictions, accuracy_row, predict
from starfish_lab.measure.divergence import kl, log_answers
from starfish_lab.measure.memory import Peak
from starfish_lab.measure.share import share_row
from starfish_lab.progress import Reporter
from starfish_lab.recipe import HealingChoice


@dataclass
class Baked:
    """What a cell leaves: rows without the cell's own columns, and the healed network's answers."""

    tables: dict[str, list[dict[str, object]]]
    answers: Predictions | None = None
    lasting: bool = True  # False where another try might end otherwise: memory ran out


def bake(bench: Bench, plan: BakeOff, cell: Cell, *, device: str, reporter: Reporter) -> Baked:
    """Tune, heal and measure. A healer that cannot heal this network becomes a row with the reason; only Cancelled is raised."""
    choice = plan.cell_choice(cell)
    uses_labels = healers.labels(plan.healer_of(cell.healer))
    asked = {
        "note": "", "learning_rate": choice.learning_rate if cell.steps else None, "rate_multiple": 1.0 if cell.steps else None, "rate_tuned": False,
        "labels": uses_labels, "precision": choice.precision, "batch_size": choice.batch_size, "optimiser": choice.optimiser, "trains": choice.trains,
    }  # fmt: skip
    try:
        return _bake(bench, plan, cell, choice, asked, uses_labels, device, reporter)
    except LabError as error:
        return Baked({"healers": [{**asked, "note": str(error)}]}, lasting=isinstance(error, RecipeError | ImagesError))
    except (MemoryError, RuntimeError) as error:  # torch's: no memory, a matrix that cannot be factored, an operation that a device lacks
        reason = str(error).strip().partition("\n")[0]
        return Baked({"healers": [{**asked, "note": f"{type(error).__name__}: {reason}"}]}, lasting=False)


def _bake(
    bench: Bench, plan: BakeOff, cell: Cell, choice: HealingChoice, asked: dict[str, object], uses_labels: bool, device: str, reporter: Reporter
) -> Baked:  # fmt: skip
    dense, pruned, masks = bench.prepared.reference, bench.prepared.network, bench.prepared.result.masks
    images, known = bench.images.calibration[: cell.images], bench.images.labels
    labels = known[: cell.images] if uses_labels and known is not None else None
    tuned = Tuned(1.0, [], 0.0)
    if cell.steps and plan.rates:
        tuned = tune(
            dense, pruned, masks, images, labels, replace(choice, steps=plan.tuning_steps or cell.steps),
            multiples=plan.rates, held_out=plan.held_out, device=device, reporter=reporter,
            tried=lambda number, found: reporter.metric(f"tuning:{cell.label}", number, found),
        )  # fmt: skip
    choice = at(choice, tuned.multiple)
    student = pruned.copy()
    watch = Watch(dense, student, bench.images.drift, bench.images.splits.evaluation, device=device, reporter=Looks(reporter, cell.label))
    voice = Healing(reporter, cell.label)
    losses: dict[int, float | None] = {}

    def observe(step: int) -> None:
        with peak.aside(), clock.aside() as seconds:
            losses[step] = voice.loss
            reporter.metric(f"seconds:{cell.label}", step, seconds)
            watch(step)

    with Peak(device) as peak:
        clock = Clock(device)
        result = heal(
            dense, student, masks, images, choice, labels=labels, device=device, reporter=voice,
            watch=look_at(cell.steps, plan.recipe.measure.snapshots), observer=observe,
        )  # fmt: skip
        processor = clock.processor
    curve = _curve(watch.finish(result), losses, choice, cell) if plan.recipe.measure.snapshots else []
    answers = None if bench.answers is None else predict(student, bench.images.splits.evaluation, device=device, reporter=Quiet(reporter))
    drift = drift_rows(dense, student, bench.images.drift, device=device)
    row = {
        **asked, "learning_rate": choice.learning_rate if cell.steps else None, "rate_multiple": tuned.multiple if cell.steps else None,
        "rate_tuned": bool(tuned.rows), **_accuracy(bench, answers), "drift": mean_distance(drift), "drift_pruned": mean_distance(bench.drift),
        "kl": kl(*(log_answers(network, bench.images.drift, device=device) for network in (dense, student))), "pruning_seconds": bench.seconds,
        **_cost(result, tuned, peak, processor),
    }  # fmt: skip
    return Baked({
        "healers": [row], "healer_blocks": _blocks(bench.drift, drift), "healer_curves": curve, "tuning": tuned.rows,
    }, answers)  # fmt: skip


def _accuracy(bench: Bench, answers: Predictions | None) -> dict[str, object]:
    """Columns of accuracy and of its share of the dense network's."""
    if answers is None:
        return {}
    found, before = accuracy_row(answers), bench.images.answers
    return {
        **{name: found[name] for name in ("top1", "top5", "low", "high", "correct")}, "evaluated": found["images"],
        "top1_dense": float(before.correct.mean()), "top1_pruned": float(bench.answers.correct.mean()), **share_row(before, answers),
    }  # fmt: skip


def _cost(result: HealingResult, tuned: Tuned, peak: Peak, processor: float) -> dict[str, object]:
    """Columns of time and memory."""
    return {
        "healing_seconds": result.repair_seconds + result.seconds, "repair_seconds": result.repair_seconds, "training_seconds": result.seconds,
        "seconds_per_step": result.seconds / result.steps if result.steps else None, "processor_seconds": processor, "tuning_seconds": tuned.seconds,
        "peak_memory_bytes": peak.bytes, "memory_before_bytes": peak.before, "memory_counts": peak.counts,
    }  # fmt: skip


def _blocks(before: list[dict[str, object]], after: list[dict[str, object]]) -> list[dict[str, object]]:
    return [
        {"depth": row["depth"], "block": row["block"], "before": row["cosine_distance"], "after": healed["cosine_distance"]}
        for row, healed in zip(before, after, strict=True)
    ]


def _curve(
    seen: dict[str, list[dict[str, object]]], losses: dict[int, float | None], choice: HealingChoice, cell: Cell
) -> list[dict[str, object]]:  # fmt: skip
    """A row a look: the training it had behind it, and how the network stood."""
    right = {row["step"]: row for row in seen["healing_accuracy"]}
    rows = []
    for step, group in groupby(seen["healing_drift"], key=lambda row: row["step"]):
        blocks, found = list(group), right.get(step, {})
        rows.append({
            "step": step, "seconds": blocks[0]["seconds"], "images_seen": images_seen(step, cell.images, choice.batch_size),
            "loss": losses.get(step), "accuracy": found.get("top1"), "evaluated": found.get("images"), "drift": mean_distance(blocks),
        })  # fmt: skip
    return rows

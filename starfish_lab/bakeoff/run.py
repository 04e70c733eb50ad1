"""run(plan) → Report: every cell of a bake-off, each once, on networks and images that all healers share.

For every seed and sparsity the masks are made once. Every healer starts from the same pruned network, sees the same calibration
images through the same transform, at the same precision unless its choice says otherwise, and is timed by the same clock on the
same device. Report tables, each with the cell's healer, seed, sparsity, images and steps in front unless said otherwise:

table           a row is                       columns
--------------  -----------------------------  -----------------------------------------------------------------------------------
healers         a cell                         note (why it failed, else ''), learning_rate, rate_multiple, rate_tuned, labels (used or
                                               not), precision, batch_size, optimiser, trains, top1, top5, low, high (95 % Wilson),
                                               correct, evaluated, top1_dense, top1_pruned, share, share_low, share_high (of dense
                                               accuracy, see measure.share), drift, drift_pruned (mean cosine distance over blocks) and
                                               kl (mean KL divergence of the dense answers to the healed ones, in nats), both on the
                                               drift images, which serve nothing else; pruning_seconds (spent once for all
                                               healers of a seed and sparsity, in no other figure); healing_seconds = repair_seconds +
                                               training_seconds, processor_seconds (of all cores together, in the same
                                               stretch), seconds_per_step, tuning_seconds, peak_memory_bytes,
                                               memory_before_bytes, memory_counts (what they count: see measure.memory)
healer_blocks   a block of a cell              depth, block, before, after (cosine distance on the drift images)
healer_curves   a look during healing          step, seconds, images_seen, loss, accuracy, evaluated (at most 256 images), drift
tuning          a learning rate that was tried multiple, learning_rate, kl (None: diverged), seconds, chosen, note
paired          a cell against 'starfish'      first, second, difference_pp, p_value, resolved, evaluated, verdict, steps_first
knee            a curve over images            healer, sparsity, steps, the keys of `knee.knee`, seeds; from three numbers of images on

While it runs, reporter.metric hears figures named FIGURE:LABEL, which `live` turns into tables.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from starfish_lab import __version__, settings
from starfish_lab.bakeoff.bench import Bench, Images
from starfish_lab.bakeoff.book import Book, unpacked
from starfish_lab.bakeoff.cell import bake
from starfish_lab.bakeoff.knee import FEWEST_POINTS, knee
from starfish_lab.bakeoff.live import FINAL
from starfish_lab.bakeoff.plan import REFERENCE, BakeOff, Cell
from starfish_lab.healing import METHODS, REPAIRS
from starfish_lab.measure import hardware
from starfish_lab.measure.accuracy import Predictions, compare
from starfish_lab.models.loading import load
from starfish_lab.models.network import Network
from starfish_lab.progress import Reporter
from starfish_lab.provenance import facts
from starfish_lab.report import Report
from starfish_lab.training.checkpoint import fingerprint

COMMON = ("seed", "sparsity", "images")


def run(
    plan: BakeOff, *, dense: Network | None = None, reporter: Reporter | None = None, folder: Path | None = None, device: str = "auto"
) -> Report:  # fmt: skip
    """Bake all cells that `folder` does not have yet, and tell of all.

    dense : the network, where it is not one that `plan.recipe.model` can load
    folder : keeps finished cells (see `book`), for a bake-off that is interrupted, extended or shares cells with another; cells
        count as the same where all that decides them is the same, down to the machine that timed them

    Raises ImagesError and WeightsError for what would spoil every cell, and Cancelled when asked to stop; finished cells are kept.
    """
    reporter = reporter or Reporter()
    device = hardware.choose_device(device)
    reporter.stage("load")
    dense = load(plan.recipe.model) if dense is None else dense
    book, report, cells = Book(folder), Report(), plan.cells()
    answers: dict[Cell, Predictions] = {}
    for number, (cell, entry, known) in enumerate(_baked(plan, cells, dense, book, device, reporter), start=1):
        rows = [{**dataclasses.asdict(cell), **row} for row in entry["tables"]["healers"]]
        for table, found in entry["tables"].items():
            report.add(table, found, **dataclasses.asdict(cell))
        if entry["answers"] is not None:
            answers[cell] = unpacked(entry["answers"])
        _tell(reporter, cell, entry, known)
        reporter.note(f"{number} of {len(cells)}: {sentence(rows[0])}")
    report.add("paired", list(_paired(answers)))
    report.add("knee", list(_knees(answers)))
    healed = report.frame("healers")
    for stage in ("tuning", "healing"):
        if f"{stage}_seconds" in healed:
            report.add("seconds", [{"stage": stage, "seconds": float(healed[f"{stage}_seconds"].sum())}])
    report.add("provenance", [
        {"name": name, "value": str(value)} for name, value in {**facts(plan.recipe, dense, device), "bakeoff": plan.fingerprint()}.items()
    ])  # fmt: skip
    return report


def sentence(row: dict[str, object]) -> str:
    """A row of 'healers' in words.

    >>> sentence({"healer": "corp", "seed": 0, "sparsity": 0.5, "images": 64, "steps": 0, "note": "No units."})
    'corp at 50 %, 64 images, 0 steps, seed 0: No units.'
    """
    where = f"{row['healer']} at {100 * row['sparsity']:.3g} %, {row['images']} images, {row['steps']} steps, seed {row['seed']}"
    if row["note"]:
        return f"{where}: {row['note']}"
    found = f"drift {row['drift']:.3g}"
    if row.get("top1") is not None:
        found = f"{100 * row['top1']:.1f} % ({100 * row['low']:.1f} to {100 * row['high']:.1f})"
        if row["share"] is not None:
            found += f", {100 * row['share']:.1f} % of dense"
    return f"{where}: {found}, {row['healing_seconds']:.3g} s."


def _baked(
    plan: BakeOff, cells: list[Cell], dense: Network, book: Book, device: str, reporter: Reporter
) -> Iterator[tuple[Cell, dict, bool]]:  # fmt: skip
    """Every cell with its line in the book, and whether that was there before. Images and masks are made only where a cell needs them."""
    number = 0
    for seed, of_seed in groupby(cells, key=lambda cell: cell.seed):
        images: Images | None = None
        for sparsity, group in groupby(of_seed, key=lambda cell: cell.sparsity):
            bench: Bench | None = None
            for cell in group:
                number += 1
                reporter.check()
                key = cell_key(plan, cell, dense, device)
                entry = book.get(key)
                known = entry is not None
                if not known:
                    if bench is None:
                        reporter.stage("prune")
                        images = images or Images.of(dense, plan, seed, device=device, reporter=reporter)
                        bench = Bench.of(dense, plan, images, seed, sparsity, device=device, reporter=reporter)
                    reporter.stage(f"{number} of {len(cells)}: {cell.healer}"[:40])
                    found = bake(bench, plan, cell, device=device, reporter=reporter)
                    entry = book.keep(key, cell.label, found.tables, found.answers, lasting=found.lasting)
                yield cell, entry, known


def cell_key(plan: BakeOff, cell: Cell, dense: Network, device: str) -> str:
    """Fingerprint of all that decides a cell: network, images, pruning, choice, tuning, the healer's own source, and the machine that times it.

    Shared source, such as the training loop's, counts by the lab's version alone.
    """
    recipe, choice = plan.cell_recipe(cell.seed, cell.sparsity).to_dict(), plan.cell_choice(cell)
    return fingerprint({
        "lab": __version__, "source": [_source(METHODS, choice.method), _source(REPAIRS, choice.repair)], "choice": dataclasses.asdict(choice),
        "recipe": {part: recipe[part] for part in ("model", "images", "start", "tokens", "pruning")},
        "weights": dense.weights_sha256 or fingerprint(dense.module.state_dict()),
        "masks_from": plan.fewest, "images": cell.images, "snapshots": plan.recipe.measure.snapshots,
        "tuning": [plan.rates, plan.tuning_steps, plan.held_out] if cell.steps else [],
        "machine": hardware.fingerprint(device)["fingerprint"], "teacher_memory": settings.TEACHER_MEMORY_GB(),
    })  # fmt: skip


def _source(registry, name: str) -> str:
    return hashlib.sha256(inspect.getsource(registry.module(name)).encode()).hexdigest()


def _tell(reporter: Reporter, cell: Cell, entry: dict, known: bool) -> None:
    """Figures of a finished cell for whoever watches; of one known from before its curve too."""
    for row in entry["tables"].get("healer_curves", []) if known else []:
        for figure in ("loss", "accuracy", "seconds"):
            if row[figure] is not None:
                reporter.metric(f"{figure}:{cell.label}", row["step"], row[figure])
    row = entry["tables"]["healers"][0]
    for figure, column in FINAL.items():
        if row.get(column) is not None:
            reporter.metric(f"{figure}:{cell.label}", cell.steps, row[column])


def _paired(answers: dict[Cell, Predictions]) -> Iterator[dict[str, object]]:
    """Every healer against the reference on the same seed, sparsity and images, and steps where it has any."""
    references = [cell for cell in answers if cell.healer == REFERENCE]
    for cell, theirs in answers.items():
        for reference in references:
            same = all(getattr(cell, name) == getattr(reference, name) for name in COMMON) and cell.steps in (0, reference.steps)
            if same and cell.healer != REFERENCE:
                found = compare(answers[reference], theirs)
                found["evaluated"] = found.pop("images")
                yield {**dataclasses.asdict(cell), "first": REFERENCE, "second": cell.healer, "steps_first": reference.steps, **found}


def _knees(answers: dict[Cell, Predictions]) -> Iterator[dict[str, object]]:
    """A row for each healer, sparsity and number of steps whose curve has enough points with the same seeds."""
    curves: dict[tuple, dict[int, dict[int, Predictions]]] = {}
    for cell, found in answers.items():
        curves.setdefault((cell.healer, cell.sparsity, cell.steps), {}).setdefault(cell.images, {})[cell.seed] = found
    for (healer, sparsity, steps), curve in curves.items():
        seeds = sorted(set.intersection(*(set(by_seed) for by_seed in curve.values())))
        if len(curve) >= FEWEST_POINTS and seeds:
            found = knee({images: [by_seed[seed] for seed in seeds] for images, by_seed in curve.items()})
            yield {"healer": healer, "sparsity": sparsity, "steps": steps, **found, "seeds": len(seeds)}

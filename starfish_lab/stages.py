"""What every run that prunes puts into its report: seconds of its stages, notes, what is known of the pruned network, where figures come from."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from starfish_lab.measure.costs import layer_rows, ledger_rows
from starfish_lab.models.network import Network
from starfish_lab.preparation import Prepared
from starfish_lab.progress import Reporter
from starfish_lab.provenance import facts
from starfish_lab.recipe import Recipe
from starfish_lab.report import Report


@contextmanager
def staged(report: Report, reporter: Reporter, name: str) -> Iterator[dict[str, float]]:
    """Times a stage; what the stage puts into the dict it is given, {part: seconds}, counts as parts of their own and not as the stage."""
    reporter.check()
    reporter.stage(name)
    started = time.perf_counter()
    yield (apart := {})
    report.add("seconds", [{"stage": name, "seconds": time.perf_counter() - started - sum(apart.values())}])
    report.add("seconds", [{"stage": part, "seconds": seconds} for part, seconds in apart.items()])


def note(report: Report, reporter: Reporter, notes: Iterable[str]) -> None:
    """Say it, and keep it."""
    for text in notes:
        reporter.note(text)
        report.add("notes", [{"note": text}])


def about_pruned(report: Report, reporter: Reporter, dense: Network, prepared: Prepared, recipe: Recipe) -> None:
    """What is known of the pruned network before anything is measured."""
    left = prepared.result.left_dense
    note(report, reporter, [*prepared.notes, *(f"{layer} stays dense: {reason}." for layer, reason in left.items())])
    for table, rows in prepared.tables.items():
        report.add(table, rows)
    report.add("layers", layer_rows(dense, prepared.network, prepared.result))
    report.add("ledger", ledger_rows(dense, prepared.result, recipe))


def provenance(report: Report, recipe: Recipe, dense: Network, device: str) -> None:
    report.add("provenance", [{"name": name, "value": str(value)} for name, value in facts(recipe, dense, device).items()])

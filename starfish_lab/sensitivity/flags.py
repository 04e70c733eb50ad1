"""Sensitivity on the command line: a plan from a file and flags, what is shown, and a recipe that spends along the curves."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import pandas as pd

from starfish_lab import settings
from starfish_lab.arguments import comma_separated, plan_of, recipe_of
from starfish_lab.errors import LabError
from starfish_lab.progress import Reporter
from starfish_lab.report import Report
from starfish_lab.sensitivity import spending, stored
from starfish_lab.sensitivity.plan import ON, Sensitivity


def add(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command, beside the recipe."""
    parser.add_argument("--on", choices=ON, help="images that show the damage: drift (no labels), or evaluation (accuracy too)")
    parser.add_argument("--levels", type=comma_separated(float), metavar="A,B,…", help="sparsities, e.g. 0.5,0.8,0.95")
    parser.add_argument("--images", type=int, metavar="N", help="evaluation images at most")
    parser.add_argument("--recipe-out", metavar="FILE", help="also write the recipe with the budget 'sensitivity' along these curves, for `run`")
    parser.add_argument("--damage", choices=list(stored.DAMAGES), default="kl", help="what that budget keeps small")
    parser.add_argument("--out", metavar="FILE", help="write the table (CSV) there instead of using the store; needs no package of the app")
    parser.add_argument("--queue", action="store_true", help="leave it to a worker")
    parser.add_argument("--show", action="store_true", help="print the plan, complete, and do nothing")


def plan(arguments: argparse.Namespace) -> Sensitivity:
    """The plan that the arguments describe. The file may hold one, as --show prints, or a recipe."""
    given = {name: getattr(arguments, name) for name in ("on", "levels", "images") if getattr(arguments, name) is not None}
    return replace(plan_of(arguments, Sensitivity, lambda recipe: Sensitivity.of(recipe, **given)), **given)


def measure(plan: Sensitivity, out: Path, reporter: Reporter) -> Report:
    """Measure it here and write the table; the store is not touched."""
    from starfish_lab.sensitivity.run import run

    if not out.parent.is_dir():
        raise LabError(f"There is no folder {out.parent} for {out.name}. Make it first, or give another file with --out.")
    report = run(plan, reporter=reporter, folder=settings.home() / stored.KIND, device=plan.device)
    report.frame("sensitivity").to_csv(out, index=False)
    return report


def known(arguments: argparse.Namespace, plan: Sensitivity) -> Report | None:
    """What the store has of this plan already; None where it is to be measured, or asked for somewhere else."""
    if arguments.show or arguments.out or arguments.queue:
        return None
    from starfish_lab.store import Store

    store = Store()
    number = stored.find(store, plan)
    return None if number is None else store.report(number)


def shown(arguments: argparse.Namespace, report: Report) -> pd.DataFrame:
    """The table: all of it as JSON, on a terminal a row a layer and a column a level. Writes the recipe where that was asked for."""
    rows = report.frame("sensitivity")
    if arguments.recipe_out:
        if arguments.damage not in stored.damages(rows):
            raise LabError("These curves have no accuracy, so nothing can be spent along it. Measure with --on evaluation, or take --damage kl.")
        recipe = recipe_of(arguments)
        recipe = replace(recipe, pruning=spending.budget(recipe.pruning, rows, damage=arguments.damage))
        Path(arguments.recipe_out).write_text(recipe.to_json())
    if arguments.json:
        return rows
    _, column, _ = stored.DAMAGES[arguments.damage]
    table = stored.with_loss(rows).pivot(index="layer", columns="level", values=column if column in stored.with_loss(rows) else "kl")
    return table.loc[rows["layer"].drop_duplicates()].map("{:.3g}".format).reset_index().rename_axis(columns=None)

"""A bake-off on the command line: a plan from a file and flags, and what is written and shown of its report."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import pandas as pd

from starfish_lab.arguments import comma_separated
from starfish_lab.bakeoff.plan import BakeOff
from starfish_lab.errors import LabError
from starfish_lab.progress import Reporter
from starfish_lab.recipe import edit
from starfish_lab.report import Report

SHOWN = (
    "healer", "seed", "sparsity", "images", "steps", "top1", "low", "high", "share", "drift", "kl", "labels", "learning_rate",
    "healing_seconds", "peak_memory_bytes", "note",
)  # fmt: skip


LISTS = {
    "healers": (str, "names, e.g. starfish,dense+starfish,cross_entropy"),
    "images": (int, "numbers of calibration images, e.g. 400,5000"),
    "sparsities": (float, "e.g. 0.5,0.75"),
    "steps": (int, "optimiser steps, e.g. 130,1570"),
    "seeds": (int, "e.g. 0,1,2"),
    "rates": (float, "multiples of each healer's own learning rate to try, e.g. 0.3,1,3; '' tries none"),
}


def add(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("plan", nargs="?", help="a bake-off JSON file, as --show prints; without it, the default one")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="change a field of its recipe, e.g. model.name=…")
    for name, (kind, meaning) in LISTS.items():
        parser.add_argument(f"--{name}", type=comma_separated(kind), metavar="A,B,…", help=meaning)
    parser.add_argument("--tuning-steps", type=int, metavar="N", help="steps of a try of a learning rate; without it, as many as healing has")
    parser.add_argument("--out", metavar="FOLDER", help="keep cells, tables (CSV) and report here; without it, in the store as every other run")
    parser.add_argument("--queue", action="store_true", help="leave it to a worker")
    parser.add_argument("--show", action="store_true", help="print the plan, complete, and do nothing")


def plan(arguments: argparse.Namespace) -> BakeOff:
    """The plan that the arguments describe."""
    try:
        found = BakeOff.from_json(Path(arguments.plan).read_text()) if arguments.plan else BakeOff()
    except OSError as error:
        raise LabError(f"The bake-off {arguments.plan} cannot be read: {error.strerror}. Give the path of a JSON file that --show printed.") from None
    changes = {name: getattr(arguments, name) for name in (*LISTS, "tuning_steps") if getattr(arguments, name) is not None}
    return dataclasses.replace(found, recipe=edit(found.recipe, arguments.set), **changes)


def bake(plan: BakeOff, folder: Path, reporter: Reporter) -> Report:
    """Run it with its cells in `folder`, and write plan.json, report.json and a CSV a table there."""
    from starfish_lab.bakeoff.run import run

    report = run(plan, reporter=reporter, folder=folder, device=plan.device)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plan.json").write_text(plan.to_json())
    (folder / "report.json").write_text(report.to_json())
    for name in report.tables:
        report.frame(name).to_csv(folder / f"{name}.csv", index=False)
    return report


def shown(report: Report, everything: bool) -> pd.DataFrame:
    """The table of healers: all of it as JSON, on a terminal what fits."""
    table = report.frame("healers")
    return table if everything else table.reindex(columns=list(SHOWN))

"""A sweep on the command line: a plan from a file and flags, and what is shown of its runs."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from typing import TYPE_CHECKING

import pandas as pd

from starfish_lab.arguments import comma_separated, plan_of
from starfish_lab.sweep.plan import Sweep

if TYPE_CHECKING:
    from starfish_lab.store import Store

LISTS = {
    "sparsities": (float, "e.g. 0.5,0.75"),
    "patterns": (str, "e.g. unstructured,structured,2:4"),
    "scores": (str, "e.g. magnitude,wanda"),
    "budgets": (str, "e.g. uniform,global"),
    "healers": (str, "e.g. starfish,dense+starfish,none"),
    "seeds": (int, "e.g. 0,1,2"),
}
ALL_AT_ONCE = {
    "pause": "hold back what waits; what runs goes on to its end",
    "resume": "give what is paused back to the queue",
    "cancel": "ask all runs that it made to stop",
    "retry": "queue again what failed or was cancelled",
}
SHOWN = ["run", "adopted", "status", "pattern", "sparsity", "score", "budget", "healer", "seed", "top1_pruned", "top1_healed", "recovered", "seconds"]


def add(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command, beside a recipe."""
    for name, (kind, meaning) in LISTS.items():
        parser.add_argument(f"--{name}", type=comma_separated(kind), metavar="A,B,…", help=f"{meaning}; without it, the recipe's own")
    parser.add_argument("--queue", action="store_true", help="leave its runs to workers")
    parser.add_argument("--show", action="store_true", help="print the plan, complete, and do nothing")
    known = parser.add_mutually_exclusive_group()
    known.add_argument("--of", type=int, metavar="RUN", help="show the runs of a sweep by its number")
    for name, meaning in ALL_AT_ONCE.items():
        known.add_argument(f"--{name}", type=int, metavar="RUN", help=f"of a sweep or run: {meaning}")


def plan(arguments: argparse.Namespace) -> Sweep:
    """The plan that the arguments describe. The file may hold a sweep, as --show prints, or a recipe."""
    found = plan_of(arguments, Sweep, lambda recipe: Sweep(recipe=recipe))
    changes = {name: getattr(arguments, name) for name in LISTS if getattr(arguments, name) is not None}
    return dataclasses.replace(found, **changes)


def main(arguments: argparse.Namespace) -> pd.DataFrame | str:
    """The command: plan, launch or change a sweep. Returns what it prints."""
    wish = next(((name, number) for name in ("of", *ALL_AT_ONCE) if (number := getattr(arguments, name)) is not None), None)
    wanted = None if wish else plan(arguments)
    if wanted and arguments.show:
        return wanted.to_json()
    from starfish_lab.store import Store
    from starfish_lab.sweep.here import work_off

    store = Store()
    if wish:
        name, sweep = wish
        calls = {"of": store.run, "pause": store.pause, "resume": store.resume, "cancel": store.request_cancel, "retry": store.retry}
        calls[name](sweep)
    else:
        sweep = store.submit(wanted, "sweep", owner="command line")
        print(f"run {sweep}", file=sys.stderr)
        if not arguments.queue:
            work_off(store, sweep, tell=lambda text: print(text, file=sys.stderr))
    return shown(store, sweep, arguments.json)


def shown(store: Store, number: int, everything: bool) -> pd.DataFrame:
    """The runs of a sweep with what those that are done have found: all columns as JSON, on a terminal what fits. Of a single run, its status."""
    run = store.run(number)
    if run.kind != "sweep":
        return pd.DataFrame([{"run": number, "kind": run.kind, "status": run.status}])
    rows = store.sweep_runs(number)
    figures = store.runs(None, ids=rows["run"]).rename(columns={"id": "run"})
    table = rows.merge(figures.drop(columns=[name for name in rows if name != "run" and name in figures]), on="run", how="left")
    return table if everything else table.reindex(columns=SHOWN)

"""Latency on the command line: a plan from a file and flags, what is shown of its report, and files from other machines."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import pandas as pd

from starfish_lab.arguments import plan_of
from starfish_lab.errors import LabError
from starfish_lab.latency import results_file
from starfish_lab.latency.plan import LatencyPlan, spread
from starfish_lab.progress import Reporter
from starfish_lab.report import Report

SHOWN = (
    "execution", "batch", "latency_ms_p50", "latency_ms_p90", "latency_ms_p99", "images_per_s", "speedup", "speedup_low", "speedup_high",
    "speedup_best", "best_dense", "peak_share", "joules_per_image", "starts", "note",
)  # fmt: skip


def add(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command, beside the recipe."""
    parser.add_argument("--executions", metavar="A,B,…", help="e.g. masked,sliced,merged+sliced; with ';' between them also whole labels")
    parser.add_argument("--precisions", metavar="A,B,…", help="each execution in each: float32, tf32, fp16, bf16, autocast")
    parser.add_argument("--compile", action="store_true", help="each of them through torch.compile too")
    parser.add_argument("--batches", metavar="N,M,…", help="batch sizes, e.g. 1,8,64")
    parser.add_argument("--seconds", type=float, help="timed, of each execution at each batch size")
    parser.add_argument("--starts", type=int, metavar="N", help="fresh processes that share these seconds; 1: this process alone")
    parser.add_argument("--no-layers", action="store_true", help="leave the times by layer out")
    parser.add_argument("--out", metavar="FILE", help="write a results file instead of using the store; needs no package of the app")
    parser.add_argument("--import", dest="imported", metavar="FILE", help="put a results file of another machine into the store")
    parser.add_argument("--queue", action="store_true", help="leave it to a worker")
    parser.add_argument("--show", action="store_true", help="print the plan, complete, and do nothing")


def plan(arguments: argparse.Namespace) -> LatencyPlan:
    """The plan that the arguments describe. The file may hold one, as --show prints, or a recipe."""
    found = plan_of(arguments, LatencyPlan, LatencyPlan.of)
    labels = _listed(arguments.executions) or found.executions
    changes: dict[str, object] = {"executions": spread(labels, _listed(arguments.precisions), compiled=arguments.compile)}
    if arguments.batches:
        changes["batches"] = tuple(map(_batch, _listed(arguments.batches)))
    if arguments.seconds is not None:
        changes["seconds"] = arguments.seconds
    if arguments.starts is not None:
        changes["starts"] = arguments.starts
    if arguments.no_layers:
        changes["layers"] = False
    return replace(found, **changes)


def measure(plan: LatencyPlan, out: Path, reporter: Reporter) -> Report:
    """Time it here and write the results file; the store is not touched."""
    from starfish_lab.latency.run import run

    if not out.parent.is_dir():
        raise LabError(f"There is no folder {out.parent} for {out.name}. Make it first, or give another file with --out.")
    report = run(plan, reporter=reporter, device=plan.device)
    results_file.write(out, report, plan)
    return report


def shown(report: Report, everything: bool) -> pd.DataFrame:
    """The table latency: all of it as JSON, on a terminal what fits."""
    table = report.frame("latency")
    return table if everything else table.reindex(columns=[name for name in SHOWN if name in table and table[name].notna().any()])


def _listed(text: str | None) -> list[str]:
    parts = (text or "").split(";" if ";" in (text or "") else ",")
    return [part.strip() for part in parts if part.strip()]


def _batch(text: str) -> int:
    if not text.isdigit():
        raise LabError(f"'{text}' is no batch size: give whole numbers with commas, such as --batches 1,8,64.")
    return int(text)

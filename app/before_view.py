"""What a run did before and while it pruned: its cycles, the order of inputs, what its solver saved. Closed until asked for."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from app import frame, results
from app.charts import cycles, projection, theme
from starfish_lab.report import Report
from starfish_lab.store import Run

NAMES = {"cycles": "Cycles", "permutation": "Order of inputs", "solver": "Solver"}
CAPTIONS = {
    "cycles": "A phase of training goes from its hollow mark to the filled one, on its own training images. "
    "Selection has a loss of its own, not to be compared with training's. "
    "The loss of one batch says little: look at the trend, and at the accuracy above for unseen images.",
    "permutation": "The pattern keeps the most important weights of every group; the order decides who competes. "
    "Importance is not accuracy: a run without the new order tells what it was worth.",
    "solver": "The expected squared change of a layer's outputs on the calibration images, against keeping the largest weights. "
    "Layers are judged one by one, so it does not say what their errors make of each other.",
}
_number = st.column_config.NumberColumn
CYCLES = {
    "cycle": "Cycle", "sparsity": _number("Sparsity", format="percent"), "phase": "Phase", "method": "Method",
    "weights_removed": _number("Removed", format="localized"), "restored": _number("Restored", format="localized"), "steps": "Steps",
    "loss_first": _number("Loss at first", format="%.3g"), "loss_last": _number("Loss at last", format="%.3g"),
    "seconds": _number("Time (s)", format="%.3g"), "learning_rate": _number("Learning rate", format="%.1e"),
}  # fmt: skip


def section(run: Run, report: Report) -> None:
    """One expander with a part for each table that the run has; nothing where it has none."""
    there = [table for table in NAMES if len(report.frame(table))]
    if not there:
        return
    opened = st.expander("How it was pruned: " + ", ".join(NAMES[table].lower() for table in there), on_change="rerun", key=f"before.{run.id}")
    if not opened.open:
        return
    with opened:
        for table in there:
            {"cycles": _cycles, "permutation": _order, "solver": _solver}[table](run, report)


def figures(report: Report) -> list:
    """The same charts on white, for the run's page of charts."""
    found = []
    if "loss_last" in report.frame("cycles") and report.frame("cycles")["loss_last"].notna().any():
        found.append(cycles.cycles(report.frame("cycles")))
    if len(rows := _by_depth(report, "permutation")):
        found.append(projection.kept(rows))
    if len(rows := _by_depth(report, "solver")) and "cost_magnitude" in rows:
        found.append(projection.saved(rows, solver="The solver"))
    return found


def _cycles(run: Run, report: Report) -> None:
    rows = report.frame("cycles")
    if "loss_last" in rows and rows["loss_last"].notna().any():
        fig = cycles.cycles(rows, dark=frame.dark(), keep=run.id)
        frame.chart(fig, key=f"run_{run.id}_cycles", caption=CAPTIONS["cycles"], data=rows)
    frame.table(rows, key=f"run_{run.id}_cycles_table", column_config=CYCLES, placeholder="–")


def _order(run: Run, report: Report) -> None:
    rows = _by_depth(report, "permutation")
    fig = projection.kept(rows, dark=frame.dark(), keep=run.id)
    caption = f"**{projection.gathers(rows)}** {_timed(rows, report)}{CAPTIONS['permutation']}"
    frame.chart(fig, key=f"run_{run.id}_order", caption=caption, data=rows)


def _timed(rows: pd.DataFrame, report: Report) -> str:
    """What the clock made of a network that gathers, in a sentence; '' where nothing gathers."""
    if not (rows["values_moved"] > 0).any():
        return ""
    timed = report.frame("latency")
    timed = timed[timed["stage"] != "dense"].sort_values("batch") if len(timed) else timed
    if timed.empty:
        return "No latency was measured, so what that costs in time is not known. "
    row = timed.iloc[0]
    return (
        f"Measured with all it gathers, the {row['stage']} network runs at {theme.number(row['speedup'])}× the dense one's speed "
        f"({theme.number(row['speedup_low'])} to {theme.number(row['speedup_high'])}, batch {row['batch']}; more under Latency). "
        "How much of that is the gathering takes a run without it. "
    )


def _solver(run: Run, report: Report) -> None:
    rows, solver = _by_depth(report, "solver"), results.name(run.recipe.pruning.score)
    if "cost_magnitude" in rows:
        fig = projection.saved(rows, solver=solver, dark=frame.dark(), keep=run.id)
        frame.chart(fig, key=f"run_{run.id}_solver", caption=CAPTIONS["solver"], data=rows)
    else:
        frame.table(rows, key=f"run_{run.id}_solver_table")


def _by_depth(report: Report, table: str) -> pd.DataFrame:
    """A table's rows with block and depth of their layers, in the order of the network."""
    rows, layers = report.frame(table), report.frame("layers")
    if rows.empty or layers.empty:
        return rows.iloc[:0]
    return layers[["layer", "block", "depth"]].merge(rows.drop(columns=["block", "depth"], errors="ignore"), on="layer")

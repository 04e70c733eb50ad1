"""A bake-off as far as it has come, from the figures its run reports: torch-free, for pages.

Figures are named FIGURE:LABEL, the label being the cell's. Curves: 'loss' (step → loss), 'accuracy' and 'seconds' (at looks),
'tuning' (number of the try → divergence). Once a cell is finished: those of FINAL, at its number of steps.
"""

from __future__ import annotations

import dataclasses

import pandas as pd

from starfish_lab.bakeoff.plan import Cell

CURVES = ("loss", "accuracy", "seconds")
FINAL = {  # figure: column of the table 'healers'
    "top1": "top1", "low": "low", "high": "high", "share": "share", "drift": "drift", "kl": "kl", "healing_seconds": "healing_seconds",
    "peak_memory": "peak_memory_bytes", "dense": "top1_dense", "pruned": "top1_pruned",
}  # fmt: skip
KEYS = [field.name for field in dataclasses.fields(Cell)]


def curves(events: pd.DataFrame) -> pd.DataFrame:
    """One row a cell and step, in the order they came: healer, seed, sparsity, images, steps, step, loss, accuracy, seconds."""
    found = _named(events, CURVES)
    wide = found.pivot_table(index=["label", "step"], columns="figure", values="value", sort=False).reindex(columns=CURVES)
    return _with_cells(wide.reset_index()).reindex(columns=[*KEYS, "step", *CURVES])


def finished(events: pd.DataFrame) -> pd.DataFrame:
    """One row a finished cell, in the order they came: healer, seed, sparsity, images, steps, and the columns of FINAL."""
    found = _named(events, FINAL)
    wide = found.pivot_table(index="label", columns="figure", values="value", sort=False).reindex(columns=list(FINAL)).rename(columns=FINAL)
    return _with_cells(wide.reset_index()).reindex(columns=[*KEYS, *FINAL.values()])


def _named(events: pd.DataFrame, figures) -> pd.DataFrame:
    """Columns figure, label, step, value of the figures asked for."""
    parts = events["name"].str.partition(":")
    found = pd.DataFrame({"figure": parts[0], "label": parts[2], "step": events["step"], "value": events["value"]}) if len(events) else parts
    return found.reindex(columns=["figure", "label", "step", "value"])[lambda f: f["figure"].isin(list(figures))]


def _with_cells(frame: pd.DataFrame) -> pd.DataFrame:
    cells = pd.DataFrame([dataclasses.asdict(Cell.of(label)) for label in frame["label"]], columns=KEYS, index=frame.index)
    return cells.join(frame.drop(columns="label"))

"""Arithmetic intensity of what was timed: FLOP a byte, by rule, from the pieces that the lab knows of each network."""

from __future__ import annotations

import pandas as pd

from app import profiles, state
from starfish_lab.errors import LabError
from starfish_lab.execution.choice import Execution
from starfish_lab.prediction import shapes
from starfish_lab.prediction.pieces import BYTES, MATRIX_KINDS, Piece

UNPROFILED = "How many bytes a pass of {model} moves is not known before it has a profile: open Explore with it, and a worker makes one."


def points(rows: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Rows with the column `intensity` (FLOP/byte), and why some are left out, '' where none is.

    The work is the row's own (2 · MACs), the traffic that of its pieces: each reads its weights and inputs and writes its outputs once.
    """
    found, why = [], {}
    for number, of_run in rows.groupby("run", sort=False):
        recipe = state.store().run(int(number)).recipe
        profile = profiles.find(recipe.model)
        if profile is None:
            why[UNPROFILED.format(model=recipe.model.name)] = True
            continue
        for row in of_run.to_dict("records"):
            try:
                pieces = shapes.after(profile, recipe, Execution.of(row["execution"]))
            except LabError as error:
                why[str(error)] = True
                continue
            found.append({**row, "intensity": intensity(pieces, macs_g=row["macs_g"], batch=int(row["batch"]), precision=row["precision"])})
    return pd.DataFrame(found, columns=[*rows.columns, "intensity"]), " ".join(why)


def intensity(pieces: list[Piece], *, macs_g: float, batch: int, precision: str) -> float:
    """FLOP a byte of a pass over `batch` images; `macs_g` is of one image.

    >>> fc = Piece(name="fc", depth=0, kind="linear", variant="", m=1, n=100, k=50)
    >>> round(intensity([fc], macs_g=5000e-9, batch=10, precision="float32"), 4)  # 2 · 5000 · 10 over 4 (10 · 50 + 50 · 100 + 10 · 100)
    3.8462
    """
    return 2e9 * macs_g * batch / (BYTES[precision] * sum(moved(piece, batch) for piece in pieces))


def moved(piece: Piece, batch: int) -> int:
    """Numbers that a piece reads and writes over a batch: its weights once, its inputs and outputs for every image."""
    rows = piece.m * batch
    if piece.kind in MATRIX_KINDS:
        return piece.n * piece.k + rows * (piece.k + piece.n)
    return (4 * piece.k if piece.kind == "attention" else 2) * rows * piece.n

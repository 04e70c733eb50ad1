"""The table of layer times as a function: from the shape of a piece to its time, measured or interpolated. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

import numpy as np
import pandas as pd
from scipy.optimize import nnls

from starfish_lab.prediction.pieces import BYTES, terms

SHAPE = ["kind", "variant", "kernel", "m", "n", "k"]
PASS = "pass"
MERGED = "merged"  # how the names of forms begin that merge tokens
POWER = 4  # of distance by which a neighbour counts less: the nearest decide

Shape = tuple[str, str, str, int, int, int]  # kind, variant, kernel, m of the whole batch, n, k


@dataclass(frozen=True)
class Total:
    """What pieces take together, ms: in all, the part of it that was interpolated, and the shapes of families never timed."""

    ms: float
    interpolated_ms: float
    unknown: tuple[Shape, ...]


class Times:
    """Times of pieces, from rows of a table of layer times of one device and precision.

    A shape that was timed takes the median of its rows. Another takes Σ rate · term over the `pieces.terms` of its family, rates ≥ 0
    fitted to the measured shapes by relative least squares, times exp of the mean of log(measured / fitted) over these, weighted by
    1 / distance⁴ in log m, log n, log k. Pieces between merged tokens keep worse company and are no measure for others, so forms that
    merge count only if `merged`, and then before others.
    """

    def __init__(self, rows: pd.DataFrame, *, merged: bool = False):
        width = BYTES[rows["precision"].iloc[0]]
        rows = rows.loc[rows["kind"] != PASS, ["form", *SHAPE, "ms"]]
        merges = rows["form"].str.startswith(MERGED)
        plain, company = _by_shape(rows[~merges]), _by_shape(rows[merges]) if merged else {}
        self._known: dict[Shape, float] = plain | company
        by_family: dict[tuple[str, str, str], dict[Shape, float]] = {}
        for shape, ms in self._known.items():
            by_family.setdefault(shape[:3], {})[shape] = ms
        self._families = {name: _Family(name[0], shapes, width) for name, shapes in by_family.items()}

    def total(self, counts: Mapping[Shape, int]) -> Total:
        """Of pieces given as {shape: how many}."""
        whole, interpolated, unknown = 0.0, 0.0, []
        for shape, count in counts.items():
            if shape in self._known:
                whole += count * self._known[shape]
            elif shape[:3] in self._families:
                ms = count * self._families[shape[:3]].interpolated(*shape[3:])
                whole, interpolated = whole + ms, interpolated + ms
            else:
                unknown.append(shape)
        return Total(whole, interpolated, tuple(unknown))

    def to_start(self, counts: Mapping[Shape, int]) -> float:
        """What the pieces would take in all, ms, were they as small as can be: the constants of their families' fits."""
        return sum(count * self._families[shape[:3]].rates[0] for shape, count in counts.items() if shape[:3] in self._families)


def _by_shape(rows: pd.DataFrame) -> dict[Shape, float]:
    found: dict[Shape, list[float]] = {}
    for *shape, ms in sorted(rows[[*SHAPE, "ms"]].itertuples(index=False, name=None)):
        found.setdefault(tuple(shape), []).append(ms)
    return {shape: median(taken) for shape, taken in found.items()}


class _Family:
    """Pieces that differ in shape alone: a fit to their times, and how far each lies off it."""

    def __init__(self, kind: str, shapes: dict[Shape, float], width: int):
        self.kind, self.width = kind, width
        self.shapes = np.array([shape[3:] for shape in shapes], dtype=float)  # (shapes, 3)
        ms = np.array(list(shapes.values()))
        parts = self._terms(self.shapes)
        self.rates, _ = nnls(parts / ms[:, None], np.ones(len(ms)))
        self.off = np.log(ms / (parts @ self.rates))

    def interpolated(self, m: int, n: int, k: int) -> float:
        shape = np.array([[m, n, k]], dtype=float)
        distance = np.linalg.norm(np.log1p(self.shapes) - np.log1p(shape), axis=1)
        weights = 1 / np.maximum(distance, 1e-6) ** POWER
        return float((self._terms(shape) @ self.rates)[0] * np.exp(weights @ self.off / weights.sum()))

    def _terms(self, shapes: np.ndarray) -> np.ndarray:
        return terms(self.kind, *shapes.T, self.width)

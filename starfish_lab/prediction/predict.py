"""From what is left of a network's pieces and a table of layer times to the speed-up to expect. An estimate; no torch.

A pass takes Σ times of its pieces + beside · number of pieces, where `beside` is what the passes that were timed as a whole take more (or,
for the hooks in them, less) than the sum of their pieces: their median at the batch nearest to the one asked for, over forms that merge tokens
where the one asked for does, else over those that do not. The interval is the
95 % one of a t distribution around log speed-up, with the error that this rule makes on the forms that were timed as a whole: in
part that of a form whose pieces were all timed, in part that of a form whose own rows are left out of the table, in the proportion in
which the time asked for is measured and interpolated; and the spread of the whole passes themselves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from starfish_lab.prediction.pieces import MATRIX_KINDS
from starfish_lab.prediction.times import MERGED, PASS, SHAPE, Shape, Times

FASTER, NOT_FASTER, UNKNOWN = "faster", "not faster", "unknown"
WORTH = 1.05  # an interval that ends below this is no speed-up
WIDE = 0.4  # half an interval, in log, from which on a reason is worth saying
FURTHEST = 1.5  # times the batches that were timed, beyond which nothing is said
KEY = ["model", "form", "batch"]  # of a pass that was timed as a whole

Key = tuple[str, str, int]


@dataclass(frozen=True)
class Prediction:
    """The speed-up to expect over the dense network in the same precision. `low`, `high`: 95 %; all None where nothing can be said.

    interpolated : share of the fast pass's time whose shapes were not timed themselves
    dense_ms, fast_ms : the two passes
    """

    speedup: float | None = None
    low: float | None = None
    high: float | None = None
    verdict: str = UNKNOWN
    reasons: list[str] = field(default_factory=list)
    interpolated: float = 0.0
    dense_ms: float | None = None
    fast_ms: float | None = None


def predict(dense: Mapping[Shape, int], fast: Mapping[Shape, int], table: pd.DataFrame, batch: int, precision: str = "float32") -> Prediction:
    """The speed-up of `fast` over `dense`, both {shape: how many} as of `shapes.counted` at this batch.

    table : rows of tables `layer_times` of one device
    """
    rows = table[table["precision"] == precision] if len(table) else table
    if rows.empty:
        return Prediction(reasons=[f"Nothing was timed in {precision} on this device."])
    timed = sorted(rows["batch"].unique())
    if not timed[0] / FURTHEST <= batch <= timed[-1] * FURTHEST:
        return Prediction(reasons=[f"Batch {batch} lies outside what was timed ({_said(timed)}): time it too."])
    passes = _Passes(rows)
    merged = any(shape[0] == "merging" for shape in fast)
    before, behind = passes.times().total(dense), passes.times(merged=merged).total(fast)
    if unknown := {*before.unknown, *behind.unknown}:
        return Prediction(reasons=[_untimed(unknown)])
    slow_ms = _whole(before.ms, dense, passes.beside(batch))
    fast_ms = _whole(behind.ms, fast, passes.beside(batch, merged=merged))
    speedup, share = slow_ms / fast_ms, behind.interpolated_ms / behind.ms
    reach = None if (foreign := _foreign(dense, rows)) else passes.reach(batch, share)
    found = {"speedup": speedup, "interpolated": share, "dense_ms": slow_ms, "fast_ms": fast_ms}
    if reach is None:
        alone = "Only the dense network was timed as a whole, so how far this is off cannot be told."
        return Prediction(**found, reasons=[foreign or alone])
    low, high = speedup * math.exp(-reach), speedup * math.exp(reach)
    wide = f"the table misses its own passes by a factor of up to {math.exp(reach):.1f}: time it on a quiet machine, and at this batch"
    return Prediction(**found, low=low, high=high, verdict=verdict(low, high), reasons=[wide] if reach > WIDE else [])


def verdict(low: float, high: float) -> str:
    """
    >>> verdict(1.2, 1.4), verdict(0.8, 1.02), verdict(0.9, 1.3)
    ('faster', 'not faster', 'unknown')
    """
    return FASTER if low > 1 else NOT_FASTER if high < WORTH else UNKNOWN


class _Passes:
    """The passes that were timed as a whole, each with its pieces, and how far the rule of this file is off on them."""

    def __init__(self, rows: pd.DataFrame):
        self.rows = rows
        self._times: dict[tuple, Times] = {}
        passes, pieces = rows[rows["kind"] == PASS], rows[rows["kind"] != PASS]
        spread = (passes["ms_high"] - passes["ms_low"]) / passes["ms"] / 3.92
        by = passes.assign(spread=spread).groupby(KEY)
        self.ms: dict[Key, float] = by["ms"].median().to_dict()
        self.spread: dict[Key, float] = by["spread"].mean().to_dict()
        self.counts: dict[Key, dict[Shape, int]] = {key: {} for key in self.ms}
        for key, count in pieces.groupby([*KEY, *SHAPE])["count"].max().items():
            if key[:3] in self.counts:
                self.counts[key[:3]][key[3:]] = count
        totals = pieces.assign(ms=pieces["ms"] * pieces["count"]).groupby(KEY)["ms"].sum()
        self._beside: dict[bool, dict[int, list[float]]] = {False: {}, True: {}}  # {merged: {batch: ms a piece}}
        for key, times_measured in by.size().items():
            own = self.ms[key] - totals[key] / times_measured
            self._beside[key[1].startswith(MERGED)].setdefault(key[2], []).append(own / sum(self.counts[key].values()))

    def beside(self, batch: int, *, merged: bool = False) -> float:
        """What a pass takes beside its pieces, ms a piece, where tokens merge or not; 0 where none was timed as a whole."""
        alike = self._beside[merged] or self._beside[False]
        if not alike:
            return 0.0
        return float(np.median(alike[min(alike, key=lambda timed: abs(math.log(timed / batch)))]))

    def reach(self, batch: int, interpolated: float) -> float | None:
        """Half the width of the interval, in log; None where no form but the dense one tells."""
        timed = [key for key in self.ms if key[1] != "dense" and (key[0], "dense", key[2]) in self.ms]
        if not timed:
            return None
        here = [key for key in timed if key[2] == batch]
        if here:
            known, guessed = [self._miss(key) for key in here], [self._miss(key, without=key[:2]) for key in here]
        else:  # the batch itself is interpolated: how far would each one that was timed be off, if it (of one alone, its form) had not been?
            several = self.rows["batch"].nunique() > 1
            known = guessed = [self._miss(key, **({"without_batch": key[2]} if several else {"without": key[:2]})) for key in timed]
        variance = sum(share * _square(found) for share, found in ((1 - interpolated, known), (interpolated, guessed)))
        variance += 2 * np.mean([self.spread[key] ** 2 for key in here or timed])
        return float(stdtrit(len(known), 0.975) * math.sqrt(variance))

    def times(self, *, merged: bool = False, without: tuple[str, str] | None = None, without_batch: int | None = None) -> Times:
        """The table as a function; without the rows of a (model, form) or a batch, where any are left then."""
        key = (merged, without, without_batch)
        if key not in self._times:
            rows = self.rows
            gone = rows["batch"] == without_batch
            if without:
                gone |= (rows["model"] == without[0]) & (rows["form"] == without[1])
            self._times[key] = Times(rows if gone.all() else rows[~gone], merged=merged)
        return self._times[key]

    def _miss(self, key: Key, **without: object) -> float:
        """log(predicted / measured) of the speed-up of a form that was timed as a whole, with the table as it is or without some of its rows."""
        model, form, batch = key
        merged, slow = form.startswith(MERGED), (model, "dense", batch)
        dense_rows = {} if "without" in without else without  # the dense network is always timed, but for a whole batch
        found = []
        for one, options, left in ((slow, {}, dense_rows), (key, {"merged": merged}, without)):
            total = self.times(**options, **left).total(self.counts[one])
            only = self.times(**options).total({shape: self.counts[one][shape] for shape in total.unknown})  # families of these rows alone
            found.append(_whole(total.ms + only.ms, self.counts[one], self.beside(batch, **options)))
        return math.log(found[0] / found[1] / (self.ms[slow] / self.ms[key]))


def _whole(ms: float, counts: Mapping[Shape, int], beside: float) -> float:
    """A pass from the sum of its pieces; hooks make pieces dearer than they are, but not by more than half."""
    return max(ms + beside * sum(counts.values()), ms / 2)


def _foreign(dense: Mapping[Shape, int], rows: pd.DataFrame) -> str:
    """Why the table does not vouch for this network, '' where it does: layers of other sizes may lie far outside what was timed."""
    known = set(zip(rows["kind"], rows["n"], rows["k"]))
    if all((kind, n, k) in known for kind, _, _, _, n, k in dense if kind in MATRIX_KINDS):
        return ""
    return f"The table is of other networks ({', '.join(sorted(rows['model'].unique()))}), so how far this is off cannot be told: time this one."


def _square(values: list[float]) -> float:
    return float(np.mean(np.square(values)))


def _untimed(shapes: set[Shape]) -> str:
    kind, variant, kernel, *_ = sorted(shapes)[0]
    what = f"{kind} layers through the kernel '{kernel}'" if kernel else f"{kind} ({variant})" if variant else f"{kind} layers"
    return f"Nothing like it was timed on this device: {what}. Time the network there."


def _said(batches: list[int]) -> str:
    return f"batch {batches[0]}" if len(batches) == 1 else f"batches {batches[0]} to {batches[-1]}"

"""How good the predictions were: each beside the latency that was measured afterwards. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pandas as pd

from starfish_lab.errors import LabError
from starfish_lab.execution.choice import DENSE, Execution
from starfish_lab.prediction.card import ESTIMATE, card
from starfish_lab.recipe import Recipe
from starfish_lab.whatif import Profile

COLUMNS = (
    "execution", "batch", "precision", "predicted", "low", "high", "measured", "measured_low", "measured_high", "error", "inside",
)  # fmt: skip


@dataclass(frozen=True)
class Score:
    """Over `rows` predictions: the median of |predicted / measured − 1|, and the share of measurements inside the interval."""

    rows: int
    median_error: float | None = None
    inside: float | None = None

    def __str__(self) -> str:
        if not self.rows:
            return "No prediction can be compared with a measurement yet."
        return f"{self.rows} predictions: off by {self.median_error:.1%} in the median, {self.inside:.0%} of the measurements inside the interval."


def compared(profile: Profile, recipe: Recipe, table: pd.DataFrame | Iterable[Mapping], latency: pd.DataFrame | Iterable[Mapping]) -> pd.DataFrame:
    """Predictions beside measured rows, one row each, columns COLUMNS; `error` is predicted / measured − 1.

    Rows that count: an execution other than the dense network, measured on the table's device with as many threads, of which the table
    predicts a speed-up. Speed-ups are over the dense network in the same precision on both sides.

    table : rows of `layer_times`, latency : rows of `latency` of the same recipe
    """
    table, latency = (rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows)) for rows in (table, latency))
    found = []
    for row in latency.to_dict("records"):
        execution = _execution(row)
        if execution is None or row.get("speedup") is None or pd.isna(row["speedup"]):
            continue
        here = table[(table["device_name"] == row.get("device_name")) & (table["threads"] == row.get("threads"))] if len(table) else table
        said = card(profile, recipe, here, execution, int(row["batch"]))
        if said.kind != ESTIMATE or said.speedup is None or said.low is None:
            continue
        measured = float(row["speedup"])
        found.append({
            "execution": execution.label, "batch": int(row["batch"]), "precision": execution.precision,
            "predicted": said.speedup, "low": said.low, "high": said.high,
            "measured": measured, "measured_low": row.get("speedup_low"), "measured_high": row.get("speedup_high"),
            "error": said.speedup / measured - 1, "inside": said.low <= measured <= said.high,
        })  # fmt: skip
    return pd.DataFrame(found, columns=list(COLUMNS))


def score(rows: pd.DataFrame) -> Score:
    """The score of rows of `compared`, of as many runs as there are.

    >>> str(score(pd.DataFrame({"error": [0.1, -0.2, 0.0], "inside": [True, False, True]})))
    '3 predictions: off by 10.0% in the median, 67% of the measurements inside the interval.'
    """
    if rows.empty:
        return Score(0)
    return Score(len(rows), float(rows["error"].abs().median()), float(rows["inside"].mean()))


def _execution(row: Mapping) -> Execution | None:
    """The execution of a latency row; None of the dense network, and of rows whose execution is not known any more."""
    try:
        execution = Execution.of(str(row["execution"]))
    except LabError:
        return None
    return None if execution.backend == DENSE and not execution.merged else execution

"""What the card 'Will it be faster?' rests on: which table of layer times, which executions, predictions beside what was measured. No Streamlit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pandas as pd

from app.charts import theme
from starfish_lab.execution import BACKENDS
from starfish_lab.execution.choice import Execution
from starfish_lab.jobs import accelerators
from starfish_lab.latency.plan import usual
from starfish_lab.prediction.card import Card
from starfish_lab.recipe import Recipe

WIDE = 10  # high / low of an interval that says nothing


def tables(rows: pd.DataFrame, *, model: str, wanted: str = "auto") -> dict[str, pd.DataFrame]:
    """{device's name: its rows of layer times}, the device timed last first: those that `wanted`, a recipe's device, may mean.

    `rows` are of tables `layer_times`, oldest run first. Of a device that timed this very network only those rows are taken: other
    networks' shapes can only be interpolated from.
    """
    if rows.empty:
        return {}
    fits = [accelerators.fits(wanted, device, name) for device, name in zip(rows["device"], rows["device_name"])]
    found = {}
    for name, of_device in rows[pd.Series(fits, index=rows.index, dtype=bool)].groupby("device_name", sort=False):
        own = of_device[of_device["model"] == model]
        timed = own.groupby(["fingerprint", "batch", "precision"])["run"].transform("max")
        own = own[own["run"] == timed]  # what was measured again takes the place of the first
        found[str(name)] = own if len(own) else of_device
    return dict(reversed(found.items()))


def executions(recipe: Recipe, precisions: Iterable[str] = ()) -> list[str]:
    """How the recipe's network may run, the fastest first, in each of the precisions that were timed.

    >>> executions(Recipe(), ["float32"])
    ['masked']
    """
    found = []
    for execution in map(Execution.of, reversed(usual(recipe))):
        timed = [precision for precision in precisions if precision in BACKENDS.constant(execution.backend, "PRECISIONS", ())]
        found += [replace(execution, precision=precision).label for precision in timed] or [execution.label]
    return list(dict.fromkeys(found))


def expected(card: Card) -> str:
    """The speed-up to expect with its interval; '' where there is none.

    >>> expected(Card(execution="sliced", batch=8, precision="float32", verdict="faster", headline="", kind="estimate", basis="",
    ...               speedup=1.6, low=1.5, high=1.7))
    '1.60× (1.50 to 1.70)'
    """
    if card.speedup is None:
        return ""
    return f"{card.speedup:.2f}×" + (f" ({card.low:.2f} to {card.high:.2f})" if card.low is not None and card.high is not None else "")


def headline(card: Card) -> str:
    """The card's answer without its full stop; an interval as wide as WIDE says nothing, so its figures are left out.

    >>> headline(Card(execution="sliced", batch=8, precision="float32", verdict="unknown", headline="Cannot be told: about 1.4 times.",
    ...               kind="estimate", basis="", speedup=1.4, low=0.1, high=20.0))
    'Cannot be told: the interval spans more than a factor of 10 (estimate)'
    """
    if card.low is not None and card.high is not None and card.high > WIDE * card.low:
        return f"Cannot be told: the interval spans more than a factor of {WIDE} (estimate)"
    return card.headline.rstrip(".")


def outcome(row: dict[str, object]) -> str:
    """A prediction beside its measurement, in words; `row` is of `prediction.score.compared`.

    >>> outcome(dict(execution="sliced", batch=8, predicted=1.6, low=1.5, high=1.7, measured=1.65, inside=True))
    'Sliced, batch 8: predicted 1.60 (1.50 to 1.70), measured 1.65: within the interval.'
    """
    where = "within the interval" if row["inside"] else "above the interval" if row["measured"] > row["high"] else "below the interval"
    said = f"predicted {row['predicted']:.2f} ({row['low']:.2f} to {row['high']:.2f}), measured {row['measured']:.2f}: {where}."
    return f"{theme.sentence(str(row['execution']))}, batch {int(row['batch'])}: {said}"

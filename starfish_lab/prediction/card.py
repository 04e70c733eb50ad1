"""'Will it be faster?': all that can be said before a run, for a page. Plain data; no torch.

>>> card(profile, recipe, rows, "sliced", 8, device="cpu").headline                    # doctest: +SKIP
'Faster: about 1.7 times, 1.5 to 1.9 (estimate).'
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import pandas as pd

from starfish_lab import literature
from starfish_lab.execution.choice import DENSE, Execution
from starfish_lab.jobs import accelerators
from starfish_lab.jobs.accelerators import GPU
from starfish_lab.prediction import forms, reasons, shapes
from starfish_lab.prediction.pieces import Piece
from starfish_lab.prediction.predict import FASTER, NOT_FASTER, UNKNOWN, Prediction, predict, verdict
from starfish_lab.prediction.times import Times
from starfish_lab.recipe import Recipe
from starfish_lab.whatif import Profile, cannot_merge

ESTIMATE, RULE, NO_TABLE, LITERATURE, REFUSED = "estimate", "rule", "no table", "literature", "refused"
FUSED = ("norm", "elementwise", "block")  # what torch.compile can make part of what stands beside it


@dataclass(frozen=True, kw_only=True)
class Card:
    """The answer, and where it comes from.

    verdict : 'faster', 'not faster' or 'unknown'
    headline : the answer in a sentence
    speedup, low, high : over the dense network in the same precision, with the 95 % interval; None where nothing is estimated
    kind : 'estimate' (from layer times), 'rule' (follows without any), 'no table', 'literature' (published timings only), 'refused'
    basis : what the answer rests on, in a sentence
    seconds_to_measure : about how long measuring the table takes, where it is missing
    """

    execution: str
    batch: int
    precision: str
    verdict: str
    headline: str
    kind: str
    basis: str
    speedup: float | None = None
    low: float | None = None
    high: float | None = None
    reasons: tuple[str, ...] = ()
    seconds_to_measure: float | None = None


def card(
    profile: Profile, recipe: Recipe, rows: pd.DataFrame | Iterable[Mapping], execution: str | Execution, batch: int,
    precision: str | None = None, *, device: str = "",
) -> Card:  # fmt: skip
    """What to expect of a recipe's network run so.

    rows : of tables `layer_times` of the chosen device, of as many runs as there are; those of the last fingerprint count
    execution : or its label; its precision, unless `precision` says otherwise
    device : as the recipe would name it ('cpu', 'cuda:0', 'gpu:A40'), for what is said where no table is
    """
    execution = execution if isinstance(execution, Execution) else Execution.of(execution)
    execution = replace(execution, precision=precision or execution.precision)
    known = {"execution": execution.label, "batch": batch, "precision": execution.precision}
    try:
        dense, fast = shapes.dense(profile), shapes.after(profile, recipe, execution)
    except shapes.Unpredictable as error:
        return Card(**known, verdict=UNKNOWN, headline="No answer before a run.", kind=REFUSED, basis=str(error))
    why = list(reasons.by_rule(dense, fast, execution, batch))
    if not execution.merged and execution.backend in (DENSE, "masked"):
        same = "This is the dense network itself." if execution.backend == DENSE else f"Not faster: {reasons.MASK_ONLY.partition(':')[0]}."
        return Card(
            **known, verdict=NOT_FASTER, headline=same, kind=RULE, basis="By rule: every shape stays as it is.", speedup=1.0, reasons=tuple(why)
        )
    table = _latest(rows)
    place = str(table["device"].iloc[-1]) if len(table) else device
    if reason := _refusal(execution, place):
        return Card(**known, verdict=UNKNOWN, headline="No answer before a run.", kind=REFUSED, basis=reason, reasons=tuple(why))
    if table.empty:
        return _without_table(profile, recipe, execution, batch, device, why, known)
    found = _predicted(dense, fast, table, execution, batch)
    if found.speedup is None:
        seconds = _seconds(profile, recipe, batch, place)
        basis = f"{' '.join(found.reasons)} The table is of {_device(table)}: measure it for this network and batch (about {seconds:.0f} s)."
        said = {"headline": "Unknown: the table does not reach so far.", "kind": NO_TABLE, "basis": basis, "seconds_to_measure": seconds}
        return Card(**known, **said, verdict=UNKNOWN, reasons=tuple(why))
    own = table[table["precision"] == execution.precision]
    why += reasons.by_times(fast, own, Times(own, merged=execution.merged), batch, found.interpolated)
    return Card(
        **known, verdict=found.verdict, headline=_headline(found), kind=ESTIMATE, basis=_basis(table), speedup=found.speedup, low=found.low,
        high=found.high, reasons=tuple(reasons.listed([*found.reasons, *why])),
    )  # fmt: skip


def _predicted(dense: list[Piece], fast: list[Piece], table: pd.DataFrame, execution: Execution, batch: int) -> Prediction:
    def of(first: list[Piece], second: list[Piece]) -> Prediction:
        return predict(shapes.counted(first, batch), shapes.counted(second, batch), table, batch, execution.precision)

    found = of(dense, fast)
    if not execution.compile or found.low is None:
        return found
    fused = of(*([piece for piece in pieces if piece.kind not in FUSED] for pieces in (dense, fast)))
    low, high = min(found.low, fused.low), max(found.high, fused.high)
    return replace(found, speedup=math.sqrt(found.speedup * fused.speedup), low=low, high=high, verdict=verdict(low, high))


def _latest(rows: pd.DataFrame | Iterable[Mapping]) -> pd.DataFrame:
    """The rows of the last fingerprint: times of one device and one installation."""
    table = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows))
    return table[table["fingerprint"] == table["fingerprint"].iloc[-1]] if len(table) else table


def _headline(found: Prediction) -> str:
    if found.low is None:
        return f"Unknown: about {found.speedup:.2f} times, but with no interval (estimate)."
    said = {FASTER: "Faster", NOT_FASTER: "Not faster", UNKNOWN: "Cannot be told"}[found.verdict]
    return f"{said}: about {found.speedup:.2f} times, {found.low:.2f} to {found.high:.2f} (estimate)."


def _basis(table: pd.DataFrame) -> str:
    shown = ", ".join(sorted(table["model"].unique()))
    return f"Estimate from layer times of {_device(table)}, measured {table['measured_on'].max()} on {shown}."


def _device(table: pd.DataFrame) -> str:
    last, count = table.iloc[-1], int(table["threads"].iloc[-1])
    return f"{last['device_name']}, {count} thread{'s' * (count > 1)}" if last["device"] == "cpu" else str(last["device_name"])


def _refusal(execution: Execution, device: str) -> str:
    """Why there is nothing to expect of it on this kind of device, '' where there is."""
    if device not in ("cpu", "mps"):
        return ""
    if execution.options.get("kernel", "dense") != "dense":
        return f"2:4 kernels need a CUDA GPU of compute capability ≥ 8.0, and this is '{device}': choose such a device."
    if execution.precision not in forms.precisions(device):
        return f"Layer times are taken in float32 on '{device}': how fast {execution.precision} is there shows only in a run."
    return ""


def _seconds(profile: Profile, recipe: Recipe, batch: int, device: str) -> float:
    """About how long a table takes that answers this too."""
    asked = replace(recipe, measure=replace(recipe.measure, batch_sizes=tuple({*recipe.measure.batch_sizes, batch})))
    return forms.seconds(asked, float(profile.facts["macs_g"]), device=device, merges=not cannot_merge(profile))


def _without_table(profile: Profile, recipe: Recipe, execution: Execution, batch: int, device: str, why: list[str], known: dict) -> Card:
    seconds = _seconds(profile, recipe, batch, device)
    missing = {"verdict": UNKNOWN, "reasons": tuple(why), "seconds_to_measure": seconds}
    published = literature.latencies()
    gpu = next((name for name in published["gpu"].unique() if accelerators.matches(GPU + name, device.removeprefix(GPU))), None)
    if device.startswith(GPU) and gpu:
        found = _published(published[published["gpu"] == gpu], execution)
        basis = f"{found} Nothing was measured here: measure layer times on one (about {seconds:.0f} s)."
        return Card(**known, **missing, headline=f"Unknown: for {gpu} there is only literature.", kind=LITERATURE, basis=basis)
    basis = f"No table for {device or 'this device'} yet: measure it (about {seconds:.0f} s)."
    return Card(**known, **missing, headline="Unknown: no layer times of this device yet.", kind=NO_TABLE, basis=basis)


def _published(rows: pd.DataFrame, execution: Execution) -> str:
    """What is published of this GPU; where the execution is a 2:4 one, how its ratio over dense in the same precision ranges."""
    said = f"{len(rows)} published timings of this GPU ({rows['source'].iloc[0].partition(',')[0]}), of other networks or executions."
    if execution.backend != "semi_structured":
        return said
    by = rows.pivot_table(index=["model", "variant", "batch"], columns="execution", values="images_per_s")
    ratio = (by[literature.SPARSE] / by[literature.MATCHED]).dropna()
    return f"{said} Their 2:4 runs at {ratio.min():.2f} to {ratio.max():.2f} times dense in the same precision."

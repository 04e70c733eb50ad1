"""Rows of the latency table, from the rounds of a race in one or several starts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from starfish_lab.execution.precision import dtype_of
from starfish_lab.latency.contestants import Contestant
from starfish_lab.latency.plan import baseline
from starfish_lab.measure import latency

BOUNDS = ("", "_low", "_high")
FIGURES = (
    "latency_ms_p50", "latency_ms_p90", "latency_ms_p99",
    *(f"{name}{bound}" for name in ("images_per_s", "speedup", "speedup_best") for bound in BOUNDS),
    "best_dense", "tflops", "peak_share", "macs_g", "joules_per_image", "energy_method", "memory_bytes", "largest_difference", "tolerance",
    "top1_agreement", "iterations", "starts",
)  # fmt: skip


def timed(
    entries: Iterable[Contestant], rounds: Mapping[str, latency.Starts], batch: int, peaks: Mapping[str, float],
    joules: Mapping[str, float | None], memory: Mapping[str, int | None], about: Mapping[str, object], remark: str = "",
) -> list[dict[str, object]]:  # fmt: skip
    """One row an entry of a race.

    rounds : {label: {start: its rounds}}
    peaks : {precision: TFLOP/s}; joules, memory : {label: of an image, bytes}; about : what all rows share; remark : for the note of all
    """
    entries = list(entries)
    found = {entry.label: latency.figures(rounds[entry.label], batch) for entry in entries}
    dense = [entry.label for entry in entries if entry.is_baseline]
    best = max(dense, key=lambda label: found[label]["images_per_s"], default=None)
    rows = []
    for entry in entries:
        own = rounds[entry.label]
        tflops = 2 * entry.macs * found[entry.label]["images_per_s"] / 1e12
        peak, proof = peaks.get(entry.execution.precision), entry.proof
        few = latency.remark("", found[entry.label]["iterations"])
        figures = {
            **found[entry.label],
            **_bounds("speedup", latency.ratio(rounds.get(baseline(entry.execution).label), own)),
            **_bounds("speedup_best", latency.ratio(rounds.get(best), own)),
            "best_dense": best, "tflops": tflops, "peak_share": tflops / peak if peak else None, "macs_g": entry.macs / 1e9,
            "joules_per_image": joules.get(entry.label), "memory_bytes": memory.get(entry.label),
            "largest_difference": proof.largest_difference, "tolerance": proof.tolerance, "top1_agreement": proof.top1_agreement,
        }  # fmt: skip
        note = "; ".join(part for part in (entry.note, few, remark) if part)
        rows.append({**_identity(entry, batch), **dict.fromkeys(FIGURES), **figures, **about, "note": note})
    return rows


def refused(entries: Iterable[Contestant], reasons: Mapping[str, str], batch: int, about: Mapping[str, object]) -> list[dict[str, object]]:
    """Rows without figures, that say why."""
    empty = dict.fromkeys(FIGURES)
    return [{**_identity(entry, batch), **empty, **about, "energy_method": None, "note": reasons[entry.label]} for entry in entries]


def _identity(entry: Contestant, batch: int) -> dict[str, object]:
    execution = entry.execution
    return {
        "stage": "dense" if entry.is_baseline else "pruned", "execution": entry.label, "backend": execution.backend,
        "precision": execution.precision, "compiled": execution.compile, "merged": execution.merged, "channels_last": execution.channels_last,
        "tokens": entry.tokens, "batch": batch, "scenario": "single" if batch == 1 else "offline",
        "dtype": str(dtype_of(execution.precision)).removeprefix("torch."),
    }  # fmt: skip


def _bounds(name: str, values: tuple[float | None, ...]) -> dict[str, float | None]:
    return {f"{name}{bound}": value for bound, value in zip(BOUNDS, values)}

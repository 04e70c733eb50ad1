"""Latency: how long calls take, raced against each other.

Protocol. Every contestant is warmed up until its time is stable; then all take turns in rounds, A B A B …, so that heat and clock drift
touch all alike. At least `seconds` of timed calls for each, and at least `min_iterations` unless they would take longer than five times
`seconds`. Clocks are never set. A race may be run again in other processes, each a start of its own, which share seconds and iterations.

Scenario 'single' (batch 1) waits for each answer before the next, by the monotonic clock, the host's share included; 'offline' (larger
batches) lets a GPU queue a whole turn, timed by CUDA events. The speed-up of a start is the median over its rounds of baseline ÷
contestant, both medians of the same round; that of a measurement, and its interval, is told from the starts (see `again`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from math import ceil
from statistics import median

import numpy as np
import torch
from torch import Tensor, nn

from starfish_lab.errors import LabError
from starfish_lab.execution import precision as arithmetic
from starfish_lab.measure import again, hardware
from starfish_lab.measure.running import evaluating
from starfish_lab.progress import Reporter

ROUNDS = 30  # at least, where calls are short enough
FEWEST = 5  # rounds of all starts below which no interval means anything
PATIENCE = 5  # times `seconds` at most, and as much again for warming up
WINDOW = 10  # calls whose median must stand still
STABLE = 0.05  # relative change between two windows that counts as stable
NOTES = {"masked": "mask only: no speed-up expected", "merged": "merged tokens may save time, zero weights do not"}

Call = Callable[[], object]
Timer = Callable[[Call, int], list[float]]
Rounds = list[list[float]]  # seconds of each call in each round
Starts = Mapping[int, Rounds]  # of each start, by its number


def race(
    contestants: Mapping[str, Call], *, device: str, single: bool, seconds: float, min_iterations: int, reporter: Reporter, starts: int = 1
) -> dict[str, Rounds]:  # fmt: skip
    """{name: rounds}; every contestant has equally many rounds.

    single : wait for each answer
    starts : in how many processes the race is run; this one takes its share of seconds and iterations
    """
    timer, seconds, min_iterations, fewest = timer_of(device, single=single), seconds / starts, ceil(min_iterations / starts), ceil(FEWEST / starts)
    turns = {}
    for name, call in contestants.items():
        usual = _warm_up(timer, call, seconds=seconds, reporter=reporter)
        turns[name] = max(1, round(seconds / ceil(ROUNDS / starts) / usual))
    rounds: dict[str, Rounds] = {name: [] for name in contestants}
    while not all(_enough(timed, seconds, min_iterations, fewest) for timed in rounds.values()):
        for name, call in contestants.items():
            reporter.check()
            rounds[name].append(timer(call, turns[name]))
    return rounds


def figures(starts: Starts, batch: int) -> dict[str, object]:
    """Columns batch to starts of a latency row: percentiles of all calls (ms), images a second with their interval."""
    times = np.concatenate([part for rounds in starts.values() for part in rounds])
    p50, p90, p99 = np.percentile(times, (50, 90, 99)) * 1e3
    rates = [np.array([batch * len(part) / sum(part) for part in rounds]) for rounds in starts.values()]  # images/s in each round
    return {
        "batch": batch, "scenario": "single" if batch == 1 else "offline",
        "latency_ms_p50": float(p50), "latency_ms_p90": float(p90), "latency_ms_p99": float(p99),
        **dict(zip(("images_per_s", "images_per_s_low", "images_per_s_high"), again.figure(rates))),
        "iterations": len(times), "starts": len(starts),
    }  # fmt: skip


def ratio(baseline: Starts | None, starts: Starts) -> tuple[float | None, float | None, float | None]:
    """Speed-up over `baseline` with its interval, paired round by round in every start that has both; three times None where none has."""
    pairs = [(baseline[start], rounds) for start, rounds in starts.items() if start in (baseline or {})]
    if not pairs:
        return None, None, None
    return again.figure([np.array([median(a) / median(b) for a, b in zip(slow, fast)]) for slow, fast in pairs])


def measure(
    networks: dict[str, nn.Module],
    input_size: tuple[int, ...],
    *,
    device: str,
    batch_sizes: tuple[int, ...] = (1, 8),
    seconds: float = 2.0,
    min_iterations: int = 200,
    reporter: Reporter | None = None,
    baseline: str = "dense",
    execution: dict[str, str] | None = None,
) -> list[dict[str, object]]:
    """Networks raced as they are: one row a network and batch size; the columns are those that every latency table has.

    networks : {stage: module}; left as they were, and all on the device at once
    execution : {stage: 'dense', 'masked', 'merged' or 'sliced'}; a masked network's row says that no speed-up is to be expected
    All in this process: the intervals, of its rounds, know nothing of how processes differ. Speed-ups are None if no network is called
    `baseline`. A batch that does not fit into GPU memory is noted and left out.
    """
    if not networks:
        raise LabError("There is no network to time. Name at least one.")
    reporter = reporter or Reporter()
    execution = {stage: "dense" for stage in networks} | (execution or {})
    facts = hardware.fingerprint(device)
    rows: list[dict[str, object]] = []
    with ExitStack() as stack:
        stack.enter_context(arithmetic.products("float32"))  # torch's default would round convolutions to TF32 on a GPU
        modules = {stage: stack.enter_context(evaluating(module, device)) for stage, module in networks.items()}
        for done, batch in enumerate(batch_sizes):
            try:
                calls = {stage: partial(module, noise(batch, input_size, device, _dtype(module))) for stage, module in modules.items()}
                rounds = race(calls, device=device, single=batch == 1, seconds=seconds, min_iterations=min_iterations, reporter=reporter)
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
                reporter.note(f"Batch {batch} does not fit into the memory of {device} and was left out of the latency table.")
                continue
            for stage, module in modules.items():
                slow = {1: rounds[baseline]} if baseline in rounds else None
                speedup = dict(zip(("speedup", "speedup_low", "speedup_high"), ratio(slow, {1: rounds[stage]})))
                found = {**figures({1: rounds[stage]}, batch), **speedup}
                rows.append({
                    "stage": stage, **found, "execution": execution[stage], "dtype": str(_dtype(module)).removeprefix("torch."),
                    "device": device, **{key: facts[key] for key in ("device_name", "fingerprint", "threads")},
                    "note": remark(execution[stage], found["iterations"]),
                })  # fmt: skip
            reporter.progress(done + 1, len(batch_sizes))
    return rows


def noise(batch: int, input_size: tuple[int, ...], device: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """Images (batch, *input_size), the same for all: how long a network takes does not depend on what it sees."""
    return torch.randn(batch, *input_size, generator=torch.Generator().manual_seed(0)).to(device, dtype)


def remark(execution: str, iterations: int) -> str:
    """What a row must be read with; '' for nothing."""
    few = f"p99 from {iterations} iterations only" if iterations < 100 else ""
    return "; ".join(part for part in (NOTES.get(execution, ""), few) if part)


def _enough(timed: Rounds, seconds: float, min_iterations: int, fewest: int) -> bool:
    total, count = sum(map(sum, timed)), sum(map(len, timed))
    return len(timed) >= fewest and total >= seconds and (count >= min_iterations or total >= PATIENCE * seconds)


def _warm_up(timer: Timer, call: Call, *, seconds: float, reporter: Reporter) -> float:
    """Run until the median of ten calls stands still: 20 calls, and `seconds` or one, at least. Returns the median."""
    times: list[float] = []
    while sum(times) < PATIENCE * seconds or not times:
        reporter.check()
        times += timer(call, 1)
        before, now = times[-2 * WINDOW : -WINDOW], times[-WINDOW:]
        if len(times) >= 2 * WINDOW and sum(times) >= min(1, seconds) and abs(median(now) / median(before) - 1) < STABLE:
            break
    return median(times[-WINDOW:])


def timer_of(device: str, *, single: bool) -> Timer:
    """Times calls on a device, each alone (`single`) or in one queue."""
    if device.startswith("cuda"):
        return _by_clock(partial(torch.cuda.synchronize, device)) if single else _by_events(device)
    return _by_clock(torch.mps.synchronize if device == "mps" else None)


def _by_clock(synchronise: Callable[[], None] | None) -> Timer:
    def timer(call: Call, count: int) -> list[float]:
        times = []
        for _ in range(count):
            started = time.perf_counter()
            call()
            if synchronise:
                synchronise()
            times.append(time.perf_counter() - started)
        return times

    return timer


def _by_events(device: str) -> Timer:
    def timer(call: Call, count: int) -> list[float]:
        with torch.cuda.device(device):
            marks = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
            marks[0].record()
            for mark in marks[1:]:
                call()
                mark.record()
            marks[-1].synchronize()
            return [before.elapsed_time(after) / 1e3 for before, after in zip(marks, marks[1:])]

    return timer


def _dtype(module: nn.Module) -> torch.dtype:
    return next((p.dtype for p in module.parameters()), torch.float32)

"""Latency: how long the networks take, measured against each other.

Protocol. For each batch size every network is warmed up until its time is stable; then the networks take turns
in rounds, A B A B …, so that heat and clock drift touch all alike. At least `seconds` of timed iterations for each
network, and at least `min_iterations` unless they would take longer than five times `seconds`. On a GPU times come
from CUDA events, elsewhere from the monotonic clock. Clocks are never set.

Scenario 'single' (batch 1) waits for each answer before the next; 'offline' (larger batches) lets a GPU queue a
whole round. The speed-up is the median over rounds of baseline ÷ network, both medians of the same round, with a
bootstrap over rounds as its 95 % interval.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from statistics import median

import numpy as np
import torch
from torch import Tensor, nn

from starfish_lab.errors import LabError
from starfish_lab.measure import hardware
from starfish_lab.measure.running import evaluating
from starfish_lab.progress import Reporter

ROUNDS = 20  # at least, where iterations are short enough
PATIENCE = 5  # times `seconds` at most, and as much again for warming up
WINDOW = 10  # iterations whose median must stand still
STABLE = 0.05  # relative change between two windows that counts as stable
NOTES = {"masked": "mask only: no speed-up expected", "merged": "merged tokens may save time, zero weights do not"}

Timer = Callable[[nn.Module, Tensor, int], list[float]]


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
    """One row a network and batch size; the columns are those of the report's latency table.

    networks : {stage: module}; left as they were, and all on the device at once
    execution : {stage: 'dense', 'masked', 'merged' or 'sliced'}; a masked network's row says that no speed-up is to be expected
    Speed-ups are None if no network is called `baseline`. A batch that does not fit into GPU memory is noted and left out.
    """
    if not networks:
        raise LabError("There is no network to time. Name at least one.")
    reporter = reporter or Reporter()
    execution = {stage: "dense" for stage in networks} | (execution or {})
    facts = hardware.fingerprint(device)
    rows: list[dict[str, object]] = []
    with ExitStack() as stack:
        modules = {stage: stack.enter_context(evaluating(module, device)) for stage, module in networks.items()}
        for done, batch in enumerate(batch_sizes):
            try:
                images = _images(modules, batch, input_size, device)
                rounds = _race(modules, images, device, seconds=seconds, min_iterations=min_iterations, reporter=reporter)
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
                reporter.note(f"Batch {batch} does not fit into the memory of {device} and was left out of the latency table.")
                continue
            for stage, module in modules.items():
                figures = _row(rounds, stage, baseline, batch)
                rows.append({
                    "stage": stage, **figures, "execution": execution[stage], "dtype": str(_dtype(module)).removeprefix("torch."),
                    "device": device, **{key: facts[key] for key in ("device_name", "fingerprint", "threads")},
                    "note": _note(execution[stage], figures["iterations"]),
                })  # fmt: skip
            reporter.progress(done + 1, len(batch_sizes))
    return rows


def _race(
    modules: dict[str, nn.Module], images: Tensor, device: str, *, seconds: float, min_iterations: int, reporter: Reporter
) -> dict[str, list[list[float]]]:
    """{stage: [seconds of each iteration] in each round}; every network has equally many rounds."""
    timer = _timer(device, single=len(images) == 1)
    turns = {}
    for stage, module in modules.items():
        usual = _warm_up(timer, module, images, longest=PATIENCE * seconds, reporter=reporter)
        turns[stage] = max(1, round(seconds / ROUNDS / usual))
    rounds: dict[str, list[list[float]]] = {stage: [] for stage in modules}
    while not all(_enough(timed, seconds, min_iterations) for timed in rounds.values()):
        for stage, module in modules.items():
            reporter.check()
            rounds[stage].append(timer(module, images, turns[stage]))
    return rounds


def _enough(timed: list[list[float]], seconds: float, min_iterations: int) -> bool:
    total, count = sum(map(sum, timed)), sum(map(len, timed))
    return total >= seconds and (count >= min_iterations or total >= PATIENCE * seconds)


def _warm_up(timer: Timer, module: nn.Module, images: Tensor, *, longest: float, reporter: Reporter) -> float:
    """Run until the median of ten iterations stands still, for 20 iterations and a second at least. Returns the median."""
    times: list[float] = []
    while sum(times) < longest:
        reporter.check()
        times += timer(module, images, 1)
        before, now = times[-2 * WINDOW : -WINDOW], times[-WINDOW:]
        if len(times) >= 2 * WINDOW and sum(times) >= 1 and abs(median(now) / median(before) - 1) < STABLE:
            break
    return median(times[-WINDOW:])


def _timer(device: str, *, single: bool) -> Timer:
    if not device.startswith("cuda"):
        return _by_clock(torch.mps.synchronize if device == "mps" else None)
    return _by_events(device, wait_each=single)


def _by_clock(synchronise: Callable[[], None] | None) -> Timer:
    def timer(module: nn.Module, images: Tensor, count: int) -> list[float]:
        times = []
        for _ in range(count):
            started = time.perf_counter()
            module(images)
            if synchronise:
                synchronise()
            times.append(time.perf_counter() - started)
        return times

    return timer


def _by_events(device: str, *, wait_each: bool) -> Timer:
    def timer(module: nn.Module, images: Tensor, count: int) -> list[float]:
        with torch.cuda.device(device):
            marks = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
            times = []
            marks[0].record()
            for before, after in zip(marks, marks[1:]):
                if wait_each:
                    before.record()
                module(images)
                after.record()
                if wait_each:
                    after.synchronize()
                    times.append(before.elapsed_time(after) / 1e3)
            marks[-1].synchronize()
            return times or [before.elapsed_time(after) / 1e3 for before, after in zip(marks, marks[1:])]

    return timer


def _images(modules: dict[str, nn.Module], batch: int, input_size: tuple[int, ...], device: str) -> Tensor:
    """Noise, the same for all: how long a network takes does not depend on what it sees."""
    noise = torch.randn(batch, *input_size, generator=torch.Generator().manual_seed(0))
    return noise.to(device, _dtype(next(iter(modules.values()))))


def _dtype(module: nn.Module) -> torch.dtype:
    return next((p.dtype for p in module.parameters()), torch.float32)


def _row(rounds: dict[str, list[list[float]]], stage: str, baseline: str, batch: int) -> dict[str, object]:
    times = np.concatenate(rounds[stage])
    p50, p90, p99 = np.percentile(times, (50, 90, 99)) * 1e3
    rate = np.array([batch * len(part) / sum(part) for part in rounds[stage]])  # images/s in each round
    low, high = _interval(rate, np.mean)
    row = {
        "batch": batch, "scenario": "single" if batch == 1 else "offline",
        "latency_ms_p50": float(p50), "latency_ms_p90": float(p90), "latency_ms_p99": float(p99),
        "images_per_s": float(rate.mean()), "images_per_s_low": low, "images_per_s_high": high,
        "speedup": None, "speedup_low": None, "speedup_high": None, "iterations": len(times),
    }  # fmt: skip
    if baseline in rounds:
        ratio = np.array([median(a) / median(b) for a, b in zip(rounds[baseline], rounds[stage])])
        row["speedup"] = float(np.median(ratio))
        row["speedup_low"], row["speedup_high"] = _interval(ratio, np.median)
    return row


def _interval(values: np.ndarray, statistic: Callable[..., np.ndarray], resamples: int = 2000) -> tuple[float, float]:
    """95 % percentile bootstrap over rounds, always with the same seed."""
    picks = np.random.default_rng(0).integers(len(values), size=(resamples, len(values)))
    low, high = np.percentile(statistic(values[picks], axis=1), (2.5, 97.5))
    return float(low), float(high)


def _note(execution: str, iterations: int) -> str:
    few = f"p99 from {iterations} iterations only" if iterations < 100 else ""
    return "; ".join(part for part in (NOTES.get(execution, ""), few) if part)

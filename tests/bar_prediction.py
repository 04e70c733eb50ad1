"""The card's predictions measured: layer times first, then every prediction beside a latency that is measured afterwards.

Bar: off by at most 15 % in the median over all rows measured.
"""

from __future__ import annotations

import time
from dataclasses import replace

import pandas as pd

from starfish_lab import profile
from starfish_lab.latency import run as latency
from starfish_lab.latency.plan import LatencyPlan
from starfish_lab.measure import own_time
from starfish_lab.models.loading import load
from starfish_lab.prediction import layer_times
from starfish_lab.prediction.score import compared, score
from starfish_lab.recipe import MeasureChoice, ModelChoice, PruningChoice, Recipe

BAR = 0.15


def main(
    *, names: str = "starter,deit_small_patch16_224.fb_in1k", shares: str = "0.3,0.5,0.6", batches: str = "1,4,8",
    executions: str = "sliced|merged|merged+sliced", device: str = "cpu", seconds: str = "5", rounds: str = "1", clock: str = "wall",
) -> None:  # fmt: skip
    """One line a network, share of units cut, execution and batch. Lists with commas, executions with bars between them.

    The shares need not be those of the table (25, 50, 75 %). `rounds`: how often table and latency take turns; on a busy machine more
    of them, whose rows then count together. `clock` 'thread' counts the time of this thread alone on both sides: for a CPU that others use
    too, with OMP_NUM_THREADS=1.
    """
    if clock == "thread":
        time.perf_counter = time.thread_time
        own_time._Clock.now = staticmethod(time.thread_time)
    found = []
    for name in names.split(","):
        model = ModelChoice() if name == "starter" else ModelChoice(name=name, weights="random")
        timing = MeasureChoice(batch_sizes=tuple(map(int, batches.split(","))), seconds=float(seconds))
        recipe, known, tables = Recipe(model=model, measure=timing), profile.compute(load(model)), []
        for _ in range(int(rounds)):
            tables.append(layer_times.run(recipe, device=device, seconds=float(seconds)).frame("layer_times"))
            for share in map(float, shares.split(",")):
                cut = replace(recipe, pruning=PruningChoice(pattern="structured", sparsity=share))
                starts = {"starts": 1} if clock == "thread" else {}  # fresh processes have clocks of their own
                plan = LatencyPlan.of(cut, executions=tuple(executions.split("|")), layers=False, **starts)
                rows = latency.run(plan, device=device).frame("latency")
                beside = compared(known, cut, pd.concat(tables), rows)
                for row in beside.itertuples():
                    print(
                        f"{name} {share:.0%} {row.execution:14s} batch {row.batch:3d}: predicted {row.predicted:.2f} [{row.low:.2f}, {row.high:.2f}] "
                        f"measured {row.measured:.2f} [{row.measured_low:.2f}, {row.measured_high:.2f}], off by {row.error:+.1%}",
                        flush=True,
                    )
                found.append(beside)
    total = score(pd.concat(found, ignore_index=True))
    print(f"{total} The bar is {BAR:.0%}: {'met' if total.median_error is not None and total.median_error <= BAR else 'missed'}.")

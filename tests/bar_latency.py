"""Latency measured: whether a second measurement finds the same, and the whole grid of networks and executions on a GPU.

python tests/bar_latency.py repeat runs=6 seconds=10
python tests/bar_latency.py spread processes=8 rebuilds=4
python tests/bar_latency.py gpu out=results only=deit_base minutes=9

The GPU's grid needs torch, timm, numpy, scipy and pandas alone, and goes on where it stopped: a piece (a network, a pattern, a batch size)
is one results file, and a file that is there is not measured again. The weights are random: time does not depend on them, and how well an
execution answers is proven against the masked network all the same.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from statistics import fmean, median, stdev, variance

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

CLOSE = 0.03  # two ratios of a quiet machine
BATCHES = (64, 1, 256, 8, 128, 32, 16, 4, 2)  # the most telling first
COMPILED = (64, 1, 256)  # compiled too: kernels are made anew for every batch size, which takes longer than all timing
DENSE = ("float32", "tf32", "autocast")  # dense in these too, beside the precisions of the executions
SHORT = ("bf16", "fp16")
KERNELS = ("cusparselt", "cutlass")
FAILED = ".failed"  # beside a piece's file that is not there: why, so that it is not tried again


@dataclass(frozen=True)
class Piece:
    """A network under one pattern at one batch size."""

    model: str
    pattern: str
    batch: int
    executions: tuple[str, ...]

    @property
    def file(self) -> str:
        return f"{self.model}.{self.pattern}.{self.batch}.json"

    def plan(self, seconds: float, starts: int):
        from starfish_lab.latency.plan import LatencyPlan
        from starfish_lab.recipe import ModelChoice, PruningChoice, Recipe

        pruning = PruningChoice(pattern=self.pattern, sparsity=0.5)  # 2:4 where it is n_m
        recipe = Recipe(name=self.file, model=ModelChoice(name=self.model, weights="random"), pruning=pruning)
        return LatencyPlan(recipe=recipe, executions=self.executions, batches=(self.batch,), seconds=seconds, min_iterations=30, starts=starts)


def pieces() -> Iterator[Piece]:
    """The grid: at each batch size all networks, the transformers first."""
    from starfish_lab.latency.plan import spread

    transformers = {
        "structured": ["merged", "sliced", "merged+sliced"],
        "n_m": [f"{merged}semi_structured({kernel})" for kernel in KERNELS for merged in ("", "merged+")],
    }
    convnext = {"n_m": [f"semi_structured({kernel})" for kernel in KERNELS]}  # its units cannot go: GRN normalises over all of them
    resnets = {"structured": ["sliced, channels last"], "n_m": [f"im2col({kernel})" for kernel in ("dense", *KERNELS)]}
    grid = {
        "deit_base_patch16_224": transformers, "vit_base_patch16_224": transformers, "vit_large_patch16_224": transformers,
        "convnextv2_base": convnext, "resnet50": resnets, "resnet152d": resnets,
    }  # fmt: skip
    for batch in BATCHES:
        for model, patterns in grid.items():
            for pattern, names in patterns.items():
                layout = ", channels last" if pattern == "structured" and patterns is resnets else ""
                compiled = batch in COMPILED
                baselines = spread([f"dense{layout}"], DENSE, compiled=compiled)
                if pattern == "n_m" and patterns is resnets:  # what cuDNN does best, beside products of unfolded images
                    baselines += spread(["dense, channels last"], SHORT, compiled=compiled)
                yield Piece(model, pattern, batch, (*baselines, *spread(names, SHORT, compiled=compiled)))


def gpu(
    *, out: str = "results", only: str = "", batches: str = "", minutes: str = "9", seconds: str = "0.5", starts: str = "1", device: str = "auto"
) -> None:
    """Measure the pieces that are missing in `out` until the minutes are over, then print what is there; only: a part of their files' names.

    starts=3: intervals that know how processes differ, at three times the time.
    """
    from starfish_lab.errors import LabError
    from starfish_lab.latency import results_file
    from starfish_lab.latency.run import run

    folder, ends = Path(out), time.monotonic() + 60 * float(minutes)
    wanted = {int(batch) for batch in batches.split(",") if batch} or set(BATCHES)
    done = {path.name.removesuffix(FAILED) for path in folder.glob("*")}
    missing = [piece for piece in pieces() if only in piece.file and piece.batch in wanted and piece.file not in done]
    longest = 0.0
    for number, piece in enumerate(missing, start=1):
        if time.monotonic() + longest > ends:
            print(f"{len(missing) - number + 1} of {len(missing)} pieces are left: run the same command again.", flush=True)
            break
        started = time.monotonic()
        plan = piece.plan(float(seconds), int(starts))
        try:
            results_file.write(folder / piece.file, run(plan, device=device), plan)
        except LabError as error:
            print(f"{piece.file}: {error}", flush=True)
        except Exception as error:  # a kernel may have broken this process, and would break the next one
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{piece.file}{FAILED}").write_text(traceback.format_exc())
            print(f"{piece.file} is left out from now on: {error!r:.200}. Run the same command again for the others.", flush=True)
            break
        longest = max(longest, time.monotonic() - started)
        print(f"{piece.file}: {time.monotonic() - started:.0f} s", flush=True)
    show(out=out, only=only)


def show(*, out: str = "results", only: str = "") -> None:
    """Ratios against the best dense network and against that of the same precision, with intervals, of all files in `out`."""
    from starfish_lab.latency import results_file

    for path in sorted(Path(out).glob(f"*{only}*.json")):
        report, plan = results_file.read(path)
        rows = report.frame("latency")
        print(f"\n{path.name}: {rows['device_name'][0]}, fingerprint {rows['fingerprint'][0]}, {plan.recipe.model.weights} weights")
        for row in rows.to_dict("records"):
            if row["images_per_s"] != row["images_per_s"] or row["images_per_s"] is None:
                print(f"  {row['execution']:55s} {row['note']}")
                continue
            print(
                f"  {row['execution']:55s} {row['images_per_s']:9.1f} images/s, {row['speedup']:6.3f} [{row['speedup_low']:.3f}, "
                f"{row['speedup_high']:.3f}] of its dense, {row['speedup_best']:6.3f} [{row['speedup_best_low']:.3f}, "
                f"{row['speedup_best_high']:.3f}] of {row['best_dense']}, {row['peak_share'] or 0:.0%} of peak"
            )


def repeat(
    *, runs: str = "4", seconds: str = "10", starts: str = "", model: str = "starter", batches: str = "1,8", device: str = "auto",
    executions: str = "masked,sliced,merged+sliced", threads: str = "",
) -> None:  # fmt: skip
    """The same command several times, each in a process of its own: how far ratios are apart, and how often an interval holds the other's."""
    from starfish_lab.latency import results_file

    asked = ["--executions", executions, "--batches", batches, "--seconds", seconds, "--no-layers", *(["--starts", starts] if starts else [])]
    changes = [word for field, value in {**_recipe(model), "device": device}.items() for word in ("--set", f"{field}={value}")]
    found: list[dict[tuple, dict]] = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(int(runs)):
            out, began = Path(folder) / f"{number}.json", time.monotonic()
            command = [sys.executable, "-m", "starfish_lab", "latency", *changes, *asked, "--out", str(out), "--json"]
            subprocess.run(command, cwd=ROOT, env=_threads(threads), check=True, stdout=subprocess.DEVNULL)
            rows = results_file.read(out)[0].tables["latency"]
            found.append({(row["execution"], row["batch"]): row for row in rows if row["stage"] != "dense" and row["speedup"] is not None})
            print(f"run {number + 1}: {rows[0]['starts']} starts, {rows[0]['threads']} threads, {time.monotonic() - began:.0f} s", flush=True)
    apart, held = [], []
    for first, second in permutations(found, 2):
        for key, row in first.items():
            other = second[key]["speedup"]
            apart.append(abs(other / row["speedup"] - 1))
            held.append(row["speedup_low"] <= other <= row["speedup_high"])
    for execution, batch in found[0]:
        ratios = [run[execution, batch]["speedup"] for run in found]
        widths = [run[execution, batch]["speedup_high"] / run[execution, batch]["speedup_low"] - 1 for run in found]
        print(
            f"{execution:20s} batch {batch:3d}: {', '.join(f'{ratio:.3f}' for ratio in ratios)}; {max(ratios) / min(ratios) - 1:.1%} apart at most; "
            f"intervals {median(widths):.1%} wide in the median, {max(widths):.1%} at most"
        )
    print(
        f"{len(apart)} pairs: {max(apart):.1%} apart at most, {sum(value <= CLOSE for value in apart) / len(apart):.0%} within {CLOSE:.0%}; "
        f"the interval of one holds the other in {sum(held) / len(held):.0%}"
    )


def spread(
    *, processes: str = "8", rebuilds: str = "4", seconds: str = "2", model: str = "starter", batches: str = "1,8", threads: str = "",
    executions: str = "masked,sliced,merged+sliced",
) -> None:  # fmt: skip
    """Where two measurements differ: standard deviations of a ratio between rounds, networks built anew in one process, and processes."""
    options = {"rebuilds": rebuilds, "seconds": seconds, "model": model, "batches": batches, "executions": executions}
    command = [sys.executable, __file__, "rebuilt", *(f"{name}={value}" for name, value in options.items())]
    found: dict[str, list[list[tuple[float, float]]]] = {}  # of each process and rebuild: log ratio, standard error by its rounds
    for _ in range(int(processes)):
        answer = subprocess.run(command, cwd=ROOT, env=_threads(threads), check=True, stdout=subprocess.PIPE, text=True).stdout
        for what, values in json.loads(answer.splitlines()[-1]).items():
            found.setdefault(what, []).append(values)
    for what, values in found.items():
        ratios = [[ratio for ratio, _ in process] for process in values]
        rounds = fmean(error**2 for process in values for _, error in process)
        built = fmean(map(variance, ratios))  # the rounds' part in it
        apart = variance(map(fmean, ratios))  # the rebuilds' part in it
        parts = {"rounds": rounds, "rebuilds": built - rounds, "processes": apart - built / len(ratios[0])}
        said = ", ".join(f"{name} {math.sqrt(max(0.0, part)):.2%}" for name, part in parts.items())
        print(f"{what:30s} {math.exp(fmean(map(fmean, ratios))):.3f}: {said}; one start of a process: {stdev(process[0] for process in ratios):.2%}")


def rebuilt(*, rebuilds: str, seconds: str, model: str, batches: str, executions: str) -> None:
    """One process of `spread`: {execution and batch: [log ratio and its standard error by rounds, of each rebuild]} as JSON."""
    from starfish_lab.latency.contestants import Networks
    from starfish_lab.latency.plan import LatencyPlan, baseline
    from starfish_lab.latency.start import Job, start
    from starfish_lab.models.loading import load
    from starfish_lab.preparation import begin, prepare
    from starfish_lab.progress import Reporter
    from starfish_lab.recipe import Recipe, edit

    recipe = edit(Recipe(), [f"{field}={value}" for field, value in _recipe(model).items()])
    sizes = tuple(map(int, batches.split(",")))
    plan = LatencyPlan(recipe=recipe, executions=tuple(executions.split(",")), batches=sizes, seconds=float(seconds), layers=False)
    dense = load(recipe.model)
    prepared = prepare(dense, begin(dense, recipe, None), recipe, None)
    found: dict[str, list[tuple[float, float]]] = {}
    job = Job(plan, "cpu", tuple(plan.contestants()), plan.batches, number=2)  # the first would measure more
    for _ in range(int(rebuilds)):
        races = start(job, Networks(dense, prepared.network, prepared.result.masks), reporter=Reporter()).races
        for batch, race in races.items():
            for execution in plan.asked():
                slow, fast = (race.rounds[one.label] for one in (baseline(execution), execution))
                logs = [math.log(median(a) / median(b)) for a, b in zip(slow, fast)]
                error = math.sqrt(math.pi / 2) * stdev(logs) / math.sqrt(len(logs))
                found.setdefault(f"{execution.label}, batch {batch}", []).append((median(logs), error))
    print(json.dumps(found))


def _recipe(model: str) -> dict[str, str]:
    weights = "bundled" if model == "starter" else "random"
    return {"model.name": model, "model.weights": weights, "pruning.pattern": "structured", "pruning.sparsity": "0.5"}


def _threads(count: str) -> dict[str, str]:
    """The environment, in which torch takes so many threads; its own number where none is given."""
    return os.environ | ({"OMP_NUM_THREADS": count} if count else {})


BARS = {"repeat": repeat, "spread": spread, "rebuilt": rebuilt, "gpu": gpu, "show": show}

if __name__ == "__main__":
    name, *words = sys.argv[1:] or [""]
    if name not in BARS:
        sys.exit(f"Choose one of: {', '.join(BARS)}; options as name=value.")
    BARS[name](**dict(word.split("=", 1) for word in words))

"""Latency runs that never ran: reports with the tables of real ones and figures that a test can recompute by hand."""

from __future__ import annotations

from itertools import product

import synthetic

from starfish_lab.execution.choice import Execution
from starfish_lab.latency.plan import LatencyPlan
from starfish_lab.measure.fingerprint import digest
from starfish_lab.recipe import ModelChoice, PruningChoice, Recipe
from starfish_lab.report import Report
from starfish_lab.store import Store

PEAKS = {"float32": 50.0, "tf32": 300.0, "fp16": 650.0, "bf16": 650.0, "autocast": 650.0}  # TFLOP/s
GB_PER_S = 3000.0
# images/s of an execution at a large batch; at batch b it reaches b / (b + 8) of that
RATES = {
    "dense": 1000.0, "dense, bf16": 3000.0, "dense, bf16, compiled": 4000.0,
    "sliced": 1700.0, "sliced, bf16": 4500.0, "sliced, bf16, compiled": 6400.0, "merged+sliced, bf16, compiled": 8800.0,
}  # fmt: skip
REFUSED = {"semi_structured(cusparselt)": "torch's float32 format keeps 1 of 2 weights, not 2 of 4"}
MACS_G = {"dense": 4.6, "sliced": 2.4, "merged+sliced": 1.8}
BATCHES = (1, 8, 64)
LAYERS = [
    ("patch_embed.proj", "conv"), ("outside blocks, other", "other"),
    *((f"blocks.{i}{part}", kind) for i in range(4) for part, kind in (
        (".attn.qkv", "linear"), (".attn.matmul", "attention"), (".attn.proj", "linear"), (".mlp.fc1", "linear"), (".mlp.fc2", "linear"),
        (", norm", "norm"), (", other", "other"),
    )),
    ("head", "linear"),
]  # fmt: skip


def recipe(*, model: str = "starter", sparsity: float = 0.5) -> Recipe:
    chosen = ModelChoice() if model == "starter" else ModelChoice(name=model, weights="random")
    return Recipe(model=chosen, pruning=PruningChoice(pattern="structured", sparsity=sparsity))


def rate(execution: str, batch: int) -> float:
    return RATES[execution] * batch / (batch + 8)


def facts(device: str) -> dict[str, object]:
    return {"device_name": device, "kind": "cuda", "torch": "2.11.0", "driver": "570.1", "power_limit_w": 700.0, "threads": 1, "cpu": "Test CPU"}


def report(
    *, device: str = "NVIDIA H100 80GB HBM3", throttle: str = "", scale: float = 1.0, starts: int | None = 8, executions=tuple(RATES)
) -> Report:
    """Every execution at every batch size; `scale` makes all but the dense ones so many times as fast. `starts`: None as in older rows."""
    found, known = Report(), facts(device)
    for batch in BATCHES:
        best = max((name for name in executions if name.startswith("dense")), key=lambda name: rate(name, batch))
        for label in executions:
            execution = Execution.of(label)
            dense = execution.backend == "dense"
            factor = 1.0 if dense else scale
            images = rate(label, batch) * factor
            base = Execution(backend="dense", precision=execution.precision, compile=execution.compile).label
            over, over_best = images / rate(base, batch), images / rate(best, batch)
            macs = MACS_G["dense" if dense else "merged+sliced" if execution.merged else "sliced"]
            found.add("latency", [dict(
                stage="dense" if dense else "pruned", execution=label, backend=execution.backend, precision=execution.precision,
                compiled=execution.compile, merged=execution.merged, channels_last=False, batch=batch, scenario="single" if batch == 1 else "offline",
                latency_ms_p50=1e3 * batch / images, latency_ms_p90=1.1e3 * batch / images, latency_ms_p99=1.2e3 * batch / images,
                images_per_s=images, images_per_s_low=0.98 * images, images_per_s_high=1.02 * images,
                speedup=over, speedup_low=0.97 * over, speedup_high=1.03 * over,
                speedup_best=over_best, speedup_best_low=0.97 * over_best, speedup_best_high=1.03 * over_best, best_dense=best,
                tflops=2e-3 * macs * images, peak_share=2e-3 * macs * images / PEAKS[execution.precision],
                joules_per_image=400 / images, energy_method="NVML energy counter", memory_bytes=2e8, largest_difference=0.0 if dense else 4e-4,
                tolerance=1e-2, top1_agreement=1.0, iterations=400, starts=starts, macs_g=macs, dtype="", device="cuda:0", device_name=device,
                fingerprint=digest(known), threads=1, note="",
            )])  # fmt: skip
        found.add("latency", [
            dict(
                stage="pruned", execution=label, backend="semi_structured", precision="float32", batch=batch,
                scenario="single" if batch == 1 else "offline", dtype="float32", images_per_s=None,
                device="cuda:0", device_name=device, fingerprint=digest(known), note=why,
            )
            for label, why in REFUSED.items()
        ])  # fmt: skip
    for label, share in (("dense", 1.0), ("sliced", 0.55)):
        rows = [dict(layer=layer, kind=kind, ms=(0.4 if kind == "linear" else 0.1) * (share if kind == "linear" else 1.05)) for layer, kind in LAYERS]
        total = sum(row["ms"] for row in rows)
        found.add("latency_layers", [dict(execution=label, batch=64, **row, share=row["ms"] / total) for row in rows if label in executions])
    for batch, (when, told) in product(BATCHES, (("before", ""), ("after", throttle))):
        found.add("sensors", [dict(
            batch=batch, start=1, when=when, sm_clock_mhz=1980.0, memory_clock_mhz=2619.0, temperature_c=41.0 if when == "before" else 67.0,
            power_w=120.0, power_limit_w=700.0, throttle=told, ecc="Enabled", mig="Disabled",
        )])  # fmt: skip
    for precision in dict.fromkeys(Execution.of(label).precision for label in executions):
        found.add("peak", [dict(precision=precision, tflops=PEAKS[precision], gb_per_s=GB_PER_S, shape="8192x8192x8192")])
    found.add("hardware", [dict(name=name, value=value) for name, value in {**known, "fingerprint": digest(known)}.items()])
    return found


def plan(**options: object) -> LatencyPlan:
    return LatencyPlan(recipe=recipe(**options), executions=tuple(name for name in RATES if not name.startswith("dense")), batches=BATCHES)


def run(
    store: Store, *, device: str = "NVIDIA H100 80GB HBM3", throttle: str = "", scale: float = 1.0, starts: int | None = 8, **options: object
) -> int:
    """A finished measurement; options go to `recipe`."""
    number = store.submit(plan(**options), "latency")
    store.finish(number, report(device=device, throttle=throttle, scale=scale, starts=starts))
    return number


def healed(store: Store, **options: object) -> int:
    """A finished experiment of the recipe that `run` times, with accuracies: 99 % dense, 30 % pruned, 97 % healed."""
    number = store.submit(recipe(**options))
    found = synthetic.report()
    store.finish(number, Report({name: found.tables[name] for name in ("accuracy", "totals", "seconds")}))
    return number

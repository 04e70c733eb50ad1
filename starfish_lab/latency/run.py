"""run(plan) → Report: every execution of a plan timed against every other, on this device.

All contestants stand on the device together and take turns in one race a batch size (see `measure.latency`), so that any two of them are
paired round by round: an execution with the dense network of its own precision, and with the best dense network of all, which is known
only afterwards. Report tables:

table           a row is                     columns
--------------  ---------------------------  -------------------------------------------------------------------------------------------
latency         an execution at a batch      stage (dense: whole; pruned: all else), execution (its label), backend, precision, compiled, merged,
                size; what was refused has   channels_last, batch, scenario (single or offline), latency_ms_p50, latency_ms_p90, latency_ms_p99,
                a note and no figures        images_per_s(_low, _high), speedup(_low, _high) over dense of the same precision, eagerness and
                                             layout, speedup_best(_low, _high) over best_dense (the label of the dense network with the most
                                             images a second at that batch), tflops (2 × macs_g a second), peak_share (of the table peak),
                                             macs_g (of an image), joules_per_image and energy_method (see `energy`), memory_bytes (weights
                                             and the most that lay beside them), largest_difference, tolerance and top1_agreement (see
                                             `execution.proof`), iterations, tokens (merged a block, '' for none), throttle (why the clocks
                                             were held down, '' for no reason), model, dtype, device, device_name, fingerprint, threads, note
latency_layers  a layer of an execution      execution, batch, layer, kind, ms, share (see `layers`)
sensors         a reading                    batch, when (before the race, or after it under load), and the columns of `sensors`
peak            a precision                  precision, tflops, gb_per_s, shape
hardware        a fact of the fingerprint    name, value

and totals, layers, ledger, seconds, notes, provenance as every run has them.
"""

from __future__ import annotations

from dataclasses import replace

from starfish_lab.errors import LabError
from starfish_lab.execution import slicing
from starfish_lab.latency import contestants as entries
from starfish_lab.latency import energy, layers, peak, sensors
from starfish_lab.latency.contestants import Contestant
from starfish_lab.latency.plan import LatencyPlan
from starfish_lab.latency.rows import refused, timed
from starfish_lab.measure import hardware, latency
from starfish_lab.measure.costs import totals_row
from starfish_lab.models.loading import load
from starfish_lab.models.network import Network
from starfish_lab.preparation import begin, prepare
from starfish_lab.progress import Reporter
from starfish_lab.report import Report
from starfish_lab.stages import about_pruned, note, provenance, staged

RANDOM = "The weights are random: how long a network takes does not depend on them, how it answers does."


def run(plan: LatencyPlan, *, dense: Network | None = None, reporter: Reporter | None = None, device: str = "auto") -> Report:
    """Prune without images, build every execution, prove it, race it.

    dense : the network, where it is not one that `plan.recipe.model` can load

    Raises LabError for what the person can mend (a pattern that needs images, memory that holds not one) and Cancelled when asked to
    stop. What a device cannot run is a row that says so. A batch that does not fit into memory is halved, and the note says so.
    """
    reporter, report = reporter or Reporter(), Report()
    device, recipe = hardware.choose_device(device), plan.recipe
    with staged(report, reporter, "load"):
        dense = load(recipe.model) if dense is None else dense
        note(report, reporter, [RANDOM] if recipe.model.weights == "random" else [])
    with staged(report, reporter, "prune"):
        begun = begin(dense, recipe, None, device=device, reporter=reporter)
        prepared = prepare(dense, begun, recipe, None, device=device, reporter=reporter)
        about_pruned(report, reporter, dense, prepared, recipe)
    masks, small = prepared.result.masks, None
    if slicing.is_sliceable(masks, prepared.network, wholly=recipe.pruning.pattern != "structured"):
        small = slicing.slice_network(prepared.network, masks)
    for name, network in {"dense": dense, "pruned": prepared.network}.items():
        report.add("totals", [totals_row(name, network, prepared.result, small if name == "pruned" else None)])
    with staged(report, reporter, "peak"):
        report.add("peak", peak.measure(device, [execution.precision for execution in plan.contestants()]))
    with staged(report, reporter, "build"):
        if device.startswith("cuda"):  # where the copies of all executions are made
            dense, prepared = _moved(dense, device), replace(prepared, network=_moved(prepared.network, device))
        found = entries.build(plan, dense, prepared, device=device, reporter=reporter)
    with staged(report, reporter, "latency"):
        largest = _batches(report, reporter, plan, found, device)
    if plan.layers:
        with staged(report, reporter, "layers"):
            _layers(report, reporter, found, largest, device)
    report.add("hardware", [{"name": name, "value": value} for name, value in hardware.fingerprint(device).items()])
    provenance(report, recipe, dense, device)
    return report


def _moved(network: Network, device: str) -> Network:
    copied = network.copy()
    copied.module.to(device)
    return copied


def _batches(report: Report, reporter: Reporter, plan: LatencyPlan, found: list[Contestant], device: str) -> int:
    """Race at every batch size, or its half where it does not fit, and so on. Returns the largest that was timed."""
    waiting, done = {batch: batch for batch in plan.batches}, []  # {batch: the one that was asked for}
    while waiting:
        batch = min(waiting)
        asked = waiting.pop(batch)
        try:
            _race(report, reporter, plan, found, batch, device, f"batch {asked} did not fit" if asked != batch else "")
            done.append(batch)
        except Exception as error:
            if not entries.out_of_memory(error):
                raise
        else:
            reporter.progress(len(done), len(plan.batches))
            continue
        entries.empty(device)  # outside the handler, whose error holds what was allocated
        half = batch // 2
        if not half:
            raise LabError(f"Not one image fits into the memory of {device} beside {len(found)} executions. Name fewer of them.")
        if half not in done:
            waiting[half] = asked
        fits = "is timed already" if half in done else "is timed instead"
        note(report, reporter, [f"Batch {batch} does not fit into the memory of {device}: batch {half} {fits}."])
    return max(done)


def _race(report: Report, reporter: Reporter, plan: LatencyPlan, found: list[Contestant], batch: int, device: str, remark: str) -> None:
    """One batch size: rows of the tables latency and sensors. Nothing is added if memory runs out."""
    calls, memory, failures = {}, {}, {}
    for entry in found:
        if entry.ready is None:
            continue
        reporter.check()
        try:
            call = entry.call(batch)
            memory[entry.label], calls[entry.label] = entries.trial(entry, call, device=device), call
        except Exception as error:  # a kernel that is not there, a shape that it does not take: torch raises anything
            if entries.out_of_memory(error):
                raise
            failures[entry.label] = f"it fails at batch {batch}: {entries.first_line(error)}"
    readings = [{"batch": batch, "when": "before", **sensors.read(device)}]
    rounds = latency.race(
        calls, device=device, single=batch == 1, seconds=plan.seconds, min_iterations=plan.min_iterations, reporter=reporter
    )  # fmt: skip
    for call in list(calls.values())[-1:]:
        readings.append({"batch": batch, "when": "after", **sensors.read_under_load(call, device)})
    joules, method = {}, energy.method_for(device)
    for label, call in calls.items() if method else ():
        reporter.check()
        joules[label] = energy.per_image(call, batch, device=device, method=method, seconds=plan.seconds / 2)
    report.add("sensors", readings)
    about = {
        "model": plan.recipe.model.name, "device": device, "throttle": sensors.slowed(readings), "energy_method": method or None,
        **{key: hardware.fingerprint(device)[key] for key in ("device_name", "fingerprint", "threads")},
    }  # fmt: skip
    peaks = {row["precision"]: row["tflops"] for row in report.tables["peak"]}
    report.add("latency", timed([entry for entry in found if entry.label in rounds], rounds, batch, peaks, joules, memory, about, remark))
    reasons = {entry.label: entry.refusal or failures.get(entry.label, "") for entry in found}
    report.add("latency", refused([entry for entry in found if entry.label not in rounds], reasons, batch, about))


def _layers(report: Report, reporter: Reporter, found: list[Contestant], batch: int, device: str) -> None:
    """The waterfall of every execution that is not compiled; one that fails at this batch has none."""
    for entry in found:
        if entry.ready is None or entry.execution.compile:
            continue
        reporter.check()
        try:
            rows = layers.waterfall(entry.ready.network, entry.call(batch), device=device)
        except Exception as error:
            note(report, reporter, [f"{entry.label} has no times by layer: {entries.first_line(error)}."])
        else:
            report.add("latency_layers", rows, execution=entry.label, batch=batch)

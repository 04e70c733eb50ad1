"""run(plan) → Report: every execution of a plan timed against every other, on this device.

All contestants stand on the device together and take turns in one race a batch size (see `measure.latency`), so that any two of them are
paired round by round: an execution with the dense network of its own precision, and with the best dense network of all, which is known
only afterwards. The race is run in several fresh processes, one after the other, since processes differ by more than the rounds of one
show: ratios are means over these starts, and their intervals say where another such measurement lands (see `measure.again`). Report tables:

table           a row is                     columns
--------------  ---------------------------  -------------------------------------------------------------------------------------------
latency         an execution at a batch      stage (dense: whole; pruned: all else), execution (its label), backend, precision, compiled, merged,
                size; what was refused has   channels_last, batch, scenario (single or offline), latency_ms_p50, latency_ms_p90, latency_ms_p99,
                a note and no figures        images_per_s(_low, _high), speedup(_low, _high) over dense of the same precision, eagerness and
                                             layout, speedup_best(_low, _high) over best_dense (the label of the dense network with the most
                                             images a second at that batch), tflops (2 × macs_g a second), peak_share (of the table peak),
                                             macs_g (of an image), joules_per_image and energy_method (see `energy`), memory_bytes (weights
                                             and the most that lay beside them), largest_difference, tolerance and top1_agreement (see
                                             `execution.proof`), iterations, starts (1: in this process alone), tokens (merged a block, ''
                                             for none), throttle (why the clocks were held down, '' for no reason), model, dtype, device,
                                             device_name, fingerprint, threads, note
latency_layers  a layer of an execution      execution, batch, layer, kind, ms, share (see `layers`)
sensors         a reading                    batch, start, when (before the race, or after it under load), and the columns of `sensors`
peak            a precision                  precision, tflops, gb_per_s, shape
hardware        a fact of the fingerprint    name, value

and totals, layers, ledger, seconds, notes, provenance as every run has them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import product

from starfish_lab import tokens
from starfish_lab.execution import slicing
from starfish_lab.latency import contestants, fresh, sensors
from starfish_lab.latency.contestants import Networks
from starfish_lab.latency.plan import FEWEST_STARTS, LatencyPlan
from starfish_lab.latency.rows import refused, timed
from starfish_lab.latency.start import Job, Start, start
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

    dense : the network, where it is not one that `plan.recipe.model` can load; several starts need one that can be pickled

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
    job = Job(plan, device, tuple(plan.contestants()), plan.batches, starts=plan.starts)
    networks = Networks(dense, tokens.unmerged(prepared.network), masks)  # executions merge for themselves; hooks are for no other process
    if plan.starts == 1:
        found = [start(job, networks, reporter=reporter)]
        report.add("seconds", found[0].report.tables["seconds"])
    else:
        with staged(report, reporter, "latency") as parts:
            found = _starts(report, reporter, job, networks)
            parts |= {stage: seconds for stage, seconds in _spent(found).items() if stage != "latency"}
    _tell(report, job, found)
    report.add("hardware", [{"name": name, "value": value} for name, value in hardware.fingerprint(device).items()])
    provenance(report, recipe, dense, device)
    return report


def _starts(report: Report, reporter: Reporter, job: Job, networks: Networks) -> list[Start]:
    """One process after the other; after FEWEST_STARTS no more than there is time for."""
    plan, found = job.plan, []
    contestants.empty(job.device)  # what pruning took there is for the processes
    longest = latency.PATIENCE * plan.seconds * len(job.executions) * len(plan.batches)
    with fresh.processes(networks) as process:
        while len(found) < plan.starts:
            spent = _spent(found)
            if len(found) >= FEWEST_STARTS and spent["build"] + spent["latency"] > longest:
                why = "each compiles anew" if any(execution.compile for execution in job.executions) else "passes or their preparation are slow"
                note(report, reporter, [f"Timed in {len(found)} fresh processes instead of {plan.starts}: {why}, and the time of the plan is spent."])
                break
            found.append(process(replace(job, number=len(found) + 1), reporter))
            able = {entry.label for entry in found[0].entries if not entry.refusal}
            job = replace(job, executions=tuple(one for one in job.executions if one.label in able), batches=tuple(found[0].races))
    return found


def _spent(found: list[Start]) -> Counter[str]:
    """{stage: seconds} of all starts."""
    spent: Counter[str] = Counter()
    for one in found:
        spent.update({row["stage"]: row["seconds"] for row in one.report.tables.get("seconds", [])})
    return spent


def _tell(report: Report, job: Job, found: list[Start]) -> None:
    """Rows of what came of all starts."""
    first, plan, device = found[0], job.plan, job.device
    for one, table in product(found, ("peak", "latency_layers", "notes")):
        if table in one.report.tables:
            report.add(table, one.report.tables[table])
    peaks = {row["precision"]: row["tflops"] for row in report.tables["peak"]}
    facts = {key: hardware.fingerprint(device)[key] for key in ("device_name", "fingerprint", "threads")}
    for batch, race in first.races.items():
        races = {number: one.races[batch] for number, one in enumerate(found, start=1) if batch in one.races}
        rounds = {label: {number: one.rounds[label] for number, one in races.items() if label in one.rounds} for label in race.rounds}
        readings = [reading for one in races.values() for reading in one.readings]
        report.add("sensors", readings)
        about = {
            "model": plan.recipe.model.name, "device": device, "throttle": sensors.slowed(readings), "energy_method": race.energy_method or None,
            **facts,
        }  # fmt: skip
        ran = [entry for entry in first.entries if entry.label in rounds]
        report.add("latency", timed(ran, rounds, batch, peaks, race.joules, race.memory, about, race.remark))
        reasons = {entry.label: entry.refusal or race.failures.get(entry.label, "") for entry in first.entries}
        report.add("latency", refused([entry for entry in first.entries if entry.label not in rounds], reasons, batch, about))

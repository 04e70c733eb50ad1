"""A start: every execution built anew, proven, and raced at every batch size, in this process. What comes of it is plain data."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from starfish_lab.errors import LabError
from starfish_lab.execution.choice import Execution
from starfish_lab.latency import contestants, energy, layers, peak, sensors
from starfish_lab.latency.contestants import Contestant, Networks
from starfish_lab.latency.plan import LatencyPlan
from starfish_lab.measure import latency
from starfish_lab.models.network import Network
from starfish_lab.progress import Reporter
from starfish_lab.report import Report
from starfish_lab.stages import note, staged


@dataclass(frozen=True)
class Job:
    """What a start is to do.

    executions, batches : those that an earlier start could not run are left out
    number, starts : which start it is, from 1, and how many share the seconds of the plan; the first also measures what is told once
    """

    plan: LatencyPlan
    device: str
    executions: tuple[Execution, ...]
    batches: tuple[int, ...]
    number: int = 1
    starts: int = 1


@dataclass
class Race:
    """One batch size.

    rounds, failures, memory, joules : by the execution's label: what was timed, why it was not, bytes, joules an image
    """

    rounds: dict[str, latency.Rounds]
    failures: dict[str, str]
    memory: dict[str, int | None]
    joules: dict[str, float | None]
    energy_method: str
    readings: list[dict[str, object]]
    remark: str


@dataclass
class Start:
    """What came of it.

    entries : every execution, without what it runs
    races : {batch: race}, of the batches that fitted into memory
    report : tables seconds and notes, of the first start also peak and latency_layers
    """

    entries: list[Contestant] = field(default_factory=list)
    races: dict[int, Race] = field(default_factory=dict)
    report: Report = field(default_factory=Report)


def start(job: Job, networks: Networks, *, reporter: Reporter) -> Start:
    """Raises LabError where not one image fits into memory, and Cancelled when asked to stop."""
    done, device, first = Start(), job.device, job.number == 1
    if first:
        with staged(done.report, reporter, "peak"):
            done.report.add("peak", peak.measure(device, [execution.precision for execution in job.executions]))
    with staged(done.report, reporter, "build"):
        if device.startswith("cuda"):  # where the copies of all executions are made
            networks = networks._replace(dense=_moved(networks.dense, device), pruned=_moved(networks.pruned, device))
        entries = contestants.build(job.plan, job.executions, networks, device=device, reporter=reporter)
        done.entries = [replace(entry, ready=None) for entry in entries]
    with staged(done.report, reporter, "latency"):
        _batches(done, job, entries, reporter)
    if first and job.plan.layers:
        with staged(done.report, reporter, "layers"):
            _layers(done.report, reporter, entries, max(done.races), device)
    return done


def _moved(network: Network, device: str) -> Network:
    copied = network.copy()
    copied.module.to(device)
    return copied


def _batches(done: Start, job: Job, entries: list[Contestant], reporter: Reporter) -> None:
    """Race at every batch size, or its half where it does not fit, and so on."""
    waiting, device = {batch: batch for batch in job.batches}, job.device  # {batch: the one that was asked for}
    while waiting:
        batch = min(waiting)
        asked = waiting.pop(batch)
        try:
            done.races[batch] = _race(job, entries, batch, f"batch {asked} did not fit" if asked != batch else "", reporter)
        except Exception as error:
            if not contestants.out_of_memory(error):
                raise
        else:
            reporter.progress(len(done.races), len(job.batches))
            continue
        contestants.empty(device)  # outside the handler, whose error holds what was allocated
        half = batch // 2
        if not half:
            raise LabError(f"Not one image fits into the memory of {device} beside {len(entries)} executions. Name fewer of them.")
        if half not in done.races:
            waiting[half] = asked
        fits = "is timed already" if half in done.races else "is timed instead"
        note(done.report, reporter, [f"Batch {batch} does not fit into the memory of {device}: batch {half} {fits}."])


def _race(job: Job, entries: list[Contestant], batch: int, remark: str, reporter: Reporter) -> Race:
    """One batch size. Raises what torch raises where memory runs out."""
    calls, memory, failures, device, seconds = {}, {}, {}, job.device, job.plan.seconds
    for entry in entries:
        if entry.ready is None:
            continue
        reporter.check()
        try:
            call = entry.call(batch)
            memory[entry.label], calls[entry.label] = contestants.trial(entry, call, device=device), call
        except Exception as error:  # a kernel that is not there, a shape that it does not take: torch raises anything
            if contestants.out_of_memory(error):
                raise
            failures[entry.label] = f"it fails at batch {batch}: {contestants.first_line(error)}"
    about = {"batch": batch, "start": job.number}
    readings = [{**about, "when": "before", **sensors.read(device)}]
    rounds = latency.race(
        calls, device=device, single=batch == 1, seconds=seconds, min_iterations=job.plan.min_iterations, reporter=reporter, starts=job.starts
    )  # fmt: skip
    for call in list(calls.values())[-1:]:
        readings.append({**about, "when": "after", **sensors.read_under_load(call, device)})
    joules, method = {}, energy.method_for(device) if job.number == 1 else ""
    for label, call in calls.items() if method else ():
        reporter.check()
        joules[label] = energy.per_image(call, batch, device=device, method=method, seconds=seconds / 2)
    return Race(rounds, failures, memory, joules, method, readings, remark)


def _layers(report: Report, reporter: Reporter, entries: list[Contestant], batch: int, device: str) -> None:
    """The waterfall of every execution that is not compiled; one that fails at this batch has none."""
    for entry in entries:
        if entry.ready is None or entry.execution.compile:
            continue
        reporter.check()
        try:
            rows = layers.waterfall(entry.ready.network, entry.call(batch), device=device)
        except Exception as error:
            note(report, reporter, [f"{entry.label} has no times by layer: {contestants.first_line(error)}."])
        else:
            report.add("latency_layers", rows, execution=entry.label, batch=batch)

"""Several starts: what their processes say, how they end, and how a measurement is told from them. With stand-ins for what is slow."""

from __future__ import annotations

import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from test_latency_run import Notes, Runner, plan, quick, stand_ins  # noqa: F401

from starfish_lab.errors import Cancelled, LabError, Refused
from starfish_lab.latency import fresh
from starfish_lab.latency.plan import LatencyPlan
from starfish_lab.latency.run import run
from starfish_lab.latency.start import Job, Start, start
from starfish_lab.measure import latency
from starfish_lab.progress import Reporter

JOB = Job(LatencyPlan(starts=4), "cpu", (), (1,), number=2, starts=4)
BEGIN = """
import json, os, pickle, subprocess, sys, time
def answer(it):
    pickle.dump(it, open(os.path.join(sys.argv[1], "answer.pickle"), "wb"))
"""
SLEEP = "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(30)'])"


@pytest.fixture
def does(tmp_path, monkeypatch):
    """Starts run this code instead of the lab's own, which takes seconds to import."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(fresh, "MODULE", "stand_in")

    def write(code: str, reporter: Reporter | None = None) -> Start:
        (tmp_path / "stand_in.py").write_text(BEGIN + code)
        with fresh.processes(None) as process:
            return process(JOB, reporter or Reporter())

    return write


class Listening(Notes):
    def __init__(self):
        super().__init__()
        self.steps = []

    def progress(self, step, steps):
        self.steps.append((step, steps))


def test_a_process_tells_its_progress_and_leaves_an_answer(does):
    code = "assert pickle.load(open(os.path.join(sys.argv[1], 'job.pickle'), 'rb'))[0].number == 2\nanswer({'rounds': 7})\n"
    listener = Listening()
    assert does(code + "print(json.dumps(['note', 'warm']))\nprint(json.dumps(['progress', 1, 2]), flush=True)", listener) == {"rounds": 7}
    assert listener.notes == ["warm"] and listener.steps == [(3, 8)]  # half of the second of four


@pytest.mark.parametrize(
    ("code", "error", "says"),
    [
        ("os._exit(7)", LabError, r"Start 2 of 4 ended without an answer \(exit code 7\).*memory"),
        ("from starfish_lab.errors import LabError\nanswer(LabError('Not one image fits.'))", LabError, "Not one image fits."),
        ("answer('Traceback\\n  somewhere\\nZeroDivisionError: a bug')", RuntimeError, "start 2 of 4 failed: ZeroDivisionError: a bug"),
    ],
)
def test_what_goes_wrong_there_is_said_here(does, code, error, says):
    with pytest.raises(error, match=says):
        does(code)


def test_cancelling_ends_the_process_and_what_it_started_at_once(does, tmp_path):
    class Stop(Reporter):
        def cancel_requested(self):
            return (tmp_path / "pids").exists()

    code = f"inner, new, pids = {SLEEP}, r'{tmp_path}/new', r'{tmp_path}/pids'\n"
    code += "open(new, 'w').write(f'{os.getpid()} {inner.pid}')\nos.rename(new, pids)\ntime.sleep(30)"
    with pytest.raises(Cancelled):
        does(code, Stop())
    asked = (tmp_path / "pids").stat().st_mtime
    assert time.time() - asked < 2
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    while any(map(alive, pids)):
        assert time.time() - asked < 5
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_compiler_that_lives_on_does_not_hold_the_answer_up(does):
    began = time.monotonic()
    assert does(f"{SLEEP}\nanswer(3)\nprint(json.dumps(['end']), flush=True)\ntime.sleep(30)") == 3 and time.monotonic() - began < 20


@pytest.fixture
def here(monkeypatch):
    """Starts happen in this process; their jobs are written down."""
    jobs = []

    @contextmanager
    def processes(networks):
        def process(job, reporter):
            jobs.append(job)
            return start(job, networks, reporter=reporter)

        yield process

    monkeypatch.setattr(fresh, "processes", processes)
    return jobs


def test_rows_tell_of_all_starts_and_what_cannot_run_is_not_tried_again(stand_ins, here):  # noqa: F811
    full = torch.OutOfMemoryError("CUDA out of memory")
    stand_ins["sliced"], stand_ins["masked"] = Runner(fails={8: full}), Refused("nothing to mask")
    notes = Notes()
    report = run(plan("sliced", "masked", batches=(2, 8), starts=3, seconds=0.05), device="cpu", reporter=notes)
    rows = report.frame("latency").set_index(["execution", "batch"])
    assert [(label, batch) for label, batch in rows.index] == [(label, batch) for batch in (2, 4) for label in ("dense", "sliced", "masked")]
    assert rows["starts"].dropna().tolist() == [3] * 4 and rows.loc[("masked", 2), "note"] == "nothing to mask"
    assert [([one.label for one in job.executions], job.batches) for job in here] == [
        (["dense", "sliced", "masked"], (2, 8)), (["dense", "sliced"], (2, 4)), (["dense", "sliced"], (2, 4)),
    ]  # fmt: skip
    assert [job.number for job in here] == [1, 2, 3] and sum("does not fit" in note for note in notes.notes) == 1
    assert rows["iterations"].dropna().min() >= 6  # two rounds of at least a call in each start
    assert report.frame("sensors")[["start", "batch", "when"]].values.tolist() == [
        [start, batch, when] for batch in (2, 4) for start in (1, 2, 3) for when in ("before", "after")
    ]  # fmt: skip
    assert len(report.tables["peak"]) == 1 and {"load", "prune", "peak", "build", "latency"} == set(report.frame("seconds")["stage"])


def test_one_start_needs_no_other_process(stand_ins, here):  # noqa: F811
    assert set(run(plan("sliced"), device="cpu").frame("latency")["starts"]) == {1} and not here


@pytest.mark.parametrize(("label", "why"), [("sliced", "slow"), ("sliced, compiled", "each compiles anew")])
def test_slow_starts_are_fewer_and_the_run_says_so(stand_ins, here, monkeypatch, label, why):  # noqa: F811
    monkeypatch.setattr(latency, "PATIENCE", 0)
    report = run(plan(label, starts=8), device="cpu")
    assert len(here) == 3 and set(report.frame("latency")["starts"]) == {3}
    (said,) = [row["note"] for row in report.tables["notes"]]
    assert said.startswith("Timed in 3 fresh processes instead of 8") and why in said


def test_a_start_that_lost_an_execution_tells_of_the_others(stand_ins, here):  # noqa: F811
    """One that fails in the second start has two, and is paired with the dense network of those."""
    runner = stand_ins["sliced"] = Runner()

    def fails_in_the_second(images, call=Runner.__call__):
        if len(here) == 2:
            raise RuntimeError("no kernel image is available")
        return call(runner, images)

    stand_ins["sliced"] = fails_in_the_second
    fails_in_the_second.inputs = partial(Runner.inputs, runner)
    rows = run(plan("sliced", starts=3), device="cpu").frame("latency").set_index("execution")
    assert rows["starts"].to_dict() == {"dense": 3, "sliced": 2} and rows.loc["sliced", "speedup"] > 0

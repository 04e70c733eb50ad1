"""Starts in fresh processes, one at a time: memory, pages and threads are placed anew in each, as they will be when someone measures again.

A process is handed the networks and its job in a folder, tells its progress and notes by lines of JSON, and leaves what came of it in the
folder. It ends with the one that started it, and within POLL_SECONDS of being cancelled.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from tempfile import TemporaryDirectory
from threading import Thread
from typing import IO

import torch

from starfish_lab import attached
from starfish_lab.errors import LabError
from starfish_lab.latency.contestants import Networks
from starfish_lab.latency.start import Job, Start, start
from starfish_lab.progress import Reporter

MODULE = "starfish_lab.latency.fresh"
NETWORKS, JOB, ANSWER = "networks.pickle", "job.pickle", "answer.pickle"
END = "end"  # said, since compilers that live on may hold the pipe open
POLL_SECONDS = 0.5  # rarely, since looking takes time from a processor that is being timed


@contextmanager
def processes(networks: Networks) -> Iterator[Callable[[Job, Reporter], Start]]:
    """A function that does a job in a process of its own. It raises what `start` raises, and LabError where the process was killed."""
    with TemporaryDirectory(prefix="starfish-lab-") as folder:
        _write(Path(folder) / NETWORKS, networks)
        yield partial(_done, Path(folder))


def _done(folder: Path, job: Job, reporter: Reporter) -> Start:
    (folder / ANSWER).unlink(missing_ok=True)
    _write(folder / JOB, (job, torch.get_num_threads()))
    process = attached.start([MODULE, str(folder)], stdout=subprocess.PIPE, text=True)
    told: SimpleQueue[str | None] = SimpleQueue()
    Thread(target=_listen, args=(process.stdout, told), daemon=True).start()
    try:
        _relay(told, job, reporter)
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # with the compilers that it may have started; it has ended, or is to end now
        status = process.wait()
    if not (folder / ANSWER).exists():
        raise LabError(
            f"Start {job.number} of {job.starts} ended without an answer (exit code {status}), most likely for want of memory: "
            "name fewer executions or smaller batches."
        )
    answer = pickle.loads((folder / ANSWER).read_bytes())
    if isinstance(answer, str):
        failure = RuntimeError(f"start {job.number} of {job.starts} failed: {answer.strip().splitlines()[-1]}")
        failure.add_note(answer)
        raise failure
    if isinstance(answer, LabError):
        raise answer
    return answer


def _listen(lines: IO[str], told: SimpleQueue[str | None]) -> None:
    for line in lines:
        told.put(line)
    told.put(None)


def _relay(told: SimpleQueue[str | None], job: Job, reporter: Reporter) -> None:
    """Until the process has nothing more to say. Its own progress counts as a share of all starts."""
    while True:
        reporter.check()
        try:
            line = told.get(timeout=POLL_SECONDS)
        except Empty:
            continue
        what, *words = json.loads(line) if line else [END]
        if what == END:
            return
        if what == "note":
            reporter.note(*words)
        else:
            step, steps = words
            reporter.progress((job.number - 1) * steps + step, job.starts * steps)


class _Telling(Reporter):
    """Of races only: that executions are built is a matter of seconds."""

    def __init__(self, lines: IO[str]):
        self._lines, self._stage = lines, ""

    def stage(self, name: str) -> None:
        self._stage = name

    def progress(self, step: int, steps: int) -> None:
        if self._stage == "latency":
            self._tell("progress", step, steps)

    def note(self, text: str) -> None:
        self._tell("note", text)

    def _tell(self, *words: object) -> None:
        print(json.dumps(words), file=self._lines, flush=True)


def _write(path: Path, content: object) -> None:
    """As a whole or not at all."""
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        pickle.dump(content, file, protocol=pickle.HIGHEST_PROTOCOL)
    part.replace(path)


def main(folder: Path) -> None:
    """The process's side."""
    lines, sys.stdout = sys.stdout, sys.stderr  # whatever libraries print is no line of ours
    job, threads = pickle.loads((folder / JOB).read_bytes())
    torch.set_num_threads(threads)
    try:
        with (folder / NETWORKS).open("rb") as file:
            networks = pickle.load(file)
        answer: object = start(job, networks, reporter=_Telling(lines))
    except LabError as error:
        answer = LabError(str(error))
    except Exception:
        answer = traceback.format_exc()
    _write(folder / ANSWER, answer)
    print(json.dumps([END]), file=lines, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

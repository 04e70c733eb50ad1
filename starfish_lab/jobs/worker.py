"""A worker: claim a run, do it, write down what came of it, again.

python -m starfish_lab.jobs.worker --device cpu
"""

from __future__ import annotations

import argparse
import errno
import gc
import os
import shutil
import signal
import socket
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable
from pathlib import Path

from starfish_lab import artefacts, settings
from starfish_lab.errors import Cancelled, LabError, StoreError
from starfish_lab.jobs.kinds import KINDS
from starfish_lab.jobs.reporter import StoreReporter
from starfish_lab.plain_data import Plan
from starfish_lab.progress import Reporter
from starfish_lab.store import Run, Store, folder_of

POLL_SECONDS = 0.3
RETRY_SECONDS = 2.0  # after the store could not be reached
BEATS_BEFORE_STALE = 5  # heartbeats in the time after which a silent worker counts as dead


def work(store: Store, device: str, *, once: bool = False, stop: threading.Event | None = None) -> None:
    """Do runs until `stop` is set; with `once`, at most one. `device` is one that exists: cpu, mps or cuda:N.

    A store that cannot be reached is waited for.
    """
    stop = stop or threading.Event()
    worker, title = worker_name(device), _title(device)
    with _Heartbeat(store, worker, device, title) as heartbeat:
        while not stop.is_set():
            try:
                run = store.claim(worker, device, title=title)
            except StoreError as error:
                print(error, file=sys.stderr)
                stop.wait(RETRY_SECONDS)
                continue
            if run is not None:
                _do(store, run, worker, device, heartbeat, stop)
            if once:
                return
            if run is None:
                stop.wait(POLL_SECONDS)


def run_here(store: Store, task: Plan, *, kind: str = "experiment", watch: Reporter | None = None) -> Run:
    """Submit a plan and do it in this process. Returns the run as it ended; Ctrl-C cancels it."""
    _prepare()
    device = _choose(task.device)
    worker, stop = worker_name(device), threading.Event()
    with _Heartbeat(store, worker, device, _title(device)) as heartbeat:
        run = store.run(store.submit(task, kind, owner="command line", claimed_by=(worker, device)))
        try:
            _do(store, run, worker, device, heartbeat, stop, watch=watch)
        except KeyboardInterrupt:
            store.mark_cancelled(run.id, worker=worker)
    return store.run(run.id)


def do(store: Store, run_id: int, *, worker: str, wanted: str, attempt_of: str) -> Run | None:
    """Do one run in this process, whatever device it asks for, and return it as it ended; None where it is another worker's.

    A run that a worker with `attempt_of` in its name still has is waited for: that was an earlier attempt at this, and it is dead.
    Ctrl-C hands the run back to the queue, or ends it where it was asked to stop.
    """
    _prepare()
    device = _choose(wanted)
    with _Heartbeat(store, worker, device, _title(device)) as heartbeat:
        while (run := store.claim(worker, device, run_id=run_id)) is None:
            found = store.run(run_id)
            if found.status != "running" or attempt_of not in (found.worker or ""):
                return None
            time.sleep(POLL_SECONDS)
        try:
            _do(store, run, worker, device, heartbeat, threading.Event())
        except KeyboardInterrupt:
            store.release(run_id, worker=worker)
            raise
    return store.run(run_id)


def _do(store: Store, run: Run, worker: str, device: str, heartbeat: _Heartbeat, stop: threading.Event, *, watch: Reporter | None = None) -> None:
    """One run from claim to its last word. Nothing that goes wrong in it leaves this function."""
    heartbeat.run_id = run.id
    reporter = StoreReporter(store, run.id, worker, stop=stop, watch=watch)
    try:
        folder = _folder(run)
        report = KINDS[run.kind](run, store=store, reporter=reporter, folder=folder, device=device)
        ending = (store.finish, (report, artefacts.keep(folder / "healed", run.id, reporter)))
    except Cancelled:
        ending = (store.release if stop.is_set() else store.mark_cancelled, ())
    except Exception as error:
        ending = (store.fail, (_in_words(error, run, reporter.current),))
    while not reporter.flush() and not stop.wait(RETRY_SECONDS):
        pass  # the last figures wait for the store, as the result does
    _insist(*ending, run_id=run.id, worker=worker, stop=stop)
    heartbeat.run_id = None
    _free_memory()


def _insist(write: Callable[..., bool], arguments: tuple, *, run_id: int, worker: str, stop: threading.Event) -> None:
    """Write the result of a run; while the store is locked or its disk full, wait rather than lose it."""
    while True:
        try:
            if not write(run_id, *arguments, worker=worker):
                print(f"Run {run_id} belongs to another worker by now; its result here is dropped.", file=sys.stderr)
            return
        except StoreError as error:
            print(f"The result of run {run_id} waits: {error}", file=sys.stderr)
            if stop.wait(RETRY_SECONDS):
                return


def _folder(run: Run) -> Path:
    """The run's folder. What lies there from a run with the same number in another store is removed."""
    folder = folder_of(run.id)
    identity = f"{run.recipe_json}\n{run.created_at}\n"
    stamp = folder / "run.txt"
    if not stamp.exists() or stamp.read_text() != identity:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        stamp.write_text(identity)
    return folder


def _in_words(error: Exception, run: Run, stage: str | None) -> str:
    """What stopped the run, in one or two sentences; the traceback goes to the run's log."""
    log = folder_of(run.id) / "log.txt"
    try:
        with log.open("a") as file:
            file.write(f"attempt {run.attempt}\n{''.join(traceback.format_exception(error))}\n")
        details = f"The details are in {log}."
    except OSError:
        traceback.print_exception(error)
        details = "The details are in the worker's terminal."
    where = f"in the stage '{stage}'" if stage else "before its first stage"
    if isinstance(error, LabError):
        return str(error)
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return f"Memory ran out {where}. Choose a smaller healing.batch_size, fewer calibration images or a smaller network."
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"The disk was full {where}. Free some space and launch the run again."
    reason = str(error).strip().partition("\n")[0]
    return f"The run stopped {where}: {type(error).__name__}{': ' if reason else ''}{reason}. {details}"


class _Heartbeat:
    """Tells the store from a thread of its own that the worker lives: long computations do not make it look dead."""

    def __init__(self, store: Store, worker: str, device: str, title: str):
        self.store, self.worker, self.device, self.title = store, worker, device, title
        self.run_id: int | None = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> _Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        try:
            self.store.retire(self.worker)
        except StoreError as error:
            print(error, file=sys.stderr)

    def _beat(self) -> None:
        announced, shown, beaten_at = False, None, 0.0
        every = self.store.stale_seconds / BEATS_BEFORE_STALE
        while True:
            run_id = self.run_id
            if not announced or run_id != shown or time.monotonic() - beaten_at >= every:
                try:
                    if not announced:
                        self.store.announce(self.worker, self.device, self.title)
                        announced = True
                    self.store.heartbeat(self.worker, run_id)
                    shown = run_id
                except StoreError as error:
                    print(error, file=sys.stderr)
                beaten_at = time.monotonic()
            if self._end.wait(min(every, 0.2)):
                return


def worker_name(what: str) -> str:
    """A name that no other worker has, which tells its machine and its process."""
    return f"{socket.gethostname()}-{what}-{os.getpid()}-{uuid.uuid4().hex[:4]}"


def _title(device: str) -> str:
    from starfish_lab.measure.hardware import devices

    return next((entry["title"] for entry in devices() if entry["name"] == device), device)


def _choose(device: str) -> str:
    from starfish_lab.measure.hardware import choose_device

    return choose_device(device)


def _prepare() -> None:
    """Import what every run needs, before the first one waits for it."""
    import timm  # noqa: F401
    import torch

    threads = settings.THREADS()
    if not threads.isdigit():
        raise LabError(f"{settings.THREADS.name} is '{threads}': give a whole number of threads, or 0 for all cores.")
    if int(threads):
        torch.set_num_threads(int(threads))


def _free_memory() -> None:
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def main(arguments: list[str] | None = None) -> None:
    """Entry of a worker process. SIGTERM or Ctrl-C hands the present run back to the queue and ends it; a second one ends it at once."""
    parser = argparse.ArgumentParser(prog="python -m starfish_lab.jobs.worker", description="Do runs from the store until stopped.")
    parser.add_argument("--device", default="auto", help="cpu, mps, cuda:N, or auto: the best there is")
    parser.add_argument("--once", action="store_true", help="end after one run, or at once if there is none")
    options = parser.parse_args(arguments)

    stop = threading.Event()

    def end(number: int, _frame: object) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    if hasattr(os, "nice"):
        os.nice(5)  # pages stay quick while every core computes
    try:
        _prepare()
        work(Store(), _choose(options.device), once=options.once, stop=stop)
    except LabError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()

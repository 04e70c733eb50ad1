"""What Ray does on a node for one run: a worker's own steps for that run alone, in a process of its own."""

from __future__ import annotations

import contextlib
import io
import os
import platform
import signal

from starfish_lab.jobs import worker
from starfish_lab.jobs.ray_backend import TASK
from starfish_lab.store import Run, Store, folder_of

KEPT_CHARACTERS = 4000  # of a failed run's log


def do(run_id: int, wanted: str, url: str, stale_seconds: float, environment: dict[str, str]) -> None:
    """Do a run of the store at `url` on the device `wanted`. The node's own settings win over the `environment` of the dispatcher."""
    import ray

    signal.signal(signal.SIGINT, signal.default_int_handler)  # by which Ray interrupts; a cluster started in the background ignores it
    for name, value in environment.items():
        os.environ.setdefault(name, value)
    store = Store(url, stale_seconds=stale_seconds)
    store.run(run_id)  # a store that knows no such run is another one: said before anything is done
    here = ray.get_runtime_context()
    task = here.get_task_id()[:16]  # the same for every attempt that Ray makes
    name = f"{TASK}/{here.get_node_id()[:12]}/{task}/{os.getpid()}"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        run = worker.do(store, run_id, worker=name, wanted=wanted, attempt_of=task)
    if run is not None:
        _keep_log(store, run, printed.getvalue())


def _keep_log(store: Store, run: Run, printed: str) -> None:
    """What the run printed goes to the log in its folder; the end of a failed run's log goes to the store too, since the folder is the node's."""
    log = folder_of(run.id) / "log.txt"
    with log.open("a") as file:
        file.write(printed)
    if run.status == "failed":
        store.note(run.id, f"The end of its log, from the node {platform.node()}:\n{log.read_text()[-KEPT_CHARACTERS:]}")

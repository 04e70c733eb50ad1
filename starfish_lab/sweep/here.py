"""A sweep done by the process that asks for it, beside whatever workers there are."""

from __future__ import annotations

from collections.abc import Callable

from starfish_lab.jobs.worker import do, worker_name
from starfish_lab.store import Store


def work_off(store: Store, sweep: int, *, tell: Callable[[str], None]) -> None:
    """Do the waiting runs of a sweep one after the other, and `tell` how each ended. Those that a worker took are left to it.

    Ctrl-C cancels the sweep.
    """
    worker = worker_name("sweep")
    runs = [int(run) for run in store.sweep_runs(sweep)["run"]]
    try:
        for number, run_id in enumerate(runs, 1):
            run = store.run(run_id)
            if run.status == "queued":
                run = do(store, run_id, worker=worker, wanted=run.recipe.device, attempt_of=worker) or store.run(run_id)
            tell(f"{number} of {len(runs)}: run {run_id} is {run.status}{f': {run.error}' if run.error else ''}")
    except KeyboardInterrupt:
        store.request_cancel(sweep)
        raise

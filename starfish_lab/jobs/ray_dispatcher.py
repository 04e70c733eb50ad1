"""Hands waiting runs to a Ray cluster, and keeps the store's rows and Ray's tasks in accord, whoever submitted the runs.

    python -m starfish_lab.jobs.ray_dispatcher

The row is the truth: a run is claimed by the task that does it, so one that is handed over twice is still done once. A run
whose task was lost is free again by the store's rule for silent workers, and is handed over again.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from starfish_lab import settings
from starfish_lab.errors import LabError, StoreError
from starfish_lab.jobs import address, ray_nodes, ray_task
from starfish_lab.jobs.ray_backend import DISPATCHER, NODE, TASK
from starfish_lab.jobs.worker import worker_name
from starfish_lab.store import Store
from starfish_lab.store.queue import MAX_ATTEMPTS, Active

POLL_SECONDS = 0.2
RETRY_SECONDS = 2.0  # after Ray or the store could not be reached
NODES_SECONDS = 1.0
AHEAD = 16  # unstarted tasks at Ray for one device: more would keep a profile, which a page waits for, behind a long sweep
INTERRUPT_SECONDS, KILL_SECONDS = 0.5, 1.0  # a run that is to stop does so by itself at its next step, is interrupted, is killed
INTERRUPTIONS = 3  # at the end: Python loses one that falls into a destructor
LEAVE_SECONDS = 10.0  # for the task of a run that has ended to end too
HOLD_SECONDS = 2.0  # before a run that could not be begun is tried again; doubles each time


@dataclass
class Task:
    """One run at Ray."""

    reference: object  # what ray.get takes
    wants: str
    needs: dict[str, object]  # what Ray keeps free for it
    unwanted_at: float | None = None  # since when it should have ended
    interrupted: bool = False


class Dispatcher:
    """One connection to Ray, and the runs that go through it. `do` is what a node does for a run."""

    def __init__(self, store: Store, cluster: str, *, do: Callable = ray_task.do):
        self.store, self.cluster, self.do = store, cluster, do
        self.name = worker_name("ray")
        self.tasks: dict[int, Task] = {}
        self._failed: Counter[int] = Counter()  # how often a run could not be begun
        self._held: dict[int, float] = {}  # until when it is not tried again
        self._told: set[int] = set()  # runs whose GPU nobody has, and that say so
        self._nodes: list[dict] = []
        self._nodes_at = 0.0
        self._rows = _Rows(store)

    def run(self, stop: threading.Event) -> None:
        """Until `stop` is set. What is wrong meanwhile stands in the dispatcher's own row, and is tried again.

        A cluster that goes away ends this: Ray ends the process, or a client of Ray raises an error. Another process begins anew.
        """
        problem = f"Ray at {self.cluster} does not answer yet, so runs wait. {ray_nodes.ADVICE}"
        try:
            while not stop.is_set():
                try:
                    self._say(problem)
                    problem = ray_nodes.connect(self.cluster)
                    while not problem and not stop.wait(POLL_SECONDS):
                        self.step()
                except StoreError as error:
                    print(error, file=sys.stderr)
                stop.wait(RETRY_SECONDS)
            self._hand_back()
        finally:
            with contextlib.suppress(StoreError):
                self._rows.show({})

    def step(self) -> None:
        """Look once at the rows and at Ray's tasks, and do what one asks of the other."""
        active = {run.id: run for run in self.store.active()}
        self._collect(active)
        for run_id, task in self.tasks.items():
            self._end(run_id, task, active.get(run_id))
        if time.monotonic() - self._nodes_at >= NODES_SECONDS:
            self._look_at_nodes(active)
        for run in active.values():
            if run.free and not run.cancel and run.id not in self.tasks and time.monotonic() >= self._held.get(run.id, 0.0):
                self._hand_over(run, active)

    def _hand_back(self) -> None:
        """Interrupt what runs, so that it returns to the queue."""
        if not self.tasks:
            return
        import ray

        left = [task.reference for task in self.tasks.values()]
        for _ in range(INTERRUPTIONS):
            for reference in left:
                ray.cancel(reference)
            _, left = ray.wait(left, num_returns=len(left), timeout=2 * KILL_SECONDS)
            if not left:
                return

    def _hand_over(self, run: Active, active: dict[int, Active]) -> None:
        """Give Ray one run, unless enough for this device wait there already."""
        import ray

        waiting = sum(task.wants == run.wants and run_id in active and active[run_id].free for run_id, task in self.tasks.items())
        if waiting >= AHEAD:
            return
        needs, names = ray_nodes.needs(run.wants, self._nodes), ray_nodes.names(self._nodes)
        if needs.get("accelerator_type", "") not in ("", *names) and run.id not in self._told:
            self._told.add(run.id)
            there = f"there are: {', '.join(names)}" if names else "it has none"
            self.store.note(run.id, f"The Ray cluster has no {needs['accelerator_type']} now ({there}). The run waits for one to join.")
        wanted = "cuda" if needs["num_gpus"] else "cpu" if run.wants == "auto" else run.wants
        own = {setting.name: os.environ[setting.name] for setting in settings.ALL if setting.name in os.environ}
        # A process for each run gives its memory back. Ray itself tries again where a node or a process dies.
        remote = ray.remote(max_calls=1, max_retries=MAX_ATTEMPTS - 1, name=f"run {run.id}", scheduling_strategy="SPREAD", **needs)(self.do)
        self.tasks[run.id] = Task(remote.remote(run.id, wanted, self.store.url, self.store.stale_seconds, own), run.wants, needs)

    def _look_at_nodes(self, active: dict[int, Active]) -> None:
        """Show them. A run that waits for what it no longer needs, since nodes came or went, is taken back, to be handed over anew."""
        import ray

        self._nodes, self._nodes_at = ray_nodes.living(), time.monotonic()
        self._say("")
        for run_id, task in self.tasks.items():
            if run_id in active and active[run_id].free and task.needs != ray_nodes.needs(task.wants, self._nodes):
                ray.cancel(task.reference)

    def _collect(self, active: dict[int, Active]) -> None:
        """Forget tasks that ended. What came of the run stands in its row."""
        import ray
        from ray.exceptions import RayError, RayTaskError, TaskCancelledError

        references = [task.reference for task in self.tasks.values()]
        done = set(ray.wait(references, num_returns=len(references), timeout=0)[0]) if references else set()
        for run_id in [run_id for run_id, task in self.tasks.items() if task.reference in done]:
            reference = self.tasks.pop(run_id).reference
            try:
                ray.get(reference)
            except TaskCancelledError:  # before it began, or killed
                continue
            except RayTaskError as error:
                if not isinstance(error.cause, TaskCancelledError):  # that would be: interrupted
                    self._not_begun(run_id, error.cause, active)
            except RayError as error:
                self._not_begun(run_id, error, active)

    def _not_begun(self, run_id: int, error: BaseException, active: dict[int, Active]) -> None:
        """A run whose task failed before it was claimed waits, a little longer each time, and fails in the end."""
        if run_id not in active or not active[run_id].free:
            return
        self._failed[run_id] += 1
        self._held[run_id] = time.monotonic() + HOLD_SECONDS * 2 ** (self._failed[run_id] - 1)
        reason = str(error) if isinstance(error, LabError) else f"{type(error).__name__}: {str(error).strip().rpartition(chr(10))[2]}."
        print(f"Run {run_id} could not be begun: {reason}", file=sys.stderr)
        if self._failed[run_id] >= MAX_ATTEMPTS and self.store.claim(self.name, "ray", run_id=run_id):
            advice = f"Each node needs the lab on its PYTHONPATH, and a store that it reaches ({settings.DATABASE_URL.name})."
            self.store.fail(run_id, f"A node of the Ray cluster could not begin this run. {reason} {advice}", worker=self.name)

    def _end(self, run_id: int, task: Task, run: Active | None) -> None:
        """A task whose run is to stop is interrupted after a moment, and killed after another; so is one that outlives its run."""
        import ray

        if run is not None and not run.cancel:
            task.unwanted_at = None
            return
        task.unwanted_at = task.unwanted_at or time.monotonic()
        since = time.monotonic() - task.unwanted_at - (0.0 if run else LEAVE_SECONDS)
        if since >= KILL_SECONDS:
            ray.cancel(task.reference, force=True)
            worker = self.store.run(run_id).worker or "" if run else ""
            if worker.startswith(TASK):
                self.store.mark_cancelled(run_id, worker=worker)
                self.store.retire(worker)
        elif since >= INTERRUPT_SECONDS and not task.interrupted:  # once: a second would interrupt its last words
            task.interrupted = True
            ray.cancel(task.reference)

    def _say(self, problem: str) -> None:
        """Show what is wrong with Ray or, where nothing is, the nodes."""
        nodes = [] if problem else self._nodes
        shown = {f"{NODE}/{node['NodeID'][:12]}/{self.name}": (ray_nodes.device(node), ray_nodes.title(node)) for node in nodes}
        self._rows.show({f"{DISPATCHER}/{self.name}": ("ray", problem), **shown})


class _Rows:
    """Rows among the store's workers that one process keeps alive."""

    def __init__(self, store: Store):
        self.store, self._shown = store, {}

    def show(self, rows: dict[str, tuple[str, str]]) -> None:
        """Exactly these: name to (device, title)."""
        for worker in [worker for worker, row in self._shown.items() if rows.get(worker) != row]:
            self.store.retire(worker)
            del self._shown[worker]
        for worker, row in rows.items():
            if worker not in self._shown:
                self.store.announce(worker, *row)
                self._shown[worker] = row
            self.store.heartbeat(worker)


def main() -> None:
    """Entry of the process. SIGTERM or Ctrl-C hands running runs back to the queue."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        Dispatcher(Store(), address() or "auto").run(stop)
    except LabError as error:
        sys.exit(str(error))
    except Exception as error:  # of Ray, which has no common kind for a cluster that went away
        sys.exit(f"Ray went away: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")


if __name__ == "__main__":
    main()

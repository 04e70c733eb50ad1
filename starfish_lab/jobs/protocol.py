"""What executes runs. The row in the store, not the backend, is the truth about a run."""

from __future__ import annotations

from typing import Protocol

import pandas as pd

from starfish_lab.plain_data import Plan
from starfish_lab.store import Store


class Backend(Protocol):
    """Takes plans, stops runs, and says who could do them."""

    def submit(self, task: Plan, kind: str = "experiment", *, parent: int | None = None, owner: str = "") -> int:
        """Have a recipe, or the plan of another kind of run, done; returns the run's number at once."""

    def cancel(self, run_id: int) -> None:
        """Ask a run to stop."""

    def capacity(self) -> pd.DataFrame:
        """Living workers, one row each: worker, device, title, pid, run (none when idle), started_at, heartbeat_at, alive.

        Raises LabError where nothing can be done just now, with the reason in a sentence; what was submitted waits.
        """


class LocalBackend:
    """Worker processes that share the store, on this machine or on any that reaches the same database."""

    def __init__(self, store: Store):
        self.store = store

    def submit(self, task: Plan, kind: str = "experiment", *, parent: int | None = None, owner: str = "") -> int:
        return self.store.submit(task, kind, parent=parent, owner=owner)

    def cancel(self, run_id: int) -> None:
        self.store.request_cancel(run_id)

    def capacity(self) -> pd.DataFrame:
        workers = self.store.workers()
        return workers[workers["alive"]].reset_index(drop=True)

"""A run's words and figures on their way into the store, slowed down to what a watcher can see."""

from __future__ import annotations

import sys
import threading
import time

from starfish_lab.errors import StoreError
from starfish_lab.progress import Reporter
from starfish_lab.store import Store

PROGRESS_SECONDS = 0.25
EVENTS_SECONDS = 0.5
CANCEL_SECONDS = 0.2


class StoreReporter(Reporter):
    """Writes progress and figures of one run as rows, in the name of the worker that owns it.

    A store that cannot be written for a while does not stop the run: figures and notes wait in memory for the next
    attempt. `stop` is the worker's own wish to end; a run sees it as a request to cancel. `watch` is a
    second reporter that hears the same stages, progress and notes, e.g. bars on a terminal.
    """

    def __init__(self, store: Store, run_id: int, worker: str, *, stop: threading.Event | None = None, watch: Reporter | None = None):
        self.store, self.run_id, self.worker = store, run_id, worker
        self.stop, self.watch = stop or threading.Event(), watch
        self.current: str | None = None
        self._events: list[tuple[float, str, int, float]] = []
        self._notes: list[str] = []
        self._begin: tuple[float, int] | None = None  # when the stage's first progress came, and at which step
        self._progress_at = self._events_at = self._cancel_at = 0.0
        self._cancelled = False

    def stage(self, name: str) -> None:
        self.flush()
        self.current, self._begin = name, None
        self._try(self.store.set_progress, stage=name)
        self._progress_at = 0.0
        if self.watch:
            self.watch.stage(name)

    def progress(self, step: int, steps: int) -> None:
        if self.watch:
            self.watch.progress(step, steps)
        now = time.monotonic()
        if self._begin is None:
            self._begin = (now, step)
        if step < steps and now - self._progress_at < PROGRESS_SECONDS:
            return
        self._progress_at = now
        started, first = self._begin
        left = (now - started) / (step - first) * (steps - step) if step > first else None
        self._try(self.store.set_progress, stage=self.current, step=step, steps=steps, seconds_left=left)

    def metric(self, name: str, step: int, value: float) -> None:
        self._events.append((time.time(), name, int(step), float(value)))
        if time.monotonic() - self._events_at >= EVENTS_SECONDS:
            self.flush()

    def note(self, text: str) -> None:
        self._notes.append(text)
        self.flush()
        if self.watch:
            self.watch.note(text)

    def cancel_requested(self) -> bool:
        """True once the owner asked the run to stop, the worker is to end, or the run went to another worker."""
        if self.stop.is_set():
            return True
        if not self._cancelled and time.monotonic() - self._cancel_at >= CANCEL_SECONDS:
            self._cancel_at = time.monotonic()
            self._cancelled = bool(self._try(self.store.cancel_requested))
        return self._cancelled

    def flush(self) -> bool:
        """Write the figures and notes that wait; True once none do."""
        self._events_at = time.monotonic()
        if self._events and self._try(self.store.add_events, self._events) is not None:
            self._events = []
        while self._notes and self._try(self.store.note, self._notes[0]) is not None:
            del self._notes[0]
        return not self._events and not self._notes

    def _try(self, write, *arguments: object, **options: object) -> bool | None:
        """The store's answer, or None when it could not be reached."""
        try:
            return write(self.run_id, *arguments, worker=self.worker, **options)
        except StoreError as error:
            print(error, file=sys.stderr)
            return None

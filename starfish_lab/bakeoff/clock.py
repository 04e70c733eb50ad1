"""Seconds of a stretch of work, without what happens aside."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Clock:
    """Runs from when it is made; waits for the device before it is read.

    `processor` are the seconds of all cores of this process together: on a CPU they hardly change with what else the machine does.
    """

    def __init__(self, device: str):
        self._device, self._aside, self._processor_aside = device, 0.0, 0.0
        self._began, self._processor_began = self._now(), time.process_time()

    @property
    def processor(self) -> float:
        return time.process_time() - self._processor_began - self._processor_aside

    @contextmanager
    def aside(self) -> Iterator[float]:
        """Gives the seconds so far; those inside do not count."""
        now, processor = self._now(), time.process_time()
        yield now - self._began - self._aside
        self._aside += self._now() - now
        self._processor_aside += time.process_time() - processor

    def _now(self) -> float:
        if self._device.startswith("cuda"):
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

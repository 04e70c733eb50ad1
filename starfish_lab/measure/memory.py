"""Peak memory of a stretch of work, as far as the system tells.

On CUDA the bytes that torch has allocated, at their highest: all tensors alive, networks and images on the device among them. On
Linux without CUDA the resident memory of the whole process at its highest (VmHWM, reset through /proc/self/clear_refs, see
proc(5)): interpreter, libraries and images included, and whatever other threads hold. Elsewhere nothing.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

CUDA = "memory allocated on the device"
PROCESS = "resident memory of the process"
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # proc(5): sets the peak resident set size to the present one


class Peak:
    """Measures from entering to leaving.

    >>> with Peak("cpu") as peak:
    ...     values = bytearray(50_000_000)
    >>> peak.bytes is None or peak.bytes > 50_000_000
    True

    `bytes` is the peak, `before` what was in use at the start, both None where the system does not tell; `counts` says in words what
    is counted, '' where nothing is.
    """

    def __init__(self, device: str):
        self._device = device
        self.bytes: int | None = None
        self.before: int | None = None
        self.counts = ""

    def __enter__(self) -> Peak:
        _release()
        self.before = self._reset()
        if self.before is not None:
            self.counts = CUDA if self._device.startswith("cuda") else PROCESS
        return self

    def __exit__(self, *_: object) -> None:
        self._keep()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """What happens inside does not count."""
        self._keep()
        try:
            yield
        finally:
            self._reset()

    def _keep(self) -> None:
        """Take over the peak since the last reset."""
        found = self._read("VmHWM")
        if self.before is not None and found is not None:
            self.bytes = max(found, self.bytes or 0)

    def _reset(self) -> int | None:
        """Forget the peak so far; bytes in use now, None where the peak cannot be forgotten."""
        if self._device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats(self._device)
            return torch.cuda.memory_allocated(self._device)
        try:
            CLEAR.write_text(RESET_PEAK)
        except OSError:
            return None
        return self._read("VmRSS")

    def _read(self, line: str) -> int | None:
        if self._device.startswith("cuda"):
            return torch.cuda.max_memory_allocated(self._device)
        if self._device != "cpu":
            return None  # memory of another device is not the process's alone
        try:
            found = dict(row.split(":", 1) for row in STATUS.read_text().splitlines() if ":" in row)
            return 1024 * int(found[line].split()[0])
        except (OSError, KeyError, ValueError):
            return None


def _release() -> None:
    """Give back what earlier work left behind, so that it does not count as this one's."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)

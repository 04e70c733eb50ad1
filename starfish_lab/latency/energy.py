"""Energy of an image, measured in a stretch of its own: many calls of one execution, nothing between them.

On an NVIDIA GPU the card's own counter (NVML, millijoules since the driver was loaded), or where nvidia-ml-py is missing the mean of the
power that nvidia-smi samples; on a CPU the packages' counters (RAPL) where they may be read. All count the whole card or package, idle
power included, and never the rest of the machine.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import torch

from starfish_lab.measure import nvml

COUNTER, SAMPLES, RAPL = "NVML energy counter", "nvidia-smi power samples", "RAPL package counters"
POWERCAP = Path("/sys/class/powercap")
LEAST = {COUNTER: 1.0, SAMPLES: 2.0, RAPL: 0.5}  # seconds: counters move every 0.1 s, sampled power is a mean over a second
EVERY_MS = 100


def per_image(call: Callable[[], object], batch: int, *, device: str, method: str, seconds: float = 1.0) -> float | None:
    """Joules an image, by a method that `method_for` names; None where it tells nothing after all."""
    gauge = {COUNTER: _Counter, SAMPLES: _Samples, RAPL: _Packages}[method](device)
    images = 0
    with gauge:
        started = time.perf_counter()
        while (elapsed := time.perf_counter() - started) < max(seconds, LEAST[method]):
            call()
            if device.startswith("cuda"):
                torch.cuda.synchronize(device)
            images += batch
    joules = gauge.joules(elapsed)
    return None if joules is None else joules / images


def method_for(device: str) -> str:
    """The method there is on a device, '' for none."""
    if device.startswith("cuda"):
        library = nvml.nvml()
        if library is not None and _millijoules(library, device) is not None:
            return COUNTER
        return SAMPLES if nvml.query(device)["power_w"] is not None else ""
    return RAPL if device == "cpu" and _packages() else ""


class _Counter:
    def __init__(self, device: str):
        self._read = lambda: _millijoules(nvml.nvml(), device)

    def __enter__(self) -> None:
        self._before = self._read()

    def __exit__(self, *_: object) -> None:
        self._after = self._read()

    def joules(self, seconds: float) -> float | None:
        return None if None in (self._before, self._after) else (self._after - self._before) / 1e3


class _Packages:
    """RAPL's counters run over at their own ranges."""

    def __init__(self, device: str):
        self._ranges = {path: _whole(path.with_name("max_energy_range_uj")) or 0 for path in _packages()}

    def __enter__(self) -> None:
        self._before = {path: _whole(path) for path in self._ranges}

    def __exit__(self, *_: object) -> None:
        self._after = {path: _whole(path) for path in self._ranges}

    def joules(self, seconds: float) -> float | None:
        if None in (*self._before.values(), *self._after.values()):
            return None
        spent = {path: after - self._before[path] for path, after in self._after.items()}
        return sum(value if value >= 0 else value + self._ranges[path] for path, value in spent.items()) / 1e6


class _Samples:
    def __init__(self, device: str):
        query = ["--query-gpu=power.draw", "--format=csv,noheader,nounits", "-lms", str(EVERY_MS)]
        self._command = ["nvidia-smi", "-i", nvml.identity(device), *query]

    def __enter__(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._text = self._process.communicate()[0]

    def joules(self, seconds: float) -> float | None:
        """Mean power of the second half, once the mean over a second knows nothing of the time before, times the seconds."""
        watts = [float(line) for line in self._text.split("\n") if line.strip().replace(".", "", 1).isdigit()]
        return fmean(watts[len(watts) // 2 :]) * seconds if watts else None


def _millijoules(library, device: str) -> int | None:
    gpu = nvml.handle(library, device)
    try:
        return None if gpu is None else library.nvmlDeviceGetTotalEnergyConsumption(gpu)
    except (library.NVMLError, AttributeError):  # cards before Volta
        return None


def _packages() -> list[Path]:
    """Counters of whole packages that may be read; 'intel-rapl:0:1' would be a part of 'intel-rapl:0'."""
    counters = [folder / "energy_uj" for folder in sorted(POWERCAP.glob("intel-rapl:*")) if folder.name.count(":") == 1]
    return [path for path in counters if _whole(path) is not None]


def _whole(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None

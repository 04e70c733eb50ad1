"""What the figures were measured on: devices, versions, and a fingerprint that says which rows may be compared."""

from __future__ import annotations

import os
import platform
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from starfish_lab import __version__
from starfish_lab.errors import LabError
from starfish_lab.jobs import accelerators
from starfish_lab.measure import nvml
from starfish_lab.measure.fingerprint import digest


def devices() -> list[dict[str, str]]:
    """Devices a worker can run on, fastest kind first: name (cuda:N, mps, cpu) and a title for people."""
    found = [{"name": f"cuda:{i}", "title": f"{torch.cuda.get_device_name(i)} (cuda:{i})"} for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append({"name": "mps", "title": "Apple GPU (mps)"})
    return [*found, {"name": "cpu", "title": f"{_cpu_model()} (cpu, {torch.get_num_threads()} threads)"}]


def choose_device(wanted: str = "auto") -> str:
    """The device a wish stands for: 'auto' is the first there is, 'cuda' the first GPU, 'gpu:A40' the first of that name.

    Raises LabError if it is not there.
    """
    there = devices()
    for device in there:
        if accelerators.fits(wanted, device["name"], device["title"]):
            return device["name"]
    raise LabError(f"There is no device '{wanted}' on this machine. Choose one of: auto, {', '.join(device['name'] for device in there)}.")


def versions() -> dict[str, str]:
    """Versions of everything that decides a figure; '' for what is not installed."""
    packages = {name: _installed(name) for name in ("timm", "numpy", "scipy")}
    return {"python": platform.python_version(), "torch": torch.__version__, **packages, "starfish_lab": __version__}


def fingerprint(device: str) -> dict[str, object]:
    """Facts that make two timings comparable, and under 'fingerprint' their hash, which `measure.fingerprint.digest` finds again.

    Of a GPU its power limit and MIG profile are facts too, and the version of cuSPARSELt. No host name, no serial number: a report may
    be shared.
    """
    facts: dict[str, object] = {
        **(_gpu(device) if device.startswith("cuda") else _host(device)),
        "kind": device.partition(":")[0],
        "torch": torch.__version__,
        "timm": _installed("timm"),
        "numpy": _installed("numpy"),
        "threads": torch.get_num_threads(),
        "cpu": _cpu_model(),
        "os": f"{platform.system()} {platform.release()}",
    }
    return {**facts, "fingerprint": digest(facts)}


def _gpu(device: str) -> dict[str, object]:
    properties = torch.cuda.get_device_properties(device)
    known = _limits(device)
    return {
        "device_name": properties.name,
        "sm_count": properties.multi_processor_count,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_gb": round(properties.total_memory / 2**30, 1),
        "driver": known["driver"] or "",
        "power_limit_w": known["power_limit_w"],
        "mig": properties.name.partition("MIG ")[2] or known["mig"] or "",
        "cuda": torch.version.cuda or "",
        "cudnn": str(torch.backends.cudnn.version() or ""),
        "cusparselt": _cusparselt(),
    }


def _host(device: str) -> dict[str, object]:
    return {"device_name": "Apple GPU" if device == "mps" else _cpu_model(), "memory_gb": _memory_gb()}


@lru_cache
def _limits(device: str) -> dict[str, object]:
    """What does not change while a process lives, asked once."""
    return nvml.query(device)


def _cusparselt() -> str:
    """Version of the library behind one of the 2:4 kernels; '' where torch has none."""
    library = getattr(torch.backends, "cusparselt", None)
    return str(library.version() or "") if library is not None and library.is_available() else ""


@lru_cache
def _cpu_model() -> str:
    table = Path("/proc/cpuinfo")  # Linux; elsewhere the platform knows
    if table.exists():
        for line in table.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory_gb() -> float:
    if not hasattr(os, "sysconf"):
        return 0.0
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""

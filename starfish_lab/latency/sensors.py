"""The machine's own sensors, read before a race and at its end, still under load. Nothing is ever set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean

from starfish_lab.measure import nvml

COLUMNS = ("sm_clock_mhz", "memory_clock_mhz", "temperature_c", "power_w", "power_limit_w", "throttle", "ecc", "mig")
SYSTEM = Path("/sys")
USUAL = {"power cap", "sync boost"}  # how a card at its limit runs; the limit itself is part of the fingerprint


def read(device: str) -> dict[str, object]:
    """Clocks (MHz), temperature (°C), power and its limit (W), throttle (reasons, '' for none), ECC and MIG mode; None for what is not told.

    Of a CPU only the mean clock of its cores, as sm_clock_mhz, and its highest temperature are told, where the system gives them.
    """
    if device.startswith("cuda"):
        told = nvml.query(device)
        return {name: told[name] for name in COLUMNS}
    found = dict.fromkeys(COLUMNS)
    if device == "cpu":
        clocks = _numbers("devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq")  # kHz
        heat = _numbers("class/thermal/thermal_zone*/temp")  # thousandths of a degree
        found["sm_clock_mhz"] = fmean(clocks) / 1e3 if clocks else None
        found["temperature_c"] = max(heat) / 1e3 if heat else None
    return found


def read_under_load(call: Callable[[], object], device: str) -> dict[str, object]:
    """The same while `call` runs again and again: an idle card has nothing to slow down."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        reading = pool.submit(read, device)
        while not reading.done():
            call()
    return reading.result()


def slowed(readings: Iterable[Mapping[str, object]]) -> str:
    """Why clocks were held down beyond what is usual under load: heat or a hardware slowdown; '' for no such reason.

    >>> slowed([{"throttle": "power cap, heat (hardware)"}, {"throttle": None}])
    'heat (hardware)'
    """
    told = {reason for reading in readings for reason in (reading["throttle"] or "").split(", ") if reason}
    return ", ".join(sorted(told - USUAL))


def _numbers(pattern: str) -> list[float]:
    found = []
    for path in SYSTEM.glob(pattern):
        try:
            found.append(float(path.read_text()))
        except (OSError, ValueError):  # a zone that is asleep or not ours to read
            continue
    return found

"""What NVIDIA's driver tells of a GPU, by NVML through nvidia-ml-py where that is installed, else by one call of nvidia-smi. Only read, never set."""

from __future__ import annotations

import importlib
import subprocess
from functools import lru_cache

import torch

QUERY = {
    "driver": "driver_version", "sm_clock_mhz": "clocks.sm", "memory_clock_mhz": "clocks.mem", "temperature_c": "temperature.gpu",
    "power_w": "power.draw", "power_limit_w": "enforced.power.limit", "throttle": "clocks_event_reasons.active",
    "ecc": "ecc.mode.current", "mig": "mig.mode.current",
}  # fmt: skip
OLD_NAME = "clocks_throttle_reasons.active"  # of clocks_event_reasons.active before driver 535
# bits of nvml.h's nvmlClocksEventReasons; idle (1) and clocks set by an application (2, 0x100) slow nothing down unasked
REASONS = {
    0x4: "power cap", 0x8: "hardware slowdown", 0x10: "sync boost", 0x20: "heat (driver)", 0x40: "heat (hardware)", 0x80: "power brake",
}  # fmt: skip
NUMBERS = ("sm_clock_mhz", "memory_clock_mhz", "temperature_c", "power_w", "power_limit_w")
SECONDS = 10  # for nvidia-smi to answer


def query(device: str) -> dict[str, object]:
    """Driver, clocks (MHz), temperature (°C), power and its limit (W), throttle (reasons, '' for none), ECC and MIG mode of a 'cuda:N'.

    None for what the driver does not tell.
    """
    library = nvml()
    gpu = handle(library, device) if library else None
    return _by_smi(device) if gpu is None else _by_nvml(library, gpu)


@lru_cache
def nvml():
    """The module pynvml, initialised, or None."""
    try:
        library = importlib.import_module("pynvml")
        library.nvmlInit()
    except Exception:  # not installed, no driver, a driver that refuses: each has its own class in its own version
        return None
    return library


def handle(library, device: str):
    """NVML's handle of a 'cuda:N', by UUID, since CUDA_VISIBLE_DEVICES changes numbers; None where NVML does not know it, as a part of a card."""
    name = identity(device)
    try:
        return library.nvmlDeviceGetHandleByUUID(name) if name.startswith("GPU-") else library.nvmlDeviceGetHandleByIndex(int(name))
    except library.NVMLError:
        return None


def identity(device: str) -> str:
    """What NVML and nvidia-smi know a 'cuda:N' by: its UUID where torch tells it, else its number. Kept nowhere: it is private."""
    properties = torch.cuda.get_device_properties(device)
    uuid = str(getattr(properties, "uuid", ""))
    return f"GPU-{uuid.removeprefix('GPU-')}" if uuid else str(torch.device(device).index or 0)


def reasons(bits: int) -> str:
    """The reasons for which clocks are held down, in words.

    >>> reasons(0x4 | 0x40), reasons(0x1)
    ('power cap, heat (hardware)', '')
    """
    return ", ".join(name for bit, name in REASONS.items() if bits & bit)


def _by_nvml(library, gpu) -> dict[str, object]:
    def ask(name: str, *arguments: object):
        try:
            return getattr(library, name)(gpu, *arguments)
        except (library.NVMLError, AttributeError):  # not supported by this card or this version
            return None

    def watts(milliwatts: int | None) -> float | None:
        return None if milliwatts is None else milliwatts / 1e3

    bits = ask("nvmlDeviceGetCurrentClocksEventReasons")
    bits = ask("nvmlDeviceGetCurrentClocksThrottleReasons") if bits is None else bits  # its name before version 12.535
    modes = {name: ask(f"nvmlDeviceGet{name.title()}Mode") for name in ("ecc", "mig")}  # (current, pending)
    driver = library.nvmlSystemGetDriverVersion()
    return {
        "driver": driver.decode() if isinstance(driver, bytes) else driver,
        "sm_clock_mhz": ask("nvmlDeviceGetClockInfo", library.NVML_CLOCK_SM),
        "memory_clock_mhz": ask("nvmlDeviceGetClockInfo", library.NVML_CLOCK_MEM),
        "temperature_c": ask("nvmlDeviceGetTemperature", library.NVML_TEMPERATURE_GPU),
        "power_w": watts(ask("nvmlDeviceGetPowerUsage")),
        "power_limit_w": watts(ask("nvmlDeviceGetEnforcedPowerLimit")),
        "throttle": None if bits is None else reasons(bits),
        **{name: None if mode is None else "Enabled" if mode[0] else "Disabled" for name, mode in modes.items()},
    }


def _by_smi(device: str) -> dict[str, object]:
    answer = _smi(device, list(QUERY.values())) or _smi(device, [OLD_NAME if name == QUERY["throttle"] else name for name in QUERY.values()])
    found = dict.fromkeys(QUERY) | {name: text for name, text in zip(QUERY, answer) if not text.startswith("[") and text != "N/A"}
    for name in NUMBERS:
        found[name] = None if found[name] is None else float(found[name])
    if found["throttle"] is not None:
        found["throttle"] = reasons(int(found["throttle"], 16))
    return found


def _smi(device: str, fields: list[str]) -> list[str]:
    """One line of nvidia-smi, split; empty where it is missing or knows not all fields."""
    command = ["nvidia-smi", "-i", identity(device), f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        text = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    cells = [cell.strip() for cell in text.strip().partition("\n")[0].split(",")]
    return cells if len(cells) == len(fields) else []

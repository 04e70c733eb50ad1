"""What a device tells of itself: sensors, power limit and profile, energy, its measured peak. Drivers are played by stand-ins."""

from __future__ import annotations

import subprocess
from types import SimpleNamespace

import pytest
import torch

from starfish_lab.latency import energy, peak, sensors
from starfish_lab.measure import hardware, nvml
from starfish_lab.measure.fingerprint import digest

TOLD = {
    "driver": "580.10", "sm_clock_mhz": 1980, "memory_clock_mhz": 2619, "temperature_c": 41, "power_w": 312.5, "power_limit_w": 700.0,
    "throttle": "power cap", "ecc": "Enabled", "mig": "Disabled",
}  # fmt: skip


class Driver:
    """NVML as nvidia-ml-py gives it, of a card that knows no MIG and has used 5 J since, and 5 J more at every look."""

    NVMLError = type("NVMLError", (Exception,), {})
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0
    spent = 0

    def nvmlInit(self):
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid):
        assert uuid == "GPU-1234"
        return "card"

    def nvmlSystemGetDriverVersion(self):
        return b"580.10"

    def nvmlDeviceGetClockInfo(self, card, which):
        return {1: 1980, 2: 2619}[which]

    def nvmlDeviceGetTemperature(self, card, which):
        return 41

    def nvmlDeviceGetPowerUsage(self, card):
        return 312_500

    def nvmlDeviceGetEnforcedPowerLimit(self, card):
        return 700_000

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, card):  # the name before 12.535
        return 0x4 | 0x1

    def nvmlDeviceGetEccMode(self, card):
        return (1, 1)

    def nvmlDeviceGetMigMode(self, card):
        raise self.NVMLError("not supported")

    def nvmlDeviceGetTotalEnergyConsumption(self, card):
        self.spent += 5000
        return self.spent


@pytest.fixture
def card(monkeypatch):
    """A CUDA device that exists for torch."""
    properties = SimpleNamespace(name="NVIDIA H100", uuid="1234", multi_processor_count=132, major=9, minor=0, total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: None)
    hardware._limits.cache_clear()
    yield properties
    hardware._limits.cache_clear()


@pytest.fixture
def driver(card, monkeypatch):
    found = Driver()
    monkeypatch.setattr(nvml, "nvml", lambda: found)
    return found


@pytest.fixture
def smi(card, monkeypatch):
    """nvidia-smi alone; its answers are what the test puts in: {a field it knows: the cell}."""
    cells: dict[str, str] = {}

    def run(command, **_):
        fields = next(word for word in command if word.startswith("--query-gpu=")).removeprefix("--query-gpu=").split(",")
        assert command[1:3] == ["-i", "GPU-1234"]
        if not set(fields) <= set(cells):
            raise subprocess.CalledProcessError(2, command)
        return SimpleNamespace(stdout=", ".join(cells[field] for field in fields) + "\n")

    monkeypatch.setattr(nvml, "nvml", lambda: None)
    monkeypatch.setattr(subprocess, "run", run)
    return cells


def test_nvml_tells_by_uuid_under_old_and_new_names(driver):
    assert nvml.query("cuda:0") == {**TOLD, "mig": None}
    assert sensors.read("cuda:0") == {name: {**TOLD, "mig": None}[name] for name in sensors.COLUMNS}


def test_nvidia_smi_tells_the_same_where_nvml_is_not_installed(smi):
    smi |= dict(zip(nvml.QUERY.values(), ("580.10", "1980", "2619", "41", "312.5", "700.00", "0x0000000000000005", "Enabled", "[N/A]")))
    assert nvml.query("cuda:0") == {**TOLD, "mig": None}
    smi[nvml.OLD_NAME] = smi.pop(nvml.QUERY["throttle"])  # an older driver
    assert nvml.query("cuda:0") == {**TOLD, "mig": None}


def test_a_machine_that_tells_nothing_is_no_error(smi):
    assert nvml.query("cuda:0") == dict.fromkeys(nvml.QUERY)
    assert energy.method_for("cuda:0") == ""


def test_a_part_of_a_card_that_nvml_does_not_know_is_asked_of_nvidia_smi(driver, monkeypatch):
    def unknown(uuid):
        raise driver.NVMLError("not found")

    monkeypatch.setattr(driver, "nvmlDeviceGetHandleByUUID", unknown)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=""))
    assert nvml.query("cuda:0") == dict.fromkeys(nvml.QUERY) and energy.method_for("cuda:0") == ""


def test_the_fingerprint_of_a_gpu_carries_its_limits_and_can_be_found_again(driver, monkeypatch, card):
    monkeypatch.setattr(hardware, "_cusparselt", lambda: "801")
    facts = hardware.fingerprint("cuda:0")
    assert facts["power_limit_w"] == 700.0 and facts["mig"] == "" and facts["cusparselt"] == "801" and facts["driver"] == "580.10"
    assert facts["fingerprint"] == digest(facts) == digest({name: value for name, value in facts.items() if name != "fingerprint"})
    hardware._limits.cache_clear()
    monkeypatch.setattr(driver, "nvmlDeviceGetEnforcedPowerLimit", lambda gpu: 350_000)
    assert hardware.fingerprint("cuda:0")["fingerprint"] != facts["fingerprint"]
    card.name = "NVIDIA H100 MIG 1g.10gb"
    assert hardware.fingerprint("cuda:0")["mig"] == "1g.10gb"
    assert "1234" not in str(facts)  # whose card it is stays private


def test_a_cpu_tells_clock_and_heat_where_the_system_does(tmp_path, monkeypatch):
    monkeypatch.setattr(sensors, "SYSTEM", tmp_path)
    assert sensors.read("cpu") == dict.fromkeys(sensors.COLUMNS)
    for path, text in {
        "devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "3000000", "devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "2000000",
        "class/thermal/thermal_zone0/temp": "41000", "class/thermal/thermal_zone1/temp": "63500", "class/thermal/thermal_zone2/temp": "asleep",
    }.items():  # fmt: skip
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(text)
    assert sensors.read("cpu") == {**dict.fromkeys(sensors.COLUMNS), "sm_clock_mhz": 2500.0, "temperature_c": 63.5}
    assert sensors.read("mps") == dict.fromkeys(sensors.COLUMNS)


def test_a_power_cap_is_how_a_card_runs_and_heat_is_not():
    assert sensors.slowed([{"throttle": "power cap"}, {"throttle": ""}, {"throttle": None}]) == ""
    assert sensors.slowed([{"throttle": "power cap, power brake"}, {"throttle": "heat (driver)"}]) == "heat (driver), power brake"


def test_energy_by_the_cards_counter(driver, monkeypatch):
    monkeypatch.setitem(energy.LEAST, energy.COUNTER, 0.01)
    assert energy.method_for("cuda:0") == energy.COUNTER
    calls = []
    found = energy.per_image(lambda: calls.append(0), 4, device="cuda:0", method=energy.COUNTER, seconds=0.01)
    assert found == pytest.approx(5.0 / (4 * len(calls)))


def test_a_counter_that_falls_silent_costs_no_run(driver, monkeypatch):
    monkeypatch.setitem(energy.LEAST, energy.COUNTER, 0.01)
    told = iter([1000, None])
    monkeypatch.setattr(energy, "_millijoules", lambda *_: next(told))
    assert energy.per_image(lambda: None, 4, device="cuda:0", method=energy.COUNTER, seconds=0.01) is None


def test_energy_by_sampled_power(smi, monkeypatch):
    smi |= dict.fromkeys(nvml.QUERY.values(), "[N/A]") | {"power.draw": "250.0"}
    assert energy.method_for("cuda:0") == energy.SAMPLES
    monkeypatch.setitem(energy.LEAST, energy.SAMPLES, 0.05)
    told = "50.0\n[N/A]\n60.0\n200.0\n200.00\n\n"  # the first half still knows the time before
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: SimpleNamespace(terminate=lambda: None, communicate=lambda: (told, None)))
    calls = []
    found = energy.per_image(lambda: calls.append(0), 2, device="cuda:0", method=energy.SAMPLES, seconds=0.05)
    assert 0.05 <= found * 2 * len(calls) / 200.0 < 5  # joules of all images over watts: the seconds it took


def test_energy_of_a_cpu_by_rapl_where_it_may_be_read(tmp_path, monkeypatch):
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    assert energy.method_for("cpu") == ""
    for name in ("intel-rapl:0", "intel-rapl:0:0", "intel-rapl:1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text("900")
        (tmp_path / name / "max_energy_range_uj").write_text("1000")
    assert energy.method_for("cpu") == energy.RAPL
    monkeypatch.setitem(energy.LEAST, energy.RAPL, 0.01)
    calls = []

    def call():
        calls.append(0)
        (tmp_path / "intel-rapl:0" / "energy_uj").write_text("100")  # ran over: 200 µJ
        (tmp_path / "intel-rapl:1" / "energy_uj").write_text("950")  # 50 µJ

    assert energy.per_image(call, 1, device="cpu", method=energy.RAPL, seconds=0.01) == pytest.approx(250e-6 / len(calls))


def test_the_peak_is_measured_in_each_precision_once(monkeypatch):
    monkeypatch.setattr(peak, "SIZES", {"cpu": (32, 64)})
    monkeypatch.setattr(peak, "COPIED", {"cpu": 2**20})
    monkeypatch.setattr(peak, "SECONDS", 0.0)
    rows = peak.measure("cpu", ["float32", "autocast", "float32"])
    assert [row["precision"] for row in rows] == ["float32", "autocast"]
    assert all(row["tflops"] > 0 and row["gb_per_s"] > 0 and row["shape"] in ("32x32x32", "64x64x64") for row in rows)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_a_real_gpu_tells_its_limit():
    facts = hardware.fingerprint("cuda:0")
    assert facts["fingerprint"] == digest(facts) and facts["sm_count"] > 0
    assert set(sensors.read("cuda:0")) == set(sensors.COLUMNS)

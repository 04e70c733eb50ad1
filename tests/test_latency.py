"""The latency protocol on networks whose time is known."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from torch import nn

from starfish_lab.errors import Cancelled, LabError
from starfish_lab.measure import again, hardware, latency
from starfish_lab.progress import Reporter

COLUMNS = [
    "stage", "batch", "scenario", "latency_ms_p50", "latency_ms_p90", "latency_ms_p99", "images_per_s", "images_per_s_low", "images_per_s_high",
    "speedup", "speedup_low", "speedup_high", "iterations", "starts", "execution", "dtype", "device", "device_name", "fingerprint", "threads", "note",
]  # fmt: skip


class Sleeper(nn.Module):
    """Takes `seconds` for an answer, and writes down that it was asked."""

    def __init__(self, seconds, log=None, name=""):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seconds, self.log, self.name = seconds, log, name

    def forward(self, images):
        if self.log is not None:
            self.log.append((self.name, self.training, torch.is_inference_mode_enabled(), len(images)))
        time.sleep(self.seconds)
        return images


@pytest.fixture
def quick(monkeypatch):
    """Warm-up and rounds of a fraction of a second."""
    monkeypatch.setattr(latency, "PATIENCE", 2)
    return {"device": "cpu", "seconds": 0.12, "min_iterations": 5}


def test_known_times_are_found(quick):
    rows = latency.measure({"dense": Sleeper(0.006), "pruned": Sleeper(0.003)}, (1,), batch_sizes=(1, 4), execution={"pruned": "sliced"}, **quick)
    assert [(row["stage"], row["batch"], row["scenario"]) for row in rows] == [
        ("dense", 1, "single"), ("pruned", 1, "single"), ("dense", 4, "offline"), ("pruned", 4, "offline"),
    ]  # fmt: skip
    for row in rows:
        assert set(row) == set(COLUMNS)
        least = 6 if row["stage"] == "dense" else 3
        assert least <= row["latency_ms_p50"] <= row["latency_ms_p90"] <= row["latency_ms_p99"]
        assert 0 < row["images_per_s"] <= row["batch"] / (least / 1e3)
        assert row["images_per_s_low"] <= row["images_per_s"] <= row["images_per_s_high"]
        assert row["iterations"] >= 5
    dense, pruned = rows[:2]
    assert dense["speedup"] == dense["speedup_low"] == dense["speedup_high"] == 1
    assert 1.2 < pruned["speedup"] < 2.5 and pruned["speedup_low"] <= pruned["speedup"] <= pruned["speedup_high"]
    assert pruned["execution"] == "sliced" and dense["dtype"] == "float32" and dense["threads"] == torch.get_num_threads()
    assert dense["fingerprint"] == hardware.fingerprint("cpu")["fingerprint"] and dense["device"] == "cpu"


def test_networks_take_turns_in_inference_mode(quick):
    log = []
    modules = {name: Sleeper(0.02, log, name).train() for name in ("dense", "pruned")}
    latency.measure(modules, (1,), batch_sizes=(2,), **quick)
    assert all(not training and inference and batch == 2 for _, training, inference, batch in log)
    assert all(module.training for module in modules.values())  # put back as found
    timed = [name for name, *_ in log][-10:]
    assert timed == ["dense", "pruned"] * 5


def test_float32_means_float32_for_convolutions_too_and_only_while_it_is_timed(quick):
    class Rounding(Sleeper):
        def forward(self, images):
            found.add((torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()))
            return super().forward(images)

    found, before = set(), torch.backends.cudnn.allow_tf32
    latency.measure({"dense": Rounding(0.001)}, (1,), batch_sizes=(1,), **quick)
    assert before and found == {(False, "highest")} and torch.backends.cudnn.allow_tf32


def test_a_mask_promises_no_speed(quick):
    rows = latency.measure({"dense": Sleeper(0.002), "pruned": Sleeper(0.002)}, (1,), batch_sizes=(1,), execution={"pruned": "masked"}, **quick)
    assert "mask only: no speed-up expected" in rows[1]["note"] and "mask" not in rows[0]["note"]
    assert "p99 from" in rows[0]["note"] and str(rows[0]["iterations"]) in rows[0]["note"]


def test_at_least_so_many_iterations_and_seconds(quick):
    short = latency.measure({"dense": Sleeper(0.0005)}, (1,), batch_sizes=(1,), device="cpu", seconds=0.05, min_iterations=60)[0]
    assert short["iterations"] >= 60 and short["iterations"] * short["latency_ms_p99"] >= 50
    slow = latency.measure({"dense": Sleeper(0.05)}, (1,), batch_sizes=(1,), device="cpu", seconds=0.1, min_iterations=1000)[0]
    assert slow["iterations"] == latency.FEWEST  # beyond its patience, 2 × seconds, but no interval comes of fewer rounds


def test_without_a_baseline_there_is_no_speed_up(quick):
    row = latency.measure({"pruned": Sleeper(0.002)}, (1,), batch_sizes=(1,), **quick)[0]
    assert row["speedup"] is None and row["speedup_low"] is None and row["images_per_s"] > 0
    with pytest.raises(LabError, match="no network"):
        latency.measure({}, (1,), **quick)


def test_a_batch_that_does_not_fit_is_noted_and_left_out(quick):
    class Small(Sleeper):
        def forward(self, images):
            if len(images) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().forward(images)

    class Listener(Reporter):
        def __init__(self):
            self.notes = []

        def note(self, text):
            self.notes.append(text)

    listener = Listener()
    rows = latency.measure({"dense": Small(0.002)}, (1,), batch_sizes=(8, 2), reporter=listener, **quick)
    assert [row["batch"] for row in rows] == [2]
    assert len(listener.notes) == 1 and "Batch 8" in listener.notes[0]


def test_cancel_is_obeyed(quick):
    class Stop(Reporter):
        asked = 0

        def cancel_requested(self):
            self.asked += 1
            return self.asked > 3

    log = []
    with pytest.raises(Cancelled):
        latency.measure({"dense": Sleeper(0.001, log)}, (1,), reporter=Stop(), **quick)
    assert len(log) == 3


def test_slow_drift_common_to_both_cancels_in_the_speed_up():
    """Both networks slow down threefold while measured; paired rounds still see the ratio of two, exactly."""
    slowing = np.linspace(1, 3, 24)
    dense, pruned = [[0.02 * s] * 3 for s in slowing], [[0.01 * s] * 5 for s in slowing]
    assert latency.ratio({1: dense}, {1: pruned}) == (pytest.approx(2), pytest.approx(2), pytest.approx(2))
    value, low, high = again.of_rounds(np.array([3 / sum(part) for part in dense]))  # the throughput does drift
    assert low < 0.9 * value and high > 1.1 * value


@pytest.mark.parametrize("rounds", [10, 30, 60])
def test_the_interval_covers_a_second_measurement_as_often_as_it_says(rounds):
    random = np.random.default_rng(rounds)
    hits = 0
    for _ in range(200):
        first, second = np.exp(random.normal(0.5, 0.2, (2, rounds)))
        _, low, high = again.of_rounds(first)
        hits += low <= np.median(second) <= high
    assert 0.87 <= hits / 200 <= 0.995


def test_the_interval_knows_that_neighbouring_rounds_are_alike():
    """Noise that lasts three rounds carries a third of the information; an interval that took the rounds for independent would be too narrow."""
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        first, second = np.exp(np.repeat(random.normal(0, 0.2, (2, 20)), 3, axis=1))
        _, low, high = again.of_rounds(first)
        hits += low <= np.median(second) <= high
    assert hits / 200 >= 0.85


def test_figures_of_rounds_by_hand():
    found = latency.figures({1: [[0.1, 0.1], [0.2, 0.2], [0.1, 0.3]]}, batch=4)
    assert found["images_per_s"] == pytest.approx(20) and found["iterations"] == 6 and found["scenario"] == "offline" and found["starts"] == 1
    assert found["latency_ms_p50"] == pytest.approx(150) and found["latency_ms_p99"] == pytest.approx(295)
    assert found["images_per_s_low"] <= 20 <= found["images_per_s_high"]
    assert latency.figures({1: [[0.1]]}, batch=1)["scenario"] == "single"


def test_on_a_gpu_times_come_from_events():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    rows = latency.measure({"dense": nn.Linear(64, 64)}, (64,), device="cuda:0", batch_sizes=(1, 8), seconds=0.1, min_iterations=10)
    assert [row["scenario"] for row in rows] == ["single", "offline"] and all(row["latency_ms_p50"] > 0 for row in rows)

"""Measured again: what the intervals of a timing hold, by a clock of our own whose processes differ by a known amount."""

from __future__ import annotations

import numpy as np
import pytest

from starfish_lab.measure import again, latency
from starfish_lab.progress import Reporter

APART = 0.025  # standard deviation (log) of a network's time between processes
SCATTER = 0.05  # of a call within one
CLOSE = 0.03  # the bar: two ratios of a quiet machine


class Machine:
    """Its clock moves only while a network runs: by the network's time, times this process's luck with it, times the call's."""

    def __init__(self, random: np.random.Generator, apart: float = APART):
        self.random, self.apart, self.now = random, apart, 0.0

    def perf_counter(self) -> float:
        return self.now

    def network(self, seconds: float):
        usual = seconds * np.exp(self.random.normal(0, self.apart))

        def call() -> None:
            self.now += usual * np.exp(self.random.normal(0, SCATTER))

        return call


@pytest.fixture
def measured(monkeypatch):
    """Measure a network of 4 ms against one of 8, in so many starts that share a second: (ratio, low, high)."""
    random = np.random.default_rng(0)

    def measure(starts: int, apart: float = APART) -> tuple[float, float, float]:
        found: dict[str, dict[int, latency.Rounds]] = {"dense": {}, "sliced": {}}
        for start in range(1, starts + 1):
            machine = Machine(random, apart)
            monkeypatch.setattr(latency, "time", machine)
            calls = {"dense": machine.network(0.008), "sliced": machine.network(0.004)}
            for name, rounds in latency.race(
                calls, device="cpu", single=True, seconds=1.0, min_iterations=50, reporter=Reporter(), starts=starts
            ).items():  # fmt: skip
                found[name][start] = rounds
        return latency.ratio(found["dense"], found["sliced"])

    return measure


def pairs(measure, starts: int, count: int = 150) -> tuple[float, float]:
    """(share of second measurements inside the first one's interval, share within 3 % of it)."""
    inside, close = [], []
    for _ in range(count):
        (first, low, high), (second, _, _) = measure(starts), measure(starts)
        inside.append(low <= second <= high)
        close.append(abs(second / first - 1) <= CLOSE)
    return np.mean(inside), np.mean(close)


def test_several_starts_hold_the_bar_and_the_rounds_of_one_process_miss_it(measured):
    inside, close = pairs(measured, starts=8)
    assert inside >= 0.9 and close >= 0.9
    inside, close = pairs(measured, starts=1)
    assert inside < 0.5 and close < 0.7


def test_where_processes_are_alike_the_rounds_of_one_will_do(measured):
    inside, _ = pairs(lambda starts: measured(starts, apart=0.0), starts=1, count=100)
    assert inside >= 0.87


def test_starts_share_seconds_and_iterations(monkeypatch):
    machine = Machine(np.random.default_rng(0))
    monkeypatch.setattr(latency, "time", machine)
    options = dict(device="cpu", single=True, seconds=2.0, min_iterations=400, reporter=Reporter())
    alone = latency.race({"a": machine.network(0.004)}, **options)["a"]
    shared = latency.race({"a": machine.network(0.004)}, **options, starts=8)["a"]
    assert 2.0 <= sum(map(sum, alone)) < 2.2 and len(alone) >= 30
    assert 0.25 <= sum(map(sum, shared)) < 0.32 and len(shared) >= 4
    slow = latency.race({"a": machine.network(1.0)}, **options, starts=8)["a"]
    assert [len(part) for part in slow] == [1, 1]  # twice its share of five times the seconds, and no round more


@pytest.mark.parametrize("starts", [3, 8])
def test_the_interval_over_starts_holds_its_promise(starts):
    random = np.random.default_rng(starts)
    first, second = np.exp(random.normal(0.4, 0.05, (2, 2000, starts)))
    inside = [low <= np.exp(np.log(b).mean()) <= high for (_, low, high), b in zip(map(again.of_starts, first), second)]
    assert 0.935 <= np.mean(inside) <= 0.965


def test_by_hand():
    """Logs −0.1, 0, 0.1: s = 0.1, t(0.975; 2) = 4.303, √(2/3) = 0.8165."""
    value, low, high = again.of_starts(np.exp([-0.1, 0.0, 0.1]))
    assert value == pytest.approx(1) and high == pytest.approx(np.exp(4.303 * 0.1 * 0.8165), rel=1e-3) and low == pytest.approx(1 / high)
    assert again.of_starts([2.0, 2.0]) == pytest.approx((2, 2, 2))
    assert again.figure([np.array([1.0, 1.2, 1.1]), np.array([1.3, 9.0, 1.2])]) == again.of_starts([1.1, 1.3])
    series = np.array([1.0, 1.1, 0.9, 1.0, 1.05])
    assert again.figure([series]) == again.of_rounds(series)


def test_a_ratio_takes_the_starts_that_both_have():
    dense = {1: [[0.8], [0.8]], 2: [[0.9], [0.9]], 3: [[0.8], [0.8]]}
    assert latency.ratio(dense, {1: [[0.4], [0.4]], 3: [[0.4], [0.4]]}) == pytest.approx((2, 2, 2))
    assert latency.ratio(dense, {4: [[0.4]]}) == latency.ratio(None, dense) == (None, None, None)
    found = latency.figures({1: [[0.1, 0.1]], 2: [[0.1, 0.1], [0.2, 0.2]], 3: [[0.1]]}, batch=4)
    assert (found["starts"], found["iterations"]) == (3, 7) and found["images_per_s"] == pytest.approx((40 * 30 * 40) ** (1 / 3))
    assert found["latency_ms_p50"] == pytest.approx(100)

"""The right answer of every prediction question follows from the numbers: other numbers, another answer."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
import streamlit as st
import synthetic
import synthetic_latency

from app.lessons import LESSONS, certificate, drift, healing, layer, noise, quiz, speed, spike
from starfish_lab.report import Report
from starfish_lab.store import Store


@pytest.fixture(autouse=True)
def session(monkeypatch, lab_home):
    """A session without a browser: every value at its default, the store of the test's own lab."""
    for cache in (st.cache_data, st.cache_resource):
        cache.clear()
    store = Store()
    monkeypatch.setattr("app.state.get", lambda name, default, **_: default)
    monkeypatch.setattr("app.state.store", lambda: store)
    return store


def finish(store: Store, job, report) -> list[int]:
    """A job done, with `report(sparsity)` for every run of a sweep, or one report."""
    number = store.submit(job.plan, job.kind)
    runs = store.sweep_runs(number) if job.kind == "sweep" else pd.DataFrame([{"run": number, "sparsity": None}])
    for run in runs.itertuples():
        store.finish(int(run.run), report(run.sparsity))
    return [int(run) for run in runs["run"]]


def option(question: quiz.Question) -> str:
    return question.options[question.answer().right]


# -- lessons 1 to 3: computed at once ---------------------------------------------------------------------------------------


def test_noise(monkeypatch):
    assert option(noise.WIDER) == "gets narrower" and option(noise.DOUBLED) == "moves four times as far out"
    values = noise.drawn(200, 0.5, 1.0, "gaussian", 1)
    assert f"{values[-1]:.3g}" in noise.DOUBLED.answer().why and f"{4 * values[-1]:.3g}" in noise.DOUBLED.answer().why
    monkeypatch.setattr(noise, "drawn", lambda p, gamma, sigma, entries, seed: np.array([1.0, 2.0 * sigma]))
    assert option(noise.WIDER) == "stays as wide" and option(noise.DOUBLED) == "moves twice as far out"


def test_spike(monkeypatch):
    assert option(spike.HIDDEN) == "No, the bulk swallows it" and option(spike.FURTHER) == "further out than that"

    class Strong:
        def largest(self, theta):
            return spike.spike.Largest(4.0, 0.9)

    monkeypatch.setattr(spike, "planted", lambda p, gamma, seed: Strong())
    assert option(spike.HIDDEN) == "Yes, a small one" and option(spike.FURTHER) == "at 4"


def test_layer(monkeypatch):
    row = layer.matrices().loc[layer.ASKED]
    assert option(layer.SHUFFLED) == "few or none" and f"{row['control_spikes']} of {row['spikes']} remain" in layer.SHUFFLED.answer().why
    assert option(layer.ENERGY) == "more than three times that"
    assert row["spike_energy"] / (row["spikes"] / 192) > 3, "the figures that decide, by hand"
    changed = layer.matrices().assign(control_spikes=19, spike_energy=0.1)
    monkeypatch.setattr(layer, "matrices", lambda: changed)
    assert option(layer.SHUFFLED) == "nearly all" and option(layer.ENERGY) == "about their share in number"


# -- lessons 4 to 7: from the runs' tables -----------------------------------------------------------------------------------


@pytest.mark.parametrize("lesson", [lesson for lesson in LESSONS if lesson.job], ids=lambda lesson: lesson.slug)
def test_before_the_job_is_done_nothing_is_right(lesson):
    assert all(question.answer() is None for question in lesson.questions)


@pytest.mark.parametrize("shape, worst, growth", [
    (lambda s, d: s * (d + 1), "the last", "about the same again"),
    (lambda s, d: s**9 * (6 - d), "the first", "more than that"),
    (lambda s, d: (30 - s**-9) * (1 + d * (5 - d)), "one in the middle", "less than that"),
])  # fmt: skip
def test_drift(session, shape, worst, growth):
    def report(sparsity: float) -> Report:
        found = Report()
        found.add("drift", [
            dict(stage="pruned", block=f"blocks.{d}", depth=d, tokens="all", cosine_distance=shape(sparsity, d)) for d in range(6)
        ])  # fmt: skip
        return found

    finish(session, drift.WORK, report)
    assert option(drift.DEEPEST) == worst
    mean = {s: np.mean([shape(s, d) for d in range(6)]) for s in (0.7, 0.8, 0.9)}
    times = float(re.search(r"added ([\d.]+) times", drift.STEEPER.answer().why)[1])
    assert times == pytest.approx((mean[0.9] - mean[0.8]) / (mean[0.8] - mean[0.7]), abs=0.06)
    assert option(drift.STEEPER) == growth


@pytest.mark.parametrize("resolved, healed, halved_at, back, when", [
    (False, 0.97, 2, "so much that these images cannot tell it from dense", "in the first third of the steps"),
    (True, 0.90, 60, "more than half, and still clearly below dense", "in the second third"),
    (True, 0.40, 119, "less than half", "later or never"),
    (True, 0.40, 999, "less than half", "later or never"),
])  # fmt: skip
def test_healing(session, resolved, healed, halved_at, back, when):
    def report(_: float) -> Report:
        found = synthetic.report(healed=healed)
        found.tables["comparisons"][0]["resolved"] = resolved
        for step in (0, 2, 30, 60, 119):
            size = 0.1 if step >= halved_at else 0.4
            found.add(
                "healing_drift", [dict(step=step, seconds=1.0, block=f"blocks.{d}", depth=d, cosine_distance=size * (d + 1) / 6) for d in range(6)]
            )
        return found

    finish(session, healing.WORK, report)
    assert option(healing.BACK) == back and option(healing.HALVED) == when
    share = (healed - 0.30) / (0.99 - 0.30)
    assert f"{100 * share:.0f} % of what was lost" in healing.BACK.answer().why


@pytest.mark.parametrize("masked, sliced, first, second", [
    ((1.01, 0.97, 1.05), (1.5, 1.4, 1.6), "not noticeably", "less than the MACs promise"),
    ((1.3, 1.25, 1.35), (1.0, 0.95, 1.01), "about 1.3 times", "nothing that can be measured"),
    ((1.9, 1.8, 2.0), (2.1, 2.0, 2.2), "about twice", "as much as the MACs promise, or more"),
])  # fmt: skip
def test_speed(session, masked, sliced, first, second):
    rows = []
    for execution, macs, ratio in (("dense", 0.046, (1.0, 1.0, 1.0)), ("masked", 0.046, masked), ("sliced", 0.023, sliced)):
        known = dict(zip(("speedup", "speedup_low", "speedup_high"), ratio)) if execution != "dense" else {}
        rows.append(dict(
            stage="dense" if execution == "dense" else "pruned", execution=execution, batch=16, macs_g=macs, images_per_s=100.0,
            device_name="Test CPU", precision="float32", **known,
        ))  # fmt: skip
    finish(session, speed.WORK, lambda _: Report({"latency": rows}))
    assert option(speed.MASKED) == first and option(speed.SLICED) == second
    assert f"MACs fell 2.00×, time {sliced[0]:.2f}× ({sliced[1]:.2f} to {sliced[2]:.2f})" in speed.SLICED.answer().why


def test_speed_reads_what_the_latency_lab_writes():
    """The columns that the lesson reads are those of a real measurement's rows."""
    columns = set(synthetic_latency.report().frame("latency"))
    assert {"execution", "batch", "macs_g", "speedup", "speedup_low", "speedup_high", "device_name"} <= columns


@pytest.mark.parametrize("changed, which", [(0, "few or none"), (40, "about half"), (75, "nearly all")])
def test_certificate(session, changed, which):
    def report(sparsity: float) -> Report:
        found = Report()
        found.add("certificates", [dict(
            stage="pruned", scope="network", what="whole network, measured", label="bound", images=100, certified=20, certified_share=0.2, flipped=0,
            changed=changed, accuracy_change_bound=0.05, accuracy_change=-0.01,
        )])  # fmt: skip
        return found

    finish(session, certificate.WORK, report)
    assert option(certificate.OTHERS) == which and f"80 are not, and of those {changed} changed" in certificate.OTHERS.answer().why
    assert (
        option(certificate.ACCURACY) == "no, it is a bound" and "moved by 1 pp where the certificate allows 5 pp" in certificate.ACCURACY.answer().why
    )


def test_a_sweep_takes_over_runs_that_are_done_and_is_found_again(session):
    runs = finish(session, drift.WORK, lambda _: Report())
    again = session.submit(drift.WORK.plan, "sweep")
    assert set(session.sweep_runs(again)["run"]) == set(runs) and session.runs(kind="experiment")["id"].nunique() == len(runs)
    assert list(drift.work.known(drift.WORK)["run"]) == runs
    session.delete(runs[0])
    st.cache_data.clear()  # the page looks again after a few seconds
    assert drift.work.known(drift.WORK).empty, "with a run gone the lesson asks for it again"

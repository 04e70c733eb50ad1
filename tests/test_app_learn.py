"""The page Learn: lessons by link, predictions before figures, one-click reset, the class's link, presenter mode, shared jobs."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from synthetic import button, charts, labels, open_page, report, said, traces, unharmed
from test_app_explore import link
from test_charts_certificates import certified

from app.lessons import LESSONS, drift, healing
from starfish_lab.lessons import noise
from starfish_lab.store import Store

HEADERS = {
    1: "Noise has a shape", 2: "A spike escapes the bulk", 3: "What a trained layer looks like", 4: "Pruning breaks a network",
    5: "Healing without labels", 6: "Sparsity is not speed", 7: "Reading a certificate",
}  # fmt: skip


def title(at) -> str:
    return at.header[0].value


def predict(at, option: int):
    """Answer the first open question."""
    at.radio[0].set_value(option).run()
    return button(at, "Check").click().run()


@pytest.mark.parametrize("number", HEADERS)
def test_every_lesson_opens_by_its_link_and_asks_before_it_shows(number):
    at = open_page("learn", lesson=number)
    assert unharmed(at) and not at.error and not at.warning and title(at) == HEADERS[number]
    assert button(at, "Check").disabled and len(at.radio) == 1, "one question at a time, and no answer without a prediction"
    assert "To remember." in said(at)
    assert ("Run it" in labels(at)) == (LESSONS[number - 1].job is not None) == (not charts(at))


def test_next_and_back_go_through_all_lessons():
    at = open_page("learn")
    for number in range(1, 7):
        assert title(at) == HEADERS[number]
        at.button(key="lesson_next").click().run()
    assert title(at) == HEADERS[7] and at.button(key="lesson_next").disabled and link(at) == {"lesson": "7"}
    assert title(at.button(key="lesson_back").click().run()) == HEADERS[6]


def test_the_first_lesson_from_prediction_to_reset():
    at = open_page("learn")
    values = noise.eigenvalues(200, 400, seed=1)
    (shown,) = charts(at)
    assert shown == f"200 × 400 numbers drawn at random fill {values[0]:.3g} to {values[-1]:.3g}"
    law = traces(charts(at)[shown])[f"Marchenko–Pastur law, at most {noise.distance(values, 0.5):.3g} away"]
    assert min(law["x"]) >= (1 - np.sqrt(0.5)) ** 2 and max(law["x"]) == pytest.approx((1 + np.sqrt(0.5)) ** 2)

    predict(at, 2)
    assert at.slider(key="value.noise_gamma").value == 0.125, "the figure moves to what was asked"
    assert "You said: gets wider" in said(at) and "**Gets narrower.**" in said(at) and any("200 × 1,600" in name for name in charts(at))
    predict(at, 2)
    assert "**Moves four times as far out.**" in said(at) and link(at) == {"noise_sigma": "2"}
    at.button(key="lesson_reset").click().run()
    assert link(at) == {} and list(charts(at)) == [shown] and "Gets narrower" not in said(at)
    assert at.radio[0].value is None and button(at, "Check").disabled


def test_seeing_without_answering_is_no_right_answer():
    at = open_page("learn", lesson=3)
    button(at, "Show without answering").click().run()
    assert "**Few or none.**" in said(at) and "Right" not in [badge.value for badge in at.markdown] and at.toggle(key="value.trained_control").value


def test_a_link_for_the_class_restores_every_slider_and_no_answer():
    at = open_page("learn", lesson=2)
    at.slider(key="value.spike_theta").set_value(0.75).run()
    at.slider(key="value.spike_gamma").set_value(0.25).run()
    at.select_slider(key="value.spike_p").set_value(100).run()
    button(at, "Draw again").click().run()
    predict(at, 0)
    at.slider(key="value.spike_theta").set_value(0.75).run()
    (address,) = [block.value for block in at.code]
    query = {name: values[0] for name, values in parse_qs(urlsplit(address).query).items()}
    assert query == {"lesson": "2", "spike_theta": "0.75", "spike_seed": "2"}, "the question moved γ and p back to what it asked about"
    other = open_page("learn", **query, spike_gamma=0.25)
    assert (other.slider(key="value.spike_theta").value, other.slider(key="value.spike_gamma").value) == (0.75, 0.25)
    assert button(other, "Check").disabled and "You said" not in said(other)


@pytest.mark.parametrize("query, told", [
    ({"lesson": "99"}, "lesson = '99'"), ({"lesson": "x"}, "lesson = 'x'"), ({"noise_gamma": "0"}, "noise_gamma = '0'"),
    ({"noise_p": "7"}, "noise_p = '7'"), ({"lesson": 2, "spike_theta": "nan"}, "spike_theta = 'nan'"),
    ({"lesson": 3, "trained_role": "<script>"}, "trained_role"), ({"lesson": 4, "drift_sparsity": "2"}, "drift_sparsity"),
    ({"present": "maybe"}, "present = 'maybe'"),
])  # fmt: skip
def test_nonsense_in_a_link_is_told_and_a_lesson_stands(query, told):
    at = open_page("learn", **query)
    if "drift_sparsity" not in told:  # read once the lesson's figure is there
        assert any(told in warning.value and "expected" in warning.value for warning in at.warning)
    assert unharmed(at) and not at.error and title(at) in HEADERS.values()


def test_presenting_is_larger_has_keys_and_ends():
    at = open_page("learn")
    desk = next(iter(charts(at).values()))["layout"]
    assert not at.button(key="lesson_next").proto.shortcut, "Page Down scrolls as long as nobody presents"
    at.button(key="lesson_present").click().run()
    room = next(iter(charts(at).values()))["layout"]
    assert room["height"] > 1.3 * desk["height"] and room["title"]["font"]["size"] > 20 and link(at) == {"present": "1"}
    keys = [at.button(key=f"lesson_{name}").proto.shortcut for name in ("next", "back", "present")]
    assert keys == ["pagedown", "pageup", "escape"]
    assert any("stSidebar" in element.proto.body and "display: none" in element.proto.body for element in at.get("html"))
    at.button(key="lesson_present").click().run()
    assert link(at) == {}


def test_a_job_is_started_once_and_shared_by_all_who_open_the_lesson():
    button(open_page("learn", lesson=4), "Run it").click().run()
    store = Store()
    sweeps = store.runs(kind="sweep")
    assert list(sweeps["name"]) == ["Lesson 4"] and len(store.runs()) == len(drift.SPARSITIES)
    other = open_page("learn", lesson=4)
    assert "Run it" not in labels(other) and "No worker is running" in said(other)
    predict(other, 2)
    assert "The run will tell." in said(other) and len(other.radio) == 0, "the second question waits for the numbers"
    for run in store.runs()["id"]:
        store.finish(int(run), report())
    other.run()
    (name,) = charts(other)
    assert name == "At 90 % block 5 is furthest from dense: 0.400" and "**The last.**" in said(other)
    assert set(traces(charts(other)[name])) == {"30 %", "50 %", "70 %", "80 %", "90 %"}
    assert "**Top-1 at 90 %:** dense 99.1 %" in said(other)
    fresh = open_page("learn", lesson=4)
    assert not charts(fresh) and "Answer the question, then see." in said(fresh), "a finished run gives nothing away"


@pytest.mark.parametrize("number, figures", [(4, 1), (5, 2), (6, 1), (7, 2)])
@pytest.mark.parametrize("presenting", [0, 1])
def test_what_a_finished_job_shows(number, figures, presenting):
    store, job = Store(), LESSONS[number - 1].job
    task = store.submit(job.plan, job.kind)
    runs = [task] if job.kind == "latency" else list(store.sweep_runs(task)["run"])
    for run in runs:
        found = report()
        found.tables |= certified().tables if number == 7 else timed() if number == 6 else {}
        found.add("healing_drift", [dict(step=step, seconds=1.0, block="blocks.0", depth=0, cosine_distance=0.1) for step in (0, 120)])
        found.add("healing_accuracy", [dict(step=step, top1=0.9, low=0.8, high=0.95, images=100, seconds=1.0) for step in (0, 120)])
        store.finish(int(run), found)
    at = open_page("learn", lesson=number, present=presenting)
    assert not charts(at)
    for _ in range(2):
        button(at, "Show without answering").click().run()
    assert unharmed(at) and not at.error and not at.radio and len(at.get("plotly_chart")) == figures
    assert at.button(key="lesson_back").label == "Back"


def timed() -> dict[str, list]:
    """The table of the measurement that lesson 6 asks for."""
    known = dict(speedup=1.5, speedup_low=1.4, speedup_high=1.6, images_per_s=100.0, device_name="Test CPU", precision="float32", macs_g=0.02)
    kinds = {"dense": "dense", "masked": "pruned", "sliced": "pruned"}
    return {"latency": [dict(stage=stage, execution=name, batch=batch, **known) for name, stage in kinds.items() for batch in (1, 16)]}


def test_a_job_that_failed_says_why_and_can_be_run_again():
    store = Store()
    sweep = store.submit(healing.WORK.plan, "sweep")
    store.fail(int(store.sweep_runs(sweep)["run"][0]), "The disk is full.")
    at = open_page("learn", lesson=5)
    assert "Run it" in labels(at) and any("failed" in warning.value for warning in at.warning)
    button(at, "Run it").click().run()
    assert len(store.runs(kind="sweep")) == 2 and "Run it" not in labels(open_page("learn", lesson=5))


def test_who_may_not_launch_is_told_in_a_sentence(monkeypatch):
    from starfish_lab.errors import Forbidden

    def refuse(*_, **__):
        raise Forbidden("A viewer may look and not launch: ask an admin for the role of a runner.")

    monkeypatch.setattr("starfish_lab.jobs.protocol.LocalBackend.submit", refuse)
    at = button(open_page("learn", lesson=5), "Run it").click().run()
    assert unharmed(at) and len(Store().runs()) == 0
    assert any("A viewer may look and not launch" in warning.value and "everybody sees it here" in warning.value for warning in at.warning)

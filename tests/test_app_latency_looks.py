"""What the Latency page shows below the sweep, one look at a time."""

from __future__ import annotations

import pytest
import synthetic
import synthetic_latency
from synthetic import charts, open_page, said, traces, unharmed

from app import profiles
from starfish_lab import profile
from starfish_lab.models.loading import load
from starfish_lab.recipe import ModelChoice, Recipe
from starfish_lab.store import Store

H100 = "NVIDIA H100 80GB HBM3"


@pytest.fixture
def store(lab_home):
    return Store()


def test_the_waterfall_stands_above_its_layers(store):
    synthetic_latency.run(store)
    _, fall, beside = charts(open_page("latency", look="layers")).items()
    assert "in linear layers" in fall[0] and set(traces(fall[1])) == {"dense", "sliced", "saved"}
    assert set(traces(beside[1])) == {"dense", "sliced"} and "The longest is now blocks.0.attn.qkv, 0.220 ms" in beside[0]


def test_older_runs_say_what_they_lack(store):
    synthetic.done(store)
    for look, lacks in (("layers", "no layer times"), ("roofline", "no TFLOP/s"), ("sensors", "No sensors were read")):
        app = open_page("latency", look=look)
        assert unharmed(app) and lacks in said(app)


def test_the_roofline_stands_on_the_profile(store, tmp_path, monkeypatch):
    path = tmp_path / "profile.json"
    path.write_text(profile.compute(load(ModelChoice()), device="cpu").to_json())
    monkeypatch.setattr(profiles, "BUNDLED", path)
    synthetic_latency.run(store)
    _, (title, roof) = charts(open_page("latency", look="roofline", at_batch=64)).items()
    found = traces(roof)
    assert {"dense", "pruned", "roof, bf16", "roof, float32"} == set(found) and "of its roof at batch 64" in title
    # of every execution that shapes are known of; merged tokens move fewer bytes for fewer MACs
    assert len(found["pruned"]["x"]) == 4 and all(x > 0 for x in found["pruned"]["x"])
    assert sorted(found["dense"]["y"]) == pytest.approx(sorted(2e-3 * 4.6 * rate * 64 / 72 for rate in (1000, 3000, 4000)))


def test_accuracy_comes_from_the_run_of_the_same_recipe(store):
    synthetic_latency.run(store)
    app = open_page("latency", look="accuracy")
    assert "No timed run has an accuracy here" in said(app)
    experiment = synthetic_latency.healed(store)
    synthetic_latency.healed(store, sparsity=0.75)  # another network
    app = open_page("latency", look="accuracy", at_batch=64)
    _, (title, figure) = charts(app).items()
    healed = traces(figure)["healed"]
    assert {row[-1] for row in healed["customdata"]} == {experiment} and healed["y"] == pytest.approx([100 * 524 / 540] * 3)
    assert min(healed["x"]) == pytest.approx(1e3 * 64 / (6400 * 64 / 72))  # merged tokens are left out: nobody measured their accuracy
    assert "1 with merged tokens left out" in said(app) and "not resolved (n = 540)" in said(app)
    assert "from sliced, bf16, compiled to dense, bf16, compiled" in title


def test_published_points_of_accuracy_are_hollow_and_never_on_the_front(store):
    _, (_, figure) = charts(open_page("latency", card="A40", network="ViT-B/16", look="accuracy", at_batch=64)).items()
    (point,) = figure["data"]
    assert point["marker"]["symbol"] == "diamond-open" and point["y"] == pytest.approx([83.41])
    assert point["x"] == pytest.approx([1e3 * 64 / 1654.5])


def test_macs_and_speed_stand_on_the_same_scale(store):
    synthetic_latency.run(store)
    _, (title, figure) = charts(open_page("latency", look="macs", at_batch=64)).items()
    line, marks = traces(figure)["if MACs were all"], traces(figure)["pruned"]
    assert line["x"] == line["y"] and line["line"]["dash"] == "dash"
    by_name = {row[0]: (x, y) for row, x, y in zip(marks["customdata"], marks["x"], marks["y"])}
    assert by_name["sliced, bf16"] == pytest.approx((4.6 / 2.4, 1.5)) and by_name["merged + sliced, bf16, compiled"] == pytest.approx(
        (4.6 / 1.8, 2.2)
    )
    assert title.startswith("2.56× fewer MACs gave 2.20×")


def test_two_rows_are_comparable_or_the_reasons_stand_there(store):
    run = synthetic_latency.run(store)
    same = dict(first=f"{run}.pruned.sliced, bf16.64", second=f"{run}.dense.dense, bf16.64")
    words = said(open_page("latency", look="pair", **same))
    assert "comparable" in words and "not comparable" not in words and "0.67×" in words  # 3000 / 4500
    words = said(open_page("latency", look="pair", first=f"{run}.pruned.sliced, bf16.64", second=f"{run}.dense.dense.8"))
    assert "not comparable" in words and "Batch size: 64 and 8" in words and "Precision: bf16 and float32" in words
    other = synthetic_latency.run(store, device="NVIDIA A40")
    words = said(open_page("latency", look="pair", card="NVIDIA A40", first=same["first"], second=f"{other}.pruned.sliced, bf16.64"))
    assert "not comparable" in words and f"Device: {H100} and NVIDIA A40" in words


def test_a_published_row_is_comparable_with_nothing(store):
    app = open_page("latency", card="A40", network="ViT-B/16", look="pair")
    assert "not comparable" in said(app) and "Published figures" in said(app)


def test_throttling_is_told_beside_the_sweep_and_flagged_in_the_table(store):
    synthetic_latency.run(store, throttle="power cap")
    assert "Throttled" not in said(open_page("latency"))  # a card at its power limit runs as it always does
    synthetic_latency.run(store, throttle="power cap, heat (hardware)")
    app = open_page("latency", look="sensors")
    assert "held back by heat (hardware) (after batch 1, after batch 8, after batch 64)" in said(app)
    table, hardware = (frame.value for frame in app.dataframe)
    assert list(table["throttled"]) == ["no", "throttled"] * 3 and list(table["temperature_c"]) == [41.0, 67.0] * 3
    assert hardware.set_index("name").loc["device_name", "value"] == H100


def test_what_is_usual_under_load_is_the_same_to_the_page_and_the_lab():
    from app.latency_rows import USUAL_REASONS
    from starfish_lab.latency import sensors

    assert USUAL_REASONS == sensors.USUAL


def test_sensors_that_told_nothing_are_no_word_of_not_throttled(store):
    run = store.submit(synthetic_latency.plan(), "latency")
    report = synthetic_latency.report()
    told = ("batch", "when")
    report.tables["sensors"] = [{name: value if name in told else None for name, value in row.items()} for row in report.tables["sensors"]]
    store.finish(run, report)
    app = open_page("latency", look="sensors")
    assert unharmed(app) and "No sensors were read" in said(app) and len(app.dataframe) == 1  # the facts alone


def test_all_published_rows_can_be_reached(store):
    app = open_page("latency", card="A40", network="ResNet152d", look="published")
    words = said(app)
    assert "1.618×" in words and "0.386×" in words and "cuDNN's own convolution" in words
    assert app.expander[-1].label == "All published rows" and not any(len(frame.value) == 347 for frame in app.dataframe)
    app = open_page("latency", card="A40", look="published", published_rows=1)
    assert {144, 347} <= {len(frame.value) for frame in app.dataframe}


def test_a_recipe_that_merges_keeps_its_accuracy(store):
    from app.latency_rows import same_network

    plan = synthetic_latency.plan()
    assert same_network(plan.to_dict()) == same_network(plan.recipe.to_dict()) != same_network(Recipe().to_dict())

"""Charts of runs: what is drawn, trace by trace, from tables whose figures are known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import synthetic

from app import published, results
from app.charts import compare, drift, healing, latency, theme


@pytest.fixture
def report():
    return synthetic.report()


def test_loss_is_drawn_on_a_log_axis_and_its_title_says_how_far_it_fell(report):
    losses = report.frame("losses")
    fig = healing.loss_curve(losses)
    curve, now = fig.data
    assert fig.layout.yaxis.type == "log"
    assert list(curve.x) == list(range(0, 200, 10)) and np.allclose(curve.y, losses["loss"])
    assert (now.x[0], now.y[0]) == (190, pytest.approx(losses["loss"].iloc[-1]))
    assert f"{theme.number(np.exp(190 / 50))}×" in fig.layout.title.text
    assert healing.loss_curve(losses.iloc[:0]).data == ()


def test_a_loss_of_zero_has_no_place_on_a_log_axis():
    assert list(healing.loss_curve(pd.DataFrame({"step": [0, 1, 2], "loss": [1.0, 0.0, 0.5]})).data[0].x) == [0, 2]


def test_block_losses_run_from_left_to_right_by_depth_and_start_at_white(report):
    (heat,) = healing.block_losses(report.frame("block_losses")).data
    assert list(heat.x) == ["0", "1", "2", "3", "4", "5"] and heat.z.shape == (20, 6)
    assert (heat.zmin, heat.zmax) == (0, pytest.approx(0.6)) and heat.colorscale[0] == (0, "#ffffff")
    assert heat.z[0, 5] == pytest.approx(0.6)
    assert "Block 5" in healing.block_losses(report.frame("block_losses")).layout.title.text


def test_accuracy_has_a_mark_and_its_interval_for_each_stage(report):
    fig = healing.accuracy_by_stage(report.frame("accuracy"))
    assert [trace.name for trace in fig.data] == ["dense", "pruned", "healed"]
    for trace, row in zip(fig.data, report.tables["accuracy"], strict=True):
        assert trace.x[0] == pytest.approx(100 * row["top1"])
        assert trace.x[0] - trace.error_x.arrayminus[0] == pytest.approx(100 * row["low"])
        assert trace.x[0] + trace.error_x.array[0] == pytest.approx(100 * row["high"])
        assert trace.marker.color == theme.STAGE_COLOURS[row["stage"]] and trace.marker.symbol == theme.STAGE_SYMBOLS[row["stage"]]


@pytest.mark.parametrize(("metric", "expected"), [("cosine_distance", 0.4), ("relative_l2", 0.8), ("cka", 0.4)])
def test_drift_grows_with_distance_whatever_the_metric(report, metric, expected):
    pruned, healed = drift.over_depth(report.frame("drift"), metric=metric, tokens="class").data
    assert (pruned.name, healed.name) == ("pruned", "healed")
    assert list(pruned.x) == list(range(6)) and pruned.y[-1] == pytest.approx(expected)
    assert healed.y[-1] == pytest.approx(expected / 20)


def test_drift_of_a_network_without_tokens_is_shown_under_all():
    rows = pd.DataFrame(
        {"stage": "pruned", "block": "layer1", "depth": [0], "tokens": "image", "cosine_distance": [0.2], "relative_l2": [0.1], "cka": [0.9]}
    )
    assert drift.over_depth(rows).data[0].y[0] == pytest.approx(0.2)
    assert drift.over_depth(rows, tokens="class").data == ()


def test_drift_of_several_runs_shares_one_scale():
    first, second = synthetic.report().frame("drift"), synthetic.report().frame("drift")
    second["cosine_distance"] *= 2
    rows = pd.concat([first.assign(run=3), second.assign(run=8)])
    fig = drift.by_run(rows, {8: "run 8", 3: "run 3"})
    maps = [trace for trace in fig.data if trace.type == "heatmap"]
    assert [trace.name for trace in maps] == ["pruned", "healed"]
    assert {trace.coloraxis for trace in maps} == {"coloraxis"}
    assert fig.layout.coloraxis.cmin == 0 and fig.layout.coloraxis.cmax == pytest.approx(0.8)
    assert list(fig.data[0].y) == ["run 8", "run 3"] and fig.data[0].z[0, 5] == pytest.approx(0.8) and fig.data[0].z[1, 5] == pytest.approx(0.4)
    assert fig.layout.title.text == "Run 3 stays closest to dense, run 8 drifts most"
    unhealed = rows[~((rows["run"] == 3) & (rows["stage"] == "healed"))]
    assert drift.by_run(unhealed, {8: "run 8", 3: "run 3"}).layout.title.text == "Run 8 stays closest to dense, run 3 drifts most"


def test_front_holds_exactly_the_points_that_no_other_beats():
    rng = np.random.default_rng(0)
    points = pd.DataFrame({"cost": rng.integers(0, 20, 60).astype(float), "top1": rng.integers(0, 20, 60) / 20})
    found = compare.front(points)
    for point in points.itertuples():
        beaten = (
            (points["cost"] <= point.cost) & (points["top1"] >= point.top1) & ((points["cost"] < point.cost) | (points["top1"] > point.top1))
        ).any()
        on_front = ((found["cost"] == point.cost) & (found["top1"] == point.top1)).any()
        assert on_front == (not beaten)
    assert found["cost"].is_monotonic_increasing and found["top1"].is_monotonic_increasing


def _points(store, cost):
    ids = [synthetic.done(store, name="one"), synthetic.done(store, sparsity=0.5, healed=0.99)]
    return results.points(store.runs(), cost=cost, latency=store.table(ids, "latency"), seconds=store.table(ids, "seconds"))


@pytest.fixture
def store(lab_home):
    from starfish_lab.store import Store

    return Store()


def test_accuracy_against_cost_draws_every_stage_with_its_interval(store):
    points = _points(store, "macs_g")
    fig = compare.accuracy_against_cost(points, cost="macs_g")
    traces = {trace.name: trace for trace in fig.data}
    assert set(traces) == {"Pareto front", "healing", "dense", "pruned", "healed"}
    assert len(traces["dense"].x) == 1  # both runs share the network and its images
    assert sorted(traces["healed"].text) == ["1", "2"] and set(traces["healed"].x) == {synthetic.MACS_G["healed"]}
    row = points[(points["run"] == 2) & (points["stage"] == "healed")].iloc[0]
    i = list(traces["healed"].text).index("2")
    assert traces["healed"].y[i] + traces["healed"].error_y.array[i] == pytest.approx(100 * row["high"])
    assert "run 2 healed" in fig.layout.title.text
    assert all(trace.type == "scatter" for trace in fig.data)  # SVG, never WebGL


def test_costs_are_what_their_axis_says(store):
    healing_s = _points(store, "healing_s").set_index(["run", "stage"])["cost"]
    assert healing_s[1, "healed"] == pytest.approx(127) and healing_s[1, "pruned"] == 0
    latency_ms = _points(store, "latency_ms").set_index(["run", "stage"])["cost"]
    assert set(latency_ms) == {4.0, 4.0 / 1.02} and "pruned" not in latency_ms.index.get_level_values("stage")  # pruned was not timed


def test_published_points_are_hollow_and_never_on_the_front(store):
    points = _points(store, "macs_g")
    other = pd.DataFrame({"label": ["DeiT-B"], "cost": [0.001], "top1": [1.0], "method": ["m"], "source": ["arXiv 0000.00000"]})
    fig = compare.accuracy_against_cost(points, cost="macs_g", literature=other)
    hollow = fig.data[-1]
    assert hollow.name == "literature" and hollow.marker.symbol.endswith("-open") and "arXiv 0000.00000" in hollow.customdata[0]
    assert 0.001 not in fig.data[0].x


def test_a_long_title_is_wrapped_evenly_and_what_is_drawn_stays_as_large():
    def drawn(fig):
        margin = fig.layout.margin.t if fig.layout.margin.t is not None else fig.layout.template.layout.margin.t
        return fig.layout.height - margin

    long = "Zeros and merged tokens would save 48.6 % of multiply-adds; kernels of today save 0.0 %"
    fig = theme.figure(long, height=300)
    before = drawn(fig)
    lines = theme.wrapped(fig).layout.title.text.split("<br>")
    assert len(lines) == 2 and max(map(len, lines)) <= theme.TITLE_WIDTH and abs(len(lines[0]) - len(lines[1])) < 15
    assert " ".join(lines).replace("\u00a0", " ") == long and drawn(fig) == before and fig.layout.height == 300 + theme.TITLE_LINE
    short = theme.figure("Every layer loses 90.0 %", height=300)
    assert theme.wrapped(short).layout.title.text.replace("\u00a0", " ") == "Every layer loses 90.0 %" and short.layout.height == 300


def test_a_legend_too_wide_for_a_narrow_page_gets_room_for_a_second_row():
    few, many = (theme.figure("t", height=300).add_scatter(name=name).add_scatter(name="b" * 9) for name in ("a", "a" * 60))
    assert theme.wrapped(few).layout.height == 300 and theme.wrapped(many).layout.height == 300 + theme.LEGEND_ROW
    below = theme.legend_below(theme.figure("t", height=300).add_scatter(name="a" * 60).add_scatter(name="b" * 60), room=0)
    assert theme.wrapped(below).layout.height == 300 and below.layout.legend.y < 0


def test_published_accuracies_stand_only_where_they_state_a_cost():
    row = {"model": "deit_base_patch16_224.fb_in1k", "macs_g_dense": 17.56, "parameters_m_dense": 86.6}
    table = pd.DataFrame([row])
    found = published.accuracies([row["model"]], table, cost="parameters_m")
    assert set(found["label"]) == {"DeiT-B"} and found["top1"].between(0, 1).all() and found["cost"].between(0, 86.6).all()
    assert published.accuracies(["starter"], table.assign(model="starter"), cost="parameters_m").empty
    assert published.accuracies([row["model"]], table, cost="latency_ms").empty


def test_no_chart_is_an_error_when_there_is_nothing_to_draw():
    nothing = pd.DataFrame()
    for fig in (
        healing.loss_curve(nothing), healing.block_losses(nothing), healing.accuracy_by_stage(nothing), drift.over_depth(nothing),
        drift.by_run(nothing, {}), compare.accuracy_against_cost(nothing, cost="macs_g"), latency.batch_sweep(nothing, nothing, device="A40"),
    ):  # fmt: skip
        assert fig.layout.title.text and not [trace for trace in fig.data if trace.x is not None and len(trace.x)]

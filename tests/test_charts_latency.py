"""Charts of latency: what is drawn, trace by trace, from rows whose figures are known."""

from __future__ import annotations

import pandas as pd
import pytest
import synthetic
import synthetic_latency

from app import latency_intensity, latency_rows
from app.charts import latency, latency_accuracy, latency_layers, latency_roofline
from starfish_lab import literature
from starfish_lab.prediction.pieces import Piece
from starfish_lab.store import Store


def rows(run: int = 1, **options: object) -> pd.DataFrame:
    return latency_rows.whole(synthetic_latency.report(**options).frame("latency").assign(run=run, model="starter"))


def sweep(measured: pd.DataFrame):
    return latency.batch_sweep(measured, literature.latencies().iloc[:0], device="Test")


def test_the_title_says_when_nothing_is_resolved_or_slower():
    # the fastest, merged+sliced compiled, is 2.2 times the best dense: scaled to 0.46 of that it is 1.01 times, to 0.3 it is 0.66 times
    assert "No speed-up over the best dense is resolved" in sweep(rows(scale=0.46)).layout.title.text
    slower = sweep(rows(scale=0.3)).layout.title.text
    assert slower.startswith("Slower than the best dense (dense, bf16, compiled) at every batch size: 0.66×")


def test_measured_and_published_never_share_a_line_and_older_rows_are_drawn_too():
    measured = latency_rows.whole(synthetic.report().frame("latency").assign(run=4))
    hollow = pd.DataFrame({
        "model": "ViT-B/16", "variant": "2:4", "execution": ["dense, pure bf16"] * 2,
        "batch": [64, 128], "images_per_s": [1600.0, 1700.0], "source": "paper",
    })  # fmt: skip
    fig = latency.batch_sweep(measured, hollow, device="Test CPU")
    assert [trace.name for trace in fig.data] == ["best dense", "dense", "healed, masked", "dense, pure bf16"]
    assert [trace.marker.symbol for trace in fig.data[1:]] == ["circle", "diamond", "circle-open"]
    assert fig.layout.xaxis.type == "log" and list(fig.layout.xaxis.tickvals) == [1, 8, 64, 128]
    dense = fig.data[1]
    assert list(dense.y) == [250.0, 400.0] and dense.y[1] + dense.error_y.array[1] == pytest.approx(408.0)
    faster = sweep(latency_rows.whole(synthetic.report(speedup=1.8).frame("latency").assign(run=4)))
    assert faster.layout.title.text.startswith("Masked: 1.80× dense at batch")


def test_speedup_stands_beside_what_macs_promise_where_rows_count_none(lab_home):
    store = Store()
    runs = [synthetic.done(store, speedup=1.5)]
    points = latency_rows.ratios_of_macs(latency_rows.whole(store.table(runs, "latency")), store.runs())
    assert set(points["macs_ratio"].round(6)) == {round(0.04 / 0.006, 6)}
    line, marks, *_ = latency.speedup_against_macs(points[points["batch"] == 8]).data
    assert line.name == "if MACs were all" and list(line.x) == list(line.y) and line.line.dash == "dash"
    assert marks.y[0] == 1.5 and marks.error_y.array[0] == pytest.approx(0.05)


def test_end_labels_keep_apart_and_name_every_line():
    fig = sweep(rows())
    notes = list(fig.layout.annotations)
    assert {note.text.replace("<br>", ", ") for note in notes} == {latency_rows.spoken(name) for name in synthetic_latency.RATES}
    top = fig.layout.yaxis.range[1]
    assert top == pytest.approx(1.05 * 1.02 * 8800 * 64 / 72)
    heights = sorted(latency._INSIDE * note.y / top + note.yshift for note in notes)
    assert all(b - a >= latency._LABEL - 1e-6 for a, b in zip(heights, heights[1:]))


def test_a_refusal_is_no_point():
    found = rows()
    assert len(latency_rows.timed(found)) == len(found) - len(synthetic_latency.BATCHES)
    assert not any("2:4" in (trace.name or "") for trace in sweep(found).data)


def test_the_waterfall_falls_from_dense_to_fast_layer_by_layer():
    times = synthetic_latency.report().frame("latency_layers")
    pairs = latency_layers.paired(*(times[times["execution"] == name] for name in ("dense", "sliced")))
    linear = 17  # four blocks of four, and the head
    others = len(synthetic_latency.LAYERS) - linear
    assert pairs["saved"].sum() == pytest.approx(linear * 0.4 * 0.45) and pairs["dense"].sum() == pytest.approx(linear * 0.4 + others * 0.105)
    fig = latency_layers.waterfall(pairs, dense="dense", fast="sliced")
    first, last, saved = fig.data
    assert first.y[0] == pytest.approx(pairs["dense"].sum()) and last.y[0] == pytest.approx(pairs["fast"].sum())
    assert first.x[0] == -1 and last.x[0] == len(pairs)
    tops = [base + y for base, y in zip(saved.base, saved.y)]
    assert tops[0] == pytest.approx(first.y[0]) and saved.base[-1] == pytest.approx(last.y[0])
    assert "100 % of it in linear layers" in fig.layout.title.text
    assert list(pairs["block"].unique()) == ["", "blocks.0", "blocks.1", "blocks.2", "blocks.3"]


def test_a_layer_that_took_longer_is_drawn_as_such():
    dense = pd.DataFrame({"layer": ["blocks.0.a", "blocks.0.b"], "kind": "linear", "ms": [2.0, 1.0]})
    fast = pd.DataFrame({"layer": ["blocks.0.a", "blocks.0.c"], "kind": ["linear", "other"], "ms": [1.0, 0.5]})
    pairs = latency_layers.paired(dense, fast).set_index("layer")
    assert pairs["saved"].to_dict() == {"blocks.0.a": 1.0, "blocks.0.b": 1.0, "blocks.0.c": -0.5}
    traces = {trace.name: trace for trace in latency_layers.waterfall(pairs.reset_index(), dense="dense", fast="sliced").data}
    assert list(traces["took more"].base) == [1.0] and list(traces["took more"].y) == [0.5]
    assert "others took 0.500 ms of it back" in latency_layers.waterfall_title(pairs)


def test_the_roof_is_the_lower_of_memory_and_arithmetic():
    points = rows().query("batch == 64 and precision == 'bf16' and stage == 'pruned'").assign(intensity=[10.0, 100.0, 1000.0])
    peaks = pd.DataFrame({"precision": ["bf16"], "tflops": [650.0], "gb_per_s": [3000.0]})
    fig = latency_roofline.roofline(points, peaks, batch=64)
    roof = fig.data[0]
    assert max(roof.y) == 650 and min(roof.y) == pytest.approx(min(roof.x) * 3.0)  # 3000 GB/s · FLOP/byte = 3 TFLOP/s a FLOP/byte
    shares = [latency_roofline.share(row, peaks.set_index("precision")) for row in points.itertuples()]
    assert shares == pytest.approx([t / r for t, r in zip(points["tflops"], (30, 300, 650))])
    assert fig.layout.xaxis.type == fig.layout.yaxis.type == "log"
    lone = latency_roofline.roofline(points, peaks.iloc[:0], batch=64)
    assert [trace.name for trace in lone.data] == ["pruned"] and lone.layout.title.text.endswith("?")


def test_intensity_counts_weights_once_and_images_each():
    fc = Piece(name="fc", depth=0, kind="linear", variant="", m=4, n=8, k=16)
    attention = Piece(name="attn", depth=0, kind="attention", variant="", m=2, n=4, k=8)
    norm = Piece(name="norm", depth=0, kind="norm", variant="", m=4, n=16)
    assert [latency_intensity.moved(piece, 3) for piece in (fc, attention, norm)] == [8 * 16 + 12 * 24, 4 * 6 * 4 * 8, 2 * 12 * 16]
    one, many = (latency_intensity.intensity([fc], macs_g=512e-9, batch=batch, precision="bf16") for batch in (1, 10**6))
    assert one == pytest.approx(1024 / (2 * (128 + 96))) and many == pytest.approx(1024 / (2 * 96), rel=1e-3)


def test_accuracy_has_intervals_both_ways_and_a_front_of_measured_marks_only():
    points = pd.DataFrame({
        "run": 1, "stage": ["dense", "healed", "healed"], "execution": ["dense", "sliced", "masked"], "accuracy_run": 2, "images": 500,
        "top1": [0.9, 0.88, 0.88], "low": [0.87, 0.85, 0.85], "high": [0.92, 0.9, 0.9],
        "cost": [10.0, 5.0, 11.0], "cost_low": [9.5, 4.8, 10.5], "cost_high": [10.5, 5.2, 11.5],
    })  # fmt: skip
    hollow = pd.DataFrame([dict(label="ViT-B/16", execution="native 2:4", cost=1.0, top1=0.99, source="arXiv 0")])
    fig = latency_accuracy.accuracy_against_latency(points, hollow, device="Test", batch=8)
    found = {trace.name: trace for trace in fig.data}
    assert list(found["Pareto front"].x) == [5.0, 10.0] and "from sliced to dense" in fig.layout.title.text
    assert list(found["healed"].error_x.array) == pytest.approx([0.2, 0.5]) and list(found["healed"].error_y.arrayminus) == pytest.approx([3.0, 3.0])
    assert found["literature"].marker.symbol == "diamond-open" and "arXiv 0" in str(found["literature"].customdata)


def test_every_published_accuracy_can_be_drawn_hollow():
    table = literature.accuracies()
    drawn = 0
    for model, part in table.groupby("model"):
        fig = latency_accuracy.published_accuracies(part.reset_index(drop=True), model=model)
        assert all(trace.marker.symbol.endswith("-open") for trace in fig.data)
        assert all(0 <= y <= 105 for trace in fig.data for y in trace.y)
        drawn += sum(len(trace.x) for trace in fig.data)
    assert drawn == len(table) == 347


def test_every_published_timing_can_be_drawn_hollow():
    table = literature.latencies()
    drawn = 0
    for (gpu, _), part in table.groupby(["gpu", "model"]):
        fig = latency.batch_sweep(table.iloc[:0], part, device=gpu)
        assert all(trace.marker.symbol.endswith("-open") for trace in fig.data) and "Published for" in fig.layout.title.text
        drawn += sum(len(trace.x) for trace in fig.data)
    assert drawn == len(table) == 144

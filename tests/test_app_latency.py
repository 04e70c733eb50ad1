"""Latency: measured and published figures side by side and never mixed."""

from __future__ import annotations

import pytest
import synthetic
import synthetic_latency
from synthetic import charts, open_page, said, traces, unharmed

from starfish_lab.store import Store

H100 = "NVIDIA H100 80GB HBM3"


@pytest.fixture
def store(lab_home):
    return Store()


def test_until_something_is_measured_the_page_says_that_all_is_published(store):
    app = open_page("latency", card="A40")
    assert unharmed(app) and "Nothing was measured on an A40 here" in said(app)
    (sweep,) = charts(app).values()
    assert len(sweep["data"]) == 3
    assert all(trace["marker"]["symbol"].endswith("-open") for trace in sweep["data"])
    assert all("arXiv 2606.02608" in source.replace("<br>", " ") for trace in sweep["data"] for _, source in trace["customdata"])
    assert sweep["layout"]["xaxis"]["type"] == "log"


def test_the_headlines_stand_with_what_they_compare(store):
    words = said(open_page("latency", card="A40", network="ViT-B/16"))
    for figure in ("1.388×", "1.032×", "2.705×", "1.62×", "0.386×"):
        assert figure in words
    assert "mixed precision" in words and "float32 without TF32" in words and "1 of 2" in words and "im2col against im2col" in words
    assert words.count("arXiv 2606.02608") >= 3


def test_measured_figures_are_filled_with_intervals_and_the_title_compares_with_the_best_dense(store):
    synthetic_latency.run(store)
    app = open_page("latency")
    assert unharmed(app)
    ((title, sweep),) = charts(app).items()
    # merged+sliced compiled 8800 against dense compiled 4000, at every batch alike
    assert title.startswith("Merged + sliced, bf16, compiled: 2.20× the best dense (dense, bf16, compiled)")
    found = traces(sweep)
    assert {"best dense", "dense, bf16, compiled", "sliced, bf16"} <= set(found)
    best = found["best dense"]
    assert best["y"] == pytest.approx([4000 / 9, 2000, 4000 * 64 / 72])
    line = found["sliced, bf16"]
    assert line["marker"]["symbol"] == "x" and line["y"] == pytest.approx([500, 2250, 4000])
    assert line["error_y"]["array"] == pytest.approx([10, 45, 80])


def test_the_four_figures_take_the_latency_that_the_page_measured(store):
    synthetic_latency.run(store)
    first = {"pattern": "structured", "sparsity": 0.5}
    words = figures(open_page("latency", **first))
    assert "<span>9 ms</span>" in words and "<span>5.29 ms</span>" in words  # batch 1, dense: 9 / 1000 s an image; sliced: 9 / 1700
    assert "1.70× faster" in words and "not measured yet" not in words.partition("<h4>Latency")[2]
    assert "1.70×" not in figures(open_page("latency", **first | {"sparsity": 0.6}))
    assert "1.70×" not in figures(open_page("latency", **first, device="gpu:A40"))


def figures(app) -> str:
    return "\n".join(str(element.proto.body) for element in app.get("html"))


def test_the_table_compares_with_the_same_precision_too(store):
    synthetic_latency.run(store)
    app = open_page("latency", look="figures")
    table = app.dataframe[0].value.query("batch == 64").set_index("said")
    assert table.loc["sliced, bf16", "faster"].startswith("1.50 (1.46 to ")  # 4500 / 3000
    assert table.loc["sliced, bf16", "faster_best"].startswith("1.12 ")  # 4500 / 4000
    assert table.loc["sliced, bf16", "best"] == "dense, bf16, compiled"
    assert table.loc["dense, bf16", "faster"] == ""


def test_what_an_interval_covers_stands_below_the_sweep_and_in_the_table(store):
    old, new = synthetic_latency.run(store, starts=None), synthetic_latency.run(store)
    assert "lands in its interval in 95 % of cases: 8 fresh starts." in said(open_page("latency", timed=str(new)))
    app = open_page("latency", timed=f"{old},{new}", look="figures")
    assert unharmed(app) and f"rounds within one process (run {old}), 8 fresh starts (run {new})." in said(app)
    table = app.dataframe[0].value
    assert set(table.loc[table["run"] == old, "covers"]) == {"rounds within one process", ""}  # '': refused, without an interval
    assert set(table.loc[table["run"] == new, "covers"]) == {"8 fresh starts", ""}
    pair = {"first": f"{old}.pruned.sliced.8", "second": f"{new}.pruned.sliced.8"}
    assert "The interval of the first covers rounds within one process" in said(open_page("latency", look="pair", **pair))
    assert "covers rounds within" not in said(open_page("latency", look="pair", **pair | {"first": f"{new}.pruned.sliced.8"}))


def test_what_was_refused_is_told_with_its_reason(store):
    synthetic_latency.run(store)
    app = open_page("latency")
    assert "2:4 (cuSPARSELt): torch's float32 format keeps 1 of 2 weights" in said(app)
    assert any(box.label.startswith("1 not timed") for box in app.expander)


def test_older_runs_still_show(store):
    run = synthetic.done(store, speedup=1.02)
    app = open_page("latency", look="figures")
    assert unharmed(app)
    ((title, sweep),) = charts(app).items()
    assert "No speed-up over the best dense is resolved" in title
    found = traces(sweep)
    assert found["dense"]["y"] == [250.0, 400.0] and found["dense"]["marker"]["symbol"] == "circle"
    assert "healed, masked" in found and "Mask only: no speed-up expected" in said(app)
    table = app.dataframe[0].value
    assert list(table["run"].unique()) == [run] and table["faster"].iloc[1] == table["faster_best"].iloc[1] == "1.02 (0.97 to 1.07)"


def test_runs_and_executions_are_chosen_by_the_link(store):
    first, second = synthetic_latency.run(store), synthetic_latency.run(store, scale=2.0)
    (sweep,) = charts(open_page("latency", lines="sliced")).values()
    assert set(traces(sweep)) == {"sliced"}
    (sweep,) = charts(open_page("latency", timed=f"{first},{second}", lines="sliced.bf16.compiled")).values()
    lines = traces(sweep)
    assert set(lines) == {f"sliced, bf16, compiled (run {run})" for run in (first, second)}
    assert lines[f"sliced, bf16, compiled (run {second})"]["y"][-1] == pytest.approx(2 * 6400 * 64 / 72)


def test_a_measured_card_of_the_literature_shows_both_apart(store):
    synthetic_latency.run(store, device="NVIDIA A40")
    app = open_page("latency", network="ViT-B/16")
    assert app.selectbox(key="value.card").options == ["NVIDIA A40", "A100 (literature)"]
    assert "Nothing was measured" in said(app)  # of this network
    assert all(name.startswith(("dense", "native")) for name in traces(next(iter(charts(app).values()))))


def test_both_kinds_of_mark_stand_on_one_axis_where_a_network_has_both(store):
    synthetic_latency.run(store, device="NVIDIA A40", model="deit_base_patch16_224")
    (sweep,) = charts(open_page("latency", network="deit_base_patch16_224")).values()
    symbols = {name: trace["marker"]["symbol"] for name, trace in traces(sweep).items() if "marker" in trace}
    assert symbols["sliced, bf16"] == "x" and symbols["dense, pure bf16"].endswith("-open")


@pytest.mark.parametrize("look", ["layers", "roofline", "accuracy", "macs", "pair", "sensors", "published", "figures"])
def test_every_look_opens_with_no_more_than_four_charts(store, look):
    synthetic_latency.run(store)
    synthetic_latency.healed(store)
    app = open_page("latency", look=look)
    assert unharmed(app) and not app.warning and 1 <= len(charts(app)) <= 4
    bare = open_page("latency", card="A40", look=look)
    assert unharmed(bare) and len(charts(bare)) <= 4


def test_nonsense_in_the_link_leaves_the_page_standing(store):
    synthetic_latency.run(store)
    nonsense = dict(card="Abacus", network="?", timed="5,x", batches="0,-1,a", at_batch="77", timing="99", look="up", lines="a,b", ways="x",
                    precisions="y", modes="z", merged="w", first="1", second="2", base="c", fast="d")  # fmt: skip
    app = open_page("latency", **nonsense)
    assert unharmed(app) and len(charts(app)) == 1
    for look in ("layers", "pair", "roofline", "accuracy", "macs"):
        assert unharmed(open_page("latency", **{**nonsense, "card": H100, "look": look}))


def test_a_page_with_many_runs_is_drawn_fast(store):
    for _ in range(12):
        synthetic_latency.run(store)
    app = open_page("latency", look="figures")
    assert synthetic.seconds_of_a_rerun(app) < 1.0

"""Latency: measured and published figures side by side and never mixed; the button that measures."""

from __future__ import annotations

import pytest
import synthetic
from synthetic import button, charts, open_page, said, traces, unharmed

from starfish_lab.store import Store


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


def test_the_headline_is_stated_with_what_it_compares(store):
    words = said(open_page("latency", card="A40", network="ViT-B/16"))
    assert "1.388×" in words and "1.032×" in words and "mixed precision" in words
    words = said(open_page("latency", card="A100", network="ViT-B/16"))
    assert "2.705×" in words and "float32 without TF32" in words


def test_measured_figures_are_filled_with_intervals(store):
    run = synthetic.done(store, speedup=1.02)
    app = open_page("latency")
    assert unharmed(app)
    sweep, against = charts(app).values()
    found = traces(sweep)
    assert set(found) == {f"dense (run {run})", f"healed, masked (run {run})"}
    assert found[f"dense (run {run})"]["y"] == [250.0, 400.0] and found[f"dense (run {run})"]["marker"]["symbol"] == "circle"
    assert all(error > 0 for error in found[f"dense (run {run})"]["error_y"]["array"])
    assert "Mask only: no speed-up expected" in said(app)
    assert set(traces(against)) == {"if MACs were all", "healed"}
    table = app.dataframe[0].value
    assert list(table["latency_ms_p50"]) == pytest.approx([4.0, 20.0, 4 / 1.02, 20 / 1.02]) and table["faster"].iloc[2] == "1.02 (0.97 to 1.07)"


def test_timings_of_latency_runs_count_too_and_runs_are_chosen_by_the_link(store):
    first = synthetic.done(store)
    second = synthetic.latency_run(store, speedup=1.8, sliced=True)
    sweep, _ = charts(open_page("latency")).values()
    assert f"healed, sliced (run {second})" in traces(sweep) and len(sweep["data"]) == 2  # the newest alone
    sweep, _ = charts(open_page("latency", timed=f"{first},{second}")).values()
    assert len(sweep["data"]) == 4


def test_a_measured_card_of_the_literature_shows_both_apart(store):
    run = store.submit(synthetic.recipe())
    store.finish(run, synthetic.report(device="NVIDIA A40"))
    app = open_page("latency", network="ViT-B/16")
    assert app.selectbox(key="value.card").options == ["NVIDIA A40", "A100 (literature)"]
    assert "Nothing was measured" in said(app)  # of this network
    assert all(name.startswith(("dense", "native")) for name in traces(next(iter(charts(app).values()))))


def test_the_button_queues_a_measurement_of_the_present_choice(store):
    app = open_page("latency", sparsity=0.5, pattern="structured", batches="1,16")
    button(app, "Measure latency").click().run()
    (row,) = store.runs(kind="latency").to_dict("records")
    recipe = store.run(row["id"]).recipe
    assert row["status"] == "queued" and recipe.measure.batch_sizes == (1, 16) and recipe.pruning.pattern == "structured"
    assert unharmed(app) and "No worker is running" in said(app)
    button(app, "Measure latency").click().run()
    assert len(store.runs(kind="latency")) == 1
    store.fail(row["id"], "Wanda needs images.")
    app.run()
    assert "Wanda needs images." in said(app)


def test_nonsense_in_the_link_leaves_the_page_standing(store):
    synthetic.done(store)
    app = open_page("latency", card="Abacus", network="?", timed="5,x", batches="0,-1,a", at_batch="77", timing="99")
    assert unharmed(app) and len(charts(app)) == 2

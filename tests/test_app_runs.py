"""Runs: the table, its filters, what can be done with chosen runs, and how fast it stays."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import sqlalchemy as sa
import synthetic
from synthetic import button, charts, labels, open_page, said, traces, unharmed

from starfish_lab.bakeoff.plan import BakeOff
from starfish_lab.report import Report
from starfish_lab.store import Store
from starfish_lab.store.schema import RUNS


@pytest.fixture
def store(lab_home):
    return Store()


def _table(app):
    return app.dataframe[0].value


def test_an_empty_store_says_what_to_do_and_has_the_button_for_it(store):
    app = open_page("runs")
    assert unharmed(app) and "No runs yet" in said(app)
    button(app, "Go to Prune & heal").click().run()
    assert unharmed(app) and "Prune & heal" in labels(app)


def test_each_run_is_a_row_with_its_figures(store):
    synthetic.done(store, name="first", owner="ada")
    failed = store.submit(synthetic.recipe(method="cross_entropy"))
    store.fail(failed, "No images.")
    synthetic.latency_run(store)
    synthetic.running(store)
    store.submit(synthetic.recipe(), kind="profile")
    table = _table(open_page("runs")).set_index("Run")
    assert list(table.index) == [4, 3, 2, 1]  # newest first; profiles are no experiments
    row = table.loc[1]
    assert (row["Name"], row["Owner"], row["Status"], row["Model"]) == ("first", "ada", "done", "starter")
    assert row["Healed (%)"] == pytest.approx(97.037, abs=1e-3) and row["Sparsity (%)"] == 90 and row["Of all (%)"] == 85
    assert list(row["Accuracy"]) == pytest.approx([99.1, 30.0, 97.0]) and row["Seconds"] == pytest.approx(128)
    assert table.loc[3, "Method"] == "timed only" and table.loc[4, "Method"] == "STARFISH"
    assert table.loc[2, "Status"] == "failed" and table.loc[3, "Status"] == "timed" and table.loc[4, "Status"] == "heal 30/200"


def test_a_healer_has_its_whole_name_and_a_bake_off_opens_on_its_page(store):
    known = synthetic.recipe()
    store.submit(replace(known, healing=replace(known.healing, repair="least_squares")))
    baked = store.submit(BakeOff(healers=("starfish", "none"), sparsities=(0.5, 0.75)), "bakeoff")
    store.finish(baked, Report())
    table = _table(open_page("runs")).set_index("Run")
    assert table.loc[1, "Method"] == "least squares + STARFISH" and table.loc[baked, "Method"] == "2 healers"
    assert table.loc[baked, "Status"] == "baked" and table.loc[baked, "Sparsity (%)"] == 75
    app = open_page("runs", runs=baked)
    assert "Clone" not in labels(app) and button(app, "Compare").disabled
    button(app, "Open").click().run()
    assert unharmed(app) and f"Bake-off {baked}" in said(app) and app.query_params["axis"] == "sparsity"


@pytest.mark.parametrize(
    ("query", "expected"),
    [({"status": "failed"}, [3]), ({"find": "SECOND"}, [2]), ({"find": "bob"}, [2]), ({"of_model": "other"}, []), ({}, [3, 2, 1])],
    ids=str,
)
def test_filters_stand_in_the_link(store, query, expected):
    synthetic.done(store, name="first")
    synthetic.done(store, name="second", owner="bob")
    store.fail(store.submit(synthetic.recipe()), "x")
    app = open_page("runs", **query)
    assert unharmed(app) and list(_table(app)["Run"]) == expected


def test_chosen_runs_go_to_compare_without_those_that_are_not_done(store):
    first, second = synthetic.done(store), synthetic.done(store, sparsity=0.5)
    store.submit(synthetic.recipe())
    app = open_page("runs", runs=f"{first},{second},3")
    assert "3 chosen" in said(app) and "Cancel" in labels(app) and "Open" not in labels(app)
    button(app, "Compare").click().run()
    assert unharmed(app) and sorted(app.multiselect[0].value) == [first, second]


def test_cancel_and_delete_do_what_they_say(store):
    kept, gone = synthetic.done(store), store.submit(synthetic.recipe())
    app = open_page("runs", runs=gone)
    button(app, "Cancel").click().run()
    assert store.run(gone).status == "cancelled"
    button(app, "Delete for good").click().run()
    assert unharmed(app) and list(store.runs()["id"]) == [kept] and list(_table(app)["Run"]) == [kept]


def test_a_running_run_cannot_be_deleted(store):
    run = synthetic.running(store)
    assert "Delete for good" not in labels(open_page("runs", runs=run))


def test_a_run_at_work_that_counts_no_steps_yet_stands_beside_one_that_does(store):
    """Whole numbers with gaps have a missing value of their own, which is neither true nor false."""
    synthetic.running(store)
    store.announce("worker-2", "cpu", "Test CPU")
    store.submit(synthetic.recipe(seed=1))
    run = store.claim("worker-2", "cpu")
    store.heartbeat("worker-2", run.id)
    store.set_progress(run.id, stage="load", step=None, steps=None, seconds_left=None)
    app = open_page("runs")
    assert unharmed(app) and list(_table(app)["Status"]) == ["running", "heal 30/200"]


def test_one_chosen_run_shows_its_family(store):
    parent = synthetic.done(store)
    child = synthetic.done(store, parent=parent, healed=0.98)
    alone = synthetic.done(store)
    (figure,) = charts(open_page("runs", runs=child)).values()
    assert figure["layout"]["title"]["text"] == f"Run {child} and its 1 relative"
    assert traces(figure)["healed"]["customdata"] == [[parent], [child]] and alone not in range(parent, child + 1)
    assert not charts(open_page("runs", runs=alone))


def test_open_and_clone_lead_to_the_run(store):
    run = synthetic.done(store, name="mine")
    app = open_page("runs", runs=run)
    button(app, "Open").click().run()
    assert unharmed(app) and f"Run {run}: mine" in said(app)
    app = open_page("runs", runs=run)
    button(app, "Clone").click().run()
    assert unharmed(app) and app.text_input(key="value.name").value == "mine"


def test_nonsense_in_the_link_leaves_the_page_standing(store):
    synthetic.done(store)
    app = open_page("runs", runs="7,x,1", status="asleep", find="%_'\"")
    first = said(app)
    app.run()
    assert unharmed(app) and "runs = '7,x,1'" in first + said(app)


def test_the_columns_that_tell_runs_apart_fit_a_page_of_1440_pixels(store):
    synthetic.done(store)
    table = open_page("runs").dataframe[0]
    names, widths = list(table.value.columns), json.loads(table.proto.columns)
    first = names[: names.index("Decision") + 1]
    assert {"Name", "Method", "Pattern", "Sparsity (%)", "Of all (%)", "Healed (%)"} <= set(first)
    assert sum(widths[name]["width"] for name in first) <= 1040  # pixels beside the sidebar and the boxes


def test_a_thousand_runs_take_no_more_than_300_ms(store):
    run = synthetic.done(store)
    with store.transaction() as connection:
        row = connection.execute(sa.select(RUNS).where(RUNS.c.id == run)).mappings().one()
        connection.execute(sa.insert(RUNS), [dict(row) | {"id": i, "name": f"run {i}"} for i in range(2, 1001)])
    app = open_page("runs")
    assert len(_table(app)) == 200 and "Newest 200 of" in said(app)
    seconds = synthetic.seconds_of_a_rerun(app)
    print(f"Runs with 1,000 runs: median {1000 * seconds:.0f} ms")
    assert seconds < 0.3

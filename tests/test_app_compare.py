"""Compare: accuracy against cost, drift of several runs on one scale, what differs, links, clones, and its bar for 50 runs."""

from __future__ import annotations

import pytest
import synthetic
from synthetic import button, charts, labels, open_page, said, traces, unharmed

from starfish_lab.store import Store


@pytest.fixture
def store(lab_home):
    return Store()


def _shown(app) -> tuple[dict, dict]:
    """The two figures that every comparison has: accuracy against cost, drift by run."""
    first, *_, last = charts(app).values()
    return first, last


def _bars(app) -> dict:
    """The figure between them."""
    _, bars, _ = charts(app).values()
    return bars


def test_without_finished_runs_the_page_leads_to_prune_and_heal(store):
    store.submit(synthetic.recipe())
    app = open_page("compare")
    assert unharmed(app) and "No finished runs yet" in said(app) and "Go to Prune & heal" in labels(app)


def test_without_a_choice_the_page_leads_to_runs(store):
    synthetic.done(store)
    app = open_page("compare")
    assert "Nothing chosen" in said(app)
    button(app, "Choose under Runs").click().run()
    assert unharmed(app) and app.dataframe[0].value["Run"].tolist() == [1]


def test_accuracy_stands_against_cost_with_intervals_and_a_front(store):
    ids = [synthetic.done(store, healed=top1, sparsity=sparsity) for top1, sparsity in ((0.97, 0.9), (0.9, 0.95))]
    app = open_page("compare", runs="1,2")
    assert unharmed(app)
    against, drift = _shown(app)
    found = traces(against)
    assert {"Pareto front", "dense", "pruned", "healed"} <= set(found)
    assert found["healed"]["text"] == [str(i) for i in ids] or found["healed"]["text"] == [str(i) for i in reversed(ids)]
    assert all(error > 0 for error in found["healed"]["error_y"]["array"])
    assert "MACs" in against["layout"]["xaxis"]["title"]["text"]
    assert {"pruned", "healed"} <= set(traces(drift)) and traces(drift)["healed"]["y"] == ["run 1", "run 2"]
    assert "Run 1 is the most accurate" in said(app) and "n = 540" in said(app)


@pytest.mark.parametrize(
    ("cost", "axis"), [("parameters_m", "Nonzero parameters"), ("latency_ms", "Latency at batch 1"), ("healing_s", "Healing time (s)")]
)
def test_the_cost_stands_in_the_link(store, cost, axis):
    synthetic.done(store)
    against, _ = _shown(open_page("compare", runs="1", cost=cost))
    assert against["layout"]["xaxis"]["title"]["text"].startswith(axis)


def test_overlapping_intervals_are_not_resolved_in_words(store):
    for top1 in (0.97, 0.965):
        synthetic.done(store, healed=top1)
    assert "not resolved (n = 540)" in said(open_page("compare", runs="1,2"))


def test_drift_changes_with_metric_and_tokens(store):
    synthetic.done(store)
    _, drift = _shown(open_page("compare", runs="1", drift_as="relative_l2", tokens="class"))
    assert traces(drift)["pruned"]["z"][0][-1] == pytest.approx(0.8)
    assert drift["layout"]["coloraxis"]["cmin"] == 0 and drift["layout"]["coloraxis"]["cmax"] == pytest.approx(0.8)


def test_only_what_differs_is_listed_beside_what_each_run_reached(store):
    synthetic.done(store, sparsity=0.9, name="a")
    synthetic.done(store, sparsity=0.5, name="b", method="none")
    app = open_page("compare", runs="1,2")
    table = app.dataframe[0].value.set_index("Run")
    assert list(table.columns) == ["Name", "pruning.sparsity", "healing.method", "Top-1", "MACs (G)"]
    assert table["pruning.sparsity"].tolist() == ["0.9", "0.5"] and table["Top-1"].tolist() == pytest.approx([524 / 540, 524 / 540])
    app = open_page("compare", runs="1,2", all_fields=1)
    table = app.dataframe[0].value.set_index("field")
    assert table.loc["pruning.sparsity"].tolist() == ["0.9", "0.5"] and table.loc["healing.batch_size"].tolist() == ["32", "32"]
    assert "name" not in table.index


def test_bars_stand_by_what_alone_differs_and_only_then(store):
    for sparsity, healed in ((0.9, 0.9), (0.5, 0.99), (0.75, 0.95)):
        synthetic.done(store, sparsity=sparsity, healed=healed)
    bars = _bars(open_page("compare", runs="1,2,3"))
    found = traces(bars)
    assert bars["layout"]["xaxis"]["title"]["text"] == "pruning.sparsity" and set(found) == {"dense", "pruned", "healed"}
    assert found["healed"]["x"] == ["0.5", "0.75", "0.9"]  # numbers rise, whatever the order chosen
    assert found["healed"]["y"] == pytest.approx([100 * round(540 * top1) / 540 for top1 in (0.99, 0.95, 0.9)])
    assert bars["layout"]["title"]["text"] == "Sparsity 0.5 keeps most: 99.1 %"
    macs = traces(_bars(open_page("compare", runs="1,2,3", bars="macs_g")))
    assert macs["healed"]["y"] == [0.006] * 3
    synthetic.done(store, sparsity=0.5, method="none")
    assert len(charts(open_page("compare", runs="1,4"))) == 2  # two things differ


def test_published_figures_appear_only_when_asked_for_and_only_of_the_same_network(store):
    from dataclasses import replace

    from starfish_lab.recipe import ModelChoice

    recipe = replace(synthetic.recipe(), model=ModelChoice(name="deit_base_patch16_224.fb_in1k", weights="random"))
    store.finish(store.submit(recipe), synthetic.report())
    synthetic.done(store)
    assert "literature" not in traces(_shown(open_page("compare", runs="1", cost="parameters_m"))[0])
    found = traces(_shown(open_page("compare", runs="1", cost="parameters_m", published=1))[0])["literature"]
    assert found["marker"]["symbol"] == "square-open" and {row[0] for row in found["customdata"]} == {"DeiT-B"}
    app = open_page("compare", runs="2", cost="parameters_m", published=1)
    assert "literature" not in traces(_shown(app)[0]) and "No published figure of starter" in said(app)


def test_nonsense_in_the_link_is_told_and_left_out(store):
    synthetic.done(store)
    app = open_page("compare", runs="1,77,x", cost="gold", drift_as="?", tokens="none", show="all", bars="-1", all_fields="y", clone="9", field="x")
    assert unharmed(app) and "no finished run of that number: 77" in said(app) and len(charts(app)) == 2


def test_runs_of_a_link_that_cannot_be_compared_are_answered_in_a_sentence(store):
    kept, gone, waiting = synthetic.done(store), synthetic.done(store), store.submit(synthetic.recipe(sparsity=0.6))
    store.delete(gone)
    app = open_page("compare", runs=f"{gone},{kept},{waiting}")
    assert unharmed(app) and f"run {waiting} is queued; run {gone} was deleted since." in said(app)
    assert app.multiselect[0].value == [kept] and app.query_params["runs"] in (str(kept), [str(kept)])


def test_the_link_to_copy_reopens_the_very_comparison(store):
    from urllib.parse import parse_qsl

    for sparsity in (0.9, 0.5):
        synthetic.done(store, sparsity=sparsity)
    asked = {"runs": "2,1", "cost": "parameters_m", "drift_as": "cka", "show": "differs", "bars": "macs_g", "all_fields": "1"}
    app = open_page("compare", **asked)
    app.session_state["copy_link"] = True
    app.run()
    assert unharmed(app)
    (link,) = [block.value for block in app.code]
    reopened = open_page("compare", **dict(parse_qsl(link.partition("?")[2])))
    assert charts(reopened) == charts(app) and reopened.dataframe[0].value.equals(app.dataframe[0].value)


def test_the_markdown_for_a_pull_request_has_a_row_a_run(store):
    synthetic.done(store, name="a|b")
    app = open_page("compare", runs="1")
    app.session_state["copy_markdown"] = True
    app.run()
    (text,) = [block.value for block in app.code]
    row = r"| 1 a\|b | 97.0 ± 1.8 % (n = 540) | 90.0 %, 85.0 % | 6 M | 3.92 ms (Test CPU) | not resolved with n = 540 | – |"
    assert row in text.splitlines()


def test_a_clone_with_one_change_is_queued_with_that_change_alone(store):
    run = synthetic.done(store, name="mine")
    app = open_page("compare", runs=run, show="clone", field="healing.batch_size")
    assert unharmed(app) and "healing.batch_size is 32 already" in said(app)
    app.number_input(key=f"clone_value.{run}.healing.batch_size").set_value(64).run()
    button(app, "Queue the clone").click().run()
    assert unharmed(app)
    child = store.run(run + 1)
    before, after = store.run(run).recipe.to_dict(), child.recipe.to_dict()
    before["healing"]["batch_size"] = 64
    assert (child.parent, child.status) == (run, "queued") and after == before
    app = open_page("compare", runs=run, show="clone", field="healing.batch_size")
    app.number_input(key=f"clone_value.{run}.healing.batch_size").set_value(64).run()
    assert f"Run {child.id} waits in the queue with this very recipe." in said(app)


def test_a_clone_that_no_recipe_allows_is_refused_in_a_sentence(store):
    run = synthetic.done(store)
    app = open_page("compare", runs=run, show="clone", field="pruning.budget")
    app.selectbox(key=f"clone_value.{run}.pruning.budget").set_value("mp_edge").run()
    assert "Queue the clone" in labels(app)
    app = open_page("compare", runs=run, show="clone", field="pruning.sparsity")
    app.number_input(key=f"clone_value.{run}.pruning.sparsity").set_value(1.5).run()
    assert unharmed(app) and "pruning.sparsity is 1.5" in said(app) and "Queue the clone" not in labels(app)
    app = open_page("compare", runs=run, show="clone", field="healing.options")
    app.text_input(key=f"clone_value.{run}.healing.options").set_value("{no json").run()
    assert unharmed(app) and "takes options as a JSON object" in said(app)


def test_fifty_runs_are_drawn_within_two_seconds(store):
    ids = [synthetic.done(store, sparsity=0.3 + i / 100, healed=0.9 + i / 600) for i in range(50)]
    app = open_page("compare", runs=",".join(map(str, [*ids, 51])))
    assert unharmed(app) and len(traces(_shown(app)[0])["healed"]["x"]) == 50
    seconds = synthetic.seconds_of_a_rerun(app)
    print(f"Compare with 50 runs: median {1000 * seconds:.0f} ms")
    assert seconds < 2

"""Compare: accuracy against cost, drift of several runs on one scale, what differs, and its bar for 20 runs."""

from __future__ import annotations

import pytest
import synthetic
from synthetic import button, charts, labels, open_page, said, traces, unharmed

from starfish_lab.store import Store


@pytest.fixture
def store(lab_home):
    return Store()


def _shown(app) -> tuple[dict, dict]:
    """The two figures: accuracy against cost, drift by run."""
    return tuple(charts(app).values())


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
    assert set(traces(drift)) == {"pruned", "healed"} and traces(drift)["healed"]["y"] == ["run 1", "run 2"]
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


def test_only_what_differs_is_listed(store):
    synthetic.done(store, sparsity=0.9, name="a")
    synthetic.done(store, sparsity=0.5, name="b", method="none")
    app = open_page("compare", runs="1,2")
    table = app.dataframe[0].value.set_index("field")
    assert table.loc["pruning.sparsity"].tolist() == ["0.9", "0.5"] and set(table.index) == {"pruning.sparsity", "healing.method"}


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
    app = open_page("compare", runs="1,77,x", cost="gold", drift_as="?", tokens="none")
    assert unharmed(app) and "no finished run of that number: 77" in said(app) and len(charts(app)) == 2


def test_twenty_runs_take_no_more_than_a_second(store):
    ids = [synthetic.done(store, sparsity=0.5 + i / 50, healed=0.9 + i / 250) for i in range(20)]
    app = open_page("compare", runs=",".join(map(str, ids)))
    assert unharmed(app) and len(traces(_shown(app)[0])["healed"]["text"]) == 20
    seconds = synthetic.seconds_of_a_rerun(app)
    print(f"Compare with 20 runs: median {1000 * seconds:.0f} ms")
    assert seconds < 1

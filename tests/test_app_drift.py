"""Drift explained on the pages: which blocks healed, at any step; and whether least drift picks the best run."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
import synthetic
from synthetic import DEPTH, charts, open_page, said, traces, unharmed

from app import agreement_view, drift_view, run_files
from app.charts import agreement as agreement_charts
from app.charts.healing_drift import at_step, finding, over_steps
from starfish_lab.measure.accuracy import wilson
from starfish_lab.store import Store

LOOKS = {0: 0.4, 3: 0.2, 12: 0.05, 200: 0.02}  # step: drift of the last block
TITLE = "Every block loses at least 95 % of its drift"  # from 0.4 to 0.02 times its depth


@pytest.fixture
def store(lab_home):
    return Store()


def looked_at(*, labels: bool = True):
    """A report whose healing was looked at four times."""
    found = synthetic.report()
    for step, scale in LOOKS.items():
        when = {"step": step, "seconds": step / 10}
        for depth in range(DEPTH):
            d = scale * (depth + 1) / DEPTH
            found.add("healing_drift", [when | dict(block=f"blocks.{depth}", depth=depth, cosine_distance=d, relative_l2=2 * d, cka=1 - d)])
        if labels:
            top1 = 0.9 - 2 * scale
            low, high = wilson(round(256 * top1), 256)
            found.add("healing_accuracy", [when | dict(top1=top1, low=low, high=high, images=256, images_seen=32 * step)])
    return found


def finished(store, **options) -> int:
    run = store.submit(synthetic.recipe())
    store.finish(run, looked_at(**options))
    return run


def test_the_run_shows_its_last_step_first_and_the_finding_as_title(store):
    app = open_page("prune_and_heal", run=finished(store))
    assert unharmed(app) and list(charts(app))[1] == TITLE
    found = traces(charts(app)[TITLE])
    assert set(found) == {"after step 200", "pruned", "healed"}
    assert found["after step 200"]["y"] == pytest.approx(found["healed"]["y"])
    assert "Step 200, after 20 s of healing: 86.0 % of 256 images right" in said(app)


def test_the_scrubber_moves_the_bars_and_nothing_else(store):
    app = open_page("prune_and_heal", run=finished(store))
    before = charts(app)[TITLE]
    slider = app.select_slider(key="value.at_step")
    assert slider.options == ["0", "3", "12", "200"]
    slider.set_value(3).run()
    after = charts(app)[TITLE]
    assert unharmed(app) and app.query_params["at_step"] in ("3", ["3"])
    assert traces(after)["after step 3"]["y"] == pytest.approx([0.2 * (d + 1) / DEPTH for d in range(DEPTH)])
    assert after["layout"]["yaxis"]["range"] == before["layout"]["yaxis"]["range"]
    assert traces(after)["pruned"]["y"] == traces(before)["pruned"]["y"]
    assert "Step 3, after under 1 s" in said(app) and "50.0 % of 256" in said(app)


def test_a_step_of_another_run_becomes_the_nearest(store):
    app = open_page("prune_and_heal", run=finished(store), at_step=5)
    assert unharmed(app) and "after step 3" in traces(charts(app)[TITLE]) and "link" not in said(app)


def test_all_steps_are_drawn_only_when_asked_for(store):
    run = finished(store)
    app = open_page("prune_and_heal", run=run)
    assert len(charts(app)) == 2 and any("step by step" in element.label for element in app.expander)
    app.session_state["healing_steps"] = True
    app.run()
    shown = charts(app)
    assert unharmed(app) and {"At step 3 half of the drift is gone", "From 10.0 % to 86.0 % in 200 steps"} <= set(shown)
    grid = traces(shown["At step 3 half of the drift is gone"])["blocks"]
    assert grid["y"] == ["pruned", "step 0", "step 3", "step 12", "step 200"] and grid["zmin"] == 0 and grid["zmax"] == pytest.approx(0.4)
    assert traces(shown["From 10.0 % to 86.0 % in 200 steps"])["dense"]["y"][0] == pytest.approx(100 * 535 / 540)
    assert "At step 3 half of the drift is gone" in run_files.charts(store.run(run), store.report(run))


def test_without_labels_there_is_drift_alone(store):
    app = open_page("prune_and_heal", run=finished(store, labels=False))
    app.session_state["healing_steps"] = True
    app.run()
    assert unharmed(app) and len(charts(app)) == 3 and "Step 200, after 20 s of healing." in said(app)


def test_a_run_that_nobody_looked_at_shows_drift_as_ever(store):
    app = open_page("prune_and_heal", run=synthetic.done(store))
    assert unharmed(app) and len(charts(app)) == 2 and not app.select_slider and drift_view.figures(store.report(1)) == []


def test_the_last_look_is_told_while_a_run_heals(store):
    run = synthetic.running(store)
    figures = [(0.0, f"drift.{d}", step, 0.1 * (d + 1) / (step + 1)) for step in (0, 3) for d in range(DEPTH)]
    store.add_events(run, [*figures, (0.0, "top1", 3, 0.625)])
    app = open_page("prune_and_heal", run=run)
    assert unharmed(app) and "After step 3 block 5 drifts most, by 0.15" in said(app) and "62.5 % of the first evaluation images" in said(app)


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ([1, 1, 1, 1], [0.1, 0.1, 0.5, 0.7], "Blocks 2 and 3 keep 60 % of their drift, the others 10 %"),
        ([1, 1, 1, 1], [0.1, 0.5, 0.5, 0.5], "Blocks 1 to 3 keep 50 % of their drift, the other 10 %"),
        ([1, 1, 1, 1], [0.9, 0.1, 0.1, 0.1], "Block 0 keeps 90 % of its drift, the others 10 %"),
        ([1] * 6, [0.5, 0.1, 0.5, 0.1, 0.5, 0.1], "3 of 6 blocks keep 50 % of their drift, the others 10 %"),
        ([1, 1], [1.5, 0.6], "No block loses half of its drift"),
        ([0, 0], [0, 0], "No block drifted"),
        ([0, 1], [0, 0.123], "Every block loses at least 87 % of its drift"),
    ],
)
def test_the_finding_in_words(before, after, words):
    assert finding(pd.Series(before, dtype=float), pd.Series(after, dtype=float)) == words


def test_every_metric_grows_with_distance_and_starts_at_zero():
    report = looked_at()
    for metric in ("cosine_distance", "relative_l2", "cka"):
        fig = at_step(report.frame("drift"), report.frame("healing_drift"), step=0, metric=metric)
        assert fig.layout.yaxis.range[0] == 0 and fig.data[0].marker.cmin == 0 and fig.data[0].marker.colorscale[0][1] == "#ffffff"
        assert list(fig.data[0].y) == sorted(fig.data[0].y)
        assert over_steps(report.frame("drift"), report.frame("healing_drift"), metric=metric).data[0].zmin == 0


def competing(store, *, scores: tuple[tuple[float, float], ...], sparsity: float = 0.9, **changes) -> None:
    """A finished run for each (scale of drift, accuracy), with equal terms."""
    for seed, (scale, top1) in enumerate(scores):
        report = synthetic.report(healed=top1)
        for row in report.tables["drift"]:
            if row["stage"] == "healed":
                row["cosine_distance"] *= scale
        recipe = synthetic.recipe(sparsity=sparsity, seed=seed)
        store.finish(store.submit(replace(recipe, **changes)), report)


def opened(**query):
    app = open_page("compare", **query)
    app.session_state["agreement"] = True
    return app.run()


def test_least_drift_is_judged_among_equals(store):
    competing(store, scores=((1, 0.9), (2, 0.8), (3, 0.7)))
    competing(store, scores=((4, 0.6), (5, 0.65)), sparsity=0.95)
    closed = open_page("compare")
    assert unharmed(closed) and not charts(closed)
    app = opened()
    words = said(app)
    assert unharmed(app) and "in 1 of 2 groups (5 networks; blindly in 0.8)" in words
    assert "2.5 pp to the best on average and 5.0 pp at worst" in words
    assert "Spearman's rank correlation is −0.90, 95 %" in words  # ranks 1 2 3 4 5 and 5 4 3 1 2: 1 − 6 · 38 / 120
    (figure,) = charts(app).values()
    assert traces(figure)["healed"]["text"] == ["5", "4", "3", "2", "1"]
    assert sorted(traces(figure)["least drift of its group"]["y"]) == pytest.approx([100 * 324 / 540, 100 * 486 / 540])
    table = app.dataframe[0].value
    assert set(table["group"]) == {f"{s} % unstructured, uniform budget, 64 images of seed 0" for s in (90, 95)}


def test_runs_of_other_images_are_another_question(store):
    from starfish_lab.recipe import ImagesChoice

    competing(store, scores=((1, 0.9), (2, 0.8)))
    competing(store, scores=((1, 0.5), (2, 0.4), (3, 0.3)), images=ImagesChoice(calibration=32))
    app = opened()
    assert unharmed(app) and "in the one group there is (3 networks" in said(app) and "n = 3, and 5 are needed" in said(app)
    choice = next(box for box in app.selectbox if box.label == "Network and images")
    assert [option.rpartition(" · ")[2] for option in choice.options] == ["3 runs", "2 runs"]


def test_the_same_recipe_twice_counts_once(store):
    for _ in range(3):
        competing(store, scores=((1, 0.9),))
    app = opened()
    assert unharmed(app) and "Not enough runs: nowhere do two networks compete" in said(app) and len(charts(app)) == 1


def test_only_the_chosen_runs_where_asked_for(store):
    competing(store, scores=((1, 0.9), (2, 0.8), (3, 0.95)))
    assert "in the one group there is (2 networks" in said(opened(runs="1,2", drift_of="chosen"))
    assert "in 0 of 1 group (3 networks" in said(opened(runs="1,2"))


@pytest.mark.parametrize("query", [{"drift_of": "x"}, {"agreement_drift": "?"}, {"drift_depth": "7"}, {"drift_of": "chosen"}])
def test_nonsense_and_nothing_chosen_harm_nothing(store, query):
    competing(store, scores=((1, 0.9), (2, 0.8)))
    assert unharmed(opened(**query))


def test_runs_that_calibrate_apart_share_their_evaluation_images():
    from starfish_lab.recipe import ImagesChoice, Recipe

    def terms(**images):
        return agreement_view._terms(Recipe(images=ImagesChoice(source="csv", path="/a/b.zip", csv="/a/b.csv", **images)).to_dict())

    one, more = (terms(calibration_path="/c.zip", calibration=count) for count in (64, 400))
    assert one["same"] == more["same"] and one["group"] != more["group"] and one["network"].endswith("b.csv")
    one, more = (terms(calibration=count) for count in (64, 400))
    assert one["same"] != more["same"]


def test_titles_say_what_is_known():
    rows = pd.DataFrame(columns=["run", "label", "stage", "drift", "top1", "low", "high", "images"])

    def title(**found):
        return agreement_charts.drift_against_accuracy(rows, {"n": 9, **found}, set(), x="").layout.title.text

    assert title(rho=None, low=None, high=None) == "Not enough different runs to tell (n = 9)"
    assert "not resolved (n = 9)" in title(rho=-0.3, low=-0.8, high=0.2)
    assert title(rho=-0.9, low=-1.0, high=-0.6) == "Less drift means more accuracy: rank correlation −0.90 (n = 9)"

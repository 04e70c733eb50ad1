"""Prune & heal: launching, watching, what came of it, and everything that may be wrong with a link."""

from __future__ import annotations

import io
import zipfile

import pytest
import synthetic
from synthetic import button, charts, labels, open_page, said, traces, unharmed

from starfish_lab.recipe import Recipe
from starfish_lab.store import Store


@pytest.fixture
def store(lab_home):
    return Store()


def test_with_nothing_run_yet_the_form_offers_the_choice_in_the_link(store):
    app = open_page("prune_and_heal", sparsity=0.75, heal="cross_entropy")
    assert unharmed(app)
    assert "75 % unstructured" in said(app) and app.selectbox(key="choice.healing").value == "cross_entropy"
    assert "Prune & heal" in labels(app)


def test_the_button_queues_the_run_and_shows_it(store):
    app = open_page("prune_and_heal", sparsity=0.8, steps=50, name="mine", batch=16, lr=0.001)
    button(app, "Prune & heal").click().run()
    (row,) = store.runs().to_dict("records")
    recipe = store.run(row["id"]).recipe
    assert (row["status"], row["name"]) == ("queued", "mine")
    assert (recipe.pruning.sparsity, recipe.healing.steps, recipe.healing.batch_size, recipe.healing.learning_rate) == (0.8, 50, 16, 0.001)
    assert unharmed(app) and "No worker is running" in said(app) and "python -m starfish_lab worker" in said(app)
    assert "Cancel" in labels(app) and "Prune & heal" not in labels(app)


def test_one_browser_cannot_launch_the_same_twice_but_two_can(store):
    app = open_page("prune_and_heal")
    button(app, "Prune & heal").click().run()
    button(app, "New run").click().run()
    assert "Run 1 waits in the queue with this very recipe" in said(app)
    button(app, "Prune & heal").click().run()
    assert len(store.runs()) == 1 and "not started a second time" in said(app)
    other = open_page("prune_and_heal", new=1)
    button(other, "Prune & heal").click().run()
    assert len(store.runs()) == 2


def test_a_run_at_work_is_shown_live(store):
    run = synthetic.running(store, step=30)
    app = open_page("prune_and_heal")  # no run in the link: the newest active one
    assert unharmed(app) and f"Run {run}" in said(app)
    shown = charts(app)
    assert len(shown) == 2
    loss, blocks = shown.values()
    assert traces(loss)["loss"]["x"] == [0, 10, 20, 30] and loss["layout"]["yaxis"]["type"] == "log"
    assert len(traces(blocks)["blocks"]["z"]) == 4 and len(traces(blocks)["blocks"]["z"][0]) == synthetic.DEPTH
    (bar,) = app.get("progress")
    assert bar.proto.value == 15 and "Healing" in bar.proto.text and "30 of 200" in bar.proto.text and "12 s left" in bar.proto.text


def test_cancel_asks_the_run_to_stop(store):
    run = synthetic.running(store)
    app = open_page("prune_and_heal", run=run)
    button(app, "Cancel").click().run()
    assert store.cancel_requested(run) and "Stopping" in labels(app)


def test_a_run_that_ends_while_watched_shows_its_result(store):
    run = synthetic.running(store)
    app = open_page("prune_and_heal")
    store.finish(run, synthetic.report())
    app.run()
    assert unharmed(app) and any(title.startswith("Healed has") for title in charts(app))


def test_a_finished_run_shows_dense_pruned_and_healed_side_by_side(store):
    run = synthetic.done(store, name="first")
    app = open_page("prune_and_heal", run=run)
    assert unharmed(app)
    accuracy, drift = charts(app).values()
    assert list(traces(accuracy)) == ["dense", "pruned", "healed"] and traces(accuracy)["healed"]["x"][0] == pytest.approx(97.037, abs=1e-3)
    assert accuracy["layout"]["title"]["text"] == "Healed has 97.9 % of the dense accuracy"
    assert list(traces(drift)) == ["pruned", "healed"] and len(traces(drift)["pruned"]["x"]) == synthetic.DEPTH
    assert "Healed against dense: not resolved with n = 540" in said(app)
    assert {"Compare", "Clone", "New run"} <= set(labels(app))


@pytest.mark.parametrize("wanted", ["Healing", "Layers", "Latency", "Time spent", "Notes", "Origin", "Recipe"])
def test_details_open_when_asked_for(store, wanted):
    app = open_page("prune_and_heal", run=synthetic.done(store))
    assert len(charts(app)) == 2 and not app.dataframe and not app.code
    app.segmented_control(key="details").set_value(wanted).run()
    assert unharmed(app) and len(charts(app)) + len(app.dataframe) + len(app.code) == (4 if wanted == "Healing" else 3)


def test_downloads_hold_the_report_the_charts_and_the_recipe(store):
    from app import run_view

    run = store.run(synthetic.done(store))
    report = store.report(run.id)
    tables = zipfile.ZipFile(io.BytesIO(run_view._tables(report)))
    assert set(tables.namelist()) == {f"{name}.csv" for name in report.tables}
    assert tables.read("accuracy.csv").decode().splitlines()[0] == "stage,top1,top5,low,high,correct,images"
    page = run_view._charts(run, report)
    assert page.count("Plotly.newPlot(") >= 4 and "cdn.plot.ly" not in page.partition("<body>")[0]


def test_compare_takes_the_run_along(store):
    first, second = synthetic.done(store), synthetic.done(store, sparsity=0.5)
    app = open_page("prune_and_heal", run=second, runs=first)
    button(app, "Compare").click().run()
    assert unharmed(app) and app.multiselect[0].value == [first, second]


def test_failed_and_cancelled_runs_say_what_happened_and_run_again(store):
    run = store.submit(synthetic.recipe(name="lost"))
    store.fail(run, "The folder /data holds no image. Give another one under Images.")
    app = open_page("prune_and_heal", run=run)
    assert "The folder /data holds no image" in said(app)
    button(app, "Run again").click().run()
    again = store.run(2)
    assert again.recipe == store.run(run).recipe and again.parent == run and again.status == "queued"
    store.request_cancel(2)
    app.run()
    assert "Run 2 was cancelled before it began" in said(app) and "Run again" in labels(app)


def test_clone_starts_from_all_of_a_runs_recipe(store):
    recipe = Recipe.from_dict(synthetic.recipe(name="old", seed=7).to_dict() | {"measure": {"batch_sizes": [4], "seconds": 1.0}})
    run = store.submit(recipe)
    store.finish(run, synthetic.report())
    app = open_page("prune_and_heal", run=run)
    button(app, "Clone").click().run()
    assert app.text_input(key="value.name").value == "old"
    app.number_input(key="choice.steps").set_value(60).run()
    button(app, "Prune & heal").click().run()
    child = store.run(2)
    assert child.parent == run and child.recipe.healing.steps == 60
    assert child.recipe.healing.seed == 7 and child.recipe.measure.batch_sizes == (4,)  # what no page shows is kept


def test_an_opened_recipe_file_becomes_the_choice_and_a_bad_one_changes_nothing(store):
    app = open_page("prune_and_heal", sparsity=0.6)
    for content, reason in (
        (b"{not json", "not valid JSON"),
        (b'{"starfish_lab_recipe": 1, "prunning": {}}', "prunning"),
        (b"\xff\xfe\x00", "no text"),
    ):
        app.file_uploader[0].set_value(("recipe.json", content, "application/json")).run()
        assert unharmed(app) and reason in said(app) and "60 % unstructured" in said(app)
    recipe = synthetic.recipe(sparsity=0.85, name="from a file", seed=3)
    app.file_uploader[0].set_value(("recipe.json", recipe.to_json().encode(), "application/json")).run()
    assert "85 % unstructured" in said(app)
    button(app, "Prune & heal").click().run()
    assert store.run(1).recipe == recipe and store.run(1).name == "from a file"


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ({"run": 99}, "no such run"),
        ({"run": "9" * 30}, "no such run"),
        ({"run": "x"}, "run = 'x'"),
        ({"new": 1, "batch": -4}, "batch = -4"),
        ({"parent": 5}, ""),
    ],
    ids=str,
)
def test_nonsense_in_the_link_is_told_and_the_page_stands(store, query, words):
    app = open_page("prune_and_heal", **query)
    app.run()
    assert unharmed(app) and "Prune & heal" in labels(app)
    assert words in said(open_page("prune_and_heal", **query)) or words in said(app)


def test_a_run_without_labels_shows_drift_alone(store):
    report = synthetic.report()
    del report.tables["accuracy"], report.tables["comparisons"]
    run = store.submit(synthetic.recipe())
    store.finish(run, report)
    app = open_page("prune_and_heal", run=run)
    assert unharmed(app) and "no labels" in said(app) and len(charts(app)) == 1

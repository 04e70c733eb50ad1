"""Prune & heal: launching, watching, what came of it, and everything that may be wrong with a link."""

from __future__ import annotations

import io
import zipfile
from dataclasses import replace

import pandas as pd
import pytest
import synthetic
from synthetic import button, charts, labels, open_page, said, traces, unharmed

from app import choice, merging, results
from starfish_lab import presets
from starfish_lab.latency.plan import LatencyPlan
from starfish_lab.recipe import HealingChoice, ImagesChoice, PruningChoice, Recipe, StartChoice, TokensChoice
from starfish_lab.report import Report
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
    from app import run_files

    run = store.run(synthetic.done(store))
    report = store.report(run.id)
    tables = zipfile.ZipFile(io.BytesIO(run_files.tables(report)))
    assert set(tables.namelist()) == {f"{name}.csv" for name in report.tables}
    assert tables.read("accuracy.csv").decode().splitlines()[0] == "stage,top1,top5,low,high,correct,images"
    page = run_files.charts(run, report)
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
        ({"new": 1, "batch": -4}, "batch = '-4'"),
        ({"new": 1, "optimiser": "adagrad"}, "one of adam, adamw, sgd"),
        ({"new": 1, "score": "variance", "pattern": "n_m"}, "variance"),
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


# -- recipes with everything in them --------------------------------------------------------------------------------------------


FULL = Recipe(
    name="everything",
    images=ImagesChoice(training=None, calibration=32),
    start=StartChoice(method="ser", sparsity=0.35, step=0.07, steps=50, options={"alpha": 1.0}, seed=4),
    tokens=TokensChoice(r=(2, 1, 1, 0, 0, 0), proportional=False),
    pruning=PruningChoice(
        score="cast", pattern="n_m", keep=2, group=4, permutation="search", include=("head",), score_options={"alpha": 0.5}, permutation_options={},
    ),
    healing=HealingChoice(
        method="distillation", epochs=3, batch_size=16, learning_rate=1.23456789e-5, final_learning_rate=0.0, warmup=1000, optimiser="adamw",
        weight_decay=0.01, trains="all", images="training", augmentation="timm", precision="bf16", gradient_clip=1.0, seed=9,
    ),
)  # fmt: skip


def open_file(app, recipe: Recipe):
    app.file_uploader[0].set_value(("recipe.json", recipe.to_json().encode(), "application/json")).run()
    assert unharmed(app)
    return app


def test_every_field_of_an_opened_recipe_survives_the_form(store):
    app = open_file(open_page("prune_and_heal"), FULL)
    told = said(app)
    assert "SER cycles prune to 35 % in steps of 7 %, 50 steps a phase, on all remaining images" in told
    assert "every block merges up to 2 tokens, and inputs are reordered (search)" in told and "CAST solver" in told
    assert "Healed by distillation: 3 epochs of 16 on all remaining images, AdamW, learning rate 1.23457e-05 → 0 after 1,000 rising steps" in told
    assert "every parameter trains, zeros stay" in told and "augmentation timm" in told and "bfloat16" in told
    button(app, "Prune & heal").click().run()
    assert store.run(1).recipe == FULL


def test_what_is_changed_in_the_form_changes_and_nothing_else_does(store):
    app = open_file(open_page("prune_and_heal"), FULL)
    app.number_input(key="value.epochs").set_value(5).run()
    app.selectbox(key="value.optimiser").set_value("sgd").run()
    button(app, "Prune & heal").click().run()
    assert store.run(1).recipe == replace(FULL, healing=replace(FULL.healing, epochs=5, optimiser="sgd"))


def test_options_go_with_the_method_they_were_for(store):
    app = open_file(open_page("prune_and_heal"), FULL)
    app.switch_page("views/explore.py").run()
    assert unharmed(app)
    app.selectbox(key="choice.permutation").set_value("deal").run()
    app.selectbox(key="choice.start").set_value("magnitude").run()
    app.number_input(key="choice.merge").set_value(3).run()
    assert "On the recipe 'everything'" in labels(app)
    button(app, "Prune & heal").click().run()
    made = store.run(1).recipe
    assert made.start == replace(FULL.start, method="magnitude", options={}) and made.tokens == replace(FULL.tokens, r=(3,))
    assert made.pruning == replace(FULL.pruning, permutation="deal") and made.healing == FULL.healing


def test_letting_go_of_a_recipe_keeps_the_choice_and_forgets_the_rest(store):
    app = open_file(open_page("prune_and_heal"), FULL)
    button(app, "From the recipe 'everything'").click().run()
    button(app, "Prune & heal").click().run()
    made = store.run(1).recipe
    assert made.healing.epochs == 3 and made.healing.warmup == 1000 and made.pruning.score == "cast"
    assert made.pruning.score_options == {"alpha": 0.5} and made.pruning.include == () and made.start.options == {} and made.healing.seed == 0


def test_a_link_alone_says_how_healing_trains(store):
    app = open_page("prune_and_heal", new=1, heal="cross_entropy", steps=0, epochs=2, optimiser="adamw", lr=0.0001, decay=0.05, trains="all")
    assert "2 epochs of 32 on 64 calibration images, AdamW" in said(app) and not app.number_input(key="value.epochs").disabled
    button(app, "Prune & heal").click().run()
    healing = store.run(1).recipe.healing
    assert (healing.steps, healing.epochs, healing.optimiser, healing.weight_decay, healing.trains) == (None, 2, "adamw", 0.05, "all")


def test_every_preset_survives_the_pages():
    """Through the choice and back; healing's own fields go through the address bar, as the tests above show."""
    keys = presets.presets()["key"]
    assert len(keys) > 100
    for key in keys:
        recipe = presets.recipe_of(key)
        chosen = choice.recipe(choice.consistent(choice.Choice(**choice.values(recipe))))
        assert merging.merged(recipe, replace(chosen, name=recipe.name, healing=recipe.healing)) == recipe, key


def test_a_published_row_opens_in_the_form_and_its_link_survives_a_reload(store):
    """Through the button of the page Paper; the second browser has nothing but the address."""
    key = "vit-b-16.hybrid.0.35"
    app = open_page("paper", row=key)
    button(app, "Open this row").click().run()
    assert unharmed(app) and "hybrid cycles prune to 35 %" in said(app)
    wanted = presets.recipe_of(key, ImagesChoice())
    other = open_page("prune_and_heal", **{name: found[0] if isinstance(found, list) else found for name, found in app.query_params.items()})
    button(other, "Prune & heal").click().run()
    assert store.run(1).recipe == wanted


# -- what a run did before and while it pruned ------------------------------------------------------------------------------------


def report_with_a_past() -> Report:
    found = synthetic.report()
    for cycle, sparsity in ((1, 0.05), (2, 0.10)):
        base = dict(cycle=cycle, method="ser", weights_removed=0, restored=0, steps=0, seconds=1.0) | dict.fromkeys(("loss_first", "loss_last"))
        found.add("cycles", [
            base | dict(phase="prune", sparsity=sparsity + 0.03, weights_removed=480),
            base | dict(phase="select", sparsity=sparsity + 0.03, steps=20, loss_first=2.0, loss_last=1.5),
            base | dict(phase="restore", sparsity=sparsity, restored=180),
            base | dict(phase="tune", sparsity=sparsity, steps=20, loss_first=1.4, loss_last=1.0 / cycle),
        ])  # fmt: skip
    found.add("permutation", [
        dict(layer=f"blocks.{d}.mlp.fc1", method="deal", importance="energy", place="gather" if d else "hidden units", kept_before=0.8,
             kept_after=0.85, values_moved=1000 if d else 0, elements=1000) for d in range(synthetic.DEPTH)
    ])  # fmt: skip
    found.add("solver", [dict(layer=f"blocks.{d}.mlp.fc1", cost=0.75, cost_magnitude=1.0, saved=0.25) for d in range(synthetic.DEPTH)])
    return found


def test_how_it_was_pruned_is_shown_when_asked_for(store):
    run = store.submit(replace(synthetic.recipe(), pruning=PruningChoice(score="cast", pattern="n_m")))
    store.finish(run, report_with_a_past())
    app = open_page("prune_and_heal", run=run)
    assert unharmed(app) and len(charts(app)) == 2
    app.session_state[f"before.{run}"] = True
    app.run()
    assert unharmed(app)
    shown = charts(app)
    reached = shown["2 cycles reach 10.0 %; the loss goes from 1 to 0.500"]
    assert traces(reached)["training ends"]["x"] == pytest.approx([5.0, 10.0]) and traces(reached)["training ends"]["y"] == [1.0, 0.5]
    assert traces(reached)["selection begins"]["y"] == [2.0, 2.0]
    order = shown["Reordering keeps 85.0 % of the importance, before it 80.0 %"]
    assert traces(order)["reordered"]["y"] == pytest.approx([85.0] * synthetic.DEPTH)
    assert "5 layers gather their inputs when they run: 5,000 values an image. In 1 layer an" in said(app)
    saved = shown["CAST changes the outputs less than magnitude: 25 % in the middle layer"]
    assert traces(saved)["saved"]["y"] == pytest.approx([25.0] * synthetic.DEPTH)


def test_the_list_of_runs_says_the_sparsity_of_the_start_where_nothing_more_goes(store):
    for start in (StartChoice(method="ser", sparsity=0.35), StartChoice(method="file", path="/x.pt")):
        store.submit(Recipe(start=start, pruning=PruningChoice(pattern="kept")))
    runs = store.runs().set_index("id")
    assert list(runs.loc[[1, 2], "sparsity"]) == [0.35, 0.0]
    assert results.short(store.runs().iloc[-1]) == "Run 1 · 35 % from its start, STARFISH"


def test_a_run_without_a_past_has_no_such_part(store):
    app = open_page("prune_and_heal", run=synthetic.done(store))
    assert not any("How it was pruned" in element.label for element in app.expander)


def test_what_gathering_costs_is_measured_or_said_to_be_unknown():
    from app import before_view

    rows = pd.DataFrame({"values_moved": [0, 500]})
    report = Report()
    assert "not known" in before_view._timed(rows, report)
    timed = {"execution": "masked", "speedup_low": 0.7, "speedup_high": 0.9}
    report.add("latency", [{"stage": "dense", "batch": 1, "speedup": 1.0, **timed}, {"stage": "healed", "batch": 8, "speedup": 0.5, **timed}])
    report.add("latency", [{"stage": "healed", "batch": 1, "speedup": 0.8, **timed}])
    assert "the healed network runs at 0.800× the dense one's speed (0.700 to 0.900, batch 1" in before_view._timed(rows, report)
    assert before_view._timed(rows.iloc[:1], report) == ""


@pytest.mark.parametrize(
    ("kind", "told"),
    [("merging", "under Tokens"), ("latency", "timed a network"), ("layer_times", "timed the layers"), ("profile", "kind 'profile'")],
)
def test_a_run_of_another_kind_says_where_its_figures_are(store, kind, told):
    run = store.submit(LatencyPlan() if kind == "latency" else Recipe(), kind)
    store.claim("worker", "cpu")
    store.finish(run, Report())
    app = open_page("prune_and_heal", run=run)
    assert unharmed(app) and any(told in info.value for info in app.info)


def test_the_page_of_charts_holds_them_too(store):
    from app import before_view

    assert len(before_view.figures(report_with_a_past())) == 3 and not before_view.figures(synthetic.report())

"""Sweeps in the app: planned on Prune & heal, followed and steered on Runs, seen in one picture."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
import synthetic
from synthetic import button, charts, labels, open_page, said, traces, unharmed

from app import sweep_rows
from app.charts import sweep as figures
from starfish_lab.recipe import Recipe
from starfish_lab.store import Store
from starfish_lab.sweep.plan import Sweep

PLAN = dict(sparsities=(0.5, 0.9), healers=("none", "starfish"))
TOP1 = {(0.5, "none"): 0.8, (0.9, "none"): 0.3, (0.5, "starfish"): 0.98, (0.9, "starfish"): 0.97}


@pytest.fixture
def store(lab_home):
    return Store()


def plan(**changes: object) -> Sweep:
    return Sweep(**{"recipe": synthetic.recipe(), **PLAN, **changes})


def finish(store: Store, sweep: int, *, most: int = 1000) -> None:
    """Ends the first runs of a sweep that wait, with the accuracies of TOP1; without healing nothing is measured after pruning."""
    rows = store.sweep_runs(sweep)
    for row in rows[rows["status"] == "queued"].head(most).itertuples():
        report = synthetic.report(healed=TOP1[row.sparsity, row.healer])
        if row.healer == "none":
            for name, table in report.tables.items():
                report.tables[name] = [entry for entry in table if entry.get("stage") != "healed"]
            pruned = next(entry for entry in report.tables["accuracy"] if entry["stage"] == "pruned")
            pruned |= dict(top1=TOP1[row.sparsity, "none"], low=TOP1[row.sparsity, "none"] - 0.04, high=TOP1[row.sparsity, "none"] + 0.04)
        store.finish(int(row.run), report)


# -- planning -------------------------------------------------------------------------------------------------------------------


def test_the_control_is_closed_and_then_says_how_many_runs_it_is(store):
    assert "Launch sweep" not in labels(open_page("prune_and_heal"))
    app = open_page(
        "prune_and_heal", sweeping=1, sweep_sparsities="0.5,0.9", sweep_patterns="unstructured,2:4", sweep_healers="none,starfish", sweep_seeds=3
    )
    assert unharmed(app) and "**18 runs**" in said(app)  # 2 sparsities and one 2:4, two healers, three seeds
    assert "no similar run has finished yet" in said(app)


def test_what_is_done_or_queued_already_is_counted_and_the_time_is_an_estimate_with_its_rule(store):
    synthetic.done(store, sparsity=0.9)  # 128 s by its report
    store.submit(synthetic.recipe(sparsity=0.5))
    app = open_page("prune_and_heal", new=1, sweeping=1, sweep_sparsities="0.5,0.75,0.9", sweep_healers="starfish")
    assert "**3 runs**, 2 of them done or in the queue already and adopted" in said(app)
    assert "About 2 min 8 s on 1 worker: an estimate, median of 1 similar run" in said(app)


def test_one_press_launches_the_whole_and_shows_it(store):
    app = open_page("prune_and_heal", sweeping=1, sweep_sparsities="0.5,0.9", sweep_healers="none,starfish")
    button(app, "Launch sweep").click().run()
    (row,) = store.runs(kind="sweep").to_dict("records")
    assert store.run(row["id"]).plan.sparsities == (0.5, 0.9) and len(store.runs()) == 4
    assert unharmed(app) and f"Sweep {row['id']}" in said(app) and "0 of 4 done, 4 queued" in words(app)
    assert app.query_params["view"] == ["sweeps"] or app.query_params["view"] == "sweeps"


def test_the_form_s_own_healer_alone_keeps_its_settings(store):
    app = open_page("prune_and_heal", sweeping=1, sweep_healers="starfish", steps=70, lr=0.002)
    button(app, "Launch sweep").click().run()
    recipes = store.run(int(store.runs(kind="sweep")["id"].iloc[0])).plan.recipes()
    assert {(recipe.healing.steps, recipe.healing.learning_rate) for recipe in recipes} == {(70, 0.002)}


def test_nothing_chosen_leaves_the_button_waiting_and_a_bad_recipe_is_told(store):
    app = open_page("prune_and_heal", sweeping=1, sweep_sparsities="7,x", sweep_healers="nobody")
    assert unharmed(app) and "Launch sweep" in labels(app)
    app = open_page("prune_and_heal", sweeping=1, score="variance", pattern="structured", sweep_patterns="unstructured")
    assert unharmed(app) and button(app, "Launch sweep").disabled and "variance" in said(app)


# -- following and steering ----------------------------------------------------------------------------------------------------


def words(app) -> str:
    """What is said, with the texts of progress bars."""
    return "\n".join([said(app), *(bar.proto.text for bar in app.get("progress"))])


def test_without_sweeps_runs_are_shown_alone_and_the_link_brings_the_way_to_plan_one(store):
    synthetic.done(store)
    assert not [control for control in open_page("runs").segmented_control if control.label == "Show"]
    app = open_page("runs", view="sweeps")
    button(app, "Plan a sweep").click().run()
    assert unharmed(app) and "Launch sweep" in labels(app)


def test_a_sweep_is_a_row_with_its_progress_and_its_runs_stand_below_when_asked_for(store):
    synthetic.done(store, sparsity=0.9)
    sweep = store.submit(plan(), "sweep")
    finish(store, sweep, most=1)
    app = open_page("runs", view="sweeps")
    row = app.dataframe[0].value.set_index("Sweep").loc[sweep]
    assert row["Runs"] == 4 and row["Ended"] == 50 and row["What"] == "unstructured · 50 and 90 % · no healing, STARFISH"
    assert "2 of 4 done (1 adopted), 2 queued" in words(app) and len(app.dataframe) == 1
    assert list(open_page("runs").dataframe[0].value["Run"]) == [5, 4, 3, 1]  # a sweep is no run; what it made is


def test_pause_resume_cancel_and_retry_do_it_to_all(store):
    sweep = store.submit(plan(), "sweep")
    app = open_page("runs", view="sweeps", sweep=sweep)
    button(app, "Pause").click().run()
    assert set(store.sweep_runs(sweep)["status"]) == {"paused"} and "Pause" not in labels(app)
    button(app, "Resume").click().run()
    assert set(store.sweep_runs(sweep)["status"]) == {"queued"}
    store.fail(int(store.sweep_runs(sweep)["run"][0]), "Memory ran out.")
    app.run()
    assert unharmed(app) and "1 of 4 runs failed" in said(app)
    button(app, "Try failed again").click().run()
    assert set(store.sweep_runs(sweep)["status"]) == {"queued"}
    button(app, "Cancel").click().run()
    assert set(store.sweep_runs(sweep)["status"]) == {"cancelled"} and "4 cancelled" in words(app)
    button(app, "Delete for good").click().run()
    assert unharmed(app) and "No sweeps yet" in said(app)


def test_the_picture_has_a_line_a_healer_with_the_last_network_s_accuracy(store):
    sweep = store.submit(plan(), "sweep")
    finish(store, sweep)
    app = open_page("runs", view="sweeps")
    ((title, chart),) = charts(app).items()
    assert title == "At 90 % unstructured STARFISH is 67.0 pp ahead of no healing"
    shown = traces(chart)
    assert shown["no healing"]["y"] == pytest.approx([80, 30]) and shown["STARFISH"]["y"] == pytest.approx([97.96, 97.04], abs=0.01)
    assert shown["no healing"]["error_y"]["array"] == pytest.approx([4, 4]) and "dense 99.1 %" in str(chart["layout"]["annotations"])
    button(app, "Compare the front").click().run()
    chosen = app.multiselect[0].value
    healed = store.sweep_runs(sweep).set_index("run")["healer"]
    assert unharmed(app) and chosen and set(healed[chosen]) == {"starfish"}


def test_a_run_of_a_sweep_opens_on_its_page(store):
    sweep = store.submit(plan(), "sweep")
    app = open_page("prune_and_heal", run=sweep)  # a sweep's own number leads to the sweep
    assert unharmed(app) and f"Sweep {sweep}" in said(app)
    store.pause(sweep)
    app = open_page("prune_and_heal", run=sweep + 1)
    assert "is paused" in said(app)
    button(app, "Resume").click().run()
    assert unharmed(app) and store.run(sweep + 1).status == "queued"


def test_a_sweep_in_the_queue_does_not_take_the_place_of_the_form(store):
    store.submit(plan(), "sweep")
    app = open_page("prune_and_heal")
    assert unharmed(app) and "Prune & heal" in labels(app) and "Waiting for a worker" not in words(app)
    single = store.submit(synthetic.recipe(name="alone"))
    assert f"Run {single}" in words(open_page("prune_and_heal"))


def test_a_link_to_a_sweep_that_is_gone_is_told(store):
    store.submit(plan(), "sweep")
    app = open_page("runs", view="sweeps", sweep=99)
    assert unharmed(app) and "none of that number" in said(app)


# -- rows -----------------------------------------------------------------------------------------------------------------------


def test_seeds_are_a_mean_and_overlapping_intervals_are_not_resolved():
    rows = pd.DataFrame([
        dict(panel="unstructured", sparsity=0.9, healer=healer, seed=seed, top1=top1, low=top1 - 0.02, high=top1 + 0.02, dense=1.0, images=500)
        for healer, seed, top1 in (("starfish", 0, 0.90), ("starfish", 1, 0.94), ("logit_distillation", 0, 0.91))
    ])  # fmt: skip
    found = sweep_rows.summary(rows).set_index("healer")
    assert found.loc["starfish", ["top1", "low", "high", "share", "seeds"]].tolist() == pytest.approx([0.92, 0.90, 0.94, 0.92, 2])
    assert sweep_rows.title(found.reset_index()) == "At 90 % unstructured STARFISH and logit distillation are not resolved (n = 500)"


def test_time_is_the_median_of_similar_runs_shared_by_workers_and_unknown_without_one():
    known = synthetic.recipe()
    longer = replace(known, healing=replace(known.healing, steps=400))
    done = pd.DataFrame({"id": [1, 2, 3, 4], "seconds": [10.0, 30.0, 20.0, 100.0]})
    recipes = {1: known.to_dict(), 2: known.to_dict(), 3: known.to_dict(), 4: longer.to_dict()}
    at_other_sparsity = synthetic.recipe(sparsity=0.5)
    seconds, rule = sweep_rows.seconds_ahead([at_other_sparsity] * 3 + [longer], done, recipes, workers=2)
    assert seconds == pytest.approx((3 * 20 + 100) / 2) and "4 similar runs" in rule
    assert sweep_rows.seconds_ahead([Recipe()], done, recipes) == (None, "")


@pytest.mark.parametrize("dark", [False, True])
def test_patterns_are_panels_on_one_scale_and_marks_of_one_sparsity_stand_apart(dark):
    found = pd.DataFrame([
        dict(panel=panel, healer=healer, label=healer, labels=False, steps=1, sparsity=s, seeds=1, images=540, top1=0.9, low=0.88, high=0.92)
        for panel in ("unstructured", "2:4") for healer in ("starfish", "lora") for s in ((0.5, 0.9) if panel == "unstructured" else (0.5,))
    ])  # fmt: skip
    fig = figures.accuracy(found, title="?", dense=0.99, dark=dark)
    assert {trace.yaxis for trace in fig.data} == {"y", "y2"} and fig.layout.yaxis2.matches == "y"
    assert sum(bool(trace.showlegend) for trace in fig.data) == 2  # each healer once
    first, second = (trace.x[0] for trace in fig.data[:2])
    assert first != second and abs(first - second) <= 2 * figures.ASIDE

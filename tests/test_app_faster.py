"""The card 'Will it be faster?': what it says before a run, the button where nothing is known, and its score after a measurement."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
import synthetic
from synthetic import button, labels, open_page, said, unharmed

from app import faster_rows
from starfish_lab.execution.choice import Execution
from starfish_lab.prediction import card as cards
from starfish_lab.prediction import score
from starfish_lab.prediction.card import Card
from starfish_lab.recipe import PruningChoice, TokensChoice
from starfish_lab.report import Report
from starfish_lab.store import Store

STRUCTURED = dict(pattern="structured", sparsity=0.5)
SAID = Card(
    execution="sliced", batch=8, precision="float32", verdict="faster", headline="Faster: about 1.60 times.", kind=cards.ESTIMATE,
    basis="Estimate from layer times of Test CPU, measured 2026-11-21 on starter.", speedup=1.6, low=1.5, high=1.7,
    reasons=("1.90 times fewer multiply-adds: the most to hope for, were those all",),
)  # fmt: skip
NOTHING = Card(
    execution="sliced", batch=8, precision="float32", verdict="unknown", headline="Unknown: no layer times of this device yet.", kind=cards.NO_TABLE,
    basis="No table for this device yet: measure it (about 90 s).", seconds_to_measure=90.0,
)  # fmt: skip


@pytest.fixture
def store(lab_home):
    return Store()


@pytest.fixture
def answers(monkeypatch):
    """The card says what a test wants, and remembers what it was asked."""
    asked = []

    def say(card: Card) -> list:
        def made(profile, recipe, rows, execution, batch, precision=None, *, device=""):
            asked.append({"recipe": recipe, "rows": rows, "execution": execution, "batch": batch, "device": device})
            return replace(card, execution=execution, batch=batch)

        monkeypatch.setattr(cards, "card", made)
        monkeypatch.setattr(score, "card", made)
        return asked

    return say


def table(store: Store, *, device: str = "cpu", name: str = "Test CPU", model: str = "starter", batches=(1, 8)) -> int:
    """A finished run that timed layers; what the rows hold beside their device and batch is the stand-in's concern."""
    run = store.submit(replace(synthetic.recipe(), name="layers"), "layer_times")
    report = Report()
    report.add("layer_times", [
        dict(form="dense", kind="pass", variant="", kernel="", m=0, n=0, k=0, count=1, ms=1.0, ms_low=0.9, ms_high=1.1, rounds=9, batch=batch,
             precision="float32", model=model, device=device, device_name=name, fingerprint="f" * 12, threads=2, measured_on="2026-11-21")
        for batch in batches
    ])  # fmt: skip
    store.finish(run, report)
    return run


def html(app) -> str:
    return "\n".join(str(element.proto.body) for element in app.get("html"))


# -- before a run ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", ["explore", "prune_and_heal"])
def test_an_estimate_is_dashed_with_its_rule_on_hover_its_interval_and_its_reasons(store, answers, page):
    asked = answers(SAID)
    table(store)
    app = open_page(page, new=1, **STRUCTURED)
    assert unharmed(app) and "Will it be faster?" in said(app)
    shown = html(app)
    assert "Faster: " in shown and "1.60× (1.50 to 1.70)" in shown and "dashed" in shown and f'title="{SAID.basis}"' in shown
    assert "fewer multiply-adds" in said(app) and SAID.basis in said(app) and "Measure this device" not in labels(app)
    assert asked[-1]["execution"] == "sliced" and asked[-1]["batch"] == 8 and asked[-1]["recipe"].pruning.pattern == "structured"


@pytest.mark.parametrize("page", ["explore", "prune_and_heal"])
def test_the_first_row_has_the_expected_latency_of_one_image_dashed_until_it_is_measured(store, answers, page):
    asked = answers(SAID)
    assert "expected of sliced" not in html(open_page(page, new=1, **STRUCTURED)) and not any(one["batch"] == 1 for one in asked)  # no table yet
    table(store)
    shown = html(open_page(page, new=1, **STRUCTURED)).partition("<h4>Latency")[2]
    assert shown.count('<tr class="estimate" title="pruned: faster, as expected of sliced over dense. Estimate from layer times of Test CPU') == 1
    assert shown.count("<span>1.60× <small>(1.50 to 1.70)</small></span>") == 2  # pruned and healed
    assert asked[0]["batch"] == 8 and any(one["batch"] == 1 for one in asked)


def test_an_estimate_that_tells_nothing_is_no_figure_and_its_table_is_measured_again(store, answers):
    answers(replace(SAID, verdict="unknown", low=0.8, high=3.2))
    table(store)
    app = open_page("explore", **STRUCTURED)
    assert html(app).count("cannot be told") == 2 and "Cannot be told: " in html(app)
    button(app, "Measure this device again").click().run()
    assert unharmed(app) and len(store.runs(kind="layer_times", status="queued")) == 1


def test_what_follows_from_a_rule_is_told_and_is_no_estimate(store, answers):
    rule = replace(SAID, verdict="not faster", kind=cards.RULE, headline="Not faster: mask only.", basis="By rule.", speedup=1.0, low=None, high=None)
    asked = answers(replace(rule, reasons=("mask only: zeros are multiplied like any other weight",)))
    app = open_page("prune_and_heal", new=1)
    assert unharmed(app) and "**Not faster: mask only** · masked, batch 8" in said(app) and "zeros are multiplied" in said(app)
    assert "dashed currentColor" not in html(app) and asked[-1]["rows"].empty and not [name for name in labels(app) if name.startswith("Measure")]


def test_what_is_chosen_on_the_card_stands_in_the_link(store, answers):
    asked = answers(SAID)
    table(store)
    app = open_page("explore", card_batch=1, **STRUCTURED)
    assert asked[-1]["batch"] == 1
    app.selectbox(key="value.card_batch").set_value(8).run()
    assert asked[-1]["batch"] == 8 and "card_batch" not in app.query_params  # 8 is the usual one
    app = open_page("explore", card_batch=5, **STRUCTURED)
    assert unharmed(app) and asked[-1]["batch"] == 8


def test_the_table_is_that_of_the_device_that_runs_would_go_to(store, answers):
    asked = answers(SAID)
    table(store, device="cuda:0", name="NVIDIA A100-SXM4-80GB", batches=(64,))
    table(store)
    open_page("explore", device="gpu:A100", **STRUCTURED)
    assert set(asked[-1]["rows"]["device_name"]) == {"NVIDIA A100-SXM4-80GB"} and asked[-1]["batch"] == 64
    open_page("explore", device="gpu:A40", **STRUCTURED)
    assert asked[-1]["rows"].empty and asked[-1]["device"] == "gpu:A40"
    app = open_page("explore", **STRUCTURED)  # any worker: the device timed last, and a way to choose
    assert set(asked[-1]["rows"]["device_name"]) == {"Test CPU"}
    app.selectbox(key="value.card_on").set_value("NVIDIA A100-SXM4-80GB").run()
    assert set(asked[-1]["rows"]["device_name"]) == {"NVIDIA A100-SXM4-80GB"}


def test_a_table_measured_again_takes_the_place_of_the_first(store, answers):
    asked = answers(SAID)
    table(store)
    again = table(store, batches=(8,))
    open_page("explore", card_batch=8, **STRUCTURED)
    assert asked[-1]["rows"].groupby("batch")["run"].unique().map(list).to_dict() == {1: [again - 1], 8: [again]}


def test_an_interval_that_says_nothing_has_no_figures(store, answers):
    answers(replace(SAID, verdict="unknown", headline="Cannot be told: about 1.60 times, 0.00 to 1049.17 (estimate).", low=0.001, high=1049.17))
    table(store)
    app = open_page("explore", **STRUCTURED)
    assert said(app).count("annot be told: the interval spans more than a factor of 10") == 2 and "1049" not in said(app) + html(app)


# -- where nothing is known -----------------------------------------------------------------------------------------------------


def test_without_a_table_one_button_has_the_layers_timed_and_says_how_long_that_takes(store, answers):
    answers(NOTHING)
    app = open_page("explore", **STRUCTURED)
    assert "no layer times of this device yet" in said(app) and "dashed currentColor" not in html(app)
    assert "about 1 min 30 s" in button(app, "Measure this device").help
    button(app, "Measure this device").click().run()
    (row,) = store.runs(kind="layer_times").to_dict("records")
    run = store.run(row["id"])
    assert run.recipe.pruning.pattern == "structured" and 8 in run.recipe.measure.batch_sizes
    assert unharmed(app) and "Measure this device" not in labels(app) and f"Run {run.id} will time the layers: it waits until a worker" in said(app)
    store.fail(run.id, "Memory ran out.")
    app.run()
    assert f"Run {run.id} stopped: Memory ran out." in said(app) and "Measure this device" in labels(app)


def test_a_gpu_by_name_is_asked_for_by_its_name(store, answers):
    answers(replace(NOTHING, kind=cards.LITERATURE, headline="Unknown: for A40 there is only literature."))
    app = open_page("prune_and_heal", new=1, device="gpu:A40", **STRUCTURED)
    button(app, "Measure an A40").click().run()
    assert store.run(1).wants == "gpu:A40" and "waits until a node with an A40 joins" in said(app)


# -- the score ------------------------------------------------------------------------------------------------------------------


def test_after_a_measurement_prediction_and_measurement_stand_side_by_side(store, answers):
    answers(SAID)
    table(store)
    recipe = synthetic.recipe()
    recipe = replace(recipe, pruning=PruningChoice(**STRUCTURED))
    run = store.submit(recipe)
    store.finish(run, synthetic.report(speedup=1.65, sliced=True))
    within = "batch 8: predicted 1.60 (1.50 to 1.70), measured 1.65: within the interval."
    app = open_page("prune_and_heal", run=run)
    assert unharmed(app) and within in said(app)
    app = open_page("explore", **STRUCTURED)
    assert within in said(app) and "predictions:" not in said(app)  # the score is computed when it is asked for
    app.session_state["faster_score"] = True
    app.run()
    assert unharmed(app) and "2 predictions: off by 3.0% in the median, 100% of the measurements inside the interval." in said(app)
    assert app.dataframe[-1].value["run"].tolist() == [run, run]
    other = open_page("explore", pattern="structured", sparsity=0.25)  # another pruning, of which nothing was measured
    assert "within the interval" not in said(other) and any("so far" in found.label for found in other.expander)


def test_a_measurement_outside_the_interval_says_on_which_side():
    row = dict(execution="sliced, bf16", batch=64, predicted=1.6, low=1.5, high=1.7, measured=1.9, inside=False)
    assert faster_rows.outcome(row) == "Sliced, bf16, batch 64: predicted 1.60 (1.50 to 1.70), measured 1.90: above the interval."
    assert faster_rows.outcome(row | {"measured": 1.1}).endswith("below the interval.")


# -- rows -----------------------------------------------------------------------------------------------------------------------


def test_the_own_network_s_table_goes_before_others_and_the_newest_device_first():
    rows = pd.DataFrame([
        dict(run=run, device=device, device_name=name, model=model, fingerprint=name, batch=8, precision="float32")
        for run, device, name, model in ((1, "cpu", "Test CPU", "deit"), (2, "cpu", "Test CPU", "starter"), (3, "cuda:0", "NVIDIA A40", "deit"))
    ])  # fmt: skip
    found = faster_rows.tables(rows, model="starter")
    assert list(found) == ["NVIDIA A40", "Test CPU"] and set(found["Test CPU"]["run"]) == {2} and set(found["NVIDIA A40"]["run"]) == {3}
    assert list(faster_rows.tables(rows, model="starter", wanted="gpu:A40")) == ["NVIDIA A40"] and not faster_rows.tables(rows[:0], model="starter")


@pytest.mark.parametrize(
    ("pruning", "precisions", "expected"),
    [
        ({}, ["float32"], ["masked"]),
        (STRUCTURED, ["float32", "bf16"], ["sliced", "sliced, bf16"]),
        ({"pattern": "n_m"}, ["float32"], ["semi_structured(cusparselt), fp16", "masked"]),
        ({"pattern": "n_m"}, ["bf16"], ["semi_structured(cusparselt), bf16", "masked, bf16"]),
    ],
    ids=str,
)
def test_a_recipe_is_asked_about_in_the_precisions_that_were_timed(pruning, precisions, expected):
    recipe = replace(synthetic.recipe(), pruning=PruningChoice(**pruning))
    assert faster_rows.executions(recipe, precisions) == expected
    merged = faster_rows.executions(replace(recipe, tokens=TokensChoice(r=(4,))), precisions)
    assert Execution.of(merged[0]).merged

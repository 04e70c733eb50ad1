"""The form of the Latency page: the plan that it queues, what it refuses beforehand, and files in both directions."""

from __future__ import annotations

import json

import pytest
import synthetic_latency
from synthetic import button, open_page, said, unharmed

from app import latency_files, latency_plans
from starfish_lab.errors import LabError
from starfish_lab.execution.choice import Execution
from starfish_lab.recipe import PruningChoice, Recipe
from starfish_lab.store import Store

HALVES = Recipe(pruning=PruningChoice(pattern="n_m", keep=2, group=4))
UNITS = Recipe(pruning=PruningChoice(pattern="structured", sparsity=0.5))


@pytest.fixture
def store(lab_home):
    return Store()


def test_the_button_queues_a_plan_of_the_present_choice(store):
    app = open_page(
        "latency", sparsity=0.5, pattern="structured", batches="1,16", ways="sliced", precisions="float32,bf16", modes="eager,compiled", merged="also"
    )
    button(app, "Measure latency").click().run()
    (row,) = store.runs(kind="latency").to_dict("records")
    plan = store.run(row["id"]).plan
    assert row["status"] == "queued" and plan.batches == (1, 16) and plan.recipe.pruning.pattern == "structured"
    assert set(plan.executions) == {
        f"{merged}sliced{precision}{mode}" for merged in ("", "merged+") for precision in ("", ", bf16") for mode in ("", ", compiled")
    }
    assert unharmed(app) and f"run {row['id']}" in said(app) and "waits until a worker" in said(app)
    button(app, "Measure latency").click().run()
    assert len(store.runs(kind="latency")) == 1
    store.fail(row["id"], "Wanda needs images.")
    app.run()
    assert "Wanda needs images." in said(app)


def test_where_it_will_run_is_said_while_a_worker_lives(store):
    store.announce("w1", "cpu", "Test CPU")
    app = open_page("latency", sparsity=0.5, pattern="structured")
    assert unharmed(app) and "2 executions" not in said(app) and "1 dense; batch 1, 8, 32; on cpu" in said(app)


def test_what_surely_will_not_run_is_left_out_and_said(store):
    app = open_page("latency", pattern="n_m", keep=2, of=4, precisions="float32,fp16", ways="masked,semi_structured(cutlass)", device="cuda:0")
    assert unharmed(app) and "Left out: 2:4 (CUTLASS), because in float32 the hardware's format keeps 1 of 2 weights" in said(app)
    button(app, "Measure latency").click().run()
    (run,) = store.runs(kind="latency")["id"]
    assert set(store.run(run).plan.executions) == {"masked", "masked, fp16", "semi_structured(cutlass), fp16"}


def test_nothing_left_to_time_disables_the_button(store):
    app = open_page("latency", pattern="n_m", keep=2, of=4, precisions="fp16", ways="semi_structured(cutlass)", device="cpu")
    assert button(app, "Measure latency").disabled
    assert "needs a CUDA GPU of compute capability 8.0 or more, and runs are sent to a CPU" in said(app)


@pytest.mark.parametrize(
    ("label", "recipe", "kind", "why"),
    [
        ("semi_structured(cusparselt), fp16", HALVES, "cpu", "CUDA GPU"),
        ("semi_structured(cusparselt), fp16", HALVES, "cuda", ""),
        ("semi_structured(cusparselt), bf16", HALVES, "", ""),
        ("semi_structured(cusparselt), tf32", HALVES, "cuda", "1 of 2"),
        ("semi_structured(cutlass), fp16", UNITS, "cuda", "no 2:4 weights"),
        ("semi_structured(cutlass), fp16", Recipe(), "cuda", "zeros anywhere"),
        ("semi_structured(cutlass), fp16", Recipe(pruning=PruningChoice(pattern="n_m", keep=8, group=16)), "cuda", "8:16 weights are not 2:4"),
        ("sliced", UNITS, "cpu", ""),
        ("sliced", HALVES, "cpu", "whole units"),
        ("masked, tf32", UNITS, "cpu", "TF32"),
        ("masked, tf32", UNITS, "cuda", ""),
    ],
)
def test_refusals_that_can_be_told_beforehand(label, recipe, kind, why):
    found = latency_plans.refusal(Execution.of(label), recipe, kind)
    assert why in found and bool(why) == bool(found)


def test_every_way_is_an_execution_once():
    ways = latency_plans.ways()
    assert len(set(ways)) == len(ways) and {"masked", "sliced", "semi_structured(cutlass)", "im2col(dense)"} <= set(ways)
    assert all(Execution.of(label).label == label for label in ways)


def test_a_card_of_the_literature_can_be_asked_for(store):
    app = open_page("latency", card="A40", pattern="structured", sparsity=0.5)
    button(app, "Ask for an A40").click().run()
    assert unharmed(app)
    button(app, "Measure latency").click().run()
    (run,) = store.runs(kind="latency")["id"]
    assert store.run(run).wants == "gpu:A40" and "A40 joins" in said(app)


def test_a_measurement_goes_out_as_a_file_and_comes_back_marked(store):
    first = synthetic_latency.run(store)
    text = latency_files.exported(first)
    second = latency_files.imported(text.encode(), "h100.json")
    assert store.report(second).tables["latency"] == store.report(first).tables["latency"]
    assert store.run(second).plan == store.run(first).plan and store.run(second).status == "done"
    app = open_page("latency", timed=str(second))
    assert unharmed(app) and any("imported" in str(badge.value) for badge in app.markdown)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda data: data.pop("tables"), "lacks the tables"),
        (lambda data: data["tables"]["latency"][0].update(images_per_s="fast"), "images_per_s"),
        (lambda data: data["tables"]["hardware"][0].update(value="NVIDIA A40"), "hash"),
        (lambda data: data.update(starfish_lab_latency_results=99), "no results file"),
        (lambda data: data["plan"].update(executions=["warp drive"]), "warp drive"),
    ],
)
def test_a_broken_file_is_refused_in_one_sentence_and_leaves_nothing(store, spoil, why):
    data = json.loads(latency_files.exported(synthetic_latency.run(store)))
    spoil(data)
    with pytest.raises(LabError, match=why):
        latency_files.imported(json.dumps(data).encode(), "x.json")
    with pytest.raises(LabError, match="not text"):
        latency_files.imported(b"\xff\xfe\x00", "x.json")
    assert len(store.runs(kind="latency")) == 1


def test_an_uploaded_file_is_shown_at_once_and_a_broken_one_says_why(store):
    text = latency_files.exported(synthetic_latency.run(store))
    app = open_page("latency")
    app.file_uploader[0].set_value(("broken.json", text[:-9].encode(), "application/json")).run()
    assert unharmed(app) and "broken.json is not valid JSON" in said(app)
    app.file_uploader[0].set_value(("h100.json", text.encode(), "application/json")).run()
    assert unharmed(app) and "h100.json is kept as run 2, measured on NVIDIA H100" in said(app)
    assert store.run(2).owner == "imported"

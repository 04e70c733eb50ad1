"""What a latency run times, as plain data."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from conftest import ROOT

from starfish_lab.errors import LabError, RecipeError
from starfish_lab.execution.choice import Execution
from starfish_lab.latency.plan import LatencyPlan, baseline, spread, usual
from starfish_lab.recipe import MeasureChoice, PruningChoice, Recipe, TokensChoice


def test_dense_baselines_come_in_every_precision_asked_for_and_compiled_where_anything_is():
    plan = LatencyPlan(executions=("sliced, bf16", "sliced, fp16, compiled", "masked, bf16"), batches=(8, 1, 8))
    assert [execution.label for execution in plan.contestants()] == [
        "dense, fp16", "dense, fp16, compiled", "dense, bf16", "dense, bf16, compiled", "sliced, bf16", "sliced, fp16, compiled", "masked, bf16",
    ]  # fmt: skip
    assert plan.batches == (1, 8)
    layouts = LatencyPlan(executions=("sliced, tf32, channels last", "dense, bf16, channels last", "sliced, bf16"))
    assert [execution.label for execution in layouts.contestants()] == [
        "dense, tf32, channels last", "dense, bf16", "dense, bf16, channels last", "sliced, tf32, channels last", "sliced, bf16",
    ]  # fmt: skip


def test_the_baseline_has_the_same_precision_eagerness_and_layout():
    execution = Execution.of("merged+im2col(cutlass), bf16, compiled, channels last")
    assert baseline(execution).label == "dense, bf16, compiled, channels last"


def test_labels_are_kept_in_their_one_form_and_once():
    assert LatencyPlan(executions=("masked,bf16", "masked, bf16", "semi_structured, fp16")).executions == (
        "masked, bf16", "semi_structured(cusparselt), fp16",
    )  # fmt: skip


def test_json_both_ways_and_the_name_does_not_count():
    plan = LatencyPlan(recipe=Recipe(name="a"), executions=("sliced",), batches=(2,), seconds=0.5, min_iterations=7, layers=False)
    assert LatencyPlan.from_json(plan.to_json()) == plan and plan.name == "a" and plan.device == "auto"
    other = LatencyPlan(recipe=Recipe(name="b"), executions=("sliced",), batches=(2,), seconds=0.5, min_iterations=7, layers=False)
    assert other.fingerprint() == plan.fingerprint() != LatencyPlan(executions=("masked",)).fingerprint()


def test_a_recipe_is_a_plan_too_as_latency_runs_were_once_kept():
    recipe = Recipe(pruning=PruningChoice(pattern="structured"), measure=MeasureChoice(batch_sizes=(4,), seconds=0.3))
    plan = LatencyPlan.from_json(recipe.to_json())
    assert (plan.recipe, plan.executions, plan.batches, plan.seconds) == (recipe, ("sliced",), (4,), 0.3)


@pytest.mark.parametrize(
    ("recipe", "executions"),
    [
        (Recipe(tokens=TokensChoice(r=(4,))), ("merged",)),
        (Recipe(pruning=PruningChoice(pattern="n_m")), ("masked", "semi_structured(cusparselt), fp16")),
        (Recipe(pruning=PruningChoice(pattern="n_m", keep=8, group=16)), ("masked",)),
        (Recipe(pruning=PruningChoice(pattern="structured"), tokens=TokensChoice(r=(4,))), ("merged+sliced",)),
    ],
)
def test_what_suits_a_recipe(recipe, executions):
    assert usual(recipe) == executions


def test_labels_spread_over_precisions_keep_the_rest():
    assert spread(["merged+sliced, channels last"], ["bf16", "fp16"]) == ("merged+sliced, bf16, channels last", "merged+sliced, fp16, channels last")
    assert spread(["sliced, bf16", "masked"]) == ("sliced, bf16", "masked")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (dict(executions=()), "at least one execution"),
        (dict(batches=()), "at least one batch size"),
        (dict(batches=(0,)), "batches is 0"),
        (dict(seconds=0), "seconds is 0"),
        (dict(min_iterations=1.5), "min_iterations is 1.5"),
        (dict(executions=("quick",)), "no execution 'quick'.*sliced"),
        (dict(executions=("sliced, fp8",)), "'fp8'.*bf16"),
    ],
)
def test_what_is_wrong_is_named(changes, says):
    with pytest.raises(RecipeError, match=says):
        LatencyPlan(**changes)


def test_files_that_are_no_plan_are_named():
    with pytest.raises(LabError, match="no latency plan"):
        LatencyPlan.from_json("{}")
    broken = {**LatencyPlan().to_dict(), "batch": 3}
    with pytest.raises(LabError, match="batch is not a field of a latency plan"):
        LatencyPlan.from_json(json.dumps(broken))


def test_pages_can_read_plans_files_and_comparisons_without_torch():
    code = "import sys\n" + "".join(f"import starfish_lab.latency.{name}\n" for name in ("plan", "flags", "results_file", "importing", "comparable"))
    code += "from starfish_lab.latency.plan import LatencyPlan; LatencyPlan().contestants()\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)

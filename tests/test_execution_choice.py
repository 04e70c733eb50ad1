"""An execution is plain data whose label reads both ways."""

from __future__ import annotations

import dataclasses
import itertools
import json
import subprocess
import sys

import pytest
from conftest import ROOT

from starfish_lab.errors import RecipeError
from starfish_lab.execution import BACKENDS
from starfish_lab.execution.choice import DENSE, PRECISIONS, Execution, choices


def all_executions():
    for backend in (DENSE, *BACKENDS.names()):
        names = [] if backend == DENSE else list(BACKENDS.options(backend))
        for values in itertools.product(*(choices(backend, name) for name in names)):
            for merged, precision, compiled, last in itertools.product((False, True), PRECISIONS, (False, True), (False, True)):
                yield Execution(
                    backend=backend, options=dict(zip(names, values)), merged=merged, precision=precision, compile=compiled, channels_last=last
                )


def test_every_label_reads_back_and_is_its_own():
    executions = list(all_executions())
    labels = [execution.label for execution in executions]
    assert len(set(labels)) == len(labels) == (1 + 1 + 1 + 2 + 3) * 2 * 5 * 2 * 2
    assert [Execution.of(label) for label in labels] == executions
    assert max(map(len, labels)) < 75


@pytest.mark.parametrize(
    "label, expected",
    [
        ("sliced", Execution(backend="sliced")),
        ("merged+sliced, bf16, compiled", Execution(backend="sliced", merged=True, precision="bf16", compile=True)),
        ("semi_structured(cutlass), fp16", Execution(backend="semi_structured", options={"kernel": "cutlass"}, precision="fp16")),
        ("merged", Execution(merged=True)),
        ("dense, tf32, channels last", Execution(backend="dense", precision="tf32", channels_last=True)),
    ],
)
def test_labels_are_short_and_in_the_fields_words(label, expected):
    assert Execution.of(label) == expected and expected.label == label


def test_a_label_may_leave_out_and_space_out():
    assert Execution.of("semi_structured") == Execution(backend="semi_structured", options={"kernel": "cusparselt"})
    assert Execution.of("  merged+masked ,compiled,  bf16 ") == Execution(merged=True, compile=True, precision="bf16")


@pytest.mark.parametrize("label, word", [
    ("swift", "swift"), ("sliced, int8", "int8"), ("sliced(cutlass)", "cutlass"), ("semi_structured(cublas)", "cublas"), ("", "''"),
    ("sliced bf16", "sliced bf16"), ("merged+", "merged+"), ("merged+merged", "merged"), ("semi_structured(cutlass", "semi_structured(cutlass"),
])  # fmt: skip
def test_a_label_of_nothing_is_refused_and_the_word_named(label, word):
    if label == "merged+":  # the masked network, merging
        assert Execution.of(label) == Execution(merged=True)
        return
    with pytest.raises(RecipeError, match=".") as error:
        Execution.of(label)
    assert word in str(error.value) and str(error.value).count("\n") == 0


@pytest.mark.parametrize("fields", [
    {"backend": "swift"}, {"precision": "int8"}, {"options": {"kernel": "cutlass"}}, {"backend": "semi_structured", "options": {"kernel": 3}},
    {"backend": "dense", "options": {"kernel": "cutlass"}}, {"compile": 1}, {"merged": "yes"},
])  # fmt: skip
def test_wrong_fields_are_refused(fields):
    with pytest.raises(RecipeError):
        Execution(**fields)


def test_json_both_ways_and_a_place_in_sets():
    execution = Execution.of("merged+im2col(cutlass), bf16")
    assert Execution(**json.loads(json.dumps(dataclasses.asdict(execution)))) == execution
    assert len({execution, Execution.of(execution.label), Execution()}) == 2


def test_choosing_brings_no_torch():
    code = (
        "import sys; from starfish_lab.execution import BACKENDS; from starfish_lab.execution.choice import Execution\n"
        "Execution.of('semi_structured(cutlass), bf16').label; [BACKENDS.describe(name) for name in BACKENDS.names()]\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)

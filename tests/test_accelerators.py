"""Devices by name: what a run may ask for, and who may take it."""

from __future__ import annotations

import dataclasses
import time

import pytest

from starfish_lab.errors import LabError, RecipeError
from starfish_lab.jobs import accelerators, worker
from starfish_lab.recipe import Recipe, edit
from starfish_lab.report import Report
from starfish_lab.store import Store

TITLES = {
    "A40": "NVIDIA A40 (cuda:0)",
    "A100 of 40 GB": "NVIDIA A100-SXM4-40GB (cuda:1)",
    "A100 of 80 GB": "NVIDIA A100 80GB PCIe (cuda:0)",
    "A10": "NVIDIA A10 (cuda:0)",
    "A4000": "NVIDIA RTX A4000 (cuda:0)",
    "4090": "NVIDIA GeForce RTX 4090 (cuda:0)",
    "node": "A40 (node a100-box, 2 GPUs, 8 CPUs)",
    "A100 of 80 GB by Ray": "A100-80G (node lab-3, 8 GPUs, 64 CPUs)",  # ray.util.accelerators.NVIDIA_A100_80G
    "CPU": "AMD EPYC A40 100-Core (cpu, 8 threads)",
}


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("gpu:A40", {"A40", "node"}),
        ("gpu:a40", {"A40", "node"}),
        ("gpu:A100", {"A100 of 40 GB", "A100 of 80 GB", "A100 of 80 GB by Ray"}),
        ("gpu:A100-80GB", {"A100 of 80 GB", "A100 of 80 GB by Ray"}),
        ("gpu:A100-80G", {"A100 of 80 GB", "A100 of 80 GB by Ray"}),
        ("gpu:A100-40G", {"A100 of 40 GB"}),
        ("gpu:A10", {"A10"}),
        ("gpu:RTX-4090", {"4090"}),
        ("gpu:4090", {"4090"}),
        ("gpu:H100", set()),
    ],
)
def test_a_name_matches_whole_words_of_a_title_outside_brackets(wanted, found):
    assert {name for name, title in TITLES.items() if accelerators.matches(wanted, title)} == found


def test_a_short_name_asks_for_the_same_gpu_again():
    short = {name: accelerators.short(title) for name, title in TITLES.items()}
    assert short == {
        "A40": "A40", "A100 of 40 GB": "A100", "A100 of 80 GB": "A100", "A10": "A10", "A4000": "A4000", "4090": "RTX-4090", "node": "A40", "CPU": "",
        "A100 of 80 GB by Ray": "A100",
    }  # fmt: skip
    for name, asked in short.items():
        if asked:
            assert accelerators.valid(f"gpu:{asked}") and accelerators.matches(f"gpu:{asked}", TITLES[name])


def test_what_a_device_may_take():
    a40 = ("cuda:1", TITLES["A40"])
    assert [wanted for wanted in ("auto", "cuda", "cuda:1", "cuda:0", "cpu", "gpu:A40", "gpu:A100") if accelerators.fits(wanted, *a40)] == [
        "auto", "cuda", "cuda:1", "gpu:A40",
    ]  # fmt: skip
    assert not accelerators.fits("gpu:A40", "cpu", TITLES["CPU"]) and accelerators.fits("cpu", "cpu", TITLES["CPU"])


@pytest.mark.parametrize("device", ["tpu", "gpu:", "gpu", "cuda:", "cuda:1 ", "gpu:A40;", "gpu:" + 17 * "A", ""])
def test_a_recipe_refuses_a_device_that_is_none(device):
    with pytest.raises(RecipeError, match="device is .*Give auto, cpu, mps, cuda, cuda:N, or a GPU by its name such as gpu:A40"):
        Recipe(device=device)


def test_a_recipe_keeps_the_gpu_it_asks_for():
    recipe = edit(Recipe(), ["device=gpu:A100-80GB"])
    assert Recipe.from_json(recipe.to_json()).device == "gpu:A100-80GB"
    assert recipe.fingerprint() != dataclasses.replace(recipe, device="gpu:A40").fingerprint()


def test_only_a_worker_with_that_gpu_claims_the_run():
    store = Store()
    a100, a40, anywhere = (store.submit(Recipe(device=device)) for device in ("gpu:A100", "gpu:A40", "auto"))
    assert store.claim("cpu", "cpu", title=TITLES["CPU"]).id == anywhere
    assert store.claim("cpu", "cpu", title=TITLES["CPU"]) is None
    assert store.claim("untitled", "cuda:0") is None
    assert store.claim("first", "cuda:0", title=TITLES["A40"]).id == a40
    assert store.claim("second", "cuda:1", title=TITLES["A100 of 40 GB"]).id == a100


def test_a_scheduler_claims_a_run_by_its_number_and_only_once():
    store = Store(stale_seconds=0.5)
    other, run_id = store.submit(Recipe()), store.submit(Recipe(device="gpu:A100"))
    assert [(run.id, run.free) for run in store.active()] == [(other, True), (run_id, True)]
    assert store.claim("a", "cuda:0", run_id=run_id).id == run_id
    assert store.claim("b", "cuda:0", run_id=run_id) is None and store.run(run_id).worker == "a"
    assert [(run.id, run.free) for run in store.active()] == [(other, True), (run_id, False)]
    time.sleep(0.6)  # its worker is silent
    assert store.claim("b", "cuda:0", run_id=run_id).attempt == 2
    store.request_cancel(run_id)
    assert {run.id: run.cancel for run in store.active()} == {other: False, run_id: True}
    store.mark_cancelled(run_id)
    assert store.claim("c", "cuda:0", run_id=run_id) is None and [run.id for run in store.active()] == [other]


def test_a_worker_tells_the_store_its_title(monkeypatch):
    store = Store()
    monkeypatch.setattr(worker, "_title", lambda device: TITLES["A40"])
    monkeypatch.setitem(worker.KINDS, "experiment", lambda run, **_: Report())
    run_id, other = store.submit(Recipe(device="gpu:A40")), store.submit(Recipe(device="gpu:A100"))
    for _ in range(2):
        worker.work(store, "cuda:0", once=True)
    assert (store.run(run_id).status, store.run(other).status) == ("done", "queued")


def test_here_a_gpu_by_name_is_one_of_this_machine_or_refused(monkeypatch):
    there = [
        {"name": "cuda:0", "title": TITLES["A10"]},
        {"name": "cuda:1", "title": TITLES["A100 of 40 GB"]},
        {"name": "cpu", "title": TITLES["CPU"]},
    ]
    monkeypatch.setattr("starfish_lab.measure.hardware.devices", lambda: there)
    assert worker._choose("gpu:A100") == "cuda:1"
    with pytest.raises(LabError, match="There is no device 'gpu:A40' on this machine. Choose one of: auto, cuda:0"):
        worker._choose("gpu:A40")

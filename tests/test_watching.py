"""Looks at a network while it heals: what they say, that they change nothing and cost healing nothing, and that they survive a kill."""

from __future__ import annotations

import time

import pytest
import torch

from starfish_lab.data.images import ImageSet
from starfish_lab.healing import watching
from starfish_lab.healing.heal import heal
from starfish_lab.healing.watching import Watch, look_at
from starfish_lab.measure.accuracy import predict
from starfish_lab.measure.drift import drift
from starfish_lab.progress import Reporter
from starfish_lab.pruning.prune import make_masks, pruned
from starfish_lab.recipe import HealingChoice, PruningChoice

STEPS = 6
METRICS = ("cosine_distance", "relative_l2", "cka")


class Killed(Exception):
    pass


class Recorder(Reporter):
    """Remembers figures; at every step lets a second pass; fails like a killed process once it has heard of one."""

    def __init__(self, kill_at: int | None = None):
        self.figures, self.kill_at, self.now = {}, kill_at, 0.0

    def metric(self, name, step, value):
        self.figures[name, step] = value

    def progress(self, step, steps):
        self.now += 1
        if step == self.kill_at:
            raise Killed


@pytest.fixture
def clock(monkeypatch):
    """A function that makes a reporter's time the only time there is; a look takes 100 seconds of it."""

    def follow(reporter):
        for name in ("monotonic", "perf_counter"):
            monkeypatch.setattr(time, name, lambda: reporter.now)

        def slow(*arguments, **options):
            reporter.now += 100
            return drift(*arguments, **options)

        monkeypatch.setattr(watching, "drift", slow)
        return reporter

    return follow


def images(network, count, seed=1):
    return torch.randn(count, *network.preprocessing.input_size, generator=torch.Generator().manual_seed(seed))


def labelled(network, count=20):
    return ImageSet.of(images(network, count, seed=3), torch.arange(count) % 10)


def healed(network, *, watched=True, steps=STEPS, reporter=None, folder=None, **changes):
    """The student and what was seen of it."""
    masks = make_masks(network, PruningChoice(sparsity=0.5)).masks
    student = pruned(network, masks)
    choice = HealingChoice(steps=steps, batch_size=4, learning_rate=1e-3, **changes)
    reporter = reporter or Reporter()
    watch = Watch(network, student, images(network, 8), labelled(network), reporter=reporter, file=folder / "seen.json" if folder else None)
    result = heal(
        network, student, masks, images(network, 8, seed=2), choice, reporter=reporter, checkpoint_seconds=0,
        checkpoint=folder / "c" if folder else None, watch=look_at(STEPS, 6) if watched else (), observer=watch if watched else None,
    )  # fmt: skip
    return student, result, watch


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.module.state_dict().values(), b.module.state_dict().values(), strict=True))


def figures(rows):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def test_looks_lie_in_geometric_progression_between_the_first_and_the_last():
    assert look_at(1570, 8) == (0, 1, 3, 12, 40, 135, 461, 1570)
    assert look_at(130, 2) == look_at(130, 1) == (0, 130) and look_at(130, 3) == (0, 1, 130)
    assert look_at(1, 6) == (0, 1) and look_at(0, 6) == (0,) and look_at(130, 0) == look_at(0, 0) == ()


def test_a_look_is_the_drift_and_accuracy_of_a_network_trained_to_that_step_alone(tiny_vit):
    """A constant rate, so that fewer steps are the beginning of more."""
    _, result, watch = healed(tiny_vit, schedule="constant")
    seen = watch.finish(result)
    assert sorted({row["step"] for row in seen["healing_drift"]}) == sorted(look_at(STEPS, 6))
    for step in (0, 2, 6):
        student = pruned(tiny_vit, make_masks(tiny_vit, PruningChoice(sparsity=0.5)).masks)
        if step:
            student, _, _ = healed(tiny_vit, schedule="constant", steps=step, watched=False)
        expected = [row for row in drift(tiny_vit, student, images(tiny_vit, 8)) if row["tokens"] == "all"]
        found = [row for row in seen["healing_drift"] if row["step"] == step]
        assert [(row["block"], row["depth"]) for row in found] == [("blocks.0", 0), ("blocks.1", 1)]
        assert [[row[name] for name in METRICS] for row in found] == [[row[name] for name in METRICS] for row in expected]
        (accuracy,) = [row for row in seen["healing_accuracy"] if row["step"] == step]
        assert accuracy["top1"] == predict(student, labelled(tiny_vit)).correct.mean()
        assert accuracy["low"] < accuracy["top1"] + 1e-12 < accuracy["high"] and accuracy["images"] == 20
    assert seen["healing_drift"][0]["cosine_distance"] > seen["healing_drift"][-2]["cosine_distance"]


@pytest.mark.parametrize("name", ["tiny_vit", "tiny_resnet", "tiny_swin"])
def test_looking_changes_no_bit(name, request):
    network = request.getfixturevalue(name)
    changes = {"augmentation": "flip", "average": 0.9}
    alone, without, _ = healed(network, watched=False, **changes)
    random = torch.random.get_rng_state()
    student, result, watch = healed(network, **changes)
    assert same(alone, student) and result.losses == without.losses and torch.equal(random, torch.random.get_rng_state())
    last = [row["cosine_distance"] for row in watch.finish(result)["healing_drift"] if row["step"] == STEPS]
    of_result = [row for row in drift(network, student, images(network, 8)) if row["tokens"] in ("all", "image")]
    assert last == [row["cosine_distance"] for row in of_result]  # the average, where the average is the result


def test_time_for_looking_is_no_time_of_healing(tiny_vit, clock):
    _, result, watch = healed(tiny_vit, reporter=clock(Recorder()))
    result.repair_seconds = 1000.0  # that of a repair is
    assert [(row["step"], row["seconds"]) for row in watch.finish(result)["healing_accuracy"]] == [(s, 1000 + s) for s in look_at(STEPS, 6)]
    assert result.seconds == STEPS and watch.seconds == 100 * len(look_at(STEPS, 6))


def test_figures_are_told_as_they_come(tiny_vit):
    reporter = Recorder()
    _, result, watch = healed(tiny_vit, reporter=reporter)
    for row in watch.finish(result)["healing_drift"]:
        assert reporter.figures[f"drift.{row['depth']}", row["step"]] == row["cosine_distance"]
    assert reporter.figures["top1", STEPS] == watch.finish(result)["healing_accuracy"][-1]["top1"]


@pytest.mark.parametrize("kill_at", [1, 3, 6])
def test_a_resumed_run_has_the_looks_of_before(tiny_vit, tmp_path, clock, kill_at):
    _, whole, watch = healed(tiny_vit)
    expected = watch.finish(whole)
    with pytest.raises(Killed):
        healed(tiny_vit, reporter=clock(Recorder(kill_at)), folder=tmp_path)
    _, result, watch = healed(tiny_vit, reporter=clock(Recorder()), folder=tmp_path)
    found = watch.finish(result)
    assert result.resumed_from == kill_at - 1
    assert {name: figures(rows) for name, rows in found.items()} == {name: figures(rows) for name, rows in expected.items()}
    assert all(row["seconds"] == row["step"] for rows in found.values() for row in rows)


def test_a_run_killed_after_its_last_step_still_has_its_last_look(tiny_vit, tmp_path):
    _, result, watch = healed(tiny_vit, folder=tmp_path)
    expected = watch.finish(result)
    student, result, watch = healed(tiny_vit, folder=tmp_path)
    assert result.resumed_from == STEPS and figures(watch.finish(result)["healing_drift"]) == figures(expected["healing_drift"])
    (tmp_path / "seen.json").write_text("{")  # and where the file was lost, there is the last
    student, result, watch = healed(tiny_vit, folder=tmp_path)
    found = watch.finish(result)["healing_drift"]
    assert figures(found) == figures([row for row in expected["healing_drift"] if row["step"] == STEPS])


def test_another_run_in_the_same_folder_begins_anew(tiny_vit, tmp_path):
    healed(tiny_vit, folder=tmp_path, seed=1)
    _, result, watch = healed(tiny_vit, folder=tmp_path, schedule="constant")
    _, other, fresh = healed(tiny_vit, schedule="constant")
    assert figures(watch.finish(result)["healing_drift"]) == figures(fresh.finish(other)["healing_drift"])


def test_a_full_disk_costs_nothing_but_resuming(tiny_vit, tmp_path):
    (tmp_path / "file").write_text("")
    network, student = tiny_vit, tiny_vit.copy()
    watch = Watch(network, student, images(network, 8), labelled(network), file=tmp_path / "file" / "seen.json")
    watch(0)


def test_images_without_labels_have_drift_alone(tiny_vit):
    student = tiny_vit.copy()
    watch = Watch(tiny_vit, student, images(tiny_vit, 8), ImageSet.of(images(tiny_vit, 4)))
    watch(0)
    from starfish_lab.healing.heal import HealingResult

    seen = watch.finish(HealingResult())
    assert seen["healing_accuracy"] == [] and [row["cosine_distance"] for row in seen["healing_drift"]] == [0, 0]

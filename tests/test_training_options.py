"""What a training phase may be told beyond its rate: schedule, average, what trains, order, views, the teacher's memory, observers, compiling."""

from __future__ import annotations

import random
from contextlib import contextmanager, nullcontext

import pytest
import torch
from test_healing import Watcher, choose, half, images_for, labels_for, lively, run, same
from torch import nn
from torch.nn import functional as F

from starfish_lab.errors import Cancelled
from starfish_lab.healing import METHODS
from starfish_lab.healing.heal import heal
from starfish_lab.models.network import Network
from starfish_lab.progress import Reporter
from starfish_lab.pruning.masks import apply
from starfish_lab.training import augmentation
from starfish_lab.training.average import Average
from starfish_lab.training.batches import Batches
from starfish_lab.training.checkpoint import Checkpoint
from starfish_lab.training.loop import Loss, TrainingChoice, learning_rate, train


def test_schedules():
    known = {"steps": 30, "learning_rate": 1e-3, "final_learning_rate": 1e-5, "warmup": 10}
    line = [learning_rate(step, 30, TrainingChoice(schedule="linear", **known)) for step in range(1, 32)]
    assert line[:10] == pytest.approx([1e-4 * step for step in range(1, 11)])
    assert line[10:] == pytest.approx([1e-3 - (1e-3 - 1e-5) * k / 20 for k in range(21)])  # the last would be that of step 31
    constant = [learning_rate(step, 30, TrainingChoice(schedule="constant", **known)) for step in range(1, 31)]
    assert constant[:10] == pytest.approx(line[:10]) and set(constant[10:]) == {1e-3}


def test_the_average_is_the_weighted_mean_of_all_steps_but_not_of_the_start():
    value, decay, seen = torch.tensor([100.0, 0.0]), 0.8, []
    average = Average([value], decay)
    for step in range(1, 8):
        value.copy_(torch.tensor([float(step * step), 0.0]))
        seen.append(step * step)
        average.update()
    weights = [decay ** (7 - step) for step in range(1, 8)]
    expected = sum(w * x for w, x in zip(weights, seen)) / sum(weights)
    with average.shown():
        assert value[0].item() == pytest.approx(expected, rel=1e-5) and value[1] == 0
    assert value[0] == 49
    average.settle()
    assert value[0].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("trains", ["weights", "affine", "all"])
def test_the_average_of_weights_and_statistics_resumes_bit_for_bit(tiny_resnet, tmp_path, trains):
    network = lively(tiny_resnet)
    choice, masks = choose(average=0.7, trains=trains, order="shuffled", schedule="linear"), half(network)
    student, result = run(network, choice=choice)
    with pytest.raises(ConnectionResetError):
        run(network, choice=choice, checkpoint=tmp_path / "c", checkpoint_seconds=0, reporter=Watcher(crash_at=5))
    resumed, again = run(network, choice=choice, checkpoint=tmp_path / "c", checkpoint_seconds=0)
    finished, third = run(network, choice=choice, checkpoint=tmp_path / "c")
    assert (again.resumed_from, third.resumed_from) == (4, 7)
    assert same(student, resumed) and same(student, finished) and again.losses == result.losses
    assert all((student.module.get_submodule(name).weight[~mask] == 0).all() for name, mask in masks.items())
    last, _ = run(network, choice=choose(trains=trains, order="shuffled", schedule="linear"))
    assert not same(student, last)


def test_the_average_of_a_run_is_that_of_its_steps(tiny_vit):
    """Runs of 1, 2 and 3 steps at a constant rate end where a longer one passes: their weighted mean is its average."""
    name, decay = "blocks.0.mlp.fc1", 0.6
    ends = [run(tiny_vit, choice=choose(steps=n, schedule="constant"))[0].module.get_submodule(name).weight for n in (1, 2, 3)]
    student, _ = run(tiny_vit, choice=choose(steps=3, schedule="constant", average=decay))
    expected = (decay**2 * ends[0] + decay * ends[1] + ends[2]) / (decay**2 + decay + 1)
    torch.testing.assert_close(student.module.get_submodule(name).weight, expected)


def test_affine_trains_biases_and_norms_and_no_other_weight(tiny_vit):
    images = images_for(tiny_vit)
    student, _ = run(tiny_vit, "cross_entropy", images=images, choice=choose("cross_entropy", trains="affine"))
    masks = half(tiny_vit)
    for name, before in tiny_vit.module.named_parameters():
        moved = not torch.equal(before, student.module.get_parameter(name))
        assert moved == (before.ndim <= 1 or name.removesuffix(".weight") in masks), name
    assert all((student.module.get_submodule(name).weight[~mask] == 0).all() for name, mask in masks.items())


def test_parameters_that_train_in_place_of_the_weights(tiny_vit, tmp_path):
    """A scale for every masked layer, on top of a weight that stays; merged afterwards by the caller."""

    class Scaled(nn.Linear):
        def forward(self, x):
            return F.linear(x, self.weight * self.scale, self.bias)

    def once(trains, **known):
        student = tiny_vit.copy()
        apply(student.module, half(tiny_vit))
        scales = {}
        for name in half(tiny_vit):
            layer = student.module.get_submodule(name)
            layer.__class__ = Scaled
            scales[f"{name}.scale"] = layer.scale = nn.Parameter(torch.ones(1, 1))
        batches = Batches(images_for(tiny_vit), labels_for(images_for(tiny_vit)), batch_size=4)
        choice = TrainingChoice(steps=6, learning_rate=1e-2, trains=trains, average=0.5, weight_decay=0.1, gradient_clip=1.0)
        loss = lambda batch: Loss(F.cross_entropy(student.module(batch.images), batch.labels))  # noqa: E731
        reporter = known.pop("reporter", Reporter())
        keeper = Checkpoint(known.get("file"), key="k", seconds=0, reporter=reporter)
        result = train(student, loss, batches, choice, moves=half(tiny_vit), device="cpu", reporter=reporter, keeper=keeper, instead=scales)
        return student, result

    for trains in ("weights", "affine", "all"):
        student, _ = once(trains)
        for name, before in tiny_vit.module.named_parameters():
            layer, after = name.removesuffix(".weight"), student.module.get_parameter(name)
            if layer in half(tiny_vit):
                assert torch.equal(after, before * half(tiny_vit)[layer]) and (student.module.get_submodule(layer).scale != 1).all()
            else:
                assert torch.equal(after, before) == (trains == "weights" or (trains == "affine" and before.ndim > 1)), name
    with pytest.raises(ConnectionResetError):
        once("affine", file=tmp_path / "c", reporter=Watcher(crash_at=4))
    resumed, result = once("affine", file=tmp_path / "c")
    assert result.resumed_from == 3 and same(resumed, once("affine")[0])


# batches and the teacher


def test_shuffled_calibration_images_come_in_another_order_in_every_epoch(tiny_vit, monkeypatch):
    seen, inner = [], METHODS.get("starfish")

    def spy(session, **options):
        loss = inner(session, **options)
        return lambda batch: seen.append(batch) or loss(batch)

    monkeypatch.setattr(METHODS.module("starfish"), "objective", spy)
    images = images_for(tiny_vit)
    run(tiny_vit, images=images, choice=choose(steps=6, order="shuffled"))
    for batch in seen:
        assert batch.index is None and torch.equal(batch.images, images[batch.rows])
    epochs = [torch.cat([batch.rows for batch in part]).tolist() for part in (seen[:3], seen[3:])]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(11)) and epochs[0] != epochs[1]


def test_teacher_targets_of_shuffled_images_are_kept_image_by_image(tiny_vit):
    """Kept or not, students agree but for rounding; half a teacher differs by float16's rounding and needs half the memory."""
    notes, losses = {}, {}
    for known in ((1.0, "exact"), (0.0, "exact"), (1.0, "half"), (0.0, "half")):
        watcher = Watcher()
        _, result = run(tiny_vit, choice=choose(order="shuffled", teacher=known[1]), teacher_memory_gb=known[0], reporter=watcher)
        notes[known], losses[known] = watcher.notes[0], torch.tensor(result.losses)[:, 1]
    torch.testing.assert_close(losses[1.0, "exact"], losses[0.0, "exact"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(losses[1.0, "half"], losses[0.0, "half"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(losses[1.0, "half"], losses[1.0, "exact"], rtol=2e-3, atol=1e-4)
    assert not torch.equal(losses[1.0, "half"], losses[1.0, "exact"])
    states = 11 * 2 * 17 * 32 * 4 / 1e6  # images, blocks, tokens, width, bytes
    assert f"({states:.2g} MB)" in notes[1.0, "exact"] and f"({states / 2:.2g} MB)" in notes[1.0, "half"]
    assert "0 of 3 batches" in notes[0.0, "exact"]


def test_light_views_keep_at_least_60_percent_of_the_image(tiny_vit):
    boxes = [augmentation.box(100, 100, random.Random(i), augmentation.LIGHT_AREA) for i in range(300)]
    shares = [h * w / 1e4 for _, _, h, w in boxes]
    assert 0.58 < min(shares) < 0.65 and 0.95 < max(shares) <= 1
    assert all(0.72 <= w / h <= 1.38 for _, _, h, w in boxes)
    images = images_for(tiny_vit)
    batches, again = (Batches(images, batch_size=4, augmentation="light", seed=2) for _ in range(2))
    first = [batches(step) for step in (1, 2, 3, 4)]
    assert all(torch.equal(again(step).images, first[step - 1].images) for step in (3, 1, 4))
    assert not torch.equal(first[0].images, first[3].images) and first[0].rows is None and first[0].images.shape == (4, 3, 32, 32)


# observers


@pytest.mark.parametrize("average", [0.0, 0.5])
def test_an_observer_sees_what_training_would_leave_and_changes_nothing(tiny_resnet, average):
    network = lively(tiny_resnet)
    plain, _ = run(network, choice=choose(average=average, schedule="constant"))
    student, seen = network.copy(), {}

    def look(step):
        assert not student.module.training and not torch.is_grad_enabled()
        student.module(images_for(network))
        torch.rand(3)
        seen[step] = student.copy()

    heal(network, student, half(network), images_for(network), choose(average=average, schedule="constant"), watch=(0, 2, 7), observer=look)
    assert sorted(seen) == [0, 2, 7] and same(student, plain) and same(seen[7], student)
    start = network.copy()
    apply(start.module, half(network))
    assert same(seen[0], start)
    assert same(seen[2], run(network, choice=choose(average=average, schedule="constant", steps=2))[0])


def test_a_look_that_was_cut_off_is_taken_by_the_resumed_run(tiny_vit, tmp_path):
    looks = []

    def look(step):
        looks.append(step)
        if len(looks) == 1:
            raise Cancelled

    for ending in (pytest.raises(Cancelled), nullcontext()):
        with ending:
            heal(
                tiny_vit, tiny_vit.copy(), half(tiny_vit), images_for(tiny_vit), choose(), watch=(2,), observer=look, checkpoint=tmp_path / "c.pt",
                checkpoint_seconds=0,
            )  # fmt: skip
    assert looks == [2, 2]


# compiling


def test_where_compiling_fails_training_goes_on_without_and_says_so(tiny_resnet, monkeypatch):
    def broken(function, **options):
        def forward(*inputs):
            raise RuntimeError("No working C++ compiler found\nmore")

        return forward

    monkeypatch.setattr(torch, "compile", broken)
    network, watcher = lively(tiny_resnet), Watcher()
    student, _ = run(network, choice=choose(compile=True), reporter=watcher)
    assert same(student, run(network)[0])  # batch statistics of the trial are put back, its gradients forgotten
    assert sum("torch.compile is of no use here (RuntimeError: No working C++ compiler found)" in note for note in watcher.notes) == 1


def test_compiled_blocks_that_lose_a_hook_are_found_out(tiny_vit, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda forward: lambda x: 2 * forward(x))
    watcher = Watcher()
    student, _ = run(tiny_vit, choice=choose(compile=True), images=images_for(tiny_vit), reporter=watcher)
    assert any("the loss of a step is" in note for note in watcher.notes) and same(student, run(tiny_vit)[0])


def test_the_compiled_functions_run_in_training_alone(tiny_vit, monkeypatch):
    calls = []
    monkeypatch.setattr(torch, "compile", lambda forward: lambda x: calls.append(1) or forward(x))
    student, seen = tiny_vit.copy(), []
    heal(
        tiny_vit, student, half(tiny_vit), images_for(tiny_vit), choose(compile=True), watch=(3,),
        observer=lambda step: (student.module(images_for(tiny_vit)), seen.append(len(calls))),
    )  # fmt: skip
    assert seen == [2 * (2 + 3)] and len(calls) == 2 * (2 + 7)  # blocks × (trials + steps)
    assert same(student, run(tiny_vit)[0]) and all("forward" not in vars(block) for block in student.module.blocks)


def test_a_method_s_own_parameters_are_merged_and_the_masks_hold(tiny_vit, monkeypatch):
    """Whatever a reparametrisation leaves in the weights on its way out, the masks fall on it."""

    @contextmanager
    def reparametrise(session, **options):
        layers = {name: session.student.module.get_submodule(name) for name in session.masks}
        yield {f"{name}.bias": layer.bias for name, layer in layers.items()}
        with torch.no_grad():
            for layer in layers.values():
                layer.weight.add_(1.0)

    monkeypatch.setattr(METHODS.module("starfish"), "reparametrise", reparametrise, raising=False)
    student, _ = run(tiny_vit)
    for name, mask in half(tiny_vit).items():
        layer, before = student.module.get_submodule(name), tiny_vit.module.get_submodule(name)
        assert torch.equal(layer.weight, (before.weight * mask + 1) * mask) and not torch.equal(layer.bias, before.bias)


def test_a_network_of_one_layer_takes_every_option():
    network = Network.of(nn.Sequential(nn.Linear(6, 6)), blocks=["0"], input_size=(6,))
    choice = choose(order="shuffled", teacher="half", average=0.9, schedule="constant", trains="affine", precision="tf32")
    student = network.copy()
    before = torch.get_float32_matmul_precision()
    heal(network, student, {"0": torch.eye(6, dtype=torch.bool)}, torch.randn(9, 6), choice)
    assert torch.get_float32_matmul_precision() == before and (student.module[0].weight[~torch.eye(6, dtype=torch.bool)] == 0).all()

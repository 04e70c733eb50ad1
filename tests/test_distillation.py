"""Distillation, and healing on training images: labels, pictures, precision, and what the teacher keeps."""

from __future__ import annotations

import pytest
import torch
from test_healing import Watcher, half, images_for, labels_for, lively, same
from test_training import choose, entropy
from torch import nn
from torch.nn import functional as F

from starfish_lab.data.images import ImageSet
from starfish_lab.errors import RecipeError
from starfish_lab.healing import METHODS
from starfish_lab.healing.heal import heal
from starfish_lab.healing.session import Session
from starfish_lab.models.network import Network
from starfish_lab.progress import Reporter
from starfish_lab.pruning.masks import apply
from starfish_lab.recipe import HealingChoice
from starfish_lab.training.batches import Batches
from starfish_lab.training.loop import train


def test_the_loss_of_distillation_by_hand(tiny_vit):
    student, images = tiny_vit.copy(), images_for(tiny_vit, 6)
    apply(student.module, half(tiny_vit))
    batches = Batches(images, labels_for(images), batch_size=6)
    session = Session(
        dense=tiny_vit, student=student, masks=half(tiny_vit), batches=batches, calibration=images, device=torch.device("cpu"),
        reporter=Reporter(), teacher_memory=1e9,
    )  # fmt: skip
    with torch.no_grad():
        teacher, logits = tiny_vit.module(images).double(), student.module(images).double()
    for options in ({}, {"alpha": 0.3, "temperature": 4.0, "smoothing": 0.2}, {"alpha": 0.0}, {"alpha": 1.0}):
        a, t, s = options.get("alpha", 0.5), options.get("temperature", 2.0), options.get("smoothing", 0.1)
        hard = (1 - s) * F.one_hot(batches.labels, 10).double() + s / 10
        entropy_ = -(hard * logits.log_softmax(-1)).sum(-1).mean()
        p, q = (teacher / t).softmax(-1), (logits / t).softmax(-1)
        expected = (1 - a) * entropy_ + a * t**2 * (p * (p / q).log()).sum(-1).mean()
        found = METHODS.get("distillation")(session, **options)(batches(1)).total
        assert found.item() == pytest.approx(expected.item(), rel=1e-4), options
    for wrong in ({"alpha": 2}, {"temperature": 0}, {"smoothing": -1}, {"alpha": True}):
        with pytest.raises(RecipeError, match=f"healing.options.{next(iter(wrong))}"):
            METHODS.get("distillation")(session, **wrong)


def test_distillation_brings_a_pruned_network_s_accuracy_back():
    torch.manual_seed(0)
    centres = 1.2 * torch.randn(8, 12)
    module = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    network = Network.of(module, blocks=["0", "2"], input_size=(12,), num_classes=8)

    def drawn(count, seed):
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(8, (count,), generator=generator)
        return ImageSet.of(centres[labels] + torch.randn(count, 12, generator=generator), labels)

    def accuracy(network, images):
        with torch.no_grad():
            return (network.module(images.tensor()).argmax(-1) == images.labels).float().mean().item()

    seen, unseen = drawn(512, 1), drawn(512, 2)
    ones = {name: torch.ones_like(module.get_submodule(name).weight, dtype=torch.bool) for name in ("0", "2")}
    choice = choose(steps=150, learning_rate=5e-3, trains="all")
    train(network, entropy(network), Batches(seen, batch_size=64, shuffle=True), choice, moves=ones, device="cpu", reporter=Reporter())
    masks = {}
    for name in ones:
        weight = module.get_submodule(name).weight.abs()
        masks[name] = weight > weight.flatten().quantile(0.92)
    student = network.copy()
    apply(student.module, masks)
    dense, before = accuracy(network, unseen), accuracy(student, unseen)
    healing = HealingChoice(
        method="distillation", epochs=12, batch_size=64, learning_rate=5e-3, final_learning_rate=0, warmup=20, optimiser="adamw", weight_decay=0.01,
        trains="all", images="training",
    )  # fmt: skip
    result = heal(network, student, masks, seen.tensor(), healing, training=seen)
    after = accuracy(student, unseen)
    assert result.steps == 96 and dense > 0.9 > 0.7 > before and after > before + 0.5 * (dense - before), (dense, before, after)
    assert all((student.module.get_submodule(name).weight[~mask] == 0).all() for name, mask in masks.items())


@pytest.mark.parametrize("method", [name for name in METHODS.names() if name != "none"])
def test_every_method_takes_training_pictures_in_bf16(tiny_resnet, pictures, method, tmp_path):
    network = lively(tiny_resnet)
    masks = half(network)
    choice = HealingChoice(
        method=method, steps=5, batch_size=4, images="training", augmentation="timm", precision="bf16", optimiser="sgd", trains="all",
        weight_decay=1e-4, gradient_clip=1.0, warmup=2, learning_rate=1e-2, options={"nesterov": True, "momentum": 0.8},
    )  # fmt: skip
    students = []
    for known in ({}, {"checkpoint": tmp_path / "c", "checkpoint_seconds": 0, "reporter": Watcher(crash_at=3)}, {"checkpoint": tmp_path / "c"}):
        student = network.copy()
        if "reporter" in known:
            with pytest.raises(ConnectionResetError):
                heal(network, student, masks, torch.zeros(2, 3, 32, 32), choice, training=pictures, **known)
            continue
        result = heal(network, student, masks, torch.zeros(2, 3, 32, 32), choice, training=pictures, **known)
        students.append(student)
    assert result.resumed_from == 2 and same(*students)
    assert all((student.module.get_submodule(name).weight[~mask] == 0).all() for name, mask in masks.items())


def test_without_training_images_the_calibration_images_train(tiny_vit, pictures):
    choice = HealingChoice(method="distillation", steps=3, batch_size=4, images="training")
    one, two, three = (tiny_vit.copy() for _ in range(3))
    heal(tiny_vit, one, half(tiny_vit), pictures, choice)  # an ImageSet brings its labels and pictures
    heal(tiny_vit, two, half(tiny_vit), pictures.tensor(), choice, labels=pictures.labels)
    heal(tiny_vit, three, half(tiny_vit), pictures.tensor()[:2], choice, labels=pictures.labels[:2], training=pictures)
    assert same(one, two) and same(one, three)
    with pytest.raises(RecipeError, match="needs labels, and the training images have none"):
        bare = ImageSet.of(pictures.tensor())
        heal(tiny_vit, one, half(tiny_vit), pictures.tensor(), choice, labels=pictures.labels, training=bare)
    with pytest.raises(RecipeError, match="needs labels, and the calibration images have none"):
        heal(tiny_vit, one, half(tiny_vit), pictures.tensor(), choice)
    with pytest.raises(RecipeError, match="options.momentum is 2"):
        heal(tiny_vit, one, half(tiny_vit), pictures, HealingChoice(steps=1, optimiser="sgd", options={"momentum": 2}))
    with pytest.raises(RecipeError, match="options.momentum is no option of 'starfish'"):
        heal(tiny_vit, one, half(tiny_vit), pictures, HealingChoice(steps=1, options={"momentum": 0.9}))


def test_teacher_targets_are_cached_only_where_batches_come_again(tiny_vit, pictures):
    passes = []
    tiny_vit.module.register_forward_hook(lambda *_: passes.append(1))
    student = tiny_vit.copy()
    student.module._forward_hooks.clear()
    for changes, expected in (({}, 3), ({"images": "training"}, 4), ({"augmentation": "flip"}, 7)):
        passes.clear()
        heal(tiny_vit, student, half(tiny_vit), pictures, HealingChoice(steps=7, batch_size=4, **changes))
        assert len(passes) == expected, changes

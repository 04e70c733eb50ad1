"""The training loop's promises: what may not move does not, a cut-off run ends where it would have, batches depend on seed and step alone."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image
from test_healing import Watcher, half, images_for, labels_for, lively, same
from torch import nn
from torch.nn import functional as F

from starfish_lab.data.images import transform
from starfish_lab.errors import ImagesError, RecipeError
from starfish_lab.healing import METHODS
from starfish_lab.healing.heal import heal
from starfish_lab.models.network import Network, Preprocessing
from starfish_lab.progress import Reporter
from starfish_lab.pruning.masks import apply
from starfish_lab.recipe import HealingChoice
from starfish_lab.training import augmentation
from starfish_lab.training.batches import Batches
from starfish_lab.training.checkpoint import Checkpoint, fingerprint
from starfish_lab.training.loop import Loss, TrainingChoice, learning_rate, train

OPTIMISERS = {
    "adam": {"optimiser": "adam"},
    "adamw": {"optimiser": "adamw"},
    "sgd": {"optimiser": "sgd", "momentum": 0.9, "learning_rate": 0.05},
    "nesterov": {"optimiser": "sgd", "momentum": 0.9, "nesterov": True, "learning_rate": 0.05},
}


def choose(**changes) -> TrainingChoice:
    return TrainingChoice(**{"steps": 7, "learning_rate": 1e-2, **changes})


def entropy(network: Network):
    return lambda batch: Loss(F.cross_entropy(network.module(batch.images).float(), batch.labels))


def trained(network: Network, choice: TrainingChoice, *, moves=None, batches=None, **known):
    """(a trained copy, result): cross-entropy on noise, by default."""
    student = network.copy()
    images = images_for(network)
    batches = batches or Batches(images, labels_for(images), batch_size=4, shuffle=True)
    known = {"device": "cpu", "reporter": Reporter(), **known}
    return student, train(student, entropy(student), batches, choice, moves=moves or half(network), **known)


# what moves and what does not


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("trains", ["weights", "all"])
def test_what_may_not_move_keeps_its_value_bit_for_bit(tiny_vit, optimiser, trains):
    """Zeros stay zero and frozen values stay, whatever decays, gathers momentum or is clipped."""
    masks = half(tiny_vit)
    apply(tiny_vit.module, masks)
    generator = torch.Generator().manual_seed(4)
    moves = {name: torch.rand(mask.shape, generator=generator) < 0.3 for name, mask in masks.items()}  # kept, frozen and zero entries alike
    choice = choose(**OPTIMISERS[optimiser], weight_decay=0.3, gradient_clip=0.5, trains=trains)
    student, result = trained(tiny_vit, choice, moves=moves)
    assert result.steps == 7
    for name, may in moves.items():
        before, after = (n.module.get_submodule(name).weight for n in (tiny_vit, student))
        assert torch.equal(before[~may], after[~may]), name
        assert (before[may] != after[may]).float().mean() > 0.9, name
    for name, before in tiny_vit.module.named_parameters():
        if name.removesuffix(".weight") not in moves:
            assert torch.equal(before, student.module.get_parameter(name)) == (trains == "weights"), name


def test_all_trains_head_and_biases_but_no_zero(tiny_resnet):
    network, masks = lively(tiny_resnet), half(tiny_resnet)
    student = network.copy()
    images = images_for(network)
    heal(network, student, masks, images, HealingChoice(method="cross_entropy", steps=3, batch_size=4, trains="all"), labels=labels_for(images))
    for name in ("fc.weight", "fc.bias", "conv1.weight", "bn1.weight", "layer1.0.bn1.bias"):
        assert not torch.equal(student.module.get_parameter(name), network.module.get_parameter(name)), name
    assert all((student.module.get_submodule(name).weight[~mask] == 0).all() for name, mask in masks.items())
    assert all(p.requires_grad and p.grad is None for p in student.module.parameters())


def test_biases_tokens_and_positions_do_not_decay(tiny_vit):
    """A loss without a gradient moves nothing but by decay: AdamW takes lr · decay of every weight that decays."""
    student = tiny_vit.copy()
    choice = choose(steps=1, optimiser="adamw", learning_rate=0.1, weight_decay=0.5, trains="all")

    def flat(batch):
        return Loss(0 * student.module(batch.images).sum())

    images = images_for(tiny_vit)
    train(student, flat, Batches(images, batch_size=4), choice, moves=half(tiny_vit), device="cpu", reporter=Reporter())
    for name, before in tiny_vit.module.named_parameters():
        after = student.module.get_parameter(name)
        if name in ("cls_token", "pos_embed") or before.ndim == 1:
            assert torch.equal(before, after), name
        else:
            mask = half(tiny_vit).get(name.removesuffix(".weight"), torch.ones_like(before, dtype=torch.bool))
            torch.testing.assert_close(after[mask], 0.95 * before[mask])


@pytest.mark.parametrize("nesterov", [False, True])
def test_a_step_of_sgd_by_hand(tiny_vit, nesterov):
    """Step 1 moves by lr · (1 + momentum) · g with Nesterov, by lr · g without."""
    batches = Batches(images_for(tiny_vit), labels_for(images_for(tiny_vit)), batch_size=11)
    masks = half(tiny_vit)
    start = tiny_vit.copy()
    entropy(start)(batches(1)).total.backward()
    choice = choose(steps=1, optimiser="sgd", learning_rate=0.1, nesterov=nesterov)
    student, _ = trained(tiny_vit, choice, batches=batches)
    for name, mask in masks.items():
        weight, before = (n.module.get_submodule(name).weight for n in (student, start))
        step = 0.1 * (1.9 if nesterov else 1.0) * before.grad
        torch.testing.assert_close(weight[mask], (before - step)[mask], rtol=1e-5, atol=1e-7)


def test_the_clip_bounds_the_gradient_of_what_trains(tiny_vit):
    batches = Batches(images_for(tiny_vit) * 3, labels_for(images_for(tiny_vit)), batch_size=11)
    masks = half(tiny_vit)
    moved = {}
    for clip in (0.0, 0.01, 1e6):
        student, _ = trained(tiny_vit, choose(steps=1, optimiser="sgd", momentum=0.0, learning_rate=1.0, gradient_clip=clip), batches=batches)
        difference = [(student.module.get_submodule(n).weight - tiny_vit.module.get_submodule(n).weight)[m] for n, m in masks.items()]
        moved[clip] = torch.cat(difference).norm().item()
    assert moved[0.01] == pytest.approx(0.01, rel=1e-3) and moved[0.0] == pytest.approx(moved[1e6]) and moved[0.0] > 0.02


def test_the_rate_warms_up_on_a_line_then_follows_the_cosine():
    choice = choose(steps=30, learning_rate=1e-3, final_learning_rate=1e-5, warmup=10)
    rates = [learning_rate(step, 30, choice) for step in range(1, 31)]
    assert rates[:10] == pytest.approx([1e-4 * step for step in range(1, 11)])
    assert rates[10] == pytest.approx(1e-3) and rates[20] == pytest.approx((1e-3 + 1e-5) / 2)
    assert rates[10:] == sorted(rates[10:], reverse=True) and 1e-5 < rates[-1] < 3e-5
    assert learning_rate(3, 3, choose(warmup=10)) == pytest.approx(3e-3)  # a run shorter than its warm-up


@pytest.mark.parametrize("method", [name for name in METHODS.names() if name != "none"])
def test_bf16_runs_close_to_float32(tiny_vit, method):
    images = images_for(tiny_vit)
    losses = {}
    for precision in ("float32", "bf16"):
        student = tiny_vit.copy()
        choice = HealingChoice(method=method, steps=5, batch_size=4, precision=precision)
        result = heal(tiny_vit, student, half(tiny_vit), images, choice, labels=labels_for(images))
        losses[precision] = [loss for _, loss in result.losses]
        assert all(p.dtype == torch.float32 for p in student.module.parameters())
    assert losses["bf16"] != losses["float32"] and losses["bf16"][0] == pytest.approx(losses["float32"][0], rel=0.1)


# batches


def test_batches_depend_on_seed_and_step_alone():
    images, labels = torch.randn(11, 3, 8, 8), torch.arange(11)
    known = {"batch_size": 4, "shuffle": True, "augmentation": "crop"}
    batches, again = Batches(images, labels, seed=3, **known), Batches(images, labels, seed=3, **known)
    assert (batches.count, batches.per_epoch) == (11, 3)
    first = [batches(step) for step in range(1, 7)]
    for step in (5, 1, 6, 2):
        batch = again(step)
        assert batch.index is None and torch.equal(batch.images, first[step - 1].images) and torch.equal(batch.labels, first[step - 1].labels)
    one, two = (torch.cat([batch.labels for batch in part]) for part in (first[:3], first[3:]))
    assert sorted(one.tolist()) == sorted(two.tolist()) == list(range(11)) and not torch.equal(one, two)
    other = Batches(images, labels, seed=4, **known)(1)
    assert not torch.equal(other.labels, first[0].labels) and other.images.shape == (4, 3, 8, 8)


def test_batches_without_chance_repeat_and_have_an_index():
    images = torch.randn(11, 3, 8, 8)
    batches = Batches(images, batch_size=4)
    for step in (1, 2, 3, 4):
        batch = batches(step)
        assert batch.index == (step - 1) % 3 and batch.labels is None
        assert torch.equal(batch.images, images.split(4)[batch.index])


@pytest.mark.parametrize("kind", ["none", "flip", "crop", "timm"])
def test_pictures_are_drawn_anew_in_every_epoch_and_the_same_again(pictures, kind):
    batches = Batches(pictures, batch_size=4, shuffle=True, augmentation=kind, seed=1)
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    epochs = [torch.cat([batches(step).images[batches(step).labels.argsort()] for step in range(3 * e + 1, 3 * e + 4)]) for e in range(3)]
    assert random.getstate() == states[0] and (np.random.get_state()[1] == states[1]).all() and torch.equal(torch.get_rng_state(), states[2])
    assert all(epoch.shape == (11, 3, 32, 32) and torch.isfinite(epoch).all() for epoch in epochs)
    again = Batches(pictures, batch_size=4, shuffle=True, augmentation=kind, seed=1)
    assert all(torch.equal(again(step).images, batches(step).images) for step in (9, 2))

    def of(number, epoch):  # the picture with that number, wherever the shuffle put it
        found = [batches(step) for step in range(3 * epoch + 1, 3 * epoch + 4)]
        labels, images = torch.cat([b.labels for b in found]), torch.cat([b.images for b in found])
        return images[(labels == number).nonzero()[0, 0]]

    plain = transform(pictures.preprocessing)(pictures.picture(5))
    views = [of(5, epoch) for epoch in range(6)]
    if kind == "none":
        assert all(torch.equal(view, plain) for view in views)
    elif kind == "flip":
        mirrored = [torch.equal(view, plain.flip(-1)) for view in views]
        assert all(m or torch.equal(view, plain) for m, view in zip(mirrored, views)) and 0 < sum(mirrored) < 6
    else:
        assert not any(torch.equal(one, two) for i, one in enumerate(views) for two in views[:i])


def test_a_random_box_lies_inside_and_has_the_size_it_should():
    for height, width in ((50, 70), (32, 32), (10, 400), (400, 10)):
        boxes = [augmentation.box(height, width, random.Random(i)) for i in range(300)]
        assert all(min(t, left) >= 0 < min(h, w) and t + h <= height and left + w <= width for t, left, h, w in boxes)
        assert all(0.7 <= w / h <= 1.45 for _, _, h, w in boxes)
        if height < 100 > width:
            shares = [h * w / (height * width) for _, _, h, w in boxes]
            assert 0.07 <= min(shares) < 0.15 and 0.85 < max(shares) <= 1 and len(set(boxes)) > 250


def test_crops_of_pictures_and_of_prepared_images_agree():
    """The same box cut before preparation and after it: equal up to the rounding of pictures to whole numbers."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    preprocessing = Preprocessing(input_size=(3, 32, 32), mean=(0.5, 0.4, 0.3), std=(0.5, 0.5, 0.5), interpolation="bilinear", crop_pct=1.0)
    prepared = transform(preprocessing)(picture)
    for seed in range(5):
        one, two = (augmentation.crop(image, random.Random(seed), preprocessing) for image in (picture, prepared))
        assert one.shape == (3, 32, 32)
        torch.testing.assert_close(one, two, rtol=0, atol=0.03)


def test_every_change_that_timm_may_draw_works_at_the_top_of_its_scale(pictures):
    """Noise on the magnitude reaches the top for one image in some hundred: rare enough to stay unseen for an epoch."""
    transform = augmentation.timm_transform(pictures.preprocessing)
    ops = next(step for step in transform.transforms if hasattr(step, "ops")).ops
    assert len(ops) >= 14
    for op in ops:
        op.prob, op.magnitude, op.magnitude_std = 1.0, 10, 0
        changed = np.asarray(op(pictures.picture(0)))
        assert changed.shape == (36, 50, 3) and changed.std() > 0, op.name


def test_broken_pictures_are_left_out_and_named(pictures, tmp_path):
    for name in ("3.png", "7.png"):
        (tmp_path / "pictures" / name).write_bytes(b"no picture")
    for kind in ("none", "timm"):
        batches = Batches(pictures, batch_size=4, augmentation=kind)
        assert [batches(step).labels.tolist() for step in (1, 2, 3, 4)] == [[0, 1, 2], [4, 5, 6], [8, 9, 0], [0, 1, 2]]
        assert len(batches(1).images) == 3 and sorted(batches.skipped) == ["3.png", "7.png"]
    with pytest.raises(ImagesError, match="No image of a whole batch"):
        Batches(pictures, batch_size=1)(4)


def test_clear_refusals_of_batches(pictures):
    with pytest.raises(RecipeError, match="'timm' changes pictures.*no picture files"):
        Batches(torch.zeros(3, 3, 8, 8), batch_size=2, augmentation="timm")
    with pytest.raises(RecipeError, match="no augmentation 'mixup'"):
        Batches(pictures, batch_size=2, augmentation="mixup")
    with pytest.raises(ImagesError, match="2 labels for 3 images"):
        Batches(torch.zeros(3, 3, 8, 8), torch.arange(2), batch_size=2)
    with pytest.raises(ImagesError, match="no images to train on"):
        Batches(torch.zeros(0, 3, 8, 8), batch_size=2)


# checkpoints


@pytest.mark.parametrize("kind", ["none", "flip", "crop", "timm"])
@pytest.mark.parametrize("optimiser", ["adamw", "nesterov"])
def test_a_run_cut_off_within_an_epoch_ends_where_it_would_have(tiny_resnet, pictures, tmp_path, kind, optimiser):
    """Batch norm, dropout, momentum, shuffled and augmented epochs: all go on exactly."""
    network = lively(tiny_resnet)
    network.module.fc = nn.Sequential(nn.Dropout(0.3), network.module.fc)
    choice = choose(**OPTIMISERS[optimiser], steps=8, warmup=2, weight_decay=1e-2, gradient_clip=1.0, trains="all")

    def once(reporter=None, file=None):
        batches = Batches(pictures, batch_size=4, shuffle=True, augmentation=kind)
        reporter = reporter or Reporter()
        return trained(
            network, choice, batches=batches, reporter=reporter, keeper=Checkpoint(file, key="a", seconds=0, reporter=reporter)
        )  # fmt: skip

    student, result = once()
    with pytest.raises(ConnectionResetError):
        once(Watcher(crash_at=6), tmp_path / "c.pt")
    resumed, again = once(Watcher(), tmp_path / "c.pt")
    assert again.resumed_from == 5 and again.losses == result.losses and same(student, resumed)


def test_a_checkpoint_that_fits_by_name_only_is_noted_and_not_used(tiny_vit, tiny_resnet, tmp_path):
    file = tmp_path / "c.pt"
    expected, _ = trained(tiny_vit, choose(optimiser="adamw"))

    def with_file(network, reporter, **changes):
        keeper = Checkpoint(file, key="the same", seconds=1e9, reporter=reporter, what="tuning")
        return trained(network, choose(**changes), reporter=reporter, keeper=keeper, what="tuning")

    for network, changes in ((lively(tiny_resnet), {}), (tiny_vit, {"trains": "all"}), (tiny_vit, {"optimiser": "sgd"})):
        with_file(network, Reporter(), **changes)
        watcher = Watcher()
        if changes.get("optimiser") == "sgd":  # an optimiser of another kind brings other memories
            saved = torch.load(file, weights_only=True)
            saved["optimiser"] = {"state": {}, "param_groups": []}
            torch.save(saved, file)
        elif changes:
            saved = torch.load(file, weights_only=True)
            del saved["network"]["blocks.0.mlp.fc1.weight"]
            torch.save(saved, file)
        student, result = with_file(tiny_vit, watcher, optimiser="adamw")
        assert result.resumed_from == 0 and same(student, expected)
        assert any("c.pt cannot be read" in note and "tuning starts from the first step" in note for note in watcher.notes)


def test_a_damaged_checkpoint_is_noticed(tiny_vit, tmp_path):
    """One bit somewhere in a weight: torch alone would load it without a word."""
    file = tmp_path / "c.pt"
    keeper = Checkpoint(file, key="k", seconds=0, reporter=Reporter())
    keeper.save({"network": {"weight": torch.ones(5000)}})
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x55
    file.write_bytes(content)
    assert not (torch.load(file, weights_only=True)["network"]["weight"] == 1).all()
    watcher = Watcher()
    assert Checkpoint(file, key="k", seconds=0, reporter=watcher).load() is None and "cannot be read" in watcher.notes[0]


def test_fingerprints_tell_apart_what_differs(pictures):
    images = torch.randn(11, 3, 8, 8)
    made = [
        Batches(images, batch_size=4), Batches(images + 1, batch_size=4), Batches(images, batch_size=5), Batches(images, batch_size=4, shuffle=True),
        Batches(images, batch_size=4, augmentation="flip"), Batches(images, torch.arange(11), batch_size=4), Batches(pictures, batch_size=4),
    ]  # fmt: skip
    assert len({batches.fingerprint() for batches in made}) == len(made)
    assert made[0].fingerprint() == Batches(images.clone(), batch_size=4).fingerprint()
    assert fingerprint({"a": 1}) == fingerprint({"a": 1}) != fingerprint({"a": 2})

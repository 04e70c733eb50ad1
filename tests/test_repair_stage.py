"""The repair before training: once and never again, seeded, under the masks, in the checkpoint; the registry, and what a session offers."""

from __future__ import annotations

import pytest
import torch
from test_healing import Watcher, choose, half, images_for, labels_for, lively, run, same

from starfish_lab import tokens
from starfish_lab.errors import Cancelled, RecipeError
from starfish_lab.healing import METHODS, REPAIRS
from starfish_lab.healing.heal import heal
from starfish_lab.healing.session import Session
from starfish_lab.pruning.masks import apply
from starfish_lab.recipe import HealingChoice, TokensChoice
from starfish_lab.training.batches import Batches


@pytest.fixture
def noisy(monkeypatch):
    """The repair 'dense' made random and dense: weights, biases and statistics all change. Yields the list of its calls."""
    calls = []

    def repair(session):
        calls.append(session)
        assert not session.student.module.training and torch.is_grad_enabled()
        with torch.no_grad():
            for value in session.student.module.state_dict().values():
                if value.is_floating_point():
                    value.add_(0.01 * torch.rand(value.shape))

    monkeypatch.setattr(REPAIRS.module("dense"), "repair", repair)
    return calls


def test_every_entry_has_plain_defaults_that_are_fields_of_the_choice():
    fields = set(HealingChoice.__dataclass_fields__)
    for registry in (METHODS, REPAIRS):
        for name in registry.names():
            assert set(registry.constant(name, "DEFAULTS", {})) <= fields, name


def test_dense_takes_back_what_a_compensation_gave(tiny_vit):
    masks, student = half(tiny_vit), tiny_vit.copy()
    with torch.no_grad():
        for name in masks:
            student.module.get_submodule(name).weight.mul_(1.3)
            student.module.get_submodule(name).bias.add_(0.1)
    result = heal(tiny_vit, student, masks, images_for(tiny_vit), HealingChoice(method="none", repair="dense"))
    start = tiny_vit.copy()
    apply(start.module, masks)
    assert same(student, start) and result.steps == 0 and result.losses == [] and result.repair_seconds > 0


def test_a_repair_is_seeded_masked_and_never_repeated(tiny_resnet, noisy, tmp_path):
    """Statistics and biases that nothing trains come back from the checkpoint too."""
    network, masks = lively(tiny_resnet), half(tiny_resnet)
    choice = choose(repair="dense")
    torch.manual_seed(7)
    outside = torch.rand(1)
    torch.manual_seed(7)
    student, result = run(network, choice=choice)
    assert torch.equal(torch.rand(1), outside) and len(noisy) == 1 and result.repair_seconds > 0 and result.steps == 7
    assert all((student.module.get_submodule(name).weight[~mask] == 0).all() for name, mask in masks.items())
    assert not torch.equal(student.module.fc.bias, network.module.fc.bias)
    assert same(student, run(network, choice=choice)[0]) and not same(student, run(network, choice=choose(repair="dense", seed=1))[0])

    del noisy[:]
    file = tmp_path / "c"
    for crash, repairs, steps in ((1, 1, 0), (5, 0, 0), (None, 0, 4), (None, 0, 7)):  # a crash in step 1 comes before its checkpoint
        watcher = Watcher(crash_at=crash)
        if crash:
            with pytest.raises(ConnectionResetError):
                run(network, choice=choice, checkpoint=file, checkpoint_seconds=0, reporter=watcher)
        else:
            resumed, again = run(network, choice=choice, checkpoint=file, checkpoint_seconds=0, reporter=watcher)
            assert again.resumed_from == steps and same(student, resumed) and again.losses == result.losses
            assert again.repair_seconds > 0
        assert len(noisy) == repairs
        del noisy[:]
        assert not any("cannot be read" in note or "another run" in note for note in watcher.notes)


def test_a_checkpoint_without_the_repaired_network_is_noted_and_not_used(tiny_vit, noisy, tmp_path):
    file, watcher = tmp_path / "c", Watcher()
    student, _ = run(tiny_vit, choice=choose(repair="dense"), checkpoint=file)
    saved = torch.load(file, weights_only=True)
    del saved["repaired"]["head.bias"]
    torch.save(saved, file)
    again, result = run(tiny_vit, choice=choose(repair="dense"), checkpoint=file, reporter=watcher)
    assert result.resumed_from == 0 and same(student, again) and sum("no repaired network" in note for note in watcher.notes) == 1


def test_a_repair_alone_is_kept_and_watched_once(tiny_vit, noisy, tmp_path):
    seen, students = [], []
    choice = HealingChoice(method="none", repair="dense")
    known = {"checkpoint": tmp_path / "c", "watch": (0, 5), "observer": lambda step: seen.append((step, students[-1].copy()))}
    for _ in range(2):
        students.append(tiny_vit.copy())
        result = heal(tiny_vit, students[-1], half(tiny_vit), images_for(tiny_vit), choice, **known)
        assert len(noisy) == 1 and result.repair_seconds > 0
        assert [step for step, _ in seen] == [0] and same(seen[0][1], students[-1])


def test_the_key_covers_the_repair_and_its_images(tiny_vit, tmp_path):
    file = tmp_path / "c"
    for changes in ({}, {"repair": "dense"}):
        watcher = Watcher()
        run(tiny_vit, choice=choose(**changes), checkpoint=file, reporter=watcher)
        assert any("another run" in note for note in watcher.notes) == bool(changes)


def test_options_of_a_repair_are_its_own(tiny_vit):
    with pytest.raises(RecipeError, match="healing.repair_options.glue is no option of 'dense'. Its options: none."):
        run(tiny_vit, choice=choose(repair="dense", repair_options={"glue": 1}))
    with pytest.raises(RecipeError, match="There is no repair 'prayer'"):
        run(tiny_vit, choice=choose(repair="prayer"))


def test_what_a_session_offers_a_repair(tiny_vit):
    images, watcher = images_for(tiny_vit), Watcher()
    student = tiny_vit.copy()
    session = Session(
        dense=tiny_vit, student=student, masks=half(tiny_vit), batches=Batches(images, labels_for(images), batch_size=4), calibration=images,
        device=torch.device("cpu"), reporter=watcher, teacher_memory=0.0,
    )  # fmt: skip
    assert [len(chunk) for chunk in session.chunks(4)] == [4, 4, 3] and torch.equal(torch.cat(list(session.chunks(5))), images)
    session.check_same_tokens("The repair 'x'")
    tokens.merge(student, TokensChoice(r=(2,)))
    with pytest.raises(RecipeError, match="The repair 'x' compares .* merges tokens"):
        session.check_same_tokens("The repair 'x'")
    watcher.cancel_at = 0
    with pytest.raises(Cancelled):
        next(session.chunks())

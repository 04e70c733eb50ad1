"""Contract of every healing method, on every family: masks, determinism, cancel, resume; and the loop's own promises."""

from __future__ import annotations

import math
import resource

import pytest
import torch
from torch import nn

from starfish_lab.errors import Cancelled, ImagesError, LabError, RecipeError
from starfish_lab.healing import METHODS
from starfish_lab.healing.heal import POINTS, heal, learning_rate
from starfish_lab.models.network import Network, prunable
from starfish_lab.progress import Reporter
from starfish_lab.pruning.masks import apply
from starfish_lab.recipe import HealingChoice

FAMILIES = ("tiny_vit", "tiny_resnet", "tiny_convnext")
TRAINING = [name for name in METHODS.names() if name != "none"]


class Watcher(Reporter):
    """Remembers everything; from a given step on asks to stop, or fails like a killed process."""

    def __init__(self, *, cancel_at: int | None = None, crash_at: int | None = None):
        self.cancel_at, self.crash_at = cancel_at, crash_at
        self.step, self.steps, self.metrics, self.notes = 0, 0, [], []

    def progress(self, step, steps):
        self.step, self.steps = step, steps
        if step == self.crash_at:
            raise ConnectionResetError

    def metric(self, name, step, value):
        self.metrics.append((name, step, value))

    def note(self, text):
        self.notes.append(text)

    def cancel_requested(self):
        return self.cancel_at is not None and self.step >= self.cancel_at


def half(network: Network) -> dict:
    """Masks by hand: the larger half of every prunable weight stays."""
    return {name: layer.weight.abs() > layer.weight.abs().median() for name, layer in prunable(network).items()}


def lively(network: Network) -> Network:
    """Batch norms that timm starts at zero cut their branch off; here every layer takes part."""
    for module in network.module.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=torch.Generator().manual_seed(3))
    return network


def images_for(network: Network, count: int = 11) -> torch.Tensor:
    return torch.randn(count, *network.preprocessing.input_size, generator=torch.Generator().manual_seed(1))


def labels_for(images: torch.Tensor) -> torch.Tensor:
    return torch.arange(len(images)) % 10


def choose(method: str = "starfish", **changes) -> HealingChoice:
    return HealingChoice(**{"method": method, "steps": 7, "batch_size": 4, **changes})


def run(network, method="starfish", *, images=None, masks=None, choice=None, **known):
    """(student, result) of a small run with everything a method may need."""
    images = images_for(network) if images is None else images
    student = network.copy()
    result = heal(network, student, masks or half(network), images, choice or choose(method), labels=labels_for(images), **known)
    return student, result


def same(first: Network, second: Network) -> bool:
    one, two = first.module.state_dict(), second.module.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture(params=FAMILIES)
def network(request):
    return lively(request.getfixturevalue(request.param))


@pytest.mark.parametrize("method", METHODS.names())
def test_contract(network, method, tmp_path):
    before, masks = network.copy(), half(network)
    watcher = Watcher()
    student, result = run(network, method, masks=masks, reporter=watcher)

    # masks respected, dense untouched, everything else as it was
    start = network.copy()
    apply(start.module, masks)
    assert same(network, before)
    trained = {f"{name}.weight" for name in masks}
    statistics = {name for name, _ in student.module.named_buffers()}
    for name, tensor in student.module.state_dict().items():
        if name in trained:
            assert (tensor[~masks[name.removesuffix(".weight")]] == 0).all()
        elif name not in statistics:
            assert torch.equal(tensor, before.module.state_dict()[name]), name
    assert not student.module.training and not network.module.training
    assert all(p.grad is None and p.requires_grad for p in student.module.parameters())

    if method == "none":
        assert same(student, start) and result.steps == 0 and result.losses == []
        return
    assert all(not torch.equal(student.module.state_dict()[name], start.module.state_dict()[name]) for name in trained)

    # progress and losses
    assert (watcher.step, watcher.steps, result.steps) == (7, 7, 7)
    assert [step for step, _ in result.losses] == list(range(1, 8))
    assert [(s, v) for n, s, v in watcher.metrics if n == "loss"] == result.losses
    for step, blocks in result.block_losses:
        assert [v for n, s, v in watcher.metrics if n.startswith("block.") and s == step] == blocks
        assert len(blocks) == len(network.blocks)

    # the same again, and crashed after a checkpoint and resumed
    again, second = run(network, method, masks=masks)
    assert same(student, again) and second.losses == result.losses
    file = tmp_path / "heal.pt"
    with pytest.raises(ConnectionResetError):
        run(network, method, masks=masks, checkpoint=file, checkpoint_seconds=0, reporter=Watcher(crash_at=5))
    resumed, third = run(network, method, masks=masks, checkpoint=file, checkpoint_seconds=0)
    assert third.resumed_from == 4  # the crash came before step 5 was saved
    assert same(student, resumed) and third.losses == result.losses and third.block_losses == result.block_losses

    # asked to stop after step 3
    stopped = Watcher(cancel_at=3)
    with pytest.raises(Cancelled):
        run(network, method, masks=masks, reporter=stopped)
    assert stopped.step <= 5


@pytest.mark.parametrize("method", TRAINING)
def test_every_method_lowers_its_loss(tiny_vit, method):
    images = images_for(tiny_vit, 8)
    _, result = run(tiny_vit, method, images=images, choice=choose(method, steps=30, batch_size=8, learning_rate=3e-3))
    assert result.losses[-1][1] < 0.85 * result.losses[0][1]  # the soft answers of pseudo labels have an entropy that stays


def test_a_finished_checkpoint_needs_no_further_step(tiny_vit, tmp_path):
    file = tmp_path / "folder" / "heal.pt"
    student, result = run(tiny_vit, checkpoint=file, checkpoint_seconds=1e9)
    watcher = Watcher()
    again, second = run(tiny_vit, checkpoint=file, reporter=watcher)
    assert same(student, again) and second.losses == result.losses
    assert second.resumed_from == 7 and watcher.step == 0
    assert second.seconds == result.seconds > 0
    assert [p.name for p in file.parent.iterdir()] == ["heal.pt"]


def test_a_checkpoint_of_another_run_is_noted_and_not_used(tiny_vit, tmp_path):
    file = tmp_path / "heal.pt"
    fresh, _ = run(tiny_vit, choice=choose(learning_rate=1e-3))
    other_masks = {name: ~mask for name, mask in half(tiny_vit).items()}
    other_images = images_for(tiny_vit) + 1
    for changed in ({"choice": choose(learning_rate=1e-3)}, {"masks": other_masks}, {"images": other_images}):
        run(tiny_vit, checkpoint=file, checkpoint_seconds=1e9)
        watcher = Watcher()
        student, result = run(tiny_vit, checkpoint=file, reporter=watcher, **changed)
        assert result.resumed_from == 0 and any("another run" in note for note in watcher.notes)
        if "choice" in changed:
            assert same(student, fresh)
        file.unlink()


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04broken"])
def test_an_unreadable_checkpoint_is_noted(tiny_vit, tmp_path, content):
    file = tmp_path / "heal.pt"
    file.write_bytes(content)
    watcher = Watcher()
    student, result = run(tiny_vit, checkpoint=file, reporter=watcher)
    assert result.resumed_from == 0 and any("cannot be read" in note for note in watcher.notes)
    assert same(student, run(tiny_vit)[0])


def test_a_checkpoint_runs_no_code(tiny_vit, tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    file = tmp_path / "heal.pt"
    torch.save({"key": Trap()}, file)
    watcher = Watcher()
    run(tiny_vit, checkpoint=file, reporter=watcher, checkpoint_seconds=1e9)
    assert not (tmp_path / "sprung").exists() and any("cannot be read" in note for note in watcher.notes)


def test_a_full_disk_does_not_stop_the_healing(tiny_vit, tmp_path):
    watcher = Watcher()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))  # the checkpoint is larger
    try:
        student, result = run(tiny_vit, checkpoint=tmp_path / "heal.pt", checkpoint_seconds=0, reporter=watcher)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sum("could not be saved" in note for note in watcher.notes) == 1
    assert same(student, run(tiny_vit)[0]) and not list(tmp_path.glob("heal*"))


def test_the_teacher_budget_changes_no_result(network):
    notes, students = [], []
    for memory in (1.0, 1e-4, 0.0):  # all batches, some, none
        watcher = Watcher()
        student, _ = run(network, reporter=watcher, teacher_memory_gb=memory)
        notes += watcher.notes
        students.append(student)
    assert same(students[0], students[1]) and same(students[0], students[2])
    assert "are cached (" in notes[0] and "0 of 3 batches are cached" in notes[2]


def test_teacher_runs_once_a_batch_when_cached(tiny_vit):
    passes = []
    tiny_vit.module.register_forward_hook(lambda *_: passes.append(1))
    student = Network.of(tiny_vit.copy().module, blocks=list(tiny_vit.blocks), input_size=(3, 32, 32))
    student.module._forward_hooks.clear()
    for memory, expected in ((1.0, 3), (0.0, 7)):
        passes.clear()
        heal(tiny_vit, student, half(tiny_vit), images_for(tiny_vit), choose(), teacher_memory_gb=memory)
        assert len(passes) == expected


def test_batches_are_the_same_in_every_epoch(tiny_vit, monkeypatch):
    seen = []
    inner = METHODS.get("cross_entropy")

    def spy(session, **options):
        loss = inner(session, **options)
        return lambda batch: seen.append((batch.index, batch.images.clone())) or loss(batch)

    monkeypatch.setattr(METHODS.module("cross_entropy"), "objective", spy)
    images = images_for(tiny_vit)
    run(tiny_vit, "cross_entropy", images=images, choice=choose("cross_entropy", steps=8))
    assert [index for index, _ in seen] == [0, 1, 2, 0, 1, 2, 0, 1]
    for index, batch in seen:
        assert torch.equal(batch, images[4 * index : 4 * index + 4])
    assert len(seen[2][1]) == 3  # the last batch is smaller


def test_steps_default_to_ten_epochs(tiny_vit):
    _, result = run(tiny_vit, images=images_for(tiny_vit, 5), choice=choose(steps=None))
    assert result.steps == 20


def test_the_rate_follows_torch_s_cosine():
    choice, steps = HealingChoice(), 50
    optimiser = torch.optim.Adam([nn.Parameter(torch.zeros(1))], lr=choice.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps, eta_min=choice.final_learning_rate)
    assert learning_rate(1, steps, choice) == 6e-4
    for step in range(1, steps + 1):
        assert math.isclose(learning_rate(step, steps, choice), schedule.get_last_lr()[0], rel_tol=1e-9)
        optimiser.step()
        schedule.step()
    assert math.isclose(learning_rate(steps + 1, steps, choice), 1e-6)
    assert learning_rate(steps, steps, choice) > 1e-6


def test_long_runs_record_few_points(tiny_vit):
    watcher = Watcher()
    images = images_for(tiny_vit, 1)
    _, result = run(tiny_vit, images=images, choice=choose(steps=401, batch_size=1), reporter=watcher)
    steps = [step for step, _ in result.losses]
    assert len(steps) <= POINTS + 2 and steps[0] == 1 and steps[-1] == 401
    assert steps == [step for step, _ in result.block_losses]


def test_random_numbers_outside_are_left_alone_and_dropout_resumes(tiny_vit, tmp_path):
    tiny_vit.module.blocks[0].mlp.drop1 = nn.Dropout(0.5)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    student, result = run(tiny_vit)
    assert torch.equal(torch.rand(3), expected)
    with pytest.raises(ConnectionResetError):
        run(tiny_vit, checkpoint=tmp_path / "c", checkpoint_seconds=0, reporter=Watcher(crash_at=4))
    resumed, again = run(tiny_vit, checkpoint=tmp_path / "c")
    assert again.resumed_from == 3 and same(student, resumed) and again.losses == result.losses
    other, _ = run(tiny_vit, choice=choose(seed=1))
    assert not same(student, other)


def test_the_student_starts_from_its_own_weights(tiny_vit, tmp_path):
    """Masks chosen together with new values (CAST, SparseGPT) are healed from these values, and only their run's checkpoint is continued."""
    other = tiny_vit.copy()
    with torch.no_grad():
        for name in half(tiny_vit):
            other.module.get_submodule(name).weight.mul_(1.1)
    file = tmp_path / "heal.pt"
    students = {}
    for start in (tiny_vit, other):
        student, watcher = start.copy(), Watcher()
        result = heal(tiny_vit, student, half(tiny_vit), images_for(tiny_vit), choose(steps=1), checkpoint=file, reporter=watcher)
        assert result.resumed_from == 0
        for name, mask in half(tiny_vit).items():
            moved = (student.module.get_submodule(name).weight - start.module.get_submodule(name).weight * mask).abs()
            assert 0 < moved.max() <= 6.1e-4, name  # one step of Adam
        students[start is other] = student
    assert not same(students[True], students[False]) and any("another run" in note for note in watcher.notes)


def test_a_masked_head_takes_part_only_where_it_can(tiny_vit):
    masks = half(tiny_vit) | {"head": tiny_vit.module.head.weight > 0}
    student, _ = run(tiny_vit, "starfish", masks=masks)  # after the last block: no gradient, stays dense × mask
    assert torch.equal(student.module.head.weight, tiny_vit.module.head.weight * masks["head"])
    student, _ = run(tiny_vit, "logit_distillation", masks=masks)
    assert not torch.equal(student.module.head.weight, tiny_vit.module.head.weight * masks["head"])
    with pytest.raises(RecipeError, match="No masked layer"):
        run(tiny_vit, "starfish", masks={"head": masks["head"]})


def test_clear_refusals(tiny_vit, monkeypatch):
    masks, images, student = half(tiny_vit), images_for(tiny_vit), tiny_vit.copy()

    def refused(error, match, *, masks=masks, images=images, choice=None, student=student, **known):
        with pytest.raises(error, match=match):
            heal(tiny_vit, student, masks, images, choice or choose(), **known)

    refused(ImagesError, "no calibration images", images=images[:0])
    refused(ImagesError, r"\(3, 32, 32\)", images=images[:, :, :16])
    refused(ImagesError, "uint8", images=(images * 0).to(torch.uint8))
    refused(ImagesError, "3 labels for 11", choice=choose("cross_entropy"), labels=torch.zeros(3, dtype=torch.long))
    refused(RecipeError, "needs labels", choice=choose("cross_entropy"))
    refused(ImagesError, "classes 0 to 9", choice=choose("cross_entropy"), labels=torch.arange(11))
    refused(RecipeError, "Its options: temperature", choice=choose("logit_distillation", options={"heat": 1}))
    refused(RecipeError, "above 0", choice=choose("logit_distillation", options={"temperature": 0}))
    refused(RecipeError, "No layer has a mask", masks={})
    refused(RecipeError, "mask of blocks.0.attn.qkv", masks=masks | {"blocks.0.attn.qkv": torch.ones(2, 2, dtype=torch.bool)})
    refused(LabError, "same object", student=tiny_vit)
    refused(RecipeError, "loss is nan at step 1", images=images * float("nan"))
    refused(RecipeError, "learning rate 1e[+]30 is too high", choice=choose(learning_rate=1e30))
    monkeypatch.setenv("STARFISH_LAB_TEACHER_MEMORY_GB", "plenty")
    refused(LabError, "expected a number")


def test_after_an_error_the_networks_are_usable(tiny_vit):
    student = tiny_vit.copy()
    with pytest.raises(Cancelled):
        heal(tiny_vit, student, half(tiny_vit), images_for(tiny_vit), choose(), reporter=Watcher(cancel_at=2))
    assert not student.module.training and all(p.requires_grad and p.grad is None for p in student.module.parameters())
    student.module.load_state_dict(tiny_vit.module.state_dict())
    heal(tiny_vit, student, half(tiny_vit), images_for(tiny_vit), choose())
    assert same(student, run(tiny_vit)[0])


def test_torch_s_own_errors_are_explained(tiny_resnet, monkeypatch):
    with pytest.raises(ImagesError, match="holds 1 image, and batch norm needs two"):  # the last stage sees 1 × 1 pixels
        run(tiny_resnet, images=images_for(tiny_resnet, 9))

    def no_memory(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(METHODS.module("starfish"), "objective", lambda session: no_memory)
    with pytest.raises(LabError, match="too little memory for healing with batches of 4 images"):
        run(tiny_resnet)

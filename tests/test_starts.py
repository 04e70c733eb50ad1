"""Networks that pruning starts from: exact sparsity after every cycle, frozen zeros, who comes back, and resuming exactly."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from starfish_lab.data import ImageSet
from starfish_lab.errors import Cancelled, ImagesError, LabError, RecipeError, WeightsError
from starfish_lab.models.network import prunable
from starfish_lab.progress import Reporter
from starfish_lab.pruning import STARTS, cycles, ranking
from starfish_lab.pruning.budgets import mp_edge
from starfish_lab.pruning.prune import edge_table
from starfish_lab.pruning.starts import classical_rmt, hybrid, ser, sub_edge
from starfish_lab.recipe import StartChoice

FAMILIES = ("tiny_vit", "tiny_resnet", "tiny_convnext")
CYCLING = [name for name in STARTS.names() if STARTS.module(name).TRAINS]
COLUMNS = {"cycle", "sparsity", "phase", "method", "weights_removed", "restored", "steps", "loss_first", "loss_last", "seconds", "learning_rate"}


class Watcher(Reporter):
    """Remembers everything; fails like a killed process once so many training steps are done, or asks to stop."""

    def __init__(self, *, crash_at: int | None = None, cancel_at: int | None = None):
        self.crash_at, self.cancel_at = crash_at, cancel_at
        self.steps, self.metrics, self.notes, self.stages = 0, [], [], []

    def stage(self, name):
        self.stages.append(name)

    def progress(self, step, steps):
        self.steps += 1
        if self.steps == self.crash_at:
            raise ConnectionResetError

    def metric(self, name, step, value):
        self.metrics.append((name, step, value))

    def note(self, text):
        self.notes.append(text)

    def cancel_requested(self):
        return self.cancel_at is not None and self.steps >= self.cancel_at


def splits_for(network, count: int = 12, *, labels: bool = True, training: int = 0):
    def drawn(number, seed):
        images = torch.randn(number, *network.preprocessing.input_size, generator=torch.Generator().manual_seed(seed))
        return ImageSet.of(images, torch.arange(number) % 10 if labels else None)

    return SimpleNamespace(calibration=drawn(count, 1), training=drawn(training, 2) if training else None)


def choose(method: str, **changes) -> StartChoice:
    return StartChoice(**{"method": method, "sparsity": 0.25, "step": 0.1, "steps": 2, "batch_size": 6, **changes})


def begin(network, method: str, *, splits=None, reporter=None, folder=None, **changes):
    return cycles.begin(network, choose(method, **changes), splits or splits_for(network), reporter=reporter, folder=folder)


def zeros(network, layers=None) -> int:
    return sum(int((layer.weight == 0).sum()) for layer in (layers or prunable(network)).values())


def size(network) -> int:
    return sum(layer.weight.numel() for layer in prunable(network).values())


def same(first, second) -> bool:
    one, two = first.module.state_dict(), second.module.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def plain(rows) -> list[dict]:
    """Rows without what a clock says."""
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


@pytest.fixture(autouse=True)
def saves_often(monkeypatch):
    """A checkpoint at every step, so that a crash anywhere has one to go on from."""
    monkeypatch.setattr(cycles, "SAVE_SECONDS", 0.0)


@pytest.fixture(params=FAMILIES)
def network(request):
    found = request.getfixturevalue(request.param)
    for module in found.module.modules():  # batch norms that timm starts at zero cut their branch off
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=torch.Generator().manual_seed(3))
    return found


@pytest.mark.parametrize("method", CYCLING)
def test_every_cycle_ends_at_its_sparsity_exactly(network, method):
    before, total = network.copy(), size(network)
    watcher = Watcher()
    result = begin(network, method, reporter=watcher)
    assert same(network, before) and not result.network.module.training
    assert all(p.requires_grad and p.grad is None for p in result.network.module.parameters())
    assert zeros(result.network) == round(0.25 * total)
    ends = {row["cycle"]: row["sparsity"] for row in result.cycles if row["phase"] in ("prune", "restore")}
    if method == "classical_rmt":
        assert list(ends.values()) == sorted(ends.values()) and max(ends.values()) == round(0.25 * total) / total
    else:
        assert list(ends.values()) == [round(s * total) / total for s in (0.1, 0.2, 0.25)]
    assert all(row.keys() == COLUMNS for row in result.cycles)
    assert sum(row["weights_removed"] - row["restored"] for row in result.cycles) == round(0.25 * total)
    # tuning trained everything outside the prunable layers too
    changed = {name for name, p in result.network.module.named_parameters() if not torch.equal(p, before.module.get_parameter(name))}
    assert {name for name in changed if name.startswith(("head", "fc")) and name.endswith("bias")}
    # one curve over all phases
    steps = [step for name, step, _ in watcher.metrics if name == "cycle.loss"]
    assert steps == list(range(1, 1 + sum(row["steps"] for row in result.cycles))) and len(steps) == len(watcher.metrics)
    assert any("cycle 1" in stage for stage in watcher.stages)


@pytest.mark.parametrize("method", CYCLING)
def test_weights_that_are_gone_stay_gone_and_zeros_stay_zero_while_tuning(tiny_vit, method, monkeypatch):
    seen = []
    train = cycles.train

    def watched(network, loss, batches, choice, *, moves, **known):
        before = {name: layer.weight.detach().clone() for name, layer in prunable(network).items()}
        result = train(network, loss, batches, choice, moves=moves, **known)
        after = {name: layer.weight.detach().clone() for name, layer in prunable(network).items()}
        seen.append((choice, moves, before, after))
        return result

    monkeypatch.setattr(cycles, "train", watched)
    begin(tiny_vit, method)
    tuned = [entry for entry in seen if entry[0].trains == "all"]
    assert tuned
    for choice, moves, before, after in tuned:
        assert (choice.optimiser, choice.weight_decay, choice.gradient_clip) == ("sgd", 1e-6, 1.0)
        for name, mask in moves.items():
            assert (before[name][~mask] == 0).all() and (after[name][~mask] == 0).all()
            assert not torch.equal(after[name], before[name])
    masks = [moves for choice, moves, _, _ in seen if choice.trains == "all" or method == "classical_rmt"]
    for earlier, later in zip(masks, masks[1:]):
        assert all((~earlier[name] <= ~later[name]).all() for name in earlier)
    rates = [choice.learning_rate for choice, *_ in tuned]
    expected = {
        "magnitude": [3e-5] * 3, "ser": [5e-5 * ser.factor(s) for s in (0.1, 0.2, 0.25)],
        "hybrid": [3e-5, 3e-5, 5e-5 * ser.factor(0.25)], "classical_rmt": [3e-5],
    }  # fmt: skip
    assert rates == expected[method]


def test_images_come_in_another_order_in_every_cycle(tiny_vit, monkeypatch):
    first, train = [], cycles.train

    def watched(network, loss, batches, choice, **known):
        first.append(batches(1).images)
        return train(network, loss, batches, choice, **known)

    monkeypatch.setattr(cycles, "train", watched)
    begin(tiny_vit, "magnitude")
    assert len(first) == 3 and not any(torch.equal(one, two) for one, two in zip(first, first[1:]))


def test_without_steps_a_phase_is_one_epoch_with_warm_up_and_decay(tiny_vit, monkeypatch):
    met = []

    def remembered(network, loss, batches, choice, **known):
        met.append(choice)
        return cycles.TrainingResult(steps=choice.steps)

    monkeypatch.setattr(cycles, "train", remembered)
    begin(tiny_vit, "magnitude", steps=None, splits=splits_for(tiny_vit, 63))
    assert [(c.steps, c.warmup, c.final_learning_rate) for c in met] == [(11, 1, 3e-7)] * 3
    met.clear()
    begin(tiny_vit, "ser", steps=None, splits=splits_for(tiny_vit, 63))
    assert [c.steps for c in met if c.trains == "weights"] == [6] * 3  # 128 at least, but no more than an epoch of batches twice as large
    assert {(c.learning_rate, c.final_learning_rate, c.optimiser) for c in met if c.trains == "weights"} == {(4e-4, 1e-4, "adamw")}
    met.clear()
    begin(tiny_vit, "classical_rmt", steps=None, splits=splits_for(tiny_vit, 63))
    assert [c.steps for c in met] == [*(5000 + 1000 * i for i in range(len(met) - 1)), 20 * 11]


def test_training_images_come_before_calibration_images(tiny_vit):
    few, many = splits_for(tiny_vit, 6), splits_for(tiny_vit, 6, training=30)
    steps = [begin(tiny_vit, "magnitude", splits=s, steps=None, sparsity=0.1).cycles[-1]["steps"] for s in (few, many)]
    assert steps == [1, 5]
    del few.training  # a set without such images
    few.training = None
    assert begin(tiny_vit, "magnitude", splits=few, steps=None, sparsity=0.1).cycles[-1]["steps"] == 1


class Spy:
    """One SER cycle of a tiny network, looked into."""

    def __init__(self, network, monkeypatch, **options):
        self.phases, train = {}, cycles.train

        def watched(net, loss, batches, choice, *, moves, what, **known):
            before = {name: layer.weight.detach().clone() for name, layer in prunable(net).items()}
            result = train(net, loss, batches, choice, moves=moves, what=what, **known)
            after = {name: layer.weight.detach().clone() for name, layer in prunable(net).items()}
            self.phases["select" if "select" in what else "tune"] = (moves, before, after)
            return result

        monkeypatch.setattr(cycles, "train", watched)
        self.total = size(network)
        self.result = begin(network, "ser", sparsity=0.25, step=0.25, options=options)


@pytest.mark.parametrize("rho", ["1/w", "w", "1"])
@pytest.mark.parametrize("restores", ["removed", "moved"])
def test_ser_brings_back_those_of_the_reservoir_that_moved_most(tiny_vit, monkeypatch, rho, restores):
    network = tiny_vit
    names = list(prunable(network))
    factors = mp_edge.weights(edge_table(network, names, "cpu"), 0.25)
    assert max(factors.values()) > 1.05 * min(factors.values())  # else ρ would decide nothing
    spy = Spy(network, monkeypatch, rho=rho, restores=restores)
    dense = {name: layer.weight.detach() for name, layer in prunable(network).items()}

    # over-pruned by |W| / w_l, kept weights frozen, reservoir from zero
    reservoir, before, after = spy.phases["select"]
    assert sum(int(r.sum()) for r in reservoir.values()) == round(0.28 * spy.total)
    worst_gone = max(float((dense[n].abs() / factors[n])[reservoir[n]].max()) for n in names)
    best_kept = min(float((dense[n].abs() / factors[n])[~reservoir[n]].min()) for n in names)
    assert worst_gone <= best_kept * (1 + 1e-6)
    for name in names:
        assert torch.equal(after[name][~reservoir[name]], dense[name][~reservoir[name]])
        assert (before[name][reservoir[name]] == 0).all()

    # restored: only of the reservoir, exactly so many, with the largest |Δ|ρ
    masks, tuning, _ = spy.phases["tune"]
    back = {name: masks[name] & reservoir[name] for name in names}
    assert all((masks[name] | reservoir[name]).all() for name in names)
    count = round(0.28 * spy.total) - round(0.25 * spy.total)
    assert sum(int(b.sum()) for b in back.values()) == count == next(row for row in spy.result.cycles if row["phase"] == "restore")["restored"]
    weigh = {"1/w": lambda w: 1 / w, "w": lambda w: w, "1": lambda w: 1.0}[rho]
    scores = {name: (after[name] - before[name]).abs() * weigh(factors[name]) for name in names}
    left = {name: reservoir[name] & ~back[name] for name in names}
    worst_back = min(float(scores[name][back[name]].min()) for name in names if back[name].any())
    assert worst_back >= (1 - 1e-5) * max(float(scores[name][left[name]].max()) for name in names if left[name].any())
    for name in names:
        assert torch.equal(tuning[name], torch.where(back[name] & (restores == "moved"), after[name], dense[name]) * masks[name])


def test_rho_changes_who_comes_back(tiny_vit, monkeypatch):
    chosen = {rho: Spy(tiny_vit, monkeypatch, rho=rho).phases["tune"][0] for rho in ("1/w", "w")}
    assert any(not torch.equal(chosen["1/w"][name], chosen["w"][name]) for name in chosen["w"])


def test_ser_can_start_the_reservoir_at_its_values(tiny_vit, monkeypatch):
    spy = Spy(tiny_vit, monkeypatch, enters="removed", task=1.0)
    reservoir, before, after = spy.phases["select"]
    for name, layer in prunable(tiny_vit).items():
        assert torch.equal(before[name], layer.weight.detach())
        assert not torch.equal(after[name][reservoir[name]], before[name][reservoir[name]])
    assert zeros(spy.result.network) == round(0.25 * spy.total)


def test_beta_zero_is_over_pruning_by_magnitude(tiny_vit, monkeypatch):
    reservoir = Spy(tiny_vit, monkeypatch, beta=0.0).phases["select"][0]
    dense = {name: layer.weight.detach() for name, layer in prunable(tiny_vit).items()}
    gone = ranking.smallest({name: weight.abs() for name, weight in dense.items()}, round(0.28 * size(tiny_vit)))
    assert all(torch.equal(gone[name], reservoir[name]) for name in gone)


def test_running_statistics_do_not_keep_what_the_selection_did(network, monkeypatch):
    met = {}
    train = cycles.train

    def watched(net, loss, batches, choice, *, what, **known):
        met[what + " begins"] = {name: value.clone() for name, value in net.module.named_buffers()}
        result = train(net, loss, batches, choice, what=what, **known)
        met[what + " ends"] = {name: value.clone() for name, value in net.module.named_buffers()}
        return result

    monkeypatch.setattr(cycles, "train", watched)
    begin(network, "ser", sparsity=0.1)
    one, two = met["cycle 1 (select) begins"], met["cycle 1 (tune) begins"]
    assert all(torch.equal(one[name], two[name]) for name in one)
    if network.name == "tiny_resnet":
        assert any(not torch.equal(one[name], met["cycle 1 (select) ends"][name]) for name in one)


def test_on_cuda_phases_run_in_half_precision_and_weights_stay_whole(tiny_vit, monkeypatch):
    monkeypatch.setattr(cycles.Course, "precision", "bf16")
    result = begin(tiny_vit, "ser", options={"task": 1.0})
    assert zeros(result.network) == round(0.25 * size(tiny_vit))
    assert {p.dtype for p in result.network.module.parameters()} == {torch.float32}
    assert not same(result.network, begin(tiny_vit, "ser", options={"task": 1.0}, seed=1).network)
    monkeypatch.undo()
    course = cycles.Course.__new__(cycles.Course)
    for device, precision in (("cpu", "float32"), ("cuda:0", "bf16"), ("mps", "float32")):
        course.device = device
        assert course.precision == precision


def test_rates_can_be_chosen(tiny_vit):
    def rates(method, **options):
        return [row["learning_rate"] for row in begin(tiny_vit, method, options=options).cycles if row["steps"]]

    assert rates("magnitude", learning_rate=1e-3) == [1e-3] * 3
    assert rates("ser", learning_rate=1e-3)[:2] == [8e-3, pytest.approx(1e-3 * ser.factor(0.1))]
    assert rates("hybrid", learning_rate=1e-3, magnitude_learning_rate=1e-4) == [1e-4, 1e-4, 8e-3, pytest.approx(1e-3 * ser.factor(0.25))]
    assert rates("classical_rmt", learning_rate=1e-3)[-1] == 1e-3


def test_the_rate_grows_over_the_authors_grid_wherever_the_recipe_ends():
    assert [round(ser.factor(s), 4) for s in (0.01, 0.05, 0.375, 0.7, 0.9)] == [1.0, 1.0, 1.5, 2.0, 2.0]


def test_hybrid_is_magnitude_up_to_its_switch(tiny_vit):
    one = begin(tiny_vit, "magnitude", sparsity=0.2, step=0.05)
    two = begin(tiny_vit, "hybrid", sparsity=0.2, step=0.05)
    assert same(one.network, two.network) and plain(one.cycles) == plain(two.cycles)
    further = begin(tiny_vit, "hybrid", sparsity=0.25, step=0.05)
    assert plain(further.cycles[: len(one.cycles)]) == plain(one.cycles)
    assert [row["phase"] for row in further.cycles[len(one.cycles) :]] == ["prune", "select", "restore", "tune"]
    assert {row["method"] for row in begin(tiny_vit, "hybrid", options={"switch": 0.0}).cycles} == {"ser"}
    assert {row["method"] for row in begin(tiny_vit, "hybrid", options={"switch": 0.3}).cycles} == {"magnitude"}


def test_hybrid_with_a_drop_switches_once_the_network_has_fallen(tiny_vit, monkeypatch):
    tops = iter([0.80, 0.80, 0.795, 0.792, 0.9])  # dense, then cycle after cycle: 0, 0.5 and 0.8 pp lower
    seen = []
    monkeypatch.setattr(hybrid, "_top1", lambda course, network, images: seen.append(len(images)) or next(tops))
    result = begin(tiny_vit, "hybrid", sparsity=0.25, step=0.05, options={"drop": 0.7}, splits=splits_for(tiny_vit, 40))
    methods = {row["cycle"]: row["method"] for row in result.cycles}
    assert methods == {1: "magnitude", 2: "magnitude", 3: "magnitude", 4: "ser", 5: "ser"}
    assert seen == [4] * 4  # a tenth of 40; nothing is measured once it has switched
    assert sum("held-out" in note for note in result.notes) == 3 and any("goes on from here" in note for note in result.notes)


def test_held_out_images_are_not_trained_on(tiny_vit):
    images = splits_for(tiny_vit, 40).calibration
    train, held = hybrid.hold_out(images, 0)
    assert len(train) == 36 and len(held) == 4 and not set(train.names) & set(held.names)
    where = {name: i for i, name in enumerate(images.names)}
    for part in (train, held):
        assert torch.equal(part.labels, images.labels[[where[name] for name in part.names]])
        assert torch.equal(part.tensor(), images.tensor()[[where[name] for name in part.names]])
    assert held.names != hybrid.hold_out(images, 1)[1].names
    with pytest.raises(ImagesError, match="too few"):
        hybrid.hold_out(splits_for(tiny_vit, 1).calibration, 0)


def test_hybrid_measures_for_itself(tiny_vit):
    result = begin(tiny_vit, "hybrid", sparsity=0.1, options={"drop": 100.0}, splits=splits_for(tiny_vit, 20))
    assert any("on 2 held-out training images" in note for note in result.notes)


@pytest.mark.parametrize("method", CYCLING)
@pytest.mark.parametrize("crash_at", [1, 3, 4, 6])
def test_killed_anywhere_it_ends_the_same(tiny_resnet, method, crash_at, tmp_path):
    options = {"drop": 50.0} if method == "hybrid" and crash_at == 3 else {}
    splits = splits_for(tiny_resnet, 20)
    whole = begin(tiny_resnet, method, splits=splits, options=options)
    with pytest.raises(ConnectionResetError):
        begin(tiny_resnet, method, splits=splits, options=options, folder=tmp_path, reporter=Watcher(crash_at=crash_at))
    watcher = Watcher()
    resumed = begin(tiny_resnet, method, splits=splits, options=options, folder=tmp_path, reporter=watcher)
    assert same(whole.network, resumed.network)
    assert plain(whole.cycles) == plain(resumed.cycles) and whole.notes == resumed.notes
    if crash_at > 1:
        assert any("continues" in note for note in watcher.notes)
    assert not any("another run" in note or "cannot be read" in note for note in watcher.notes)
    # a finished course needs no further step, and has left one file
    after = Watcher()
    again = begin(tiny_resnet, method, splits=splits, options=options, folder=tmp_path, reporter=after)
    assert same(whole.network, again.network) and plain(again.cycles) == plain(whole.cycles)
    assert not after.metrics and [file.name for file in (tmp_path / "cycles").iterdir()] == ["state.ckpt"]


def test_killed_between_phases_and_between_cycles_it_ends_the_same(tiny_vit, tmp_path, monkeypatch):
    """At the very end of a selection, and when the tuned network could not be saved any more."""
    whole = begin(tiny_vit, "ser")
    for place in ("_restore", "remove"):
        folder = tmp_path / place
        owner = ser if place == "_restore" else cycles.Course
        calls, real = [], getattr(owner, place)

        def failing(*args, calls=calls, real=real, **known):
            calls.append(1)
            if len(calls) == 2:
                raise ConnectionResetError
            return real(*args, **known)

        monkeypatch.setattr(owner, place, failing)
        with pytest.raises(ConnectionResetError):
            begin(tiny_vit, "ser", folder=folder)
        monkeypatch.setattr(owner, place, real)
        watcher = Watcher()
        resumed = begin(tiny_vit, "ser", folder=folder, reporter=watcher)
        assert same(whole.network, resumed.network) and plain(whole.cycles) == plain(resumed.cycles)
        assert any("continues after cycle 1" in note for note in watcher.notes)


def test_killed_twice_it_ends_the_same(tiny_vit, tmp_path):
    whole = begin(tiny_vit, "hybrid")
    for crash_at in (3, 2, 2):
        with pytest.raises(ConnectionResetError):
            begin(tiny_vit, "hybrid", folder=tmp_path, reporter=Watcher(crash_at=crash_at))
    resumed = begin(tiny_vit, "hybrid", folder=tmp_path)
    assert same(whole.network, resumed.network) and plain(whole.cycles) == plain(resumed.cycles)


def test_a_checkpoint_of_another_recipe_is_noted_and_not_used(tiny_vit, tmp_path):
    begin(tiny_vit, "magnitude", folder=tmp_path)
    other = splits_for(tiny_vit, 12)
    other.calibration = ImageSet.of(other.calibration.tensor() + 1, other.calibration.labels)
    for changed in ({"sparsity": 0.3}, {"steps": 3}, {"seed": 1}, {"splits": other}):
        watcher = Watcher()
        result = begin(tiny_vit, "magnitude", folder=tmp_path, reporter=watcher, **changed)
        assert any("another run" in note for note in watcher.notes), changed
        assert same(result.network, begin(tiny_vit, "magnitude", **changed).network)
        begin(tiny_vit, "magnitude", folder=tmp_path)


def test_a_phase_of_other_images_is_noted_and_not_used(tiny_vit, tmp_path):
    other = splits_for(tiny_vit, 12)
    other.calibration = ImageSet.of(other.calibration.tensor() + 1, other.calibration.labels)
    with pytest.raises(ConnectionResetError):  # in the first phase, so nothing but its checkpoint is there
        begin(tiny_vit, "magnitude", steps=4, folder=tmp_path, reporter=Watcher(crash_at=3))
    assert [file.name for file in (tmp_path / "cycles").iterdir()] == ["001-tune.ckpt"]
    watcher = Watcher()
    result = begin(tiny_vit, "magnitude", steps=4, folder=tmp_path, splits=other, reporter=watcher)
    assert any("another run" in note for note in watcher.notes)
    assert same(result.network, begin(tiny_vit, "magnitude", steps=4, splits=other).network)


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04broken"])
def test_an_unreadable_checkpoint_is_noted_and_not_used(tiny_vit, tmp_path, content):
    whole = begin(tiny_vit, "magnitude", folder=tmp_path)
    (tmp_path / "cycles" / "state.ckpt").write_bytes(content)
    watcher = Watcher()
    assert same(whole.network, begin(tiny_vit, "magnitude", folder=tmp_path, reporter=watcher).network)
    assert any("cannot be read" in note for note in watcher.notes)


def test_a_checkpoint_that_lacks_a_part_is_noted_and_not_used(tiny_vit, tmp_path):
    whole = begin(tiny_vit, "magnitude", folder=tmp_path)
    file = tmp_path / "cycles" / "state.ckpt"
    state = torch.load(file, weights_only=True)
    for broken in ({"rows": None}, {"masks": {}}, {"network": {}}, {"facts": 3}):
        torch.save({**state, **broken}, file)
        watcher = Watcher()
        assert same(whole.network, begin(tiny_vit, "magnitude", folder=tmp_path, reporter=watcher).network), broken
        assert any("cannot be read" in note for note in watcher.notes), broken


def test_a_checkpoint_runs_no_code(tiny_vit, tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    (tmp_path / "cycles").mkdir()
    torch.save({"key": Trap()}, tmp_path / "cycles" / "state.ckpt")
    begin(tiny_vit, "magnitude", folder=tmp_path)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("method", [*CYCLING, "sub_edge"])
def test_asked_to_stop_it_stops(tiny_vit, method):
    watcher = Watcher(cancel_at=1)
    with pytest.raises(Cancelled):
        begin(tiny_vit, method, reporter=watcher)
    assert watcher.steps <= 2


def test_all_layers_can_be_pruned(tiny_vit):
    everything = prunable(tiny_vit, include=("*",))
    assert len(everything) == len(prunable(tiny_vit)) + 2  # patch embedding and head
    result = begin(tiny_vit, "magnitude", options={"include_all": True})
    assert zeros(result.network, prunable(result.network, include=("*",))) == round(0.25 * sum(v.weight.numel() for v in everything.values()))


def test_layers_can_be_left_out(tiny_vit):
    rest = prunable(tiny_vit, exclude=("*attn*",))
    result = begin(tiny_vit, "ser", options={"exclude": ["*attn*"]})
    assert zeros(result.network) == zeros(result.network, prunable(result.network, exclude=("*attn*",)))
    assert zeros(result.network) == round(0.25 * sum(layer.weight.numel() for layer in rest.values()))


def test_augmentation_changes_what_is_trained_on(tiny_vit):
    plain_images, flipped = (begin(tiny_vit, "magnitude", options={"augmentation": name}) for name in ("none", "flip"))
    assert not same(plain_images.network, flipped.network)


# --- the predecessor


def test_what_a_layer_loses_by_the_classical_rule():
    fit = classical_rmt.Fit(error=0.19, bulk=0.9, edge=1.0)
    for cycle in (1, 2, 7, 35):
        assert classical_rmt.fraction(cycle, fit) == pytest.approx(0.06 * 1.02**cycle * (0.81 * 0.9) ** (1.5 / cycle), rel=1e-12)
        assert classical_rmt.strength(cycle, fit) == pytest.approx(1 / (1 + 1900 / cycle), rel=1e-12)
    unfitted = classical_rmt.Fit(error=np.nan, bulk=0.0, edge=np.nan)
    assert classical_rmt.fraction(1, unfitted) == classical_rmt.strength(1, unfitted) == 0


def test_the_first_classical_cycle_takes_from_each_layer_its_smallest(tiny_vit, monkeypatch):
    met = []
    real = classical_rmt._prune

    def watched(course, number, target):
        fits = real(course, number, target)
        met.append(({name: mask.clone() for name, mask in course.masks.items()}, fits))
        return fits

    monkeypatch.setattr(classical_rmt, "_prune", watched)
    begin(tiny_vit, "classical_rmt")
    masks, fits = met[0]
    for name, layer in prunable(tiny_vit).items():
        gone, size = ~masks[name], layer.weight.numel()
        assert int(gone.sum()) == int(np.ceil(classical_rmt.fraction(1, fits[name]) * size))
        assert layer.weight.abs()[gone].max() <= layer.weight.abs()[~gone].min()


def test_even_cycles_sparsify_singular_vectors_and_keep_the_spikes():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(96, 128, generator=generator) * 0.02
    spike = 3 * torch.outer(torch.randn(96, generator=generator) / 96**0.5, torch.randn(128, generator=generator) / 128**0.5)
    weight = noise + spike
    same_weight, fit = classical_rmt.decompose(weight, None)
    assert same_weight is weight and 0 < fit.error < 0.1
    assert fit.bulk == float((torch.linalg.svdvals(weight.double()) <= fit.edge).double().mean()) and 0.9 < fit.bulk < 1
    sparse, _ = classical_rmt.decompose(weight, 0.06)
    assert not torch.equal(sparse, weight)
    u, s, vh = torch.linalg.svd(weight.double(), full_matrices=False)
    limits = 1.125e-5 * 0.06 * 96 * 128 * torch.clamp((1 - s / fit.edge).clamp_min(0) ** 30, min=1 / 750)
    for j in range(96):
        u[:, j] = torch.where(u[:, j].abs() < limits[j], 0, u[:, j])
        vh[j] = torch.where(vh[j].abs() < limits[j], 0, vh[j])
    torch.testing.assert_close(sparse.double(), (u * s) @ vh, atol=1e-7, rtol=1e-5)


def test_only_even_cycles_sparsify_singular_vectors(tiny_vit, monkeypatch):
    met, real = [], classical_rmt.decompose
    monkeypatch.setattr(classical_rmt, "decompose", lambda weight, rho: met.append(rho) or real(weight, rho))
    begin(tiny_vit, "classical_rmt")
    layers = len(prunable(tiny_vit))
    assert len(met) >= 3 * layers
    assert met[: 3 * layers] == [None] * layers + [pytest.approx(0.06 * 1.02**2)] * layers + [None] * layers


def test_training_without_images_shrinks_weights(tiny_vit, monkeypatch):
    sums = []
    real = classical_rmt._shrink

    def watched(course, number, fits):
        before = sum(float(value.abs().sum()) for value in course.values().values())
        real(course, number, fits)
        sums.append((before, sum(float(value.abs().sum()) for value in course.values().values())))

    monkeypatch.setattr(classical_rmt, "_shrink", watched)
    begin(tiny_vit, "classical_rmt", sparsity=0.1, steps=20)
    assert sums and all(after < before for before, after in sums)


# --- without training


@pytest.mark.parametrize("method", [name for name in STARTS.names() if name not in CYCLING])
def test_starts_that_do_not_train_need_no_images(tiny_vit, method, tmp_path):
    torch.save(tiny_vit.module.state_dict(), tmp_path / "weights.pt")
    path = {"path": str(tmp_path / "weights.pt")} if method == "file" else {}
    before = tiny_vit.copy()
    result = cycles.begin(tiny_vit, StartChoice(method=method, **path), None)
    assert result.network.module is not tiny_vit.module and same(tiny_vit, before)


def test_dense_is_dense(tiny_vit):
    result = begin(tiny_vit, "dense")
    assert same(result.network, tiny_vit) and result.cycles == [] and result.notes == []


def test_a_pruned_network_from_a_file(tiny_vit, tmp_path):
    pruned = begin(tiny_vit, "magnitude").network
    path = tmp_path / "sparse.pt"
    torch.save(pruned.module.state_dict(), path)
    result = cycles.begin(tiny_vit, StartChoice(method="file", path=str(path)), None)
    assert same(result.network, pruned)
    assert result.cycles[0]["weights_removed"] == zeros(pruned) and result.cycles[0]["sparsity"] == pytest.approx(0.25, abs=1e-4)
    assert "25.00% of the prunable weights are zero" in result.notes[0]


def test_a_file_that_does_not_fit_is_refused(tiny_vit, tiny_resnet, tmp_path):
    torch.save(tiny_resnet.module.state_dict(), tmp_path / "other.pt")
    with pytest.raises(WeightsError, match="does not fit tiny_vit"):
        cycles.begin(tiny_vit, StartChoice(method="file", path=str(tmp_path / "other.pt")), None)
    with pytest.raises(WeightsError, match="no file"):
        cycles.begin(tiny_vit, StartChoice(method="file", path=str(tmp_path / "absent.pt")), None)
    broken = tiny_vit.copy()
    broken.module.blocks[0].mlp.fc1.weight.data[0, 0] = torch.nan
    torch.save(broken.module.state_dict(), tmp_path / "nan.pt")
    with pytest.raises(WeightsError, match="not finite"):
        cycles.begin(tiny_vit, StartChoice(method="file", path=str(tmp_path / "nan.pt")), None)


def spiked(network):
    """Three spikes in every prunable layer, so that there is something above the edge."""
    generator = torch.Generator().manual_seed(5)
    for layer in prunable(network).values():
        matrix = layer.weight.data.flatten(1)
        u = torch.linalg.qr(torch.randn(matrix.shape[0], 3, generator=generator))[0]
        v = torch.linalg.qr(torch.randn(matrix.shape[1], 3, generator=generator))[0]
        matrix += 3 * torch.linalg.matrix_norm(matrix, 2) * (u @ v.T)
    return network


def test_components_under_the_edge_are_gone_and_the_others_as_they_were(tiny_vit):
    network = spiked(tiny_vit)
    result = begin(network, "sub_edge")
    edges = edge_table(network, list(prunable(network)), "cpu")["sigma_plus"]
    rows = {row["layer"]: row for row in result.cycles}
    assert rows.keys() == set(prunable(network))
    for name, layer in prunable(result.network).items():
        before = torch.linalg.svdvals(network.module.get_submodule(name).weight.detach().double())
        after = torch.linalg.svdvals(layer.weight.detach().double())
        kept = before > edges[name]
        torch.testing.assert_close(after[kept], before[kept], rtol=1e-5, atol=1e-5)
        assert (after[~kept] < 1e-5 * before[0]).all()
        assert (rows[name]["rank"], rows[name]["rank_kept"]) == (len(before), int(kept.sum()))
    assert all(row["rank_kept"] >= 3 for row in rows.values()) and zeros(result.network) == 0


def test_other_rules_for_singular_components():
    assert sub_edge.gavish_donoho(1.0) == pytest.approx(4 / 3**0.5)
    singular = np.array([10.0, 4.0, 2.2, 2.05, 1.0])
    assert sub_edge.kept_values(singular, "edge", 1.0, 1.0, 2.1).tolist() == [10, 4, 2.2, 0, 0]
    assert sub_edge.kept_values(singular, "gavish_donoho", 1.0, 1.0, 2.1).tolist() == [10, 4, 0, 0, 0]
    shrunk = sub_edge.kept_values(singular, "shrinkage", 1.0, 1.0, 2.1)
    assert shrunk == pytest.approx([96**0.5, 12**0.5, (2.2**2 - 4) ** 0.5, (2.05**2 - 4) ** 0.5, 0])  # √(y² − 4) for a square matrix
    at_the_edge = np.array([1 + 0.3**0.5])
    assert sub_edge.kept_values(at_the_edge, "shrinkage", 0.3, 1.0, at_the_edge[0]).tolist() == [0]


def test_a_layer_without_a_bulk_stays_as_it_is(tiny_vit):
    layer = tiny_vit.module.blocks[0].mlp.fc1
    layer.weight.data = torch.ones_like(layer.weight)
    result = begin(tiny_vit, "sub_edge")
    assert torch.equal(result.network.module.blocks[0].mlp.fc1.weight, layer.weight)
    assert any("blocks.0.mlp.fc1 stays as it is" in note for note in result.notes)


# --- refusals


@pytest.mark.parametrize("method", STARTS.names())
def test_unknown_options_are_named(tiny_vit, method, tmp_path):
    path = {"path": str(tmp_path / "weights.pt")} if method == "file" else {}
    with pytest.raises(RecipeError, match="start.options.speed is no option") as caught:
        begin(tiny_vit, method, options={"speed": 3}, **path)
    assert "Its options: " in str(caught.value)


@pytest.mark.parametrize("method", CYCLING)
def test_missing_labels_are_said(tiny_vit, method):
    for splits in (splits_for(tiny_vit, labels=False), None):
        with pytest.raises(LabError, match="needs labelled images"):
            cycles.begin(tiny_vit, choose(method), splits)


@pytest.mark.parametrize(("method", "options", "said"), [
    ("ser", {"rho": "v"}, "start.options.rho is 'v'. Choose one of: 1/w, w, 1."),
    ("ser", {"enters": "half"}, "start.options.enters"),
    ("ser", {"restores": 1}, "start.options.restores"),
    ("ser", {"over": 0.8}, "together remove everything"),
    ("ser", {"over": 0}, "start.options.over"),
    ("ser", {"enters": "removed"}, "nothing would move"),
    ("ser", {"task": "much"}, "start.options.task"),
    ("ser", {"beta": -1}, "start.options.beta"),
    ("hybrid", {"switch": 2}, "start.options.switch"),
    ("hybrid", {"drop": -1}, "start.options.drop"),
    ("hybrid", {"over": 0.8}, "together remove everything"),
    ("ser", {"learning_rate": 0}, "start.options.learning_rate"),
    ("hybrid", {"magnitude_learning_rate": "high"}, "start.options.magnitude_learning_rate"),
    ("magnitude", {"learning_rate": True}, "start.options.learning_rate"),
    ("classical_rmt", {"learning_rate": -1}, "start.options.learning_rate"),
    ("magnitude", {"include_all": 1}, "start.options.include_all"),
    ("magnitude", {"exclude": "*attn*"}, "start.options.exclude"),
    ("magnitude", {"augmentation": "blur"}, "start.options.augmentation"),
    ("sub_edge", {"rule": "half"}, "start.options.rule"),
])  # fmt: skip
def test_options_that_make_no_sense_are_refused(tiny_vit, method, options, said):
    with pytest.raises(RecipeError) as caught:
        begin(tiny_vit, method, options=options)
    assert said in str(caught.value)


# --- ranking


def test_ranking_is_exact_over_all_layers():
    generator = torch.Generator().manual_seed(0)
    scores = {"a": torch.rand(40, 30, generator=generator), "b": torch.rand(7, 3, 3, 3, generator=generator), "none": torch.zeros(0)}
    divisors = {"a": 1.0, "b": 2.5, "none": 1.0}
    for count in (0, 1, 500, 1389):
        found = ranking.smallest(scores, count, divisors)
        together = torch.cat([(scores[name] / divisors[name]).flatten() for name in scores])
        marked = torch.cat([found[name].flatten() for name in scores])
        assert int(marked.sum()) == count
        assert count in (0, 1389) or together[marked].max() <= together[~marked].min()
        assert {name: found[name].shape for name in scores} == {name: scores[name].shape for name in scores}
        most = ranking.largest(scores, count, divisors)
        assert sum(int(m.sum()) for m in most.values()) == count


def test_what_is_gone_goes_first_even_beside_weights_that_are_zero():
    weights = {"a": torch.tensor([0.0, 0.0, 3.0, 2.0, 1.0])}
    masks = {"a": torch.tensor([True, False, True, False, True])}
    assert ranking.without_smallest(weights, masks, 2)["a"].tolist() == [True, False, True, False, True]
    assert ranking.without_smallest(weights, masks, 3)["a"].tolist() == [False, False, True, False, True]

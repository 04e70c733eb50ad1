"""The bundled starter: its card tells the truth, and the command that made it works."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch

from starfish_lab.data import open_images
from starfish_lab.models import starter
from starfish_lab.models.loading import load
from starfish_lab.models.network import prunable
from starfish_lab.recipe import ImagesChoice, ModelChoice


@pytest.fixture(scope="module")
def network():
    return load(ModelChoice())


def test_the_card_names_these_weights(network):
    weights = starter.FOLDER / "starter.safetensors"
    assert weights.stat().st_size <= 12 * 10**6
    assert starter.card()["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest() == network.weights_sha256
    assert starter.card()["parameters"] == sum(p.numel() for p in network.module.parameters())
    assert {str(t.dtype) for t in network.module.state_dict().values()} == {"torch.float32"}


def test_accuracy_is_what_the_card_says(network):
    images = open_images(ImagesChoice(), network).evaluation
    with torch.inference_mode():
        correct = sum(int((network.module(x).argmax(1) == images.labels[i]).sum()) for i, x in images.batches(180))
    card = starter.card()
    assert len(images) == card["test_images"] == 540
    assert abs(correct - card["test_correct"]) <= 1  # another processor may round one image the other way
    assert card["test_top1"] >= 0.99
    low, high = card["test_interval_95"]
    assert low < card["test_top1"] < high


def test_no_image_that_trained_calibrates_or_tests(network):
    card = starter.card()
    assert card["split"] == starter.split(card["seed"])
    parts = [set(card["split"][part]) for part in ("train", "calibration", "test")]
    assert [len(part) for part in parts] == [1001, 256, 540]
    assert set.union(*parts) == set(range(1797))
    splits = open_images(ImagesChoice(calibration=64, drift=64), network)
    assert {int(name.split()[1]) for name in splits.calibration.names + splits.drift.names} < parts[1]
    assert {int(name.split()[1]) for name in splits.evaluation.names} == parts[2]
    assert sorted(splits.calibration.labels.unique().tolist()) == list(range(10))


def test_digits_take_the_way_of_photographs(network):
    images = open_images(ImagesChoice(calibration=4, drift=4), network).calibration.tensor()
    assert images.shape == (4, 3, 32, 32) and torch.equal(images[:, 0], images[:, 2])
    assert images.min() >= -1 and images.max() <= 1


def test_network_is_described(network):
    assert len(network.blocks) == 6 and len(network.unit_groups) == 6 and len(network.attentions) == 6
    assert (network.attentions[0].heads, network.attentions[0].head_dim) == (6, 32)
    assert len(prunable(network)) == 24 and "bundled" in network.origin
    starter.VisionTransformer(**network.facts["vit"]).load_state_dict(network.module.state_dict())


def test_training_again_is_the_same_by_seed_and_leaves_others_seeds_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(starter, "ARGUMENTS", {**starter.ARGUMENTS, "depth": 1, "embed_dim": 48})
    before = torch.random.get_rng_state()
    cards = [starter.train_starter(tmp_path / str(i), epochs=1, seed=seed) for i, seed in enumerate((3, 3, 4))]
    assert cards[0]["sha256"] == cards[1]["sha256"] != cards[2]["sha256"]
    assert torch.equal(torch.random.get_rng_state(), before)
    written = json.loads((tmp_path / "0" / "card.json").read_text())
    assert written["sha256"] == hashlib.sha256((tmp_path / "0" / "starter.safetensors").read_bytes()).hexdigest()
    assert written["split"] == starter.split(3) != starter.split(4)
    assert written["test_top1"] == written["test_correct"] / 540


def test_augmentation_moves_but_keeps_the_range():
    images = torch.full((64, 3, 32, 32), -1.0)
    images[:, :, 12:20, 12:20] = 1.0
    torch.manual_seed(0)
    moved = starter._augmented(images)
    assert moved.shape == images.shape and not torch.equal(moved[0], moved[1])
    centres = (moved.clamp(-1, 1)[:, 0] > 0).float()
    row = (centres.sum(2) * torch.arange(32)).sum(1) / centres.sum((1, 2))
    assert (row - 15.5).abs().max() <= starter.SHIFT + 1 and row.std() > 1  # about the middle, by at most SHIFT
    assert abs(float(moved[:, 0, 0, 0].mean()) + 1) < 0.05  # what comes in from outside is paper

"""Accuracy, its interval and the paired test, against textbook values and brute force."""

from __future__ import annotations

from dataclasses import dataclass
from math import comb

import numpy as np
import pytest
import torch

from starfish_lab.errors import Cancelled, ImagesError
from starfish_lab.measure.accuracy import Predictions, accuracy_row, compare, predict, wilson
from starfish_lab.progress import Reporter


@dataclass
class Images:
    """As much of an ImageSet as accuracy uses; the images listed as broken are skipped."""

    images: torch.Tensor
    labels: torch.Tensor | None
    broken: tuple[int, ...] = ()

    def __len__(self):
        return len(self.images)

    def batches(self, size):
        for indices in torch.tensor([i for i in range(len(self)) if i not in self.broken], dtype=torch.long).split(size):
            if len(indices):
                yield indices, self.images[indices]


def answers(correct, indices=None):
    """Predictions that are right where `correct` says so; the true class is always 1."""
    correct = np.asarray(correct, dtype=bool)
    indices = np.arange(len(correct)) if indices is None else np.asarray(indices)
    return Predictions(indices, np.where(correct, 1, 0)[:, None], np.ones(len(correct), dtype=int))


@pytest.mark.parametrize(
    ("correct", "images", "low", "high"),
    [(85, 100, 0.7672, 0.9069), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (1, 1, 0.2065, 1.0)],
)
def test_wilson_has_the_textbook_values(correct, images, low, high):
    assert wilson(correct, images) == pytest.approx((low, high), abs=5e-5)


def test_wilson_agrees_with_scipy():
    from scipy.stats import binomtest

    for correct, images in [(3, 17), (539, 540), (687, 1000)]:
        expected = binomtest(correct, images).proportion_ci(0.9, method="wilson")
        assert wilson(correct, images, confidence=0.9) == pytest.approx((expected.low, expected.high))


def test_wilson_refuses_what_is_no_proportion():
    for correct, images in [(0, 0), (3, 2), (-1, 2)]:
        with pytest.raises(ImagesError):
            wilson(correct, images)


def test_predictions_are_the_networks_in_any_batch_size(tiny_vit):
    torch.manual_seed(1)
    images = Images(torch.randn(7, 3, 32, 32), torch.arange(7))
    with torch.no_grad():
        expected = tiny_vit.module(images.images).argsort(dim=1, descending=True)[:, :5].numpy()
    for size in (1, 3, 64):
        found = predict(tiny_vit, images, batch_size=size)
        assert found.top5.tolist() == expected.tolist()
        assert found.labels.tolist() == list(range(7))
    row = accuracy_row(found)
    assert row["correct"] == (expected[:, 0] == np.arange(7)).sum()
    assert row["top5"] == pytest.approx(np.mean([i in expected[i] for i in range(7)]))
    assert row["low"] <= row["top1"] <= row["high"] and row["images"] == 7


def test_unreadable_images_are_left_out(tiny_vit):
    found = predict(tiny_vit, Images(torch.randn(5, 3, 32, 32), torch.arange(5), broken=(1, 2)))
    assert found.indices.tolist() == [0, 3, 4] and found.labels.tolist() == [0, 3, 4]
    with pytest.raises(ImagesError, match="No image"):
        predict(tiny_vit, Images(torch.randn(2, 3, 32, 32), torch.arange(2), broken=(0, 1)))


def test_top5_of_three_classes_is_of_all_three():
    from starfish_lab.models.network import Network

    network = Network.of(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3)), blocks=["1"], input_size=(1, 2, 2))
    found = predict(network, Images(torch.randn(6, 1, 2, 2), torch.tensor([0, 1, 2, 0, 1, 2])))
    assert found.top5.shape == (6, 3) and accuracy_row(found)["top5"] == 1.0


def test_prediction_needs_labels_leaves_the_mode_and_obeys_cancel(tiny_vit):
    images = Images(torch.randn(2, 3, 32, 32), None)
    with pytest.raises(ImagesError, match="labels"):
        predict(tiny_vit, images)

    class Stop(Reporter):
        def cancel_requested(self):
            return True

    tiny_vit.module.train()
    with pytest.raises(Cancelled):
        predict(tiny_vit, Images(images.images, torch.arange(2)), reporter=Stop())
    assert tiny_vit.module.training and tiny_vit.module.head.training


@pytest.mark.parametrize(("won", "lost"), [(0, 0), (1, 0), (5, 0), (6, 0), (2, 9), (30, 30), (40, 60)])
def test_comparison_is_mcnemars_exact_test(won, lost):
    first = answers([False] * won + [True] * lost + [True] * 20)
    second = answers([True] * won + [False] * lost + [True] * 20)
    n = won + lost
    # two-sided by hand: the tail at least as far out as the smaller count, twice, the middle only once
    tail = sum(comb(n, k) for k in range(min(won, lost) + 1)) / 2**n
    expected = min(1.0, 2 * tail)
    row = compare(first, second)
    assert row["p_value"] == pytest.approx(expected)
    assert row["difference_pp"] == pytest.approx(100 * (won - lost) / (n + 20))
    assert row["resolved"] == (expected < 0.05)


def test_verdicts_are_in_words():
    same = compare(answers([True, False, True]), answers([True, True, False]))
    assert same["verdict"] == "not resolved with n = 3"
    worse = compare(answers([True] * 20), answers([False] * 10 + [True] * 10))
    assert worse["verdict"].startswith("50.0 pp lower (p = 0.002") and "n = 20" in worse["verdict"]
    assert compare(answers([False] * 20), answers([True] * 20))["verdict"].startswith("100.0 pp higher")


def test_only_images_answered_by_both_count():
    first = answers([True, True, False], indices=[4, 2, 9])
    second = answers([False, True, True], indices=[2, 4, 7])
    row = compare(first, second)
    assert row["images"] == 2 and row["difference_pp"] == pytest.approx(-50)
    with pytest.raises(ImagesError, match="in common"):
        compare(answers([True], indices=[0]), answers([True], indices=[1]))

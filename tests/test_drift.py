"""Drift: zero for equal networks, the closed forms elsewhere, and CKA's invariances."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from starfish_lab.errors import ImagesError
from starfish_lab.measure.drift import debiased_cka, drift
from starfish_lab.models.states import BlockStates


def noisy(network, amount=0.05):
    student = network.copy()
    torch.manual_seed(7)
    with torch.no_grad():
        for p in student.module.parameters():
            p.add_(amount * torch.randn_like(p))
    return student


@pytest.mark.parametrize("name", ["tiny_vit", "tiny_resnet", "tiny_convnext"])
def test_equal_networks_do_not_drift(name, request):
    network = request.getfixturevalue(name)
    images = torch.randn(6, *network.preprocessing.input_size)
    rows = drift(network, network.copy(), images, batch_size=4)
    groups = ["all", "class", "patch"] if network.states == "tokens" else ["image"]
    assert [(row["block"], row["depth"], row["tokens"]) for row in rows] == [(b, d, g) for d, b in enumerate(network.blocks) for g in groups]
    for row in rows:
        assert row["cosine_distance"] == 0 and row["relative_l2"] == 0
        assert row["cka"] == pytest.approx(1)


def test_figures_of_tokens_are_the_formulas(tiny_vit):
    student, images = noisy(tiny_vit), torch.randn(7, 3, 32, 32)
    rows = {(row["depth"], row["tokens"]): row for row in drift(tiny_vit, student, images, batch_size=3)}
    states = []
    for network in (tiny_vit, student):
        with BlockStates(network.module, network.blocks) as caught, torch.no_grad():
            network.module(images)
        states.append(caught.values)
    for depth, (dense, found) in enumerate(zip(*states)):
        for tokens, part in {"all": slice(None), "class": slice(0, 1), "patch": slice(1, None)}.items():
            a, b = dense[:, part], found[:, part]
            row = rows[depth, tokens]
            assert row["cosine_distance"] == pytest.approx((1 - F.cosine_similarity(a, b, dim=-1)).mean().item(), rel=1e-4)
            assert row["relative_l2"] == pytest.approx(((b - a).norm() / a.norm()).item(), rel=1e-4)
            assert row["cka"] == pytest.approx(debiased_cka(a.mean(1), b.mean(1)), abs=1e-4)
    assert rows[1, "all"]["cosine_distance"] > 0


def test_convolutional_states_have_one_cosine_an_image(tiny_resnet):
    student, images = noisy(tiny_resnet), torch.randn(5, 3, 32, 32)
    row = drift(tiny_resnet, student, images, batch_size=2)[0]
    states = []
    for network in (tiny_resnet, student):
        with BlockStates(network.module, network.blocks) as caught, torch.no_grad():
            network.module(images)
        states.append(caught.values[0].flatten(1))
    assert row["cosine_distance"] == pytest.approx((1 - F.cosine_similarity(*states)).mean().item(), rel=1e-4)


def test_drift_does_not_depend_on_the_batch_size(tiny_vit):
    student, images = noisy(tiny_vit), torch.randn(9, 3, 32, 32)
    whole, parts = drift(tiny_vit, student, images, batch_size=9), drift(tiny_vit, student, images, batch_size=2)
    for a, b in zip(whole, parts):
        for figure in ("cosine_distance", "relative_l2", "cka"):
            assert a[figure] == pytest.approx(b[figure], rel=1e-4)


def test_too_few_images_are_refused(tiny_vit):
    with pytest.raises(ImagesError, match="4"):
        drift(tiny_vit, tiny_vit, torch.randn(3, 3, 32, 32))


def test_cka_ignores_rotation_shift_and_scale():
    torch.manual_seed(0)
    a, b = torch.randn(40, 12).double(), torch.randn(40, 12).double()
    b = a + b  # related, not equal
    rotation = torch.linalg.qr(torch.randn(12, 12).double()).Q
    assert debiased_cka(a, 3 * a @ rotation + 5) == pytest.approx(1)
    assert debiased_cka(a, 0.1 * b @ rotation - 2) == pytest.approx(debiased_cka(a, b))
    assert 0.2 < debiased_cka(a, b) < 0.9


def test_debiased_cka_of_unrelated_wide_features_is_about_zero():
    """The biased estimator calls unrelated features alike as soon as they are wider than there are images."""
    torch.manual_seed(0)
    found, biased = [], []
    for _ in range(20):
        a, b = torch.randn(32, 512).double(), torch.randn(32, 512).double()
        found.append(debiased_cka(a, b))
        a, b = a - a.mean(0), b - b.mean(0)
        biased.append(((a.T @ b).norm() ** 2 / ((a.T @ a).norm() * (b.T @ b).norm())).item())
    mean = lambda values: sum(values) / len(values)  # noqa: E731
    assert mean(biased) > 0.9
    assert abs(mean(found)) < 0.05


def test_hsic_is_unbiased_by_enumeration():
    """Song et al.'s estimator is the U-statistic over all ordered quadruples of different images."""
    from itertools import permutations

    from starfish_lab.measure.drift import _gram, _hsic

    torch.manual_seed(3)
    a, b = torch.randn(6, 4).double(), torch.randn(6, 3).double()
    k, m = a @ a.T, b @ b.T
    quadruples = [k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]) for i, j, q, r in permutations(range(6), 4)]
    assert _hsic(_gram(a), _gram(b)) == pytest.approx((sum(quadruples) / len(quadruples)).item())


def test_cka_of_a_constant_state_is_undefined():
    assert debiased_cka(torch.ones(8, 3), torch.randn(8, 3)) is None

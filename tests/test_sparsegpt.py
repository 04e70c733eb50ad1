"""SparseGPT: exact numbers, the update against none, and the plain optimal brain surgeon on a small layer."""

from __future__ import annotations

import pytest
import torch

from starfish_lab.errors import RecipeError
from starfish_lab.pruning.patterns.n_m import largest_of_group
from starfish_lab.pruning.patterns.unstructured import without_smallest
from starfish_lab.pruning.solvers import sparsegpt
from starfish_lab.recipe import PruningChoice


def layer(out: int = 24, cols: int = 48, seed: int = 0):
    """Weights (out, cols), correlated inputs (rows, cols) and their second moments."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(400, cols, generator=generator) @ torch.randn(cols, cols, generator=generator)
    return torch.randn(out, cols, generator=generator), x, x.T @ x / len(x)


def solve(weight, moments, *, count=None, keep=2, group=4, **options):
    pattern = "n_m" if count is None else "unstructured"
    choice = PruningChoice(score="sparsegpt", pattern=pattern, keep=keep, group=group)
    return sparsegpt.solve(weight, moments, choice=choice, count=count, dense=weight, mask=weight != 0, **options)


def error(weight, values, x) -> float:
    """Mean squared change of the outputs, summed over them."""
    return float((x @ (values - weight).T).square().sum() / len(x))


@pytest.mark.parametrize("options", [{"count": 501}, {"count": 700, "block": 7}, {"keep": 2, "group": 4}, {"keep": 4, "group": 8, "block": 20}])
def test_update_beats_no_update_and_magnitude(options):
    weight, x, moments = layer()
    mask, values, facts = solve(weight, moments, **options)
    plain_mask, plain, _ = solve(weight, moments, update=False, **options)
    count = options.get("count")
    by_magnitude = without_smallest(weight.abs(), count) if count else largest_of_group(weight.abs(), options["keep"], options["group"])
    updated, not_updated, magnitude = (error(weight, v, x) for v in (values, plain, weight * by_magnitude))
    assert updated < 0.95 * not_updated and updated < 0.95 * magnitude  # the costs reckon with the update; without it they may mislead
    assert torch.equal(plain, weight * plain_mask) and not values[~mask].any() and (values[mask] != weight[mask]).any()
    assert facts["cost"] == pytest.approx(updated, rel=1e-3) and facts["cost_magnitude"] == pytest.approx(magnitude, rel=1e-3)
    assert facts["saved"] == pytest.approx(1 - updated / magnitude, abs=1e-3)


@pytest.mark.parametrize("count", [0, 1, 501, 577, 24 * 48])
@pytest.mark.parametrize("block", [5, 48, 128])
@pytest.mark.parametrize("update", [True, False])
def test_counts_are_exact(count, block, update):
    weight, _, moments = layer()
    mask, values, _ = solve(weight, moments, count=count, block=block, update=update)
    assert int((~mask).sum()) == count
    for start in range(0, 48, block):  # no block pays for another
        part = mask[:, start : start + block]
        assert abs(int((~part).sum()) - count * part.shape[1] / 48) < 1


@pytest.mark.parametrize("keep, group, block", [(2, 4, 128), (1, 4, 4), (6, 12, 30), (8, 16, 3)])
def test_every_group_keeps_its_number(keep, group, block):
    weight, _, moments = layer()
    mask, _, _ = solve(weight, moments, keep=keep, group=group, block=block)
    assert (mask.view(-1, group).sum(1) == keep).all()


def test_one_block_of_one_row_is_the_optimal_brain_surgeon_in_order():
    """Going through the inputs in order, each removal moves the later weights as the inverse over these alone says."""
    weight, _, moments = layer(out=1, cols=10)
    mask, values, _ = solve(weight, moments, count=4, damping=1e-9)
    w, h = weight[0].double().clone(), moments.double()
    inverses = [torch.linalg.inv(h[j:, j:]) for j in range(10)]
    metric = torch.stack([w[j] ** 2 / inverses[j][0, 0] for j in range(10)])
    removed = metric.argsort()[:4].tolist()
    assert sorted(removed) == (~mask[0]).nonzero().flatten().tolist()
    for j in sorted(removed):
        w[j:] = w[j:] - w[j] / inverses[j][0, 0] * inverses[j][:, 0]
    w[removed] = 0
    torch.testing.assert_close(values[0].double(), w, rtol=1e-3, atol=1e-4)


def test_the_last_weights_solve_the_least_squares_that_is_left():
    """After dropping the first inputs of a row, the others are the best ones, which a plain solve finds."""
    weight, x, moments = layer(out=3, cols=12)
    weight[:, :5] *= 1e-3  # these go
    mask, values, _ = solve(weight, moments, count=15, damping=1e-9)
    assert not mask[:, :5].any() and mask[:, 5:].all()
    best = torch.linalg.lstsq(x[:, 5:].double(), (x @ weight.T).double()).solution.T
    torch.testing.assert_close(values[:, 5:].double(), best, rtol=1e-3, atol=1e-4)


def test_inputs_that_are_always_zero_go_first_and_break_nothing():
    weight, x, moments = layer()
    dead = [3, 20, 21, 40]
    moments[dead] = 0
    moments[:, dead] = 0
    mask, values, _ = solve(weight, moments, count=24 * 24, block=48)
    assert torch.isfinite(values).all() and not mask[:, dead].any()
    nothing, kept, _ = solve(weight, torch.zeros_like(moments), count=24 * 24)
    assert torch.isfinite(kept).all() and int((~nothing).sum()) == 24 * 24


def test_fewer_rows_than_inputs_are_damped():
    weight, x, _ = layer()
    few = x[:5].T @ x[:5] / 5  # rank 5 of 48
    mask, values, _ = solve(weight, few, keep=2, group=4)
    assert torch.isfinite(values).all() and error(weight, values, x[:5]) < 0.2 * error(weight, weight * mask, x[:5])


@pytest.mark.parametrize("options, words", [({"damping": 0.0}, "damping"), ({"damping": float("nan")}, "damping"), ({"block": 0}, "block")])
def test_wrong_options_are_named(options, words):
    weight, _, moments = layer()
    with pytest.raises(RecipeError, match=words):
        solve(weight, moments, **options)

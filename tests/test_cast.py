"""CAST: the matrix products against plain enumeration, and what the choice promises of its costs."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from starfish_lab.errors import RecipeError
from starfish_lab.pruning.patterns.n_m import largest_of_group
from starfish_lab.pruning.solvers import cast
from starfish_lab.recipe import PruningChoice


def layer(out: int, groups: int, n: int, seed: int = 0):
    """Weights (out, groups · n) and second moments (groups, n, n) of correlated inputs with unequal scales."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(groups, 5 * n, n, generator=generator) @ torch.randn(groups, n, n, generator=generator)
    return torch.randn(out, groups * n, generator=generator), x.transpose(1, 2) @ x / (5 * n)


def solve(weight, moments, keep, *, mask=None, dense=None, seed=0, **options):
    choice = PruningChoice(score="cast", pattern="n_m", keep=keep, group=moments.shape[1], seed=seed)
    mask = weight != 0 if mask is None else mask
    return cast.solve(weight, moments, choice=choice, count=None, dense=weight if dense is None else dense, mask=mask, **options)


def patterns(n: int, keep: int) -> torch.Tensor:
    """Every mask (C(n, k), n) in plain loops, the one that keeps the earliest inputs first."""
    return torch.tensor([[float(i in kept) for i in range(n)] for kept in itertools.combinations(range(n), keep)])


def costs(u, moments, masks) -> torch.Tensor:
    """rᵀ C r in float64 (patterns, out, G), one pattern after the other."""
    n = moments.shape[1]
    u, moments = u.double().reshape(len(u), -1, n), moments.double()
    found = []
    for mask in masks.double():
        r = (1 - mask) * u
        found.append(torch.einsum("oga,gab,ogb->og", r, moments, r))
    return torch.stack(found)


def cost_of(u, moments, mask) -> torch.Tensor:
    """(out, G) of one mask for each row and group."""
    n = moments.shape[1]
    r = (u * ~mask).double().reshape(len(u), -1, n)
    return torch.einsum("oga,gab,ogb->og", r, moments.double(), r)


@pytest.mark.parametrize("n, keep", [(2, 1), (4, 1), (4, 2), (4, 3), (7, 3), (8, 2), (8, 4), (8, 7), (9, 4), (10, 3), (12, 6), (12, 11)])
def test_equals_brute_force_on_every_group(n, keep):
    weight, moments = layer(23, 3, n)
    masks = patterns(n, keep)
    best = masks[costs(weight, moments, masks).argmin(0)].bool()  # (out, G, n)
    mask, values, facts = solve(weight, moments, keep)
    assert torch.equal(mask.view_as(best), best)
    assert torch.equal(values, weight * mask)
    assert facts["patterns"] == math.comb(n, keep)
    assert facts["cost"] == pytest.approx(float(cost_of(weight, moments, mask).sum()), rel=1e-5)


@pytest.mark.parametrize("keep", [8, 4, 13])
def test_equals_brute_force_at_sixteen(keep):
    weight, moments = layer(3, 2, 16)
    masks = patterns(16, keep)
    best = masks[costs(weight, moments, masks).argmin(0)].bool()
    assert torch.equal(solve(weight, moments, keep)[0].view_as(best), best)


@pytest.mark.parametrize("n, keep", [(4, 2), (5, 2), (8, 3), (8, 4)])
def test_halves_find_what_the_one_product_finds(n, keep):
    q = torch.randn(n, n, 500, generator=torch.Generator().manual_seed(1))
    q = q + q.transpose(0, 1)  # no covariance: any quadratic form
    table = cast._patterns(n, keep, 1, 0, torch.device("cpu"))
    assert torch.equal(cast.by_halves(q, n - keep), cast._least(q, n - keep, table, None))


@pytest.mark.parametrize("n", [4, 8, 12, 16])
def test_equal_costs_go_to_the_pattern_that_keeps_the_earlier_inputs(n):
    weight, moments = torch.ones(2, n), torch.eye(n)[None]
    mask, _, _ = solve(weight, moments, n // 2)
    assert mask[:, : n // 2].all() and not mask[:, n // 2 :].any()
    assert torch.equal(solve(torch.zeros(2, n), moments, 1)[0].nonzero()[:, 1], torch.tensor([0, 0]))


def test_many_rows_in_parts_are_the_same_as_at_once(monkeypatch):
    weight, moments = layer(40, 5, 8)
    whole = solve(weight, moments, 4, alpha=0.5)
    monkeypatch.setattr(cast, "AT_ONCE_CPU", 15)  # three rows of five groups
    parts = solve(weight, moments, 4, alpha=0.5)
    assert torch.equal(whole[0], parts[0]) and parts[2]["cost"] == pytest.approx(whole[2]["cost"])


@pytest.mark.parametrize("n, keep", [(4, 2), (8, 3), (12, 6), (16, 8)])
def test_uncorrelated_inputs_make_it_wanda(n, keep):
    weight, moments = layer(30, 4, n)
    moments = torch.diag_embed(moments.diagonal(dim1=1, dim2=2))
    energy = weight.square() * moments.diagonal(dim1=1, dim2=2).flatten()
    assert torch.equal(solve(weight, moments, keep)[0], largest_of_group(energy, keep, n))


@pytest.mark.parametrize("n, keep", [(4, 2), (8, 4), (12, 6), (16, 8), (32, 16)])
def test_keeps_k_of_n_and_costs_no_more_than_magnitude(n, keep):
    weight, moments = layer(12, 4, n, seed=2)
    mask, values, facts = solve(weight, moments, keep, candidates=200)
    assert (mask.view(-1, n).sum(1) == keep).all() and torch.equal(values != 0, mask)
    by_magnitude = cost_of(weight, moments, largest_of_group(weight.abs(), keep, n))
    assert (cost_of(weight, moments, mask) <= by_magnitude * (1 + 1e-5)).all()
    assert facts["cost_magnitude"] == pytest.approx(float(by_magnitude.sum()), rel=1e-5)
    assert facts["saved"] == pytest.approx(1 - facts["cost"] / facts["cost_magnitude"]) and facts["saved"] > (0.05 if n <= 16 else 0)


def test_large_groups_try_candidates_drawn_by_seed():
    weight, moments = layer(6, 3, 32)
    weight = weight.sign()  # else the choice by magnitude is hard to beat by chance
    first, again, other = (solve(weight, moments, 16, candidates=50, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first[0], again[0]) and not torch.equal(first[0], other[0])
    assert first[2]["patterns"] == 50
    more = solve(weight, moments, 16, candidates=3000)
    assert more[2]["cost"] < first[2]["cost"]
    few = solve(weight, moments, 31, candidates=50)  # 32 patterns in all: none is drawn
    best = costs(weight, moments, patterns(32, 31)).argmin(0)
    assert few[2]["patterns"] == 32 and torch.equal((~few[0]).view(6, 3, 32).long().argmax(2), 31 - best)


# -- a pruned source ---------------------------------------------------------------------------------------------------


def source(out: int = 16, groups: int = 4, n: int = 8):
    """A third of the dense weights gone, unevenly over the groups, and the others moved a little."""
    dense, moments = layer(out, groups, n, seed=3)
    generator = torch.Generator().manual_seed(4)
    weight = (dense + 0.1 * torch.randn(dense.shape, generator=generator)) * (torch.rand(dense.shape, generator=generator) > 0.35)
    return weight, dense, moments


def test_free_positions_come_back_with_their_dense_values():
    weight, dense, moments = source()
    mask, values, _ = solve(weight, moments, 4, dense=dense)
    back = mask & (weight == 0)
    assert back.any() and torch.equal(values[back], dense[back])
    kept = mask & (weight != 0)
    assert torch.equal(values[kept], weight[kept]) and not values[~mask].any()


def test_without_restoration_zeros_stay_zero():
    weight, dense, moments = source()
    mask, values, _ = solve(weight, moments, 4, dense=dense, free_restoration=False)
    assert torch.equal(values, weight * mask)
    least = costs(weight, moments, patterns(8, 4)).min(0).values
    torch.testing.assert_close(cost_of(weight, moments, mask), least, rtol=1e-5, atol=1e-6)
    assert (mask & (weight == 0)).any()  # where fewer than four are left


def test_source_dense_looks_past_the_pruned_network():
    weight, dense, moments = source()
    got = solve(weight, moments, 4, dense=dense, source="dense", alpha=5.0)  # far from every mask alike: alpha decides nothing
    want = solve(dense, moments, 4)
    assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])


@pytest.mark.parametrize("prior", cast.PRIORS)
@pytest.mark.parametrize("n, keep", [(8, 4), (12, 6)])
def test_both_priors_against_plain_enumeration(prior, n, keep):
    weight, dense, moments = source(n=n)
    before, alpha = weight != 0, 0.7
    u = torch.where(before, weight, dense)
    masks = patterns(n, keep)
    plain = costs(u, moments, masks)  # (patterns, out, G)
    if prior == "mean_cost":
        scale = plain.mean(0)
    else:
        squares = u.double().square().view(len(u), -1, n) * moments.double().diagonal(dim1=1, dim2=2)
        scale = squares.mean((0, 2)).expand(len(u), -1)
    distance = (masks[:, None, None] != before.view(len(u), -1, n)).sum(-1)
    best = masks[(plain + alpha * scale * distance).argmin(0)].bool()
    got = solve(weight, moments, keep, dense=dense, alpha=alpha, prior=prior)[0]
    assert torch.equal(got.view_as(best), best)
    assert not torch.equal(got, solve(weight, moments, keep, dense=dense)[0])


@pytest.mark.parametrize("prior", cast.PRIORS)
def test_a_strong_prior_gives_the_nearest_mask(prior):
    weight, dense, moments = source()
    before = (weight != 0).view(-1, 8)
    mask = solve(weight, moments, 4, dense=dense, alpha=1e6, prior=prior)[0].view(-1, 8)
    distance = (mask != before).sum(1)
    assert torch.equal(distance, (before.sum(1) - 4).abs())  # no mask of four ones is nearer
    free = solve(weight, moments, 4, dense=dense)[0].view(-1, 8)
    assert (free != before).sum() > distance.sum()


@pytest.mark.parametrize(
    "options, words",
    [({"source": "other"}, "source is 'other'"), ({"prior": "none"}, "mean_energy"), ({"alpha": -1.0}, "alpha"), ({"candidates": 0}, "candidates")],
)
def test_wrong_options_are_named(options, words):
    weight, moments = layer(2, 1, 4)
    with pytest.raises(RecipeError, match=words):
        solve(weight, moments, 2, **options)

"""ALPS: against every mask there is, against SparseGPT, and what it must not do."""

from __future__ import annotations

import itertools

import pytest
import torch

from starfish_lab.errors import RecipeError
from starfish_lab.pruning.solvers import alps, sparsegpt
from starfish_lab.recipe import PruningChoice

CHOICE = PruningChoice(score="alps", sparsity=0.5)


def layer(out: int, cols: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight, and second moments of strongly correlated inputs of different sizes."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(512, cols, generator=draw) @ torch.randn(cols, cols, generator=draw) * torch.linspace(0.3, 2, cols)
    return torch.randn(out, cols, generator=draw), x.T @ x / 512


def cost(weight: torch.Tensor, left: torch.Tensor, moments: torch.Tensor) -> float:
    return float(((left - weight) @ moments * (left - weight)).sum())


def best(weight: torch.Tensor, moments: torch.Tensor, count: int) -> float:
    """The least cost over all masks that remove `count` entries of one row, each with its least squares."""
    found = []
    for gone in itertools.combinations(range(weight.shape[1]), count):
        kept = [c for c in range(weight.shape[1]) if c not in gone]
        left = torch.zeros_like(weight)
        left[0, kept] = torch.linalg.solve(moments[kept][:, kept], (weight @ moments)[0, kept])
        found.append(cost(weight, left, moments))
    return min(found)


def test_it_finds_the_best_of_all_masks_more_often_than_the_sweep():
    ratios = {"alps": [], "sparsegpt": []}
    for seed in range(20):
        weight, moments = layer(1, 10, seed)
        least = best(weight, moments, 5)
        for name, solver in (("alps", alps), ("sparsegpt", sparsegpt)):
            given = {"choice": CHOICE, "count": 5, "dense": weight, "mask": torch.ones_like(weight, dtype=torch.bool), "damping": 1e-6}
            _, left, _ = solver.solve(weight, moments, **given)
            ratios[name].append(cost(weight, left, moments) / least)
    assert min(ratios["alps"]) >= 1 - 1e-3  # nothing is better than the best
    hits = {name: sum(ratio < 1.01 for ratio in found) for name, found in ratios.items()}
    assert hits["alps"] >= 5 and hits["alps"] > hits["sparsegpt"], hits
    assert sorted(ratios["alps"])[10] < sorted(ratios["sparsegpt"])[10]


@pytest.mark.parametrize("pattern", ["unstructured", "n_m"])
def test_it_costs_less_than_the_sweep_at_high_sparsity(pattern):
    choice = PruningChoice(score="alps", pattern=pattern, keep=1, group=4, sparsity=0.75)
    for seed in range(5):
        weight, moments = layer(32, 48, seed)
        given = {"choice": choice, "count": 1152, "dense": weight, "mask": torch.ones_like(weight, dtype=torch.bool)}
        mask, left, facts = alps.solve(weight, moments, **given)
        _, swept, _ = sparsegpt.solve(weight, moments, **given)
        assert cost(weight, left, moments) < 0.9 * cost(weight, swept, moments)
        assert int((~mask).sum()) == 1152 and not left[~mask].any()
        assert pattern == "unstructured" or (mask.view(32, 12, 4).sum(-1) == 1).all()
        assert facts["cost"] == pytest.approx(cost(weight, left, moments), rel=1e-3) and facts["cost"] < facts["cost_magnitude"]


def test_what_may_not_stay_goes_first_and_dead_inputs_do_no_harm():
    weight, moments = layer(8, 16)
    moments[3], moments[:, 3] = 0.0, 0.0
    may = torch.rand(8, 16, generator=torch.Generator().manual_seed(1)) > 0.3
    mask, left, _ = alps.solve(weight * may, moments, choice=CHOICE, count=64, dense=weight, mask=may)
    assert not (mask & ~may).any() and torch.isfinite(left).all() and int((~mask).sum()) == 64


def test_wrong_options_are_refused_in_a_sentence():
    weight, moments = layer(2, 8)
    given = {"choice": CHOICE, "count": 8, "dense": weight, "mask": torch.ones_like(weight, dtype=torch.bool)}
    for options, match in (({"damping": 0.0}, "damping is 0"), ({"rounds": 0}, "rounds is 0")):
        with pytest.raises(RecipeError, match=match):
            alps.solve(weight, moments, **given, **options)

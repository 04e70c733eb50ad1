"""What pruning is expected to do to a network's states, and what it provably cannot do, before anything runs: from the profile alone.

Predicted drift (an estimate). R is what layer l with weight W loses. If the inputs of l had no preferred direction, what stays would keep
the direction of the output to a cosine of

    ρ_l = √(1 − e_l)        e_l = ‖R‖_F² / ‖W‖_F²

A block adds its branches (attention, then MLP; one branch in a convolutional block) to a stream of states. With k parts summed before it,
all of equal size and unrelated, the cosine c between pruned and dense stream becomes, after a branch of layers B,

    c ← c · (k + Π_{l ∈ B} ρ_l) / (k + 1)        from c = 1, k = 1 at the first block

and 1 − c is the predicted drift, in the terms of `measure.drift`'s cosine distance. Real inputs do have preferred directions, and real
branches unequal sizes, so its size may be several times off either way. The order of blocks and of choices is what it is good for;
tests/bar_explore.py measures how good (assets/measured/predicted_drift.csv).

Certificate (a bound). Whatever vector v the layer sees, no entry of its output moves by more than c_l ‖v‖₂:

    ‖R v‖_∞ ≤ c_l ‖v‖₂        c_l = min(‖R‖_F, t √n)

with t the largest |weight| that goes and n the layer's inputs. So B_T(R) of `certificate_bounds` is at most 2 L c_l · mean ‖v‖₂. It holds for
each layer put alone into the dense network, and says nothing of labels: L, what the layers behind make of it, is not known before a run.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from starfish_lab.certificate_bounds import PER_UNIT_L
from starfish_lab.pruning import rules
from starfish_lab.recipe import PruningChoice, StartChoice
from starfish_lab.whatif import Profile, WhatIf

ESTIMATE = "estimate"
DIGITS = 1e-6  # relative: profiles keep six digits
RULE = "cosine distance if inputs had no preferred direction, from each layer's share of ‖W‖² that goes; good for order, not for size"


@dataclass(frozen=True)
class Consequence:
    """What follows from a `WhatIf`.

    layers: its layers, a row each: layer, depth, energy (e_l, an estimate), change_bound (c_l; nan where nothing is certified).
    blocks: a block a row: block, depth, drift (1 − c after the block, an estimate). label: 'bound per unit L', or 'estimate' where the split
    over layers is one. why: why nothing is certified, '' where c_l stands.
    """

    layers: pd.DataFrame
    blocks: pd.DataFrame
    label: str
    why: str


def follow(profile: Profile, predicted: WhatIf, choice: PruningChoice, *, start: StartChoice = StartChoice()) -> Consequence:
    """The consequence of what `whatif.predict` answered for the same choice."""
    table = profile.layers.set_index("layer").loc[predicted.layers["layer"]]
    quantiles = np.array(table["magnitudes"].tolist(), dtype=float)  # (layers, 257)
    removed = predicted.layers["removed"].to_numpy()
    squares = _squares(quantiles, _norms2(profile, table) / table["weights"].to_numpy())
    energy = _energy(squares, predicted.layers["sparsity"].to_numpy(), choice)
    why = _uncertified(choice, start)
    bound = np.full(len(table), np.nan) if why else _bounds(quantiles, table, removed, choice)
    layers = predicted.layers[["layer", "depth"]].assign(energy=energy, change_bound=bound)
    drift = _drift(predicted.layers.assign(energy=energy), len(profile.facts["blocks"]))
    blocks = pd.DataFrame({"block": profile.facts["blocks"], "depth": np.arange(len(drift)), "drift": drift})
    return Consequence(layers, blocks, ESTIMATE if predicted.estimate else PER_UNIT_L, why)


def _norms2(profile: Profile, table: pd.DataFrame) -> np.ndarray:
    """‖W‖_F² (layers,) from the spectra: stable rank · s₁²; nan where they lack the layer."""
    if profile.spectra.empty:
        return np.full(len(table), np.nan)
    whole = profile.spectra[profile.spectra["part"].isin(("", "qkv"))].drop_duplicates("layer").set_index("layer")
    return (whole["stable_rank"] * whole["top"] ** 2).reindex(table.index).to_numpy(float)


def _squares(quantiles: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Mean square of the weights between each quantile and the next, (layers, 256). The few largest may be far apart: they get what the others
    leave of the layer's `mean` square, where that is known.
    """
    found = ((quantiles[:, 1:] + quantiles[:, :-1]) / 2) ** 2
    rest = mean * found.shape[1] - found[:, :-1].sum(1)
    found[:, -1] = np.where(np.isfinite(rest), np.maximum(rest, quantiles[:, -2] ** 2), found[:, -1])
    return found


def _energy(squares: np.ndarray, share: np.ndarray, choice: PruningChoice) -> np.ndarray:
    """e_l, (layers,): the share of ‖W‖_F² that goes with the smallest weights; with the smallest of each group of an n:m pattern; of units and
    random weights, whose sizes the profile does not know, as much as of weights.
    """
    if choice.pattern == "structured" or choice.score == "random":
        return share
    parts = squares / np.maximum(squares.sum(1, keepdims=True), np.finfo(float).tiny)
    bins = parts.shape[1]
    if choice.pattern == "n_m":
        going = _goes((np.arange(bins) + 0.5) / bins, choice.keep, choice.group)
        return np.where(share > 0, parts @ going, 0.0)
    places = np.linspace(0, 1, bins + 1)
    sums = np.pad(parts.cumsum(1), ((0, 0), (1, 0)))
    return np.array([np.interp(of_layer, places, known) for of_layer, known in zip(share, sums)])


def _goes(u: np.ndarray, keep: int, group: int) -> np.ndarray:
    """Chance that a weight at quantile u of its layer is among the group − keep smallest of a random group: that few enough others are smaller."""
    others, chance = group - 1, np.zeros_like(u)
    term = (1 - u) ** others  # binomial: none of the others is smaller
    for smaller in range(group - keep):
        chance += term
        term = term * (others - smaller) / (smaller + 1) * u / (1 - u)
    return chance


def _drift(layers: pd.DataFrame, blocks: int) -> np.ndarray:
    """(blocks,): 1 − c after each block."""
    branches = np.sqrt(1 - np.minimum(layers["energy"], 1.0)).groupby([layers["depth"], layers["kind"]]).prod()
    kinds = [kind for kind in ("attention", "mlp", "other") if kind in set(layers["kind"])]
    cosine, parts, found = 1.0, 1, []
    for depth in range(blocks):
        for kind in kinds:
            cosine *= (parts + branches.get((depth, kind), 1.0)) / (parts + 1)
            parts += 1
        found.append(1 - cosine)
    return np.array(found)


def _uncertified(choice: PruningChoice, start: StartChoice) -> str:
    """Why the profile bounds nothing here, '' where it does."""
    if rules.is_solver(choice) and choice.pattern != "kept":
        return f"the solver '{choice.score}' gives the weights that stay new values, which the profile cannot know"
    return "" if start.method == "dense" else "the profile is of the dense network, and pruning starts from another"


def _bounds(quantiles: np.ndarray, table: pd.DataFrame, removed: np.ndarray, choice: PruningChoice) -> np.ndarray:
    """c_l, (layers,): from above whatever lies between two quantiles."""
    weights, cols = table["weights"].to_numpy(), table["cols"].to_numpy()
    largest = _energy_at_most(-quantiles[:, ::-1], weights, removed)  # of any mask: as if the largest went
    if choice.score != "magnitude" or choice.pattern == "structured":
        return np.sqrt(largest)
    if choice.pattern == "n_m":  # the smallest of a group hold no more of its energy than their number's share
        whole = _energy_at_most(quantiles, weights, weights)
        return np.sqrt(np.minimum(largest, removed / weights * whole))
    threshold = np.take_along_axis(quantiles, _first(weights, removed, quantiles.shape[1])[:, None], axis=1)[:, 0] * (1 + DIGITS)
    return np.minimum(np.sqrt(_energy_at_most(quantiles, weights, removed)), np.where(removed > 0, threshold * np.sqrt(cols), 0.0))


def _ranks(weights: np.ndarray, points: int) -> np.ndarray:
    """(layers, points): how many of a layer's ordered weights stand at each quantile or before it."""
    return (np.arange(points)[None] * (weights[:, None] - 1)) // (points - 1) + 1


def _first(weights: np.ndarray, removed: np.ndarray, points: int) -> np.ndarray:
    """(layers,): the first quantile that no removed weight exceeds, of the `removed` smallest."""
    return (_ranks(weights, points) < removed[:, None]).sum(1)


def _energy_at_most(ordered: np.ndarray, weights: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """(layers,): Σ of squares of the first `removed` of the ordered weights at most, given 257 of them: from one to the next the larger counts."""
    ranks = np.minimum(_ranks(weights, ordered.shape[1]), removed[:, None])
    counts = np.diff(ranks, axis=1, prepend=0)
    upper = np.maximum(ordered**2, np.pad(ordered[:, :-1] ** 2, ((0, 0), (1, 0))))
    return (counts * upper).sum(1) * (1 + DIGITS) ** 2

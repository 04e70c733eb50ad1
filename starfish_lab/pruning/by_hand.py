"""Layers set by hand: each loses the share that the recipe gives it, and the budget shares out the rest, so that the total holds. No torch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from starfish_lab.errors import RecipeError
from starfish_lab.pruning import BUDGETS, rules
from starfish_lab.recipe import PruningChoice

SLACK = 1e-4  # of all weights: where every layer is set by hand nothing is left that could make the total exact


def counts(choice: PruningChoice, scores: Mapping[str, np.ndarray], sizes: Mapping[str, int], signals: pd.DataFrame | None) -> dict[str, int]:
    """Weights each layer loses: {layer: count}, in all round(sparsity · Σ sizes) of them.

    `scores[layer]` are all its scores or a sample of them, `signals` what budgets know of the spectra (see `budgets.mp_edge`). Raises
    RecipeError where the layers set by hand leave no way to the overall sparsity.
    """
    fixed = {layer: round(share * sizes[layer]) for layer, share in rules.by_layer("pruning.layers", choice.layers, sizes).items()}
    rest = {layer: size for layer, size in sizes.items() if layer not in fixed}
    left = rules.removed_in_all(sizes.values(), choice.sparsity) - sum(fixed.values())
    _check_room(choice, left, sum(rest.values()), sum(sizes.values()))
    budget = BUDGETS.get(choice.budget)
    found = budget({layer: scores[layer] for layer in rest}, rest, choice.sparsity, signals, left, **choice.options) if rest else {}
    return {layer: fixed[layer] if layer in fixed else found[layer] for layer in sizes}


def _check_room(choice: PruningChoice, left: int, room: int, weights: int) -> None:
    """Raise RecipeError unless the budget can take `left` weights from the `room` that the layers set by hand leave it."""
    exact = room or abs(left) > SLACK * weights
    wanted = f"pruning.sparsity {choice.sparsity:g} asks for"
    if exact and left < 0:
        least = choice.sparsity - left / weights
        raise RecipeError(f"pruning.layers alone takes {least:.4f} of all weights, more than {wanted}: raise that, or give these layers less.")
    if exact and left > room:
        most = choice.sparsity + (room - left) / weights
        raise RecipeError(f"With pruning.layers at most {most:.4f} of all weights can go, less than {wanted}: lower that, or give these layers more.")

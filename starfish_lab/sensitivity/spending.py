"""Spending along measured curves: which share every layer loses, what that is expected to do, and every best choice from little to much.

Position p between accuracy (0) and speed (1) is the share of all multiply-adds (or weights, or time) of the prunable layers that goes, of
which layer l has c_l, and

    minimise Σ_l D_l(s_l)   subject to   Σ_l c_l s_l = p Σ_l c_l

with the damages D_l of `stored.curves`, solved as `pruning.budgets.sensitivity` says. The sum is a prediction of the damage that holds
as far as damages of single layers add up. Time is that of the dense network on a device (`layer_ms`) and goes here with a layer's weights;
whether a device really saves it is another question (`prediction`). No torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from starfish_lab.pruning.budgets.sensitivity import GRID, on_grid, spend
from starfish_lab.recipe import PruningChoice
from starfish_lab.sensitivity import stored

MOST = 0.99  # that any layer loses: none goes wholly, and none further than it was measured
DIGITS = 4  # of a share
UNITS = {"macs_g": "multiply-adds", "weights": "weights", "ms": "time"}


@dataclass(frozen=True)
class Along:
    """The curves of the layers at hand.

    layers : their names; damages : (L, len(GRID)); prices : {unit of UNITS: (L,) of whole layers}; most : share that any layer loses
    """

    layers: tuple[str, ...]
    damages: np.ndarray
    prices: dict[str, np.ndarray]
    most: float = MOST

    @classmethod
    def of(cls, rows: pd.DataFrame, damage: str, layers: pd.DataFrame, times: Mapping[str, float] | None = None) -> Along | None:
        """From a table `sensitivity`, `WhatIf.layers` and `layer_ms` where known; None where one of these layers was not measured."""
        levels, found = stored.curves(rows, damage)
        if not set(layers["layer"]) <= set(found):
            return None
        damages = np.array([on_grid(levels, found[layer]) for layer in layers["layer"]])
        prices = {unit: layers[unit].to_numpy(float) for unit in ("macs_g", "weights")}
        prices |= {"ms": np.array([times[layer] for layer in layers["layer"]])} if times else {}
        return cls(tuple(layers["layer"]), damages, prices, min(MOST, levels[-1]))

    @property
    def units(self) -> list[str]:
        """What can be spent: multiply-adds, and what is not spent just as they are. Where every weight is multiplied equally often, weights are."""
        each = {unit: price / self.prices["macs_g"] for unit, price in self.prices.items()}
        return ["macs_g", *(unit for unit, ratio in each.items() if ratio.max() > 1.01 * ratio.min())]

    def spent(self, position: float, unit: str = "macs_g") -> dict[str, float]:
        """{layer: share of it that goes} of the least summed damage at a position."""
        price = self.prices[unit]
        shares = np.minimum(spend(self.damages, price, price, position * price.sum(), most=self.most), self.most)
        return dict(zip(self.layers, shares.round(DIGITS).tolist()))

    def damage(self, shares: Mapping[str, float]) -> float:
        """Σ_l D_l of any choice."""
        return float(sum(np.interp(shares[layer], GRID, curve) for layer, curve in zip(self.layers, self.damages)))

    def position(self, shares: Mapping[str, float], unit: str = "macs_g") -> float:
        """Where a choice stands between accuracy and speed."""
        price = self.prices[unit]
        return float(np.dot([shares[layer] for layer in self.layers], price) / price.sum())

    def front(self, unit: str = "macs_g") -> pd.DataFrame:
        """Every fifth position: position, damage (the least there is), uniform (damage where every layer loses the same)."""
        positions = GRID[5:100:5]
        return pd.DataFrame({
            "position": positions, "damage": [self.damage(self.spent(position, unit)) for position in positions],
            "uniform": [self.damage(dict.fromkeys(self.layers, position)) for position in positions],
        })  # fmt: skip


def sparsity(shares: Mapping[str, float], sizes: Mapping[str, int]) -> float:
    """The overall sparsity that these shares come to, each rounded to whole weights."""
    return sum(round(share * sizes[layer]) for layer, share in shares.items()) / sum(sizes.values())


def budget(choice: PruningChoice, rows: pd.DataFrame, *, damage: str = "kl", costs: dict[str, float] | None = None) -> PruningChoice:
    """The choice with its budget along these curves, which stand in its options as plain numbers: the recipe needs no store.

    Units have no budget: under 'structured' every group gets its share of the units, so many that the recipe's sparsity goes of all
    multiply-adds that can go.
    """
    if choice.pattern == "structured":
        along = Along.of(rows, damage, rows.drop_duplicates("layer"))
        return replace(choice, layers=along.spent(choice.sparsity))
    levels, found = stored.curves(rows, damage)
    options = {"levels": levels, "curves": found} | ({"costs": costs} if costs else {})
    return replace(choice, pattern="unstructured", budget="sensitivity", options=options)

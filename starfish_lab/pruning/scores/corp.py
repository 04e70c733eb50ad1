"""CORP: a unit matters as much as the energy of its activation, counted as often as it is active at all.

The ranking of CORP (arXiv 2602.05243; 'active_energy', the authors' default). For hidden unit j, x_j what reaches the consumer
from it, over all tokens or positions of the calibration images: E[x_j²] · P(|x_j| > 0.01 · RMS), the RMS over all units of the
batch. For dimension d of a head: E[q_d² k_d²] over tokens. The authors keep at least 64 units of a layer and 8 dimensions of a
head; of layers too small for that an eighth is kept (`LEAST`).
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

from starfish_lab.errors import RecipeError
from starfish_lab.models.network import Network
from starfish_lab.pruning.units import look
from starfish_lab.recipe import PruningChoice

NEEDS_ACTIVATIONS = False  # of every input feature: the units' own are taken here
NEEDS_GRADIENTS = False
WITHIN = "layer"
PATTERNS = ("structured",)
LEAST = {"mlp": 64, "qk": 8}  # units of a layer and dimensions of a head that stay
ACTIVE = 0.01  # of the batch's RMS


def score(weight: Tensor, *, activations: Tensor | None = None, gradients: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
    """A single weight is no unit. Raises RecipeError."""
    raise RecipeError("The score 'corp' ranks whole units, not single weights. Choose the pattern 'structured', or the score 'magnitude'.")


def unit_scores(network: Network, choice: PruningChoice, calibration: Tensor, labels: Tensor | None = None, device: str = "cpu") -> dict[str, Tensor]:
    """{producer: (units,), qkv layer: (heads, head_dim)} on the CPU, from one pass of the network in eval mode; labels play no part."""
    energy: defaultdict[str, list[Tensor]] = defaultdict(list)
    active: defaultdict[str, list[Tensor]] = defaultdict(list)
    products: defaultdict[str, list[Tensor]] = defaultdict(list)
    rows: defaultdict[str, int] = defaultdict(int)

    def units(producer: str, x: Tensor) -> None:
        x = x.flatten(0, -2)  # (rows, units)
        squares = x.square()
        energy[producer].append(squares.sum(0).cpu().double())
        active[producer].append((x.abs() > ACTIVE * squares.mean().sqrt()).sum(0).cpu())
        rows[producer] += len(x)

    def dimensions(qkv: str, q: Tensor, k: Tensor) -> None:
        products[qkv].append((q.square() * k.square()).sum((0, 1)).cpu().double())  # (heads, head_dim)
        rows[qkv] += q.shape[0] * q.shape[1]

    look(network, choice, calibration, device, units, dimensions)
    found = {name: (sum(energy[name]) / rows[name] * (sum(active[name]) / rows[name])).float() for name in energy}
    return found | {name: (sum(sums) / rows[name]).float() for name, sums in products.items()}

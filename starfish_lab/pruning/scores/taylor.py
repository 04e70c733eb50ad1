"""Taylor: a weight matters as much as the loss would change without it, to first order, (w · ∂L/∂w)².

Molchanov et al., 'Importance estimation for neural network pruning' (arXiv 1906.10771): the squared first-order term,
averaged over batches of calibration images. For single weights that is (w · g)², eq. 8; for a unit the terms of all its
weights are summed before the square, (Σ w · g)², eq. 9, so that terms which cancel within the unit do not count. A unit's
weights are those that go with it: a row of the producer and a column of the consumer, or rows d of a head's Q and K.
Labels are the images' own where they have any, else the network's predictions (`gradients.weight_gradients`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from starfish_lab.models.network import Network
from starfish_lab.pruning.gradients import batch_gradients
from starfish_lab.recipe import PruningChoice

NEEDS_ACTIVATIONS = False
NEEDS_GRADIENTS = True
WITHIN = "layer"


def score(weight: Tensor, *, activations: Tensor | None = None, gradients: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
    """(w · g)², of the weight's shape; `gradients` as `gradients.weight_gradients` gives them, the root of the mean of g²."""
    return (weight * gradients).square()


def unit_scores(network: Network, choice: PruningChoice, calibration: Tensor, labels: Tensor | None = None, device: str = "cpu") -> dict[str, Tensor]:
    """{producer: (units,), qkv layer: (heads, head_dim)} on the CPU: the mean over batches of (Σ over a unit's weights of w · g)²."""
    groups = network.unit_groups if "mlp" in choice.units else ()
    attentions = network.attentions if "qk" in choice.units else ()
    layers = dict.fromkeys([name for g in groups for name in (g.producer, g.consumer)] + [a.qkv for a in attentions])
    found: dict[str, Tensor] = {}
    batches = 0
    for weights, gradients in batch_gradients(network, layers, calibration, labels, device=device):
        terms = {layer: weights[layer] * gradients[layer] for layer in layers}
        batch = {g.producer: terms[g.producer].flatten(1).sum(1) + terms[g.consumer].transpose(0, 1).flatten(1).sum(1) for g in groups}
        for attention in attentions:
            q, k, _ = terms[attention.qkv].sum(1).view(3, attention.heads, attention.head_dim)
            batch[attention.qkv] = q + k
        batches += 1
        for name, sums in batch.items():
            found[name] = found[name] + sums.square() if name in found else sums.square()
    return {name: (total / batches).cpu() for name, total in found.items()}

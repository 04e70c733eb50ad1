"""Variance: a unit matters as much as its activation varies; the nearly constant ones go.

Variance-Based Pruning (arXiv 2507.12988): for hidden unit j the variance of what reaches the consumer from it (after the
activation function), over all tokens or positions of the calibration images. What a unit with little variance gives is
nearly its mean, which a bias could carry. For dimension d of a head, which the paper leaves alone, its share q_d · k_d of
the logits plays that part: what is the same for all keys of an image the softmax does not see, so the score is
E[q_d²] · Var[k_d], the variance over the keys of an image, averaged over images.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from starfish_lab.errors import LabError, RecipeError
from starfish_lab.models.network import Network
from starfish_lab.pruning.gradients import input_of
from starfish_lab.recipe import PruningChoice

NEEDS_ACTIVATIONS = False  # of every input feature: the units' own variance is taken here
NEEDS_GRADIENTS = False
WITHIN = "layer"
PATTERNS = ("structured",)
BATCH_SIZE = 32


def score(weight: Tensor, *, activations: Tensor | None = None, gradients: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
    """A single weight has no variance. Raises RecipeError."""
    raise RecipeError("The score 'variance' ranks whole units, not single weights. Choose the pattern 'structured', or the score 'magnitude'.")


@torch.no_grad()
def unit_scores(
    network: Network, choice: PruningChoice, calibration: Tensor, labels: Tensor | None = None, device: str = "cpu"
) -> dict[str, Tensor]:
    """{producer: (units,), qkv layer: (heads, head_dim)} on the CPU, from one pass of the network in eval mode; labels play no part."""
    module = copy.deepcopy(network.module).eval().to(device)
    running: dict[str, _Running] = {}
    products: dict[str, list[Tensor]] = {}
    for group in network.unit_groups if "mlp" in choice.units else ():
        running[group.producer] = _Running()
        conv = isinstance(module.get_submodule(group.consumer), nn.Conv2d)
        input_of(module, group.consumer, running[group.producer].images if conv else running[group.producer].rows)
    for attention in network.attentions if "qk" in choice.units else ():
        products[attention.qkv] = []

        def see(_, __, rows: Tensor, heads: int = attention.heads, width: int = attention.head_dim, kept: list[Tensor] = products[attention.qkv]):
            q, k, _ = rows.float().unflatten(-1, (3, heads, width)).unbind(-3)  # (B, N, heads, head_dim) each
            kept.append((q.square().mean(1) * k.var(1, unbiased=False)).sum(0).cpu().double())

        module.get_submodule(attention.qkv).register_forward_hook(see)
    for batch in calibration.split(BATCH_SIZE):
        module(batch.to(device))
    unseen = [name for name in products if not products[name]] + [name for name, seen in running.items() if not seen.count]
    if unseen:
        raise LabError(f"The units of {unseen[0]} do not run when the network does, so they have no variance. Exclude the layer.")
    found = {name: seen.variance().float() for name, seen in running.items()}
    return found | {name: (sum(sums) / len(calibration)).float() for name, sums in products.items()}


class _Running:
    """Mean and variance of each channel in one pass, batches merged exactly (Chan et al. 1979), so that a large mean costs no digits."""

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, 0.0, 0.0

    def images(self, x: Tensor) -> None:
        """`x` (B, units, H, W)."""
        self.rows(x.movedim(1, -1))

    def rows(self, x: Tensor) -> None:
        """`x` (B, …, units)."""
        x = x.flatten(0, -2)
        count, mean = len(x), x.mean(0)
        squares = (x - mean).square().sum(0).cpu().double()  # in double on the CPU: not every accelerator has it
        step = mean.cpu().double() - self.mean
        self.squares = self.squares + squares + step.square() * (self.count * count / (self.count + count))
        self.mean = self.mean + step * (count / (self.count + count))
        self.count += count

    def variance(self) -> Tensor:
        return self.squares / self.count

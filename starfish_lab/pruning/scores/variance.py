"""Variance: a unit matters as much as its activation varies; the nearly constant ones go.

Variance-Based Pruning (arXiv 2507.12988): for hidden unit j the variance of what reaches the consumer from it (after the
activation function), over all tokens or positions of the calibration images. What a unit with little variance gives is
nearly its mean, which a bias could carry. For dimension d of a head, which the paper leaves alone, its share q_d · k_d of
the logits plays that part: what is the same for all keys of an image the softmax does not see, so the score is
E[q_d²] · Var[k_d], the variance over the keys of an image, averaged over images.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

from starfish_lab.errors import RecipeError
from starfish_lab.models.network import Network
from starfish_lab.pruning.units import look
from starfish_lab.recipe import PruningChoice

NEEDS_ACTIVATIONS = False  # of every input feature: the units' own variance is taken here
NEEDS_GRADIENTS = False
WITHIN = "layer"
PATTERNS = ("structured",)


def score(weight: Tensor, *, activations: Tensor | None = None, gradients: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
    """A single weight has no variance. Raises RecipeError."""
    raise RecipeError("The score 'variance' ranks whole units, not single weights. Choose the pattern 'structured', or the score 'magnitude'.")


def unit_scores(network: Network, choice: PruningChoice, calibration: Tensor, labels: Tensor | None = None, device: str = "cpu") -> dict[str, Tensor]:
    """{producer: (units,), qkv layer: (heads, head_dim)} on the CPU, from one pass of the network in eval mode; labels play no part."""
    running: defaultdict[str, _Running] = defaultdict(_Running)
    products: defaultdict[str, list[Tensor]] = defaultdict(list)

    def dimensions(qkv: str, q: Tensor, k: Tensor) -> None:
        products[qkv].append((q.square().mean(1) * k.var(1, unbiased=False)).sum(0).cpu().double())

    look(network, choice, calibration, device, lambda producer, x: running[producer].rows(x), dimensions)
    found = {name: seen.variance().float() for name, seen in running.items()}
    return found | {name: (sum(sums) / len(calibration)).float() for name, sums in products.items()}


class _Running:
    """Mean and variance of each channel in one pass, batches merged exactly (Chan et al. 1979), so that a large mean costs no digits."""

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, 0.0, 0.0

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

"""The proof that a fast network answers as the masked one does, on images, before it is timed or kept.

The largest difference of logits counts, as a fraction of the largest logit of the masked network in float32. In float32 the two
may differ by EQUAL. In a shorter format both round, and the masked network itself says by how much: let ρ be its own distance
from float32. The fast one rounds in another order but as much, so the two may be 2 ρ apart; half as much again is allowed
because the largest of few logits is a noisy measure: tolerance max(EQUAL, 3 ρ).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from starfish_lab.models.network import Network

EQUAL = 1e-5  # of the largest logit, in float32
APART = 3.0  # times the masked network's own rounding


@dataclass(frozen=True, kw_only=True)
class Proof:
    """How far the fast network is from the masked one. Differences are fractions of the largest logit.

    largest_difference : from the masked network in the same precision
    from_float32 : from the masked network in float32
    tolerance : what `largest_difference` may be
    top1_agreement : fraction of the images on which both give the same class
    """

    largest_difference: float
    from_float32: float
    tolerance: float
    top1_agreement: float
    images: int

    @property
    def equal(self) -> bool:
        return self.largest_difference <= self.tolerance  # False for nan: logits that are not finite, or all 0, prove nothing

    def __str__(self) -> str:
        if math.isnan(self.largest_difference):
            return f"cannot be compared on {self.images} images, where logits are 0 throughout or not finite"
        return f"differ by at most {self.largest_difference:.1e} of the largest logit on {self.images} images"


def compare(found: Tensor, expected: Tensor, exact: Tensor | None = None) -> Proof:
    """The proof from logits, each (n, classes).

    found : of the fast network
    expected : of the masked one in the same precision
    exact : of the masked one in float32; None where that is the precision
    """
    found, expected = found.float(), expected.float()
    exact = expected if exact is None else exact.float()
    largest = exact.abs().max()

    def apart(a: Tensor, b: Tensor) -> float:
        return ((a - b).abs().max() / largest).item()

    return Proof(
        largest_difference=apart(found, expected), from_float32=apart(found, exact), tolerance=max(EQUAL, APART * apart(expected, exact)),
        top1_agreement=(found.argmax(1) == expected.argmax(1)).float().mean().item(), images=len(found),
    )  # fmt: skip


def prove(masked: Network, fast: Network, images: Tensor) -> Proof:
    """The proof of two networks in float32, on images (n, C, H, W) that lie where they do."""
    with torch.inference_mode():
        return compare(*(network.module.eval()(images) for network in (fast, masked)))

"""The predecessor: cycles in which the fit of the Marchenko–Pastur law says how much each layer loses.

Cycle i = 1, 2, … (arXiv 2503.01922 and its code), the layers' spectra fitted anew in each:

1. On even cycles the singular vectors are sparsified: an entry of column j of U or V under θ · max{1/750, (1 − s_j/σ₊)₊³⁰} becomes
   zero, θ = 1.125e-5 · ρ_i · rows · columns, and W becomes U′ S V′ᵀ.
2. Layer l loses the share ρ_i · [(1 − μ_l) · b_l]^(1.5/i) of the weights it still has, the smallest in magnitude; ρ_i = 0.06 · 1.02^i,
   μ_l is the fit error, b_l the share of singular values up to the edge σ₊.
3. What is left trains without images, on its own size: with strength a_l = 1 / (1 + 1e4 μ_l / i),
   a_l · (5e-7 ‖W‖₁ + 2e-7 ‖W‖² + 1e-6 a_l ‖W‖), by AdamW at 5e-8 falling to 0 on a cosine, 5,000 steps in the first cycle and 1,000 more
   in each later one.

At the end the network trains with its zeros frozen as after a magnitude cycle (rate 3e-5), 20 epochs.

What differs from the authors: they run 35 cycles and take the sparsity that results; here cycles run until `StartChoice.sparsity`
is reached, the last one trimmed in proportion to hit it exactly, and `StartChoice.step` plays no part. U′ S V′ᵀ has no zeros
where weights were gone, which in their code come back; here they stay gone. Their code splits a layer into two thin ones where
that saves weights; layers keep their shape here. Their code counts nonzero weights in steps of a growing threshold; counts are
exact here. The size penalties act on the pruned layers, not on biases and norms. Both kinds of phase take `StartChoice.steps`
where it is given. A layer whose law cannot be fitted loses nothing in that cycle.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from starfish_lab.data import Splits
from starfish_lab.errors import RecipeError
from starfish_lab.models.network import Network
from starfish_lab.progress import Reporter
from starfish_lab.pruning import masks as masking
from starfish_lab.pruning import ranking
from starfish_lab.pruning.cycles import Course, StartResult, row, training_images, within
from starfish_lab.pruning.rules import apportion
from starfish_lab.recipe import StartChoice
from starfish_lab.spectra.fit import MarchenkoPastur
from starfish_lab.training.batches import Batch
from starfish_lab.training.loop import Loss, TrainingChoice

TRAINS = True
L1, L2, GROUP = 5e-7, 2e-7, 1e-6
SHRINKING_RATE, FIRST_STEPS, MORE_STEPS = 5e-8, 5000, 1000
EPOCHS = 20
THETA = 1.125e-5


@dataclass(frozen=True)
class Fit:
    """What one layer's spectrum says: μ (nan where nothing can be fitted), bulk share b, edge σ₊."""

    error: float
    bulk: float
    edge: float


def start(
    dense: Network, choice: StartChoice, splits: Splits | None, *, device: str, reporter: Reporter, folder: Path | None,
    learning_rate: float = 3e-5, include_all: bool = False, exclude: tuple[str, ...] = (), augmentation: str = "none",
) -> StartResult:  # fmt: skip
    """The network pruned to `choice.sparsity`. `learning_rate` is that of the last training; other options as in 'magnitude'."""
    within("learning_rate", learning_rate, 1e-12, 10)
    images = training_images(splits, "classical_rmt")
    course = Course(
        dense, choice, images, device=device, reporter=reporter, folder=folder,
        include_all=include_all, exclude=exclude, augmentation=augmentation,
    )  # fmt: skip
    target = round(choice.sparsity * course.weights)
    while course.removed < target:
        number = course.done + 1
        fits = _prune(course, number, target)
        _shrink(course, number, fits)
        course.finish(number)
    if not course.facts.get("tuned", False):
        number = course.done + 1
        course.tune(number, "classical_rmt", learning_rate=learning_rate, epochs=EPOCHS)
        course.facts["tuned"] = True
        course.finish(number)
    return course.result()


def share(cycle: int) -> float:
    """ρ_i, what a layer of pure noise loses in cycle i.

    >>> round(share(1), 4), round(share(35), 3)
    (0.0612, 0.12)
    """
    return min(1.0, 0.06 * 1.02**cycle)


def fraction(cycle: int, fit: Fit) -> float:
    """What a layer loses in cycle i of the weights it still has; 0 where nothing was fitted.

    >>> round(fraction(3, Fit(error=0.2, bulk=0.8, edge=1.0)), 5)  # 0.06367 · √0.64
    0.05094
    """
    return share(cycle) * ((1 - fit.error) * fit.bulk) ** (1.5 / cycle) if np.isfinite(fit.error) else 0.0


def strength(cycle: int, fit: Fit) -> float:
    """a_l: how much a layer is shrunk, 0 where nothing was fitted."""
    return 1 / (1 + 1e4 * fit.error / cycle) if np.isfinite(fit.error) else 0.0


@torch.no_grad()
def _prune(course: Course, number: int, target: int) -> dict[str, Fit]:
    """Sparsify singular vectors on even cycles, then remove each layer's share, trimmed to `target` in all."""
    course.stage(number, course.sparsity, "prune")
    before, fits = course.removed, {}
    for name, layer in course.layers.items():
        course.reporter.check()
        weight, fits[name] = decompose(layer.weight.detach(), share(number) if number % 2 == 0 else None)
        layer.weight.copy_(weight)
    masking.apply(course.network.module, course.masks)
    left = {name: int(mask.sum()) for name, mask in course.masks.items()}
    counts = {name: math.ceil(fraction(number, fits[name]) * left[name]) for name in left}
    wanted = sum(counts.values())
    if wanted == 0:
        raise RecipeError(
            f"After cycle {number - 1}, at {course.sparsity:.1%}, the Marchenko–Pastur law can be fitted to no layer any more. "
            "Lower start.sparsity, or choose the start 'magnitude'."
        )
    if wanted > target - before:
        shares = np.array(list(counts.values())) * (target - before) / wanted
        counts = dict(zip(counts, apportion(shares, target - before).tolist(), strict=True))
    for name, value in course.values().items():
        gone = value.numel() - left[name] + counts[name]
        course.masks |= ranking.without_smallest({name: value}, {name: course.masks[name]}, gone)
    masking.apply(course.network.module, course.masks)
    course.rows.append(row(number, course.sparsity, "prune", "classical_rmt", weights_removed=course.removed - before))
    return fits


def decompose(weight: Tensor, rho: float | None) -> tuple[Tensor, Fit]:
    """The weight, its singular vectors sparsified where ρ is given, and what its spectrum says."""
    matrix = weight.flatten(1).to("cpu" if weight.device.type == "mps" else weight.device, torch.float64)  # mps has no float64
    shape, n = tuple(matrix.shape), max(matrix.shape)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    singular = s.cpu().numpy()
    found = MarchenkoPastur().fit(singular**2 / n, shape=shape)
    fit = Fit(found.fit_error_, float((singular <= found.edge_).mean()), found.edge_)
    if rho is None or not np.isfinite(fit.error) or fit.edge <= 0:
        return weight, fit
    limits = THETA * rho * shape[0] * shape[1] * (1 - s / fit.edge).clamp_min(0).pow(30).clamp_min(1 / 750)
    u = torch.where(u.abs() < limits, 0.0, u)
    vh = torch.where(vh.abs() < limits[:, None], 0.0, vh)
    return ((u * s) @ vh).view(weight.shape).to(weight), fit


def _shrink(course: Course, number: int, fits: dict[str, Fit]) -> None:
    """Train the weights that are left on their own size, without images."""
    weights = {name: layer.weight for name, layer in course.layers.items()}
    strengths = {name: strength(number, fit) for name, fit in fits.items()}

    def loss(batch: Batch) -> Loss:
        total = 0.0
        for name, weight in weights.items():
            a = strengths[name]
            total = total + a * (L1 * weight.abs().sum() + L2 * weight.square().sum() + GROUP * a * torch.linalg.vector_norm(weight))
        return Loss(total)

    training = TrainingChoice(
        steps=course.choice.steps or FIRST_STEPS + MORE_STEPS * (number - 1), learning_rate=SHRINKING_RATE,
        optimiser="adamw", weight_decay=L2, seed=course.choice.seed,
    )  # fmt: skip
    nothing = Batch(None, torch.zeros(0), None)
    course.phase(number, "tune", "classical_rmt", loss, lambda step: nothing, training, course.masks)

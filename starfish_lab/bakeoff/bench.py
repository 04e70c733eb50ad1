"""What all healers of one seed and sparsity share: images, masks and pruned network, made once."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from torch import LongTensor, Tensor

from starfish_lab import data
from starfish_lab.bakeoff.plan import BakeOff
from starfish_lab.data.images import ImageSet
from starfish_lab.measure.accuracy import Predictions, predict
from starfish_lab.measure.drift import drift
from starfish_lab.models.network import Network
from starfish_lab.preparation import Prepared, begin, prepare
from starfish_lab.progress import Reporter


@dataclass(frozen=True)
class Images:
    """The images of one seed, decoded once, and what the dense network answers."""

    splits: data.Splits
    calibration: Tensor  # (drawn, C, H, W): a cell with fewer takes the first ones
    labels: LongTensor | None  # (drawn,), for healers that train with labels
    drift: Tensor  # (n, C, H, W)
    answers: Predictions | None  # of the dense network; None where the evaluation images have no labels

    @classmethod
    def of(cls, dense: Network, plan: BakeOff, seed: int, *, device: str, reporter: Reporter) -> Images:
        """Raises ImagesError where they are too few or cannot be read."""
        recipe = plan.cell_recipe(seed, plan.recipe.pruning.sparsity)
        splits = data.open_images(recipe.images, dense)
        calibration = splits.calibration.tensor()
        answers = None if splits.evaluation.labels is None else predict(dense, splits.evaluation, device=device, reporter=reporter)
        return cls(splits, calibration, splits.calibration.labels, splits.drift.tensor(), answers)


@dataclass(frozen=True)
class Bench:
    """One pruned network on which healers compete, and what is known of it before any healing."""

    images: Images
    prepared: Prepared
    seconds: float  # that pruning took, spent once for all healers
    answers: Predictions | None  # of the pruned network
    drift: list[dict[str, object]]  # of the pruned network, a row a block, see `drift_rows`

    @classmethod
    def of(cls, dense: Network, plan: BakeOff, images: Images, seed: int, sparsity: float, *, device: str, reporter: Reporter) -> Bench:
        """Prune the dense network once. Masks that look at images see the fewest of any cell, so that none knows more than it may."""
        recipe, few = plan.cell_recipe(seed, sparsity), plan.fewest
        seen = ImageSet.of(images.calibration[:few], None if images.labels is None else images.labels[:few])
        splits = replace(images.splits, calibration=seen)
        started = time.perf_counter()
        begun = begin(dense, recipe, splits, device=device, reporter=reporter)
        prepared = prepare(dense, begun, recipe, splits, device=device, reporter=reporter)
        seconds = time.perf_counter() - started
        _warm_up(prepared.network, images.calibration[:32], device)
        answers = None if images.answers is None else predict(prepared.network, images.splits.evaluation, device=device, reporter=reporter)
        return cls(images, prepared, seconds, answers, drift_rows(prepared.reference, prepared.network, images.drift, device=device))


def _warm_up(network: Network, images: Tensor, device: str) -> None:
    """A forward and a backward pass: the first ones on an accelerator load its kernels, for which no healer should pay."""
    if device != "cpu":
        network.copy().module.to(device)(images.to(device)).sum().backward()


def drift_rows(dense: Network, student: Network, images: Tensor, *, device: str) -> list[dict[str, object]]:
    """Rows of `measure.drift` over all tokens, or whole images: one a block, in depth order."""
    return [row for row in drift(dense, student, images, device=device) if row["tokens"] in ("all", "image")]


def mean_distance(rows: list[dict[str, object]]) -> float:
    """Mean cosine distance over blocks."""
    return sum(row["cosine_distance"] for row in rows) / len(rows)

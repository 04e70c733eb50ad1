"""Magnitude first, Spectral Edge Reallocation after: the start of the paper's sparse networks.

Cycles up to `switch` (20 %) are those of 'magnitude', later ones those of 'ser' (arXiv 2606.02608, Online Resource 2). The
authors' other variant has no fixed switch: with `drop` (0.7 in the paper) magnitude goes on until a tuned network is worse
than the dense one by more than that many percentage points of top-1. They measure on evaluation images; here every tenth
training image, drawn by the seed, is held out from training and measured on, so the evaluation stays unseen. The cycle
that falls too far is kept as it is, and the next one is the first of 'ser'.
"""

from __future__ import annotations

from pathlib import Path

import torch

from starfish_lab.data import ImageSet, Splits
from starfish_lab.errors import ImagesError
from starfish_lab.measure.accuracy import predict
from starfish_lab.models.network import Network
from starfish_lab.progress import Reporter
from starfish_lab.pruning.cycles import Course, StartResult, training_images, within
from starfish_lab.pruning.starts import magnitude, ser
from starfish_lab.recipe import StartChoice

TRAINS = True
HELD_OUT = 10  # one of so many training images
EXACT = 1e-9  # of grid points, which are sums of decimal steps


def start(
    dense: Network, choice: StartChoice, splits: Splits | None, *, device: str, reporter: Reporter, folder: Path | None,
    switch: float = 0.20, drop: float | None = None,
    over: float = 0.03, rho: str = "1/w", enters: str = "zero", restores: str = "removed", task: float = 0.0, beta: float | None = None,
    learning_rate: float = 5e-5, magnitude_learning_rate: float = 3e-5,
    include_all: bool = False, exclude: tuple[str, ...] = (), augmentation: str = "none",
) -> StartResult:  # fmt: skip
    """The network pruned to `choice.sparsity`; `switch` and `drop` (percentage points) as above, all else as in 'ser' and 'magnitude'."""
    within("switch", switch, 0, 1)
    if drop is not None:
        within("drop", drop, 0, 100)
    within("magnitude_learning_rate", magnitude_learning_rate, 1e-12, 10)
    options = ser.Options(over=over, rho=rho, enters=enters, restores=restores, task=task, beta=beta, learning_rate=learning_rate)
    options.check(choice)
    images, held_out = training_images(splits, "hybrid"), None
    if drop is not None:
        images, held_out = hold_out(images, choice.seed)
    course = Course(
        dense, choice, images, device=device, reporter=reporter, folder=folder,
        include_all=include_all, exclude=exclude, augmentation=augmentation,
    )  # fmt: skip
    reallocate = None
    for number, sparsity in enumerate(choice.grid(), start=1):
        if number <= course.done:
            continue
        by_magnitude = sparsity <= switch + EXACT if drop is None else not course.facts.get("switched", False)
        if by_magnitude:
            magnitude.cycle(course, number, sparsity, magnitude_learning_rate)
            if held_out is not None:
                _look(course, number, sparsity, held_out, drop)
        else:
            reallocate = reallocate or ser.reallocation(course, options)
            reallocate(number, sparsity)
        course.finish(number)
    return course.result()


def hold_out(images: ImageSet, seed: int) -> tuple[ImageSet, ImageSet]:
    """The images to train on, and those to measure on: a tenth, at least one of each."""
    if len(images) < 2:
        raise ImagesError(f"{len(images)} training image is too few to hold one out. Raise images.training, or leave start.options.drop away.")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).tolist()
    count = max(1, len(images) // HELD_OUT)
    return _part(images, sorted(order[count:])), _part(images, sorted(order[:count]))


def _part(images: ImageSet, places: list[int]) -> ImageSet:
    """The images at these places alone."""
    return ImageSet(
        [images.names[i] for i in places], images.labels[places], lambda i: images.image(places[i]),
        picture=(lambda i: images.picture(places[i])) if images.has_pictures else None, preprocessing=images.preprocessing,
    )  # fmt: skip


def _look(course: Course, number: int, sparsity: float, held_out: ImageSet, drop: float) -> None:
    """Measure the tuned network, note it, and remember if magnitude has gone far enough."""
    if "dense_top1" not in course.facts:
        course.facts["dense_top1"] = _top1(course, course.dense, held_out)
    dense, now = course.facts["dense_top1"], _top1(course, course.network, held_out)
    fallen = 100 * (dense - now)
    course.facts["switched"] = fallen > drop
    found = f"Cycle {number} at {sparsity:.0%}: top-1 {now:.2%} on {len(held_out)} held-out training images, dense {dense:.2%}"
    course.notes.append(f"{found}: more than {drop:g} pp lower, so 'ser' goes on from here." if fallen > drop else f"{found}.")


def _top1(course: Course, network: Network, images: ImageSet) -> float:
    return float(predict(network, images, device=course.device, reporter=course.reporter).correct.mean())

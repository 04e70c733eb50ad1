"""Cycles of global magnitude pruning, one phase of training after each.

On the grid of `StartChoice` (5 %, 10 %, … in the paper) each cycle removes the smallest |W| of all prunable layers together,
exactly to its sparsity; weights that are gone stay gone. Then the whole network trains for one epoch, or `StartChoice.steps`,
at a peak rate of 3e-5 (arXiv 2606.02608, Online Resource 2; the other settings in `pruning.cycles`). The authors' script
trains two epochs from 30 % and three from 45 % on, their text says one an epoch a cycle: one here.
"""

from __future__ import annotations

from pathlib import Path

from starfish_lab.data import Splits
from starfish_lab.models.network import Network
from starfish_lab.progress import Reporter
from starfish_lab.pruning.cycles import Course, StartResult, training_images, within
from starfish_lab.recipe import StartChoice

TRAINS = True


def start(
    dense: Network, choice: StartChoice, splits: Splits | None, *, device: str, reporter: Reporter, folder: Path | None,
    learning_rate: float = 3e-5, include_all: bool = False, exclude: tuple[str, ...] = (), augmentation: str = "none",
) -> StartResult:  # fmt: skip
    """The network pruned to `choice.sparsity` by magnitude, in cycles, tuned at a peak rate of `learning_rate`.

    `include_all` prunes every Linear and Conv2d, patch embedding and head included, as the authors do; else the prunable
    layers alone. `exclude` are glob patterns over names of layers to leave as they are. `augmentation` of the training
    images is 'none', 'flip', 'crop' or 'timm'.
    """
    within("learning_rate", learning_rate, 1e-12, 10)
    images = training_images(splits, "magnitude")
    course = Course(
        dense, choice, images, device=device, reporter=reporter, folder=folder,
        include_all=include_all, exclude=exclude, augmentation=augmentation,
    )  # fmt: skip
    for number, sparsity in enumerate(choice.grid(), start=1):
        if number > course.done:
            cycle(course, number, sparsity, learning_rate)
            course.finish(number)
    return course.result()


def cycle(course: Course, number: int, sparsity: float, learning_rate: float) -> None:
    """One cycle: prune to `sparsity`, tune."""
    course.remove(number, sparsity, "magnitude")
    course.tune(number, "magnitude", learning_rate=learning_rate)

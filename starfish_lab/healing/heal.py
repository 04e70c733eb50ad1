"""Healing: train what a mask left of a network, so that the pruned network behaves as the dense one.

The loop is the same for every method (`training.loop`). With the defaults it is STARFISH's (arXiv 2606.01126, and the
authors' released defaults): only surviving entries of the masked weights train; Adam with default betas, the rate falling
on a cosine at every step, no warm-up, no weight decay; the same batches in the same order in every epoch; gradients and
weights masked at every step; float32. A method gives the loss of a batch.

On a CPU equal seeds give bit-identical results, resumed or not, at an equal number of threads: how many
threads share a sum decides its order, and so its last bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from starfish_lab import settings
from starfish_lab.data.images import ImageSet
from starfish_lab.errors import ImagesError, LabError, RecipeError
from starfish_lab.healing import METHODS
from starfish_lab.healing.session import Session
from starfish_lab.models.network import Network
from starfish_lab.progress import Reporter
from starfish_lab.pruning.masks import Masks, apply
from starfish_lab.recipe import HealingChoice
from starfish_lab.training.batches import Batches
from starfish_lab.training.checkpoint import Checkpoint, fingerprint
from starfish_lab.training.loop import POINTS, TrainingChoice, TrainingResult, learning_rate, train

__all__ = ["POINTS", "HealingResult", "heal", "learning_rate"]

HealingResult = TrainingResult

OF_THE_OPTIMISER = {"momentum": 0.9, "nesterov": False}  # options beside the method's own, for 'sgd'


def heal(
    dense: Network,
    student: Network,
    masks: Masks,
    images: Tensor | ImageSet,
    choice: HealingChoice,
    *,
    labels: Tensor | None = None,
    training: ImageSet | None = None,
    device: str | torch.device = "cpu",
    reporter: Reporter | None = None,
    checkpoint: Path | None = None,
    checkpoint_seconds: float = 5.0,
    teacher_memory_gb: float | None = None,
) -> HealingResult:
    """Heal `student` in place. It starts from its own weights × masks.

    Parameters
    ----------
    dense : the teacher, only read; its blocks have the same names as the student's
    masks : {layer name: bool tensor of the weight's shape}, True where a weight stays and trains
    images : calibration images, (n, C, H, W) float or an ImageSet; batches move to the device one at a time
    choice : method, its options (for 'sgd' also momentum and nesterov), steps, batch size, rates, what trains, on which
        images and how augmented, precision, seed (of order, augmentation and dropout)
    labels : (n,) of the calibration images, only for methods that need them; None takes those of an ImageSet
    training : labelled images for `choice.images` 'training'; None takes the calibration images, shuffled in every epoch
    checkpoint : file to continue from if it is of this very run, and to save to every `checkpoint_seconds`
        and at the end. It stays; whoever owns the run removes it.
    teacher_memory_gb : memory for the teacher's targets; None takes the setting STARFISH_LAB_TEACHER_MEMORY_GB

    Afterwards both networks are in eval mode on the devices they came from. Where `choice.trains` is 'weights', all but
    masked weights and running statistics is bit-identical to before. After an exception the student is somewhere between.

    Raises Cancelled at the next step when the reporter is asked to stop, ImagesError for images that do not fit,
    RecipeError for options, masks or labels that do not, and when the loss is no longer a number.
    """
    reporter = reporter or Reporter()
    options, own = _options(choice)
    batches = _batches(dense, images, labels, training, choice)
    _check_networks(dense, student, masks)
    with _on(torch.device(device), dense.module, student.module) as device:
        memory = settings.number(settings.TEACHER_MEMORY_GB, float) if teacher_memory_gb is None else teacher_memory_gb
        session = Session(dense=dense, student=student, batches=batches, device=device, reporter=reporter, teacher_memory=1e9 * memory)
        apply(student.module, masks)
        objective = METHODS.get(choice.method)(session, **options)
        if objective is None:
            return HealingResult()
        key = "" if checkpoint is None else _key(dense, student, masks, batches, choice)
        keeper = Checkpoint(checkpoint, key=key, seconds=checkpoint_seconds, reporter=reporter)
        phase = TrainingChoice(
            steps=choice.total_steps(batches.count), learning_rate=choice.learning_rate, final_learning_rate=choice.final_learning_rate,
            warmup=choice.warmup, optimiser=choice.optimiser, weight_decay=choice.weight_decay, gradient_clip=choice.gradient_clip,
            trains=choice.trains, precision=choice.precision, seed=choice.seed, **own,
        )  # fmt: skip
        result = train(student, objective, batches, phase, moves=masks, device=device, reporter=reporter, keeper=keeper)
    if batches.skipped:
        reporter.note(f"{len(batches.skipped)} images cannot be read and took no part in healing, the first {batches.skipped[0]}.")
    return result


def _options(choice: HealingChoice) -> tuple[dict[str, object], dict[str, object]]:
    """The options of the method, and those of the optimiser."""
    known = METHODS.options(choice.method)
    beside = OF_THE_OPTIMISER if choice.optimiser == "sgd" else {}
    unknown = sorted(set(choice.options) - set(known) - set(beside))
    if unknown:
        raise RecipeError(
            f"healing.options.{unknown[0]} is no option of '{choice.method}'. Its options: {', '.join([*known, *beside]) or 'none'}."
        )
    own = {name: value for name, value in choice.options.items() if name in beside}
    momentum, nesterov = own.get("momentum", 0.9), own.get("nesterov", False)
    if isinstance(momentum, bool) or not isinstance(momentum, int | float) or not 0 <= momentum < 1:
        raise RecipeError(f"healing.options.momentum is {momentum!r}: give a number from 0 to below 1, such as 0.9.")
    if not isinstance(nesterov, bool) or (nesterov and momentum == 0):
        raise RecipeError(f"healing.options.nesterov is {nesterov!r}: give true or false, and true only with a momentum above 0.")
    return {name: value for name, value in choice.options.items() if name not in own}, own


def _batches(dense: Network, images: Tensor | ImageSet, labels: Tensor | None, training: ImageSet | None, choice: HealingChoice) -> Batches:
    """The batches of the run, once it is certain that they fit the network and the method."""
    kind = "calibration"
    if choice.images == "training" and training is not None:
        kind, images, labels = "training", training, training.labels
    if len(images) == 0:
        raise ImagesError(f"There are no {kind} images. Healing needs at least one; the paper uses 5,000.")
    if isinstance(images, ImageSet):
        labels = images.labels if labels is None else labels
        if choice.augmentation == "none" and kind == "calibration":
            images = images.tensor()  # decoded once, for all epochs
    expected = tuple(dense.preprocessing.input_size)
    if isinstance(images, Tensor) and (tuple(images.shape[1:]) != expected or not images.is_floating_point()):
        raise ImagesError(
            f"Calibration images are {images.dtype} of shape {tuple(images.shape[1:])}; {dense.name} takes floats of shape {expected}. "
            "Prepare them by the network's own preprocessing."
        )
    if not METHODS.module(choice.method).NEEDS_LABELS:
        labels = None
    elif labels is None:
        raise RecipeError(
            f"Healing by '{choice.method}' needs labels, and the {kind} images have none. Choose labelled images, or 'starfish', which needs none."
        )
    elif len(labels) != len(images):
        raise ImagesError(f"{len(labels)} labels for {len(images)} {kind} images. Give one for each image, in the same order.")
    return Batches(
        images, labels, batch_size=choice.batch_size, shuffle=choice.images == "training", augmentation=choice.augmentation,
        preprocessing=dense.preprocessing, seed=choice.seed,
    )  # fmt: skip


def _key(dense: Network, student: Network, masks: Masks, batches: Batches, choice: HealingChoice) -> str:
    """Fingerprint of everything that decides the result: choice, masks, both networks' weights, images, labels."""
    return fingerprint(dataclasses.asdict(choice), masks, dense.module.state_dict(), student.module.state_dict(), batches.fingerprint())


def _check_networks(dense: Network, student: Network, masks: Masks) -> None:
    """Raise for whatever would fail later or, worse, heal something else than meant."""
    if dense.module is student.module:
        raise LabError("Dense and pruned network are the same object, so healing would overwrite its own teacher. Give a copy: dense.copy().")
    if not masks:
        raise RecipeError("No layer has a mask, so nothing can be healed. Prune first.")
    for name, mask in masks.items():
        shape = student.module.get_submodule(name).weight.shape
        if mask.shape != shape:
            raise RecipeError(f"The mask of {name} has shape {tuple(mask.shape)}, its weight {tuple(shape)}. Make masks from this very network.")


@contextmanager
def _on(device: torch.device, *modules: nn.Module) -> Iterator[torch.device]:
    """Modules on the device, in eval mode; afterwards back where they were."""
    homes = [next(module.parameters()).device for module in modules]
    try:
        for module in modules:
            module.to(device).eval()
        yield device
    finally:
        for module, home in zip(modules, homes):
            module.to(home)

"""Healing: repair and train what a mask left of a network, so that the pruned network behaves as the dense one.

A repair comes first (`repairs`), then training (`training.loop`, the same for every method). With the defaults it is
STARFISH's (arXiv 2606.01126, and the authors' released defaults): no repair; only surviving entries of the masked weights
train; Adam with default betas, the rate falling on a cosine at every step, no warm-up, no weight decay; the same batches in
the same order in every epoch; gradients and weights masked at every step; float32. A method gives the loss of a batch.

On a CPU equal seeds give bit-identical results, resumed or not, at an equal number of threads: how many
threads share a sum decides its order, and so its last bit.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from starfish_lab import settings
from starfish_lab.data.images import ImageSet
from starfish_lab.errors import ImagesError, LabError, RecipeError
from starfish_lab.healing import METHODS, REPAIRS
from starfish_lab.healing.options import checked_options
from starfish_lab.healing.session import Session
from starfish_lab.models.network import Network
from starfish_lab.progress import Reporter
from starfish_lab.pruning.masks import Masks, apply
from starfish_lab.recipe import HealingChoice
from starfish_lab.training.batches import Batches
from starfish_lab.training.checkpoint import Checkpoint, fingerprint
from starfish_lab.training.guards import explained, own_randomness
from starfish_lab.training.loop import POINTS, TrainingChoice, TrainingResult, learning_rate, train

__all__ = ["POINTS", "HealingResult", "heal", "learning_rate"]


@dataclass
class HealingResult(TrainingResult):
    """What training found and cost, and what the repair before it cost."""

    repair_seconds: float = 0.0


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
    watch: Collection[int] = (),
    observer: Callable[[int], None] | None = None,
) -> HealingResult:
    """Heal `student` in place. It starts from its own weights × masks.

    Parameters
    ----------
    dense : the teacher, only read; its blocks have the same names as the student's, and its layers the same order of inputs
    masks : {layer name: bool tensor of the weight's shape}, True where a weight stays and trains
    images : calibration images, (n, C, H, W) float or an ImageSet; batches move to the device one at a time
    choice : repair and method, their options (for 'sgd' also momentum and nesterov), steps, batch size, rates, what trains,
        on which images and how augmented, precision, seed (of the repair, order, augmentation and dropout)
    labels : (n,) of the calibration images, only for methods that need them; None takes those of an ImageSet
    training : labelled images for `choice.images` 'training'; None takes the calibration images, shuffled in every epoch
    checkpoint : file to continue from if it is of this very run, and to save to after the repair, every `checkpoint_seconds`
        and at the end. It stays; whoever owns the run removes it.
    teacher_memory_gb : memory for the teacher's targets; None takes the setting STARFISH_LAB_TEACHER_MEMORY_GB
    watch, observer : after each of these steps the observer is called with the step while the student is as healing would
        leave it then, in eval mode, without gradients; 0 is after the repair. Its time does not count. A resumed run repeats no call

    Afterwards both networks are in eval mode on the devices they came from. Without a repair and where `choice.trains` is
    'weights', all but masked weights and running statistics is bit-identical to before. After an exception the student is
    somewhere between.

    Raises Cancelled at the next step when the reporter is asked to stop, ImagesError for images that do not fit,
    RecipeError for options, masks or labels that do not, and when the loss is no longer a number.
    """
    reporter = reporter or Reporter()
    options, repair_options, own = checked_options(choice)
    batches = _batches(dense, images, labels, training, choice)
    _check_networks(dense, student, masks)
    with _on(torch.device(device), dense.module, student.module) as device:
        memory = settings.number(settings.TEACHER_MEMORY_GB, float) if teacher_memory_gb is None else teacher_memory_gb
        session = Session(
            dense=dense, student=student, masks=masks, batches=batches, calibration=images if isinstance(images, Tensor) else images.tensor(),
            device=device, reporter=reporter, teacher_memory=1e9 * memory, teacher_half=choice.teacher == "half", precision=choice.precision,
            seed=choice.seed,
        )  # fmt: skip
        apply(student.module, masks)
        key = "" if checkpoint is None else _key(dense, student, masks, session, choice)
        keeper = Checkpoint(checkpoint, key=key, seconds=checkpoint_seconds, reporter=reporter)
        fresh, repair_seconds = _repaired(session, choice, repair_options, keeper)
        if fresh and observer is not None and 0 in watch:
            with torch.no_grad():
                observer(0)
        result = HealingResult(repair_seconds=repair_seconds)
        with _reparametrised(session, choice.method, options) as instead:
            objective = METHODS.get(choice.method)(session, **options)
            if objective is not None:
                trained = train(
                    student, objective, batches, _phase(choice, batches, own), moves=masks, device=device, reporter=reporter, keeper=keeper,
                    instead=instead, watch=watch, observer=observer,
                )  # fmt: skip
                result = HealingResult(**vars(trained), repair_seconds=repair_seconds)
        if instead is not None:
            apply(student.module, masks)
    if batches.skipped:
        reporter.note(f"{len(batches.skipped)} images cannot be read and took no part in healing, the first {batches.skipped[0]}.")
    return result


def _repaired(session: Session, choice: HealingChoice, options: dict[str, object], keeper: Checkpoint) -> tuple[bool, float]:
    """Repair the student, or take it repaired from the checkpoint: (whether no checkpoint was there, seconds of the repair)."""
    if choice.repair == "none":
        return keeper.peek() is None, 0.0
    module, reporter = session.student.module, session.reporter
    places = module.state_dict()
    saved = keeper.peek()
    if saved is not None and not _fits(saved, places):
        keeper.useless("no repaired network")
        keeper.load()  # and no more of it: it is replaced below
        saved = None
    if saved is not None:
        module.load_state_dict(saved["repaired"])
        seconds = saved["repair_seconds"]
    else:
        began = time.monotonic()
        with own_randomness(session.device), explained(f"the repair '{choice.repair}'"):
            torch.manual_seed(choice.seed)
            REPAIRS.get(choice.repair)(session, **options)
        apply(module, session.masks)
        module.eval().zero_grad(set_to_none=True)
        if session.device.type == "cuda":
            torch.cuda.synchronize(session.device)  # what the repair asked for is its own, not the training's
        seconds = time.monotonic() - began
        reporter.note(f"The repair '{choice.repair}' took {seconds:.1f} s.")
    keeper.beside = {"repaired": places, "repair_seconds": seconds}  # live tensors, which torch saves once even where they train too
    if saved is None:
        keeper.save({})
    return saved is None, seconds


def _fits(saved: dict, places: dict[str, Tensor]) -> bool:
    """True where a checkpoint holds a repaired network of this very shape."""
    repaired = saved.get("repaired")
    if not isinstance(repaired, dict) or not isinstance(saved.get("repair_seconds"), float) or repaired.keys() != places.keys():
        return False
    return all(isinstance(repaired[name], Tensor) and repaired[name].shape == place.shape for name, place in places.items())


@contextmanager
def _reparametrised(session: Session, method: str, options: dict[str, object]) -> Iterator[dict[str, nn.Parameter] | None]:
    """What trains in place of the masked weights, where the method says so (LoRA); merged into the student on the way out."""
    reparametrise = getattr(METHODS.module(method), "reparametrise", None)
    if reparametrise is None:
        yield None
        return
    with own_randomness(session.device):
        torch.manual_seed(session.seed)
        context = reparametrise(session, **METHODS.options(method) | options)
        with context as instead:
            yield instead


def _phase(choice: HealingChoice, batches: Batches, own: dict[str, object]) -> TrainingChoice:
    """The numbers of the training: those of the choice that a phase has, and the optimiser's own options."""
    known = {field.name for field in dataclasses.fields(TrainingChoice)} & {field.name for field in dataclasses.fields(choice)}
    return TrainingChoice(**{name: getattr(choice, name) for name in known} | {"steps": choice.total_steps(batches.count)}, **own)


def _batches(dense: Network, images: Tensor | ImageSet, labels: Tensor | None, training: ImageSet | None, choice: HealingChoice) -> Batches:
    """The batches of the run, once it is certain that they fit the network and the method."""
    kind = "calibration"
    if choice.images == "training" and training is not None:
        kind, images, labels = "training", training, training.labels
    if len(images) == 0:
        raise ImagesError(f"There are no {kind} images. Healing needs at least one; the paper uses 5,000.")
    if isinstance(images, ImageSet):
        labels = images.labels if labels is None else labels
        if choice.augmentation in ("none", "flip", "light") and kind == "calibration":
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
        images, labels, batch_size=choice.batch_size, shuffle=choice.images == "training" or choice.order == "shuffled",
        augmentation=choice.augmentation, preprocessing=dense.preprocessing, seed=choice.seed,
    )  # fmt: skip


def _key(dense: Network, student: Network, masks: Masks, session: Session, choice: HealingChoice) -> str:
    """Fingerprint of everything that decides the result: choice, masks, both networks' weights, images, labels."""
    images = [session.batches.fingerprint()]
    if choice.repair != "none" and session.batches.prepared is not session.calibration:
        images.append(Batches(session.calibration, batch_size=1).fingerprint())
    return fingerprint(dataclasses.asdict(choice), masks, dense.module.state_dict(), student.module.state_dict(), *images)


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

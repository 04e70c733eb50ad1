"""Healing: train what a mask left of a network, so that the pruned network behaves as the dense one.

The loop is the same for every method (STARFISH, arXiv 2606.01126, and the authors' released defaults):
start from dense × mask; only surviving entries of the masked weights train; Adam with default betas, the rate
falling on a cosine at every step, no warm-up, no weight decay; the same batches in the same order in every
epoch; gradients and weights masked at every step; float32. A method gives the loss of a batch.

On a CPU equal seeds give bit-identical results, resumed or not, at an equal number of threads: how many
threads share a sum decides its order, and so its last bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from starfish_lab import settings
from starfish_lab.errors import ImagesError, LabError, RecipeError
from starfish_lab.healing import METHODS
from starfish_lab.healing.checkpoint import Checkpoint, key_of, restore, state_of
from starfish_lab.healing.session import Session
from starfish_lab.models.network import Network
from starfish_lab.progress import Reporter
from starfish_lab.pruning.masks import Masks, apply
from starfish_lab.recipe import HealingChoice

POINTS = 200  # of a loss curve: what a chart can show


@dataclass
class HealingResult:
    """Loss curves and cost. Steps count from 1; `resumed_from` is 0 unless a checkpoint was continued."""

    losses: list[tuple[int, float]] = field(default_factory=list)
    block_losses: list[tuple[int, list[float]]] = field(default_factory=list)  # depth order
    steps: int = 0
    seconds: float = 0.0  # spent before and after a crash, together
    resumed_from: int = 0


def heal(
    dense: Network,
    student: Network,
    masks: Masks,
    images: Tensor,
    choice: HealingChoice,
    *,
    labels: Tensor | None = None,
    device: str | torch.device = "cpu",
    reporter: Reporter | None = None,
    checkpoint: Path | None = None,
    checkpoint_seconds: float = 5.0,
    teacher_memory_gb: float | None = None,
) -> HealingResult:
    """Heal `student` in place. Whatever its weights were, it starts as dense × mask.

    Parameters
    ----------
    dense, student : the same architecture; dense is only read
    masks : {layer name: bool tensor of the weight's shape}, True where a weight stays and trains
    images : (n, C, H, W) float, calibration images; batches move to the device one at a time
    choice : method, its options, steps, batch size, learning rates, seed (of dropout, where a network has any)
    labels : (n,), only for methods that need them
    checkpoint : file to continue from if it is of this very run, and to save to every `checkpoint_seconds`
        and at the end. It stays; whoever owns the run removes it.
    teacher_memory_gb : memory for the teacher's targets; None takes the setting STARFISH_LAB_TEACHER_MEMORY_GB

    Afterwards both networks are in eval mode on the devices they came from. All but masked weights and
    running statistics is bit-identical to dense. After an exception the student is somewhere between.

    Raises Cancelled at the next step when the reporter is asked to stop, ImagesError for images that do not fit,
    RecipeError for options, masks or labels that do not, and when the loss is no longer a number.
    """
    reporter = reporter or Reporter()
    if not METHODS.module(choice.method).NEEDS_LABELS:
        labels = None
    _check(dense, student, masks, images, choice, labels)
    with _on(torch.device(device), dense.module, student.module) as device:
        session = Session(
            dense=dense,
            student=student,
            batches=images.split(choice.batch_size),
            labels=None if labels is None else labels.split(choice.batch_size),
            device=device,
            reporter=reporter,
            teacher_memory=1e9 * (settings.number(settings.TEACHER_MEMORY_GB, float) if teacher_memory_gb is None else teacher_memory_gb),
        )
        student.module.load_state_dict(dense.module.state_dict())
        apply(student.module, masks)
        objective = METHODS.get(choice.method)(session, **choice.options)
        if objective is None:
            return HealingResult()
        key = "" if checkpoint is None else key_of(session, masks, choice)
        keeper = Checkpoint(checkpoint, key=key, seconds=checkpoint_seconds, reporter=reporter)
        with _explained(choice, len(images)):
            return _train(session, objective, masks, choice, keeper)


def learning_rate(step: int, steps: int, choice: HealingChoice) -> float:
    """Rate of step 1 … steps: half a cosine from the first rate; the final rate would be that of step steps + 1."""
    share = (1 + math.cos(math.pi * (step - 1) / steps)) / 2
    return choice.final_learning_rate + (choice.learning_rate - choice.final_learning_rate) * share


def _train(session: Session, objective, masks: Masks, choice: HealingChoice, keeper: Checkpoint) -> HealingResult:
    module, reporter = session.student.module, session.reporter
    steps = choice.total_steps(sum(len(batch) for batch in session.batches))
    weights = [module.get_submodule(name).weight for name in masks]
    stays = [mask.to(weight) for mask, weight in zip(masks.values(), weights)]  # 1 and 0 as floats: masking is one product
    optimiser = torch.optim.Adam(weights, lr=choice.learning_rate, fused=True)

    result = HealingResult(steps=steps)
    if saved := keeper.load():
        restore(module, masks, saved["student"])
        optimiser.load_state_dict(saved["optimiser"])
        result = HealingResult(saved["losses"], saved["block_losses"], steps, saved["seconds"], saved["step"])
        reporter.note(f"Healing continues from step {result.resumed_from} of {steps}.")

    began = time.monotonic() - result.seconds
    every = max(1, math.ceil(steps / POINTS))
    with _training(module, weights), _own_randomness(session.device):
        for step in range(result.resumed_from + 1, steps + 1):
            reporter.check()
            torch.manual_seed(choice.seed * 1_000_003 + step)  # dropout depends on the step alone, so a resumed run repeats it
            index = (step - 1) % len(session.batches)
            loss = objective(index, session.batches[index].to(session.device, torch.float32))
            if not loss.total.requires_grad:
                raise RecipeError(
                    f"No masked layer has a part in the loss of '{choice.method}'. Prune layers inside the blocks, or heal by another method."
                )
            loss.total.backward()
            optimiser.param_groups[0]["lr"] = learning_rate(step, steps, choice)
            _masked_step(optimiser, weights, stays)

            # Reading a loss waits for the device, so it happens only where it is recorded.
            # A loss that is no number never becomes one again, so looking there is enough.
            if step == 1 or step % every == 0 or step == steps:
                _record(result, step, loss, reporter, choice)
            reporter.progress(step, steps)
            if step == steps or keeper.due():
                result.seconds = time.monotonic() - began
                keeper.save(
                    {
                        "step": step,
                        "student": state_of(module, masks),
                        "optimiser": optimiser.state_dict(),
                        "losses": result.losses,
                        "block_losses": result.block_losses,
                        "seconds": result.seconds,
                    }
                )
    return result


@torch.no_grad()
def _masked_step(optimiser: torch.optim.Optimizer, weights: list[Tensor], stays: list[Tensor]) -> None:
    """One step of the surviving weights. Layers after the last block have no gradient and stay as they are."""
    trained = [(weight, stay) for weight, stay in zip(weights, stays) if weight.grad is not None]
    torch._foreach_mul_([weight.grad for weight, _ in trained], [stay for _, stay in trained])
    optimiser.step()
    torch._foreach_mul_([weight for weight, _ in trained], [stay for _, stay in trained])
    optimiser.zero_grad(set_to_none=True)


def _record(result: HealingResult, step: int, loss, reporter: Reporter, choice: HealingChoice) -> None:
    total = loss.total.item()
    if not math.isfinite(total):
        raise RecipeError(
            f"The healing loss is {total} at step {step}: the learning rate {choice.learning_rate:g} is too high for this network, "
            "or an image or a weight holds no number. Lower healing.learning_rate, and check the images and the weights."
        )
    result.losses.append((step, total))
    reporter.metric("loss", step, total)
    if loss.blocks is not None:
        blocks = loss.blocks.tolist()
        result.block_losses.append((step, blocks))
        for depth, value in enumerate(blocks):
            reporter.metric(f"block.{depth}", step, value)


def _check(dense: Network, student: Network, masks: Masks, images: Tensor, choice: HealingChoice, labels: Tensor | None) -> None:
    """Raise for whatever would fail later or, worse, heal something else than meant."""
    if dense.module is student.module:
        raise LabError("Dense and pruned network are the same object, so healing would overwrite its own teacher. Give a copy: dense.copy().")
    expected = tuple(dense.preprocessing.input_size)
    if len(images) == 0:
        raise ImagesError("There are no calibration images. Healing needs at least one; the paper uses 5,000.")
    if tuple(images.shape[1:]) != expected or not images.is_floating_point():
        raise ImagesError(
            f"Calibration images are {images.dtype} of shape {tuple(images.shape[1:])}; {dense.name} takes floats of shape {expected}. "
            "Prepare them by the network's own preprocessing."
        )
    known = METHODS.options(choice.method)
    unknown = sorted(set(choice.options) - set(known))
    if unknown:
        raise RecipeError(f"healing.options.{unknown[0]} is no option of '{choice.method}'. Its options: {', '.join(known) or 'none'}.")
    if METHODS.module(choice.method).NEEDS_LABELS and labels is None:
        raise RecipeError(
            f"Healing by '{choice.method}' needs labels, and the calibration images have none. "
            "Choose labelled images, or 'starfish', which needs none."
        )
    if labels is not None and len(labels) != len(images):
        raise ImagesError(f"{len(labels)} labels for {len(images)} calibration images. Give one for each image, in the same order.")
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


@contextmanager
def _training(module: nn.Module, weights: list[Tensor]) -> Iterator[None]:
    """Only the given weights train, in train mode so that running statistics follow; afterwards as before, in eval mode."""
    flags = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    module.requires_grad_(False).train()
    for weight in weights:
        weight.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
            parameter.grad = None
        module.eval()


@contextmanager
def _explained(choice: HealingChoice, images: int) -> Iterator[None]:
    """Torch's errors that a person can act on, in words."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise LabError(
            f"The device has too little memory to heal with batches of {choice.batch_size} images. "
            f"Lower healing.batch_size, or {settings.TEACHER_MEMORY_GB.name}, or choose a device with more memory."
        ) from None
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ImagesError(
            f"A batch holds a single image ({images} images in batches of {choice.batch_size}), and batch norm needs two at this image size. "
            "Change images.calibration or healing.batch_size so that the last batch holds at least two."
        ) from None


def _own_randomness(device: torch.device):
    """Seeding inside leaves torch's random numbers outside as they were."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])

"""The one training loop: healing, distillation and prune–restore cycles all run here.

Some entries of the weights may move, all others keep their value bit for bit. What the loss is, and which batch a step
sees, the caller decides. Every random number depends on the seed and the step alone, so that a run which was cut off
and goes on from its checkpoint ends where it would have ended: bit for bit on a CPU at an equal number of threads, since
how many threads share a sum decides its order.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from starfish_lab import settings
from starfish_lab.errors import ImagesError, LabError, RecipeError
from starfish_lab.models.network import Network
from starfish_lab.progress import Reporter
from starfish_lab.pruning.masks import Masks
from starfish_lab.training.batches import Batch
from starfish_lab.training.checkpoint import Checkpoint
from starfish_lab.training.optimiser import MaskedOptimiser, learning_rate

__all__ = ["Batch", "Loss", "TrainingChoice", "TrainingResult", "learning_rate", "train"]

POINTS = 200  # of a loss curve: what a chart can show


class Loss(NamedTuple):
    """The loss of one batch; `blocks` where it has a part for each block."""

    total: Tensor  # (), differentiated
    blocks: Tensor | None = None  # (blocks,), detached, depth order


@dataclass(frozen=True, kw_only=True)
class TrainingChoice:
    """Plain numbers of one training phase, `steps` optimiser steps long.

    The learning rate rises on a line over `warmup` steps, then falls on a cosine to `final_learning_rate`. `optimiser` is
    'adam', 'adamw' or 'sgd' (`momentum` and `nesterov` are for it). `gradient_clip` bounds the norm of all gradients
    together, 0 bounds nothing. `trains` is 'weights' or 'all', see `MaskedOptimiser`. `precision` 'bf16' runs forward
    pass and loss under autocast, with weights in float32.
    """

    steps: int
    learning_rate: float
    final_learning_rate: float = 0.0
    warmup: int = 0
    optimiser: str = "adam"
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    gradient_clip: float = 0.0
    trains: str = "weights"
    precision: str = "float32"
    seed: int = 0  # of dropout, where a network has any


@dataclass
class TrainingResult:
    """Loss curves and cost. Steps count from 1; `resumed_from` is 0 unless a checkpoint was continued."""

    losses: list[tuple[int, float]] = field(default_factory=list)
    block_losses: list[tuple[int, list[float]]] = field(default_factory=list)  # depth order
    steps: int = 0
    seconds: float = 0.0  # spent before and after a crash, together
    resumed_from: int = 0


def train(
    network: Network,
    loss: Callable[[Batch], Loss],
    batches: Callable[[int], Batch],
    choice: TrainingChoice,
    *,
    moves: Masks,
    device: str | torch.device,
    reporter: Reporter,
    keeper: Checkpoint | None = None,
    what: str = "healing",
) -> TrainingResult:
    """Train `network` in place. It is on `device` already and afterwards stays there, in eval mode.

    Parameters
    ----------
    loss : of a batch whose tensors are on `device`; called once a step with the network in train mode
    batches : step (from 1) → Batch on the CPU; equal steps must give equal batches
    moves : {layer name: bool tensor of the weight's shape}, True where an entry of the weight may change. All other
        entries keep their value; so do parameters outside `moves` unless `choice.trains` is 'all'. Running statistics follow
    keeper : checkpoint to continue from if it is of this very run, and to save to when due and at the end
    what : what this training is, for what is said of it: 'healing'

    Raises Cancelled at the next step when the reporter is asked to stop, RecipeError when nothing that trains has a part in
    the loss or the loss is no longer a number, LabError when memory runs out.
    """
    module, device, steps = network.module, torch.device(device), choice.steps
    keeper = keeper or Checkpoint(None, key="", seconds=0, reporter=reporter)
    optimiser = MaskedOptimiser(module, moves, choice)
    result = TrainingResult(steps=steps)
    saved = keeper.load()
    if saved is not None:
        try:
            _restore(saved, module, optimiser)
            result = TrainingResult(saved["losses"], saved["block_losses"], steps, saved["seconds"], saved["step"])
            reporter.note(f"{what[:1].upper()}{what[1:]} continues from step {result.resumed_from} of {steps}.")
        except (KeyError, ValueError, TypeError, AttributeError, IndexError, RuntimeError) as error:
            keeper.useless(type(error).__name__)
            optimiser = MaskedOptimiser(module, moves, choice)

    began = time.monotonic() - result.seconds
    every = max(1, math.ceil(steps / POINTS))
    with _training(module, optimiser), _own_randomness(device), _explained(what) as size:
        for step in range(result.resumed_from + 1, steps + 1):
            reporter.check()
            batch = _on(device, batches(step))
            size.append(len(batch.images))
            torch.manual_seed(choice.seed * 1_000_003 + step)  # dropout depends on the step alone, so a resumed run repeats it
            with torch.autocast(device.type, torch.bfloat16, enabled=choice.precision == "bf16"):
                found = loss(batch)
            if not found.total.requires_grad:
                raise RecipeError(
                    f"No masked layer has a part in the loss of {what}. Prune layers inside the blocks, or choose another method."
                )
            found.total.backward()
            optimiser.step(learning_rate(step, steps, choice))

            # Reading a loss waits for the device, so it happens only where it is recorded.
            # A loss that is no number never becomes one again, so looking there is enough.
            if step == 1 or step % every == 0 or step == steps:
                _record(result, step, found, reporter, choice, what)
            reporter.progress(step, steps)
            if step == steps or keeper.due():
                result.seconds = time.monotonic() - began
                keeper.save(_state(step, module, optimiser, result))
    return result


def _on(device: torch.device, batch: Batch) -> Batch:
    labels = None if batch.labels is None else batch.labels.to(device)
    return Batch(batch.index, batch.images.to(device, torch.float32), labels)


def _changing(module: nn.Module, optimiser: MaskedOptimiser) -> dict[str, Tensor]:
    """What training changes in a module: parameters that train, and buffers such as running statistics."""
    return {name: p.detach() for name, p in optimiser.parameters.items()} | dict(module.named_buffers())


def _state(step: int, module: nn.Module, optimiser: MaskedOptimiser, result: TrainingResult) -> dict:
    return {
        "step": step, "network": _changing(module, optimiser), "optimiser": optimiser.state_dict(),
        "losses": result.losses, "block_losses": result.block_losses, "seconds": result.seconds,
    }  # fmt: skip


@torch.no_grad()
def _restore(saved: dict, module: nn.Module, optimiser: MaskedOptimiser) -> None:
    """Put a saved `_state` back, in place; raises before anything in the module has changed."""
    places = _changing(module, optimiser)
    for name, place in places.items():
        if saved["network"][name].shape != place.shape:
            raise ValueError(name)
    optimiser.load_state_dict(saved["optimiser"])
    for name, place in places.items():
        place.copy_(saved["network"][name])


def _record(result: TrainingResult, step: int, loss: Loss, reporter: Reporter, choice: TrainingChoice, what: str) -> None:
    total = loss.total.item()
    if not math.isfinite(total):
        raise RecipeError(
            f"The {what} loss is {total} at step {step}: the learning rate {choice.learning_rate:g} is too high for this network, "
            "or an image or a weight holds no number. Lower the learning rate, and check the images and the weights."
        )
    result.losses.append((step, total))
    reporter.metric("loss", step, total)
    if loss.blocks is not None:
        blocks = loss.blocks.tolist()
        result.block_losses.append((step, blocks))
        for depth, value in enumerate(blocks):
            reporter.metric(f"block.{depth}", step, value)


@contextmanager
def _training(module: nn.Module, optimiser: MaskedOptimiser) -> Iterator[None]:
    """Only the optimiser's parameters train, in train mode so that running statistics follow; afterwards as before, in eval mode."""
    flags = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    module.requires_grad_(False).train()
    for parameter in optimiser.parameters.values():
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
            parameter.grad = None
        module.eval()


@contextmanager
def _explained(what: str) -> Iterator[list[int]]:
    """Torch's errors that a person can act on, in words. Yields a list for the sizes of the batches met."""
    sizes: list[int] = []
    try:
        yield sizes
    except torch.OutOfMemoryError:
        raise LabError(
            f"The device has too little memory for {what} with batches of {max(sizes, default=0)} images. "
            f"Lower the batch size, or {settings.TEACHER_MEMORY_GB.name}, or choose a device with more memory."
        ) from None
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ImagesError(
            f"A batch of {what} holds {sizes[-1]} image, and batch norm needs two at this image size. "
            "Change the number of images or the batch size so that the last batch holds at least two."
        ) from None


def _own_randomness(device: torch.device):
    """Seeding inside leaves torch's random numbers outside as they were."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])

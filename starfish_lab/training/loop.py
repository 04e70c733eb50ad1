"""The one training loop: healing, distillation and prune–restore cycles all run here.

Some entries of the weights may move, all others keep their value bit for bit. What the loss is, and which batch a step
sees, the caller decides. Every random number depends on the seed and the step alone, so that a run which was cut off
and goes on from its checkpoint ends where it would have ended: bit for bit on a CPU at an equal number of threads, since
how many threads share a sum decides its order.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from starfish_lab.errors import RecipeError
from starfish_lab.models.network import Network
from starfish_lab.progress import Reporter
from starfish_lab.pruning.masks import Masks
from starfish_lab.training.average import Average, running_statistics
from starfish_lab.training.batches import Batch
from starfish_lab.training.checkpoint import Checkpoint
from starfish_lab.training.compiling import Compiled
from starfish_lab.training.guards import arithmetic, explained, own_randomness
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

    The learning rate rises on a line over `warmup` steps, then follows `schedule` ('cosine', 'linear' or 'constant') to
    `final_learning_rate`. `average` is the decay of the moving average that is the result, 0 for none, see `Average`.
    `optimiser` is 'adam', 'adamw' or 'sgd' (`momentum` and `nesterov` are for it). `gradient_clip` bounds the norm of all
    gradients together, 0 bounds nothing. `trains` is 'weights', 'affine' or 'all', see `MaskedOptimiser`. `precision` 'bf16'
    runs forward pass and loss under autocast, with weights in float32; 'tf32' lets CUDA round the factors of float32
    products to 10 bits. `compile` runs the blocks through torch.compile where that works.
    """

    steps: int
    learning_rate: float
    final_learning_rate: float = 0.0
    warmup: int = 0
    schedule: str = "cosine"
    average: float = 0.0
    optimiser: str = "adam"
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    gradient_clip: float = 0.0
    trains: str = "weights"
    precision: str = "float32"
    compile: bool = False
    seed: int = 0  # of dropout, where a network has any


@dataclass
class TrainingResult:
    """Loss curves and cost. Steps count from 1; `resumed_from` is 0 unless a checkpoint was continued."""

    losses: list[tuple[int, float]] = field(default_factory=list)
    block_losses: list[tuple[int, list[float]]] = field(default_factory=list)  # depth order
    steps: int = 0
    seconds: float = 0.0  # of training, before and after a crash together, without those of an observer
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
    instead: dict[str, nn.Parameter] | None = None,
    watch: Collection[int] = (),
    observer: Callable[[int], None] | None = None,
) -> TrainingResult:
    """Train `network` in place. It is on `device` already and afterwards stays there, in eval mode.

    Parameters
    ----------
    loss : of a batch whose tensors are on `device`; called once a step with the network in train mode
    batches : step (from 1) → Batch on the CPU; equal steps must give equal batches
    moves : {layer name: bool tensor of the weight's shape}, True where an entry of the weight may change. All other
        entries keep their value; so do parameters outside `moves` but for those of `choice.trains`. Running statistics follow
    keeper : checkpoint to continue from if it is of this very run, and to save to when due and at the end
    what : what this training is, for what is said of it: 'healing'
    instead : {name: parameter} of the network that train in place of the weights in `moves`
    watch, observer : after each of these steps the observer is called with the step, the network in eval mode as training
        would leave it then (averaged where there is an average), without gradients. A resumed run repeats no call of before its checkpoint

    Raises Cancelled at the next step when the reporter is asked to stop, RecipeError when nothing that trains has a part in
    the loss or the loss is no longer a number, LabError when memory runs out.
    """
    module, device, steps = network.module, torch.device(device), choice.steps
    keeper = keeper or Checkpoint(None, key="", seconds=0, reporter=reporter)
    changing = _Changing(module, moves, choice, instead)
    result = TrainingResult(steps=steps)
    saved = keeper.load()
    if saved is not None and "step" in saved:
        try:
            changing.restore(saved)
            result = TrainingResult(saved["losses"], saved["block_losses"], steps, saved["seconds"], saved["step"])
            reporter.note(f"{what[:1].upper()}{what[1:]} continues from step {result.resumed_from} of {steps}.")
        except (KeyError, ValueError, TypeError, AttributeError, IndexError, RuntimeError) as error:
            keeper.useless(type(error).__name__)
            changing = _Changing(module, moves, choice, instead)

    def loss_of(step: int) -> Loss:
        batch = _on(device, batches(step))
        size.append(len(batch.images))
        torch.manual_seed(choice.seed * 1_000_003 + step)  # dropout depends on the step alone, so a resumed run repeats it
        with torch.autocast(device.type, torch.bfloat16, enabled=choice.precision == "bf16"):
            found = loss(batch)
        if not found.total.requires_grad:
            raise RecipeError(f"No masked layer has a part in the loss of {what}. Prune layers inside the blocks, or choose another method.")
        return found

    began = time.monotonic() - result.seconds
    every = max(1, math.ceil(steps / POINTS))
    first = result.resumed_from + 1
    with _training(module, changing.optimiser), own_randomness(device), arithmetic(choice.precision), explained(what) as size:
        compiled = None
        if choice.compile and first <= steps:
            compiled = Compiled(network, lambda: loss_of(first).total, reporter)
            changing.optimiser.forget_gradients()
        for step in range(first, steps + 1):
            reporter.check()
            with compiled.running() if compiled else nullcontext():
                found = loss_of(step)
                found.total.backward()
            changing.optimiser.step(learning_rate(step, steps, choice))
            changing.average.update()

            # Reading a loss waits for the device, so it happens only where it is recorded.
            # A loss that is no number never becomes one again, so looking there is enough.
            if step == 1 or step % every == 0 or step == steps:
                _record(result, step, found, reporter, choice, what)
            reporter.progress(step, steps)
            if observer is not None and step in watch:  # before the step is saved: a run resumed from there has looked
                began += _looked_at(observer, step, changing.average, module, device)
            if step == steps or keeper.due():
                _finished(device)
                result.seconds = time.monotonic() - began
                keeper.save(changing.state() | {
                    "step": step, "losses": result.losses, "block_losses": result.block_losses, "seconds": result.seconds,
                })  # fmt: skip
    changing.average.settle()
    return result


class _Changing:
    """What training changes in a module: parameters that train, their moments and average, and buffers such as running statistics."""

    def __init__(self, module: nn.Module, moves: Masks, choice: TrainingChoice, instead: dict[str, nn.Parameter] | None):
        self.optimiser = MaskedOptimiser(module, moves, choice, instead)
        self._module = module
        self._trained = {name: parameter.detach() for name, parameter in self.optimiser.parameters.items()}
        self.average = Average([*self._trained.values(), *running_statistics(module)], choice.average)

    def _tensors(self) -> dict[str, Tensor]:
        return self._trained | dict(self._module.named_buffers())

    def state(self) -> dict:
        """What `restore` goes on from; the tensors are the live ones."""
        return {"network": self._tensors(), "optimiser": self.optimiser.state_dict(), "average": self.average.state_dict()}

    @torch.no_grad()
    def restore(self, saved: dict) -> None:
        """Put a saved state back, in place; raises before anything in the module has changed."""
        tensors = self._tensors()
        for name, place in tensors.items():
            if saved["network"][name].shape != place.shape:
                raise ValueError(name)
        self.optimiser.load_state_dict(saved["optimiser"])
        self.average.load_state_dict(saved["average"])
        for name, place in tensors.items():
            place.copy_(saved["network"][name])


def _on(device: torch.device, batch: Batch) -> Batch:
    labels = None if batch.labels is None else batch.labels.to(device)
    return batch._replace(images=batch.images.to(device, torch.float32), labels=labels)


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


def _looked_at(observer: Callable[[int], None], step: int, average: Average, module: nn.Module, device: torch.device) -> float:
    """Seconds of a look, in eval mode without gradients; afterwards the module is in train mode again."""
    _finished(device)  # steps still at work on the device are training, not looking
    began = time.monotonic()
    module.eval()
    try:
        with average.shown(), torch.no_grad():
            observer(step)
    finally:
        module.train()
    _finished(device)
    return time.monotonic() - began


def _finished(device: torch.device) -> None:
    """Wait until a GPU has done what it was given: clocks run ahead of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)

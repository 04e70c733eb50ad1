"""Layer after layer, each weight is fitted so that the operations after it answer as the dense network's would (SNOWS, arXiv 2411.18376).

    min over W on its mask of  Σ_{j = 0…K} MSE( operation j of the dense network, operation j of the pruned one )

As in the authors' code both networks are fed with what the layers fitted before leave of the activations, and layers that are still to
come hold their dense weights until it is their turn; then they start from the weights they came with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import LongTensor, Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from starfish_lab.errors import ImagesError, RecipeError
from starfish_lab.healing.session import Session
from starfish_lab.healing.snows_segment import Segment, distance, inputs_of, recorded

FEW, MANY = 3, 20  # operations: the authors' for transformers, and the least of theirs for CNNs


@dataclass(eq=False)
class Problem:
    """The fit of one layer, as a minimiser sees it.

    weight : of the student's layer, the only parameter with gradients
    mask : of the weight's shape, 1 where a weight stays and 0 elsewhere
    """

    session: Session
    segment: Segment
    weight: nn.Parameter
    mask: Tensor
    inputs: Tensor  # of the segment, for all calibration images, on the CPU
    minibatches: list[LongTensor]  # rows of `inputs`; the last are held out
    _kept: tuple[Tensor, list[Tensor]] | None = field(default=None, init=False)

    @property
    def batches(self) -> int:
        """Number of minibatches to learn from."""
        return len(self.minibatches) - 1

    def loss(self, batch: int) -> Tensor:
        """The loss of a minibatch, with its graph."""
        x, targets = self._answered(batch)
        return distance(self.segment.outputs(self.session.student.module, x), targets)

    @torch.no_grad()
    def held_out(self) -> float:
        """The loss on the images that are held out."""
        self._kept = self._kept or self._answered(-1)
        x, targets = self._kept
        return float(distance(self.segment.outputs(self.session.student.module, x), targets))

    @torch.no_grad()
    def _answered(self, batch: int) -> tuple[Tensor, list[Tensor]]:
        """Inputs of a minibatch, and what the dense network makes of them."""
        x = self.inputs[self.minibatches[batch]].to(self.session.device)
        return x, self.segment.outputs(self.session.dense.module, x)


def reconstruct(session: Session, name: str, *, k: int | None, batch_size: int, minimise: Callable[[Problem], None]) -> None:
    """Fit the masked weights of the student, layer after layer in the order in which they run; zeros stay zero.

    name : of the repair, for messages
    k : operations after the first one; None takes 3 where states are tokens and 20 where they are images
    batch_size : images in a minibatch; at most half of all, for the last ones are held out
    minimise : changes `Problem.weight` where its mask is 1, and looks for a wish to stop now and then

    Attention runs unfused meanwhile: the fused kernels have no second derivative. Raises RecipeError for networks whose tokens merge
    or whose blocks take more than one tensor, and for masked layers that take no part in a forward pass.
    """
    session.check_same_tokens(f"'{name}'")
    k = (FEW if session.student.states == "tokens" else MANY) if k is None else k
    minibatches = split(len(session.calibration), batch_size, session.seed)
    calls = recorded(session.dense, session.calibration[:1].to(session.device, torch.float32))
    layers = list(dict.fromkeys(call.name for call in calls if call.name in session.masks))
    missing = [layer for layer in session.masks if layer not in layers]
    if missing:
        raise RecipeError(f"The layer {missing[0]} takes no part in a forward pass, so '{name}' cannot fit it. Exclude it from pruning.")
    segments = [Segment.of(layer, session.student, calls, k) for layer in layers]
    before = after = 0.0
    block, inputs = "", torch.empty(0)
    with sdpa_kernel(SDPBackend.MATH), _frozen(session.dense.module, session.student.module), _waiting(session, layers) as take_turn:
        for done, segment in enumerate(segments):
            take_turn(segment.layer)
            if segment.modules[0] != block:
                block, inputs = segment.modules[0], inputs_of(session, segment.modules[0])
            weight = session.student.module.get_submodule(segment.layer).weight
            weight.requires_grad_(True)
            problem = Problem(session, segment, weight, session.masks[segment.layer].to(weight), inputs, minibatches)
            before += problem.held_out()
            minimise(problem)
            after += problem.held_out()
            weight.requires_grad_(False)
            session.reporter.progress(done + 1, len(segments))
    session.reporter.note(
        f"'{name}' fitted {len(segments)} layers, each to {k} operations after it: the loss on held-out images, summed over layers, "
        f"went from {before:.3g} to {after:.3g}."
    )


def split(count: int, batch_size: int, seed: int) -> list[LongTensor]:
    """Minibatches of shuffled rows, all of one size; the last is held out and what is left over joins the first.

    >>> [len(rows) for rows in split(11, 4, seed=0)], [len(rows) for rows in split(5, 128, seed=0)]
    ([7, 4], [3, 2])
    """
    if count < 2:
        raise ImagesError("One calibration image is not enough: some are fitted to and others held out. Give at least two, better hundreds.")
    size = min(batch_size, count // 2)
    rows = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    first = size + count % size
    return [rows[:first], *rows[first:].split(size)]


@contextmanager
def _waiting(session: Session, layers: list[str]) -> Iterator[Callable[[str], None]]:
    """Layers hold the dense parameters until their turn, and those they came with from then on, at the latest in the end."""
    student, dense = session.student.module, session.dense.module
    own = {layer: {name: value.detach().clone() for name, value in student.get_submodule(layer).named_parameters()} for layer in layers}

    @torch.no_grad()
    def hold(layer: str, parameters: dict[str, Tensor]) -> None:
        for name, parameter in student.get_submodule(layer).named_parameters():
            parameter.copy_(parameters[name])

    for layer in layers:
        hold(layer, dict(dense.get_submodule(layer).named_parameters()))
    try:
        yield lambda layer: hold(layer, own.pop(layer))
    finally:
        for layer, parameters in own.items():
            hold(layer, parameters)


@contextmanager
def _frozen(*modules: nn.Module) -> Iterator[None]:
    """No parameter has gradients; afterwards those that had."""
    parameters = [parameter for module in modules for parameter in module.parameters()]
    had = [parameter.requires_grad for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, flag in zip(parameters, had):
            parameter.requires_grad_(flag)

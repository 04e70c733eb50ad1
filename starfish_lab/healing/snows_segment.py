"""The part of a network that runs from a layer to the K-th operation after it (SNOWS, arXiv 2411.18376).

A segment is found in one recorded forward pass, for any network whose blocks take one tensor: it begins with the block of the
layer, whose input is cached, and goes on with whatever module is given the very tensor that the one before returned (the next
block, a downsampling, the final norm). It is run again from the cached input, module after module, and left as soon as the K-th
operation has answered.

Operations are attention (as one: its inner layers do not count), Linear and Conv2d layers, norms and activations, and the output
of a block where states are images. Operation 0 is the first to answer once the layer has: the layer itself, or the attention it is in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial

import torch
from timm.layers.grn import GlobalResponseNorm
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from starfish_lab.errors import RecipeError
from starfish_lab.healing.session import Session
from starfish_lab.models.network import Network

LAYERS_AND_NORMS = (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.GroupNorm, _BatchNorm, GlobalResponseNorm)
ACTIVATIONS = ("torch.nn.modules.activation", "timm.layers.activations")  # where the classes of activations are defined


class _Enough(Exception):
    """Ends a forward pass whose rest is not needed."""


@dataclass(eq=False)
class Call:
    """A module's part in a forward pass. `input` is None unless it was given one tensor and nothing else."""

    name: str
    input: Tensor | None
    began: int
    ended: int = -1
    output: object = None


@torch.no_grad()
def recorded(network: Network, images: Tensor) -> list[Call]:
    """Calls of all modules in the order in which they began."""
    calls: list[Call] = []
    running: list[Call] = []
    clock = iter(range(1 << 60))

    def begins(name: str, module: nn.Module, args: tuple, kwargs: dict) -> None:
        given = [value for value in (*args, *kwargs.values()) if value is not None]
        alone = given[0] if len(given) == 1 and isinstance(given[0], Tensor) else None
        running.append(Call(name, alone, next(clock)))
        calls.append(running[-1])

    def ends(module: nn.Module, inputs: object, output: object) -> None:
        call = running.pop()
        call.ended, call.output = next(clock), output

    with _hooks() as handles:
        for name, module in network.module.named_modules():
            handles.append(module.register_forward_pre_hook(partial(begins, name), with_kwargs=True))
            handles.append(module.register_forward_hook(ends))
        network.module(images)
    return calls


def chain(calls: Sequence[Call], start: str) -> tuple[str, ...]:
    """Modules that run one after the other from `start` on, each on what the one before returned; of nested ones the outermost."""
    call = next(call for call in calls if call.name == start)
    names = [call.name]
    while True:
        after = (c for c in calls if c.began > call.ended and c.input is not None and c.input is call.output)
        call = next(after, None)
        if call is None:
            return tuple(names)
        names.append(call.name)


def operations(network: Network) -> tuple[str, ...]:
    """Names of the modules whose outputs are compared."""
    attentions = [name for name, module in network.module.named_modules() if "Attention" in type(module).__name__]
    blocks = set(network.blocks) if network.states == "image" else set()
    return tuple(
        name
        for name, module in network.module.named_modules()
        if name in attentions
        or name in blocks
        or (isinstance(module, LAYERS_AND_NORMS) or type(module).__module__ in ACTIVATIONS)
        and not any(name.startswith(f"{attention}.") for attention in attentions)
    )


@dataclass(frozen=True)
class Segment:
    """From the input of `modules[0]` to operation `k` after the layer.

    layer : name of the layer
    modules : names of modules that run one after the other, from the block of the layer on
    operations : names of all operations of the network
    k : number of operations after the first one; fewer where the chain of modules ends before
    """

    layer: str
    modules: tuple[str, ...]
    operations: tuple[str, ...]
    k: int

    @classmethod
    def of(cls, layer: str, network: Network, calls: Sequence[Call], k: int) -> Segment:
        """Raises RecipeError where the layer's block takes more than one tensor."""
        start = network.block_of(layer) or layer
        if next(call.input for call in calls if call.name == start) is None:
            raise RecipeError(
                f"The layers of {network.name} cannot be reconstructed one after the other: its '{start}' takes more than one tensor. "
                "Choose another repair, such as 'least_squares'."
            )
        return cls(layer, chain(calls, start), operations(network), k)

    def outputs(self, module: nn.Module, x: Tensor) -> list[Tensor]:
        """Outputs of operations 0 … k of a network fed with `x`, the input of the segment."""
        found: list[Tensor] = []
        reached, last = False, (None, 0)

        def reach(layer: nn.Module, inputs: object, output: Tensor) -> None:
            nonlocal reached
            reached = True

        def keep(operation: nn.Module, inputs: object, output: Tensor) -> None:
            nonlocal last
            if not reached or last[0] is output and last[1] == output._version:  # a block returns what its activation did
                return
            last = output, output._version
            found.append(output.clone())  # later operations may work in place
            if len(found) > self.k:
                raise _Enough

        with _hooks() as handles:
            handles.append(module.get_submodule(self.layer).register_forward_hook(reach))
            for name in self.operations:
                handles.append(module.get_submodule(name).register_forward_hook(keep))
            with suppress(_Enough):
                for name in self.modules:
                    x = module.get_submodule(name)(x)
        return found


def distance(found: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """Σ_j MSE of operation j, the objective of SNOWS."""
    return torch.stack([F.mse_loss(output, target) for output, target in zip(found, targets, strict=True)]).sum()


@torch.no_grad()
def inputs_of(session: Session, module: str) -> Tensor:
    """What the student's `module` is fed for each calibration image, on the CPU, in the order of the images."""
    found: list[Tensor] = []

    def keep(block: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found.append(inputs[0].cpu())
        raise _Enough

    with _hooks() as handles:
        handles.append(session.student.module.get_submodule(module).register_forward_pre_hook(keep))
        for images in session.chunks():
            with suppress(_Enough):
                session.student.module(images)
    return torch.cat(found)


@contextmanager
def _hooks() -> Iterator[list]:
    """A list of hooks' handles; they are removed in the end."""
    handles: list = []
    try:
        yield handles
    finally:
        for handle in handles:
            handle.remove()

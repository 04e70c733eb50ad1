"""One network over the calibration images, block by block: a look at one layer costs one block's pass, not the whole network's."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from starfish_lab.calibration.pair import Pair
from starfish_lab.errors import LabError
from starfish_lab.models.gather import met
from starfish_lab.models.network import Network

CHUNK = 32  # images that run together
Call = tuple[tuple, dict]  # arguments of a block, by place and by name


class Seen(NamedTuple):
    """One layer in one pass."""

    x: Tensor  # what its weight meets
    y: Tensor  # what it returns
    stream: Tensor | None = None  # what its output will be added to, where that was asked for


class Replay:
    """Runs a network again and again from the block at hand on, and no further than the layers asked for.

    What goes into the block at hand is kept for as many chunks of images as half the teacher's memory holds; the others
    run from the images each time. Where a block takes just what the one before returns, moving on costs one block's pass: blocks
    are visited in depth order, each with its layers as they stand when it is left.
    """

    def __init__(self, pair: Pair, network: Network, *, mirrored: bool = False):
        self._pair, self._mirrored, self._module = pair, mirrored, network.module
        self._blocks, self._of = network.blocks, network.block_of
        self._at: int | None = None  # the block at hand
        self._calls: list[Call | None] = []  # of the block at hand, a chunk each; None where there was no room
        self._follows: list[bool] | None = None  # block i + 1 takes just what block i returns

    @torch.no_grad()
    def passes(self, layers: list[str], streams: dict[str, str] | None = None, *, onward: bool = False) -> Iterator[dict[str, Seen]]:
        """What is seen of the layers in every chunk of images; `layers` are of one block, or one outside all.

        `streams` {layer: module} names modules of the same block that run before the layer, and meet what its output will be added to.
        With `onward` the next block is at hand afterwards where it can be, which saves a pass: for a network that nothing changes
        in between. Raises LabError where one of them does not run.
        """
        block = self._of(layers[0])
        place = self._blocks.index(block) if block else None
        if block:
            self._enter(place)
        moves = onward and block != "" and any(self._follows[place : place + 1])
        if moves:
            self._at = None  # on the way
        for index, chunk in enumerate(self._chunks()):
            call = self._calls[index] if block else None
            seen, output = self._look(layers, streams or {}, chunk, call, block, to_the_end=moves and call is not None)
            if output is not None:
                self._calls[index] = ((output,), {})
            yield seen
        if moves:
            self._at = place + 1

    def _chunks(self) -> Iterator[Tensor]:
        return self._pair.chunks(CHUNK, mirrored=self._mirrored)

    def _look(
        self, layers: list[str], streams: dict[str, str], chunk: Tensor, call: Call | None, block: str, *, to_the_end: bool
    ) -> tuple[dict[str, Seen], object | None]:
        """What is seen of the layers, and what the block returns where it ran to its end."""
        seen: dict[str, Seen] = {}
        met_by: dict[str, Tensor] = {}

        def see(name: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            y = output.clone() if to_the_end or len(layers) > 1 else output  # what follows may work in place
            seen[name] = Seen(met(layer, inputs[0]), y, met_by.get(streams.get(name)))
            if len(seen) == len(layers) and not to_the_end:
                raise _Enough

        def meet(name: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            met_by[name] = inputs[0]

        handles = [self._module.get_submodule(name).register_forward_hook(partial(see, name)) for name in layers]
        handles += [self._module.get_submodule(name).register_forward_pre_hook(partial(meet, name)) for name in set(streams.values())]
        try:
            with self._pair.autocast():
                output = self._module(chunk) if call is None else _run(self._module.get_submodule(block), call)
        except _Enough:
            return seen, None
        finally:
            for handle in handles:
                handle.remove()
        if len(seen) == len(layers):
            return seen, output if to_the_end else None
        missing = next(name for name in layers if name not in seen)
        raise LabError(f"The layer {missing} does not run when the network does, so it cannot be repaired. Exclude it from pruning.")

    def _enter(self, block: int) -> None:
        """Bring what goes into a block to hand."""
        if self._at == block:
            return
        if self._follows is None:
            self._follows = self._links()
        if self._at is not None and self._at < block and all(self._follows[self._at : block]):
            for i in range(self._at, block):
                module = self._module.get_submodule(self._blocks[i])
                for chunk, call in enumerate(self._calls):  # one at a time makes room for the next
                    with self._pair.autocast():
                        self._calls[chunk] = None if call is None else ((_run(module, call),), {})
        else:
            self._calls = self._caught(self._blocks[block])
        self._at = block

    def _caught(self, block: str) -> list[Call | None]:
        """What goes into a block, caught in passes from the images up to it."""
        calls: list[Call | None] = []
        room = None

        def catch(_: nn.Module, args: tuple, kwargs: dict) -> None:
            calls.append((args, kwargs))
            raise _Enough

        handle = self._module.get_submodule(block).register_forward_pre_hook(catch, with_kwargs=True)
        try:
            for chunk in self._chunks():
                if room is not None and len(calls) >= room:
                    calls.append(None)
                    continue
                try:
                    with self._pair.autocast():
                        self._module(chunk)
                except _Enough:
                    room = self._room(calls[0]) if room is None else room
                else:
                    raise LabError(f"The block {block} does not run when the network does, so its layers cannot be repaired. Exclude them.")
        finally:
            handle.remove()
        return calls

    def _room(self, call: Call) -> int:
        """How many chunks may be kept; one at least."""
        memory = self._pair.teacher_memory / 2
        if self._pair.device.type == "cuda":
            memory = min(memory, torch.cuda.mem_get_info(self._pair.device)[0] / 4)
        size = sum(value.numel() * value.element_size() for value in (*call[0], *call[1].values()) if isinstance(value, Tensor))
        return max(1, int(memory / max(size, 1)))

    def _links(self) -> list[bool]:
        """For each block but the last, whether the next takes its output alone and as it is."""
        entered: dict[str, Call] = {}
        left: dict[str, object] = {}
        handles = []
        for name in self._blocks:
            block = self._module.get_submodule(name)
            handles.append(
                block.register_forward_pre_hook(lambda _, args, kwargs, name=name: entered.update({name: (args, kwargs)}), with_kwargs=True)
            )
            handles.append(block.register_forward_hook(lambda _, args, output, name=name: left.update({name: output})))
        try:
            self._module(next(iter(self._pair.chunks(1))))
        finally:
            for handle in handles:
                handle.remove()
        return [
            then in entered and now in left and len(entered[then][0]) == 1 and entered[then][0][0] is left[now] and not entered[then][1]
            for now, then in zip(self._blocks, self._blocks[1:])
        ]


class _Enough(Exception):
    """All that was asked for is seen; the rest of the pass is not needed."""


def _run(block: nn.Module, call: Call) -> object:
    """A block's output; its inputs stay as they are, though the block may work in place."""
    args, kwargs = call
    return block(*(value.clone() if isinstance(value, Tensor) else value for value in args), **kwargs)

"""The pruned network's blocks through torch.compile, where that works: tried on a real step before it is relied on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from starfish_lab.models.network import Network
from starfish_lab.progress import Reporter

AGREES = 0.02  # of the loss; kernels that add in another order, in bf16 at worst, differ by less than a block that is left out


class Compiled:
    """The blocks' forward functions, compiled; alike blocks share one compilation.

    Blocks and not the whole network, because internal states are heard by hooks on blocks, which run outside of what is
    compiled. `trial` gives the loss of one step without changing anything but gradients and running statistics; it is run
    before and twice after compiling. Where there is no compiler, or the losses differ (a hook inside a block, heard once and
    never again), the blocks stay as they are and the reporter is told why.
    """

    def __init__(self, network: Network, trial: Callable[[], Tensor], reporter: Reporter):
        self._blocks = {network.module.get_submodule(name): None for name in network.blocks}
        if reason := self._unusable(network.module, trial):
            self._blocks = {}
            reporter.note(f"torch.compile is of no use here ({reason}): training runs without it.")

    def _unusable(self, module: nn.Module, trial: Callable[[], Tensor]) -> str:
        """Why compiling does not work here, '' where it does; everything the trial changed is put back."""
        buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}

        def loss() -> float:
            try:
                found = trial()
                found.backward()
            finally:
                with torch.no_grad():
                    for name, buffer in module.named_buffers():
                        buffer.copy_(buffers[name])
            return found.item()

        expected = loss()
        try:
            self._blocks = {block: torch.compile(block.forward) for block in self._blocks}
            with self.running():
                found = [loss(), loss()]
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a missing compiler, an operation it does not know, a hook that was compiled in: torch raises anything
            first = next(iter(str(error).splitlines()), "")[:160]
            return f"{type(error).__name__}: {first}"
        wrong = [value for value in found if not abs(value - expected) <= AGREES * abs(expected) + 1e-4]
        return f"the loss of a step is {wrong[0]:.4g} with it and {expected:.4g} without" if wrong else ""

    @contextmanager
    def running(self) -> Iterator[None]:
        """The compiled functions run inside; hooks, names and parameters stay the blocks' own."""
        for block, forward in self._blocks.items():
            block.forward = forward
        try:
            yield
        finally:
            for block in self._blocks:
                block.__dict__.pop("forward", None)

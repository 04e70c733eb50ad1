"""Internal states: the output of every block, caught by forward hooks (STARFISH, arXiv 2606.01126)."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from torch import Tensor, nn

from starfish_lab.errors import LabError


class BlockStates:
    """Outputs of a module's blocks during forward passes inside the `with`; gradients flow through them.

    After a forward pass `values` holds one tensor a block, in the order of `blocks`: (B, N, D) for tokens,
    (B, C, H, W) for images. A later pass replaces them. A block that merges tokens has a state for each original one:
    what the token holds that it went into, so that it compares with a network that merges none. Raises LabError if a
    block did not run or returned something else than a tensor.

    >>> import torch
    >>> module = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    >>> with BlockStates(module, ["0", "1"]) as states:
    ...     output = module(torch.zeros(5, 4))
    >>> [tuple(state.shape) for state in states.values]
    [(5, 3), (5, 2)]
    """

    def __init__(self, module: nn.Module, blocks: Iterable[str]):
        self._module, self._blocks = module, tuple(blocks)
        self._states: dict[str, Tensor] = {}
        self._handles = []

    def __enter__(self) -> BlockStates:
        for name in self._blocks:
            self._handles.append(self._module.get_submodule(name).register_forward_hook(partial(self._keep, name)))
        return self

    def __exit__(self, *exception: object) -> None:
        while self._handles:
            self._handles.pop().remove()

    @property
    def values(self) -> list[Tensor]:
        missing = [name for name in self._blocks if name not in self._states]
        if missing:
            raise LabError(f"Block '{missing[0]}' took no part in the forward pass. Name only blocks that every input runs through.")
        return [self._states[name] for name in self._blocks]

    def _keep(self, name: str, module: nn.Module, inputs: object, output: object) -> None:
        if hasattr(output, "expanded"):  # `tokens.Tokens`
            output = output.expanded()
        if not isinstance(output, Tensor):
            raise LabError(
                f"Block '{name}' returns a {type(output).__name__}; its state must be one tensor. Wrap the block so that it returns that tensor."
            )
        self._states[name] = output

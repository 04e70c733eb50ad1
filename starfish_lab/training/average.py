"""The average of what trains: an exponential moving average over the steps, free of the values before the first one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase


class Average:
    """Weighted mean of the values after each step; a step k steps ago weighs decay^k (Polyak averaging, as timm's ModelEma keeps it).

    The bias is corrected as Adam's is (arXiv 1412.6980, §3): a_t = a_{t-1} + (1 − d) / (1 − d^t) · (x_t − a_{t-1}), which is the
    weighted mean of x_1 … x_t exactly. So a_1 = x_1, and the values training began with have no part in it. What is equal
    at every step, such as a zero under a mask, is so in the average, bit for bit.

    values : what training changes, in a fixed order; read after every step and written by `settle` and `shown`
    decay : d, from 0 (the last step alone) to below 1
    """

    def __init__(self, values: list[Tensor], decay: float):
        self._values, self._decay = values, decay
        self._averages = [value.detach().clone() for value in values] if decay else []
        self.steps = 0

    @torch.no_grad()
    def update(self) -> None:
        """Take the values as they are now into account."""
        if not self._decay:
            return
        self.steps += 1
        torch._foreach_lerp_(self._averages, self._values, (1 - self._decay) / (1 - self._decay**self.steps))

    @torch.no_grad()
    def settle(self) -> None:
        """The values become their average."""
        if self.steps:
            torch._foreach_copy_(self._values, self._averages)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """The values are their average inside, and themselves again afterwards."""
        kept = [value.detach().clone() for value in self._values] if self.steps else []
        self.settle()
        try:
            yield
        finally:
            with torch.no_grad():
                for value, own in zip(self._values, kept):
                    value.copy_(own)

    def state_dict(self) -> dict[str, object]:
        return {"steps": self.steps, "averages": self._averages}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, object]) -> None:
        """Go on from a saved state; raises before anything has changed where it does not fit."""
        saved = state["averages"]
        if [value.shape for value in saved] != [value.shape for value in self._averages]:
            raise ValueError("averages")
        for average, value in zip(self._averages, saved):
            average.copy_(value)
        self.steps = state["steps"]


def running_statistics(module: nn.Module) -> list[Tensor]:
    """The running means and variances of a module's norms: they follow what trains, and are averaged with it."""
    norms = [child for child in module.modules() if isinstance(child, _NormBase) and child.running_mean is not None]
    return [statistic for norm in norms for statistic in (norm.running_mean, norm.running_var)]

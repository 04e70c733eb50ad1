"""A dense network, the pruned one, and the images that both are looked at with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from starfish_lab import tokens
from starfish_lab.errors import RecipeError
from starfish_lab.models.network import Network
from starfish_lab.progress import Reporter


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Both networks on `device`, in eval mode; layers of one name correspond, the order of their inputs too."""

    dense: Network
    student: Network  # pruned, or about to be
    calibration: Tensor  # (n, C, H, W) on the CPU, not augmented
    device: torch.device
    reporter: Reporter
    teacher_memory: float  # bytes for what is kept of the networks' answers
    precision: str = "float32"  # of forward passes: 'float32', 'tf32' or 'bf16'
    seed: int = 0

    def chunks(self, size: int = 32, *, mirrored: bool = False) -> Iterator[Tensor]:
        """The calibration images in order, `size` at a time, float32 on the device; looks for a wish to stop before each.

        With `mirrored` every chunk comes a second time with left and right exchanged.
        """
        for chunk in self.calibration.split(size):
            chunk = chunk.to(self.device, torch.float32)
            for view in (chunk, chunk.flip(-1)) if mirrored else (chunk,):
                self.reporter.check()
                yield view

    def within(self, most: int, *, mirrored: bool) -> tuple[Pair, bool]:
        """The pair with at most `most` images, the first ones, and whether `mirrored` ones, if wished for, still are within that number."""
        return replace(self, calibration=self.calibration[:most]), mirrored and 2 * len(self.calibration) <= most

    def autocast(self) -> AbstractContextManager:
        """In which forward passes run."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def check_same_tokens(self, what: str) -> None:
        """Raise RecipeError, naming `what`, where the student merges tokens: then its tokens do not pair with the dense network's."""
        if tokens.facts(self.student) is not None:
            raise RecipeError(
                f"{what} compares the inputs of every layer token by token, and the pruned network merges tokens. "
                "Leave tokens.r empty, or choose another way to prune or to heal, such as 'wanda' and 'starfish'."
            )

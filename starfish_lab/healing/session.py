"""What a healing method sees of a run, and what it gives back for a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from starfish_lab.models.network import Network
from starfish_lab.progress import Reporter


class Loss(NamedTuple):
    """The loss of one batch; `blocks` where it has a part for each block."""

    total: Tensor  # (), differentiated
    blocks: Tensor | None = None  # (blocks,), detached, depth order


@dataclass(frozen=True)
class Session:
    """One healing run: both networks on `device`, the calibration images cut into the batches of every epoch."""

    dense: Network  # the teacher, in eval mode
    student: Network  # dense × mask at the start
    batches: tuple[Tensor, ...]  # each (B, C, H, W) on the CPU, the last one smaller
    labels: tuple[Tensor, ...] | None  # each (B,), aligned with the batches
    device: torch.device
    reporter: Reporter
    teacher_memory: float  # bytes for what the teacher says of the batches

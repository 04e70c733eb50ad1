"""What a healing method sees of a run, and what it gives back for a batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from starfish_lab.errors import ImagesError
from starfish_lab.models.network import Network
from starfish_lab.progress import Reporter
from starfish_lab.training.batches import Batch, Batches
from starfish_lab.training.loop import Loss

__all__ = ["Batch", "Loss", "Session"]


@dataclass(frozen=True)
class Session:
    """One healing run: both networks on `device`, and the batches of all steps."""

    dense: Network  # the teacher, in eval mode
    student: Network  # masked
    batches: Batches
    device: torch.device
    reporter: Reporter
    teacher_memory: float  # bytes for what the teacher says of batches that come again

    def check_labels(self) -> None:
        """Raise ImagesError unless all labels are class indices of the network's outputs."""
        lowest, highest = int(self.batches.labels.min()), int(self.batches.labels.max())
        classes = self.student.num_classes
        if lowest < 0 or (classes and highest >= classes):
            raise ImagesError(
                f"Labels run from {lowest} to {highest}; {self.student.name} knows classes 0 to {classes - 1}. Give the class order of the network."
            )

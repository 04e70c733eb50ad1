"""What a healing method or a repair sees of a run, and what a method gives back for a batch."""

from __future__ import annotations

from dataclasses import dataclass

from starfish_lab.calibration.pair import Pair
from starfish_lab.errors import ImagesError
from starfish_lab.pruning.masks import Masks
from starfish_lab.training.batches import Batch, Batches
from starfish_lab.training.loop import Loss

__all__ = ["Batch", "Loss", "Session"]


@dataclass(frozen=True, kw_only=True)
class Session(Pair):
    """One healing run: the pair, the student in eval mode while a repair runs, and the images of all steps."""

    masks: Masks  # on the CPU
    batches: Batches  # of the steps of training
    teacher_half: bool = False  # the teacher's answers are kept in float16

    def check_labels(self) -> None:
        """Raise ImagesError unless all labels are class indices of the network's outputs."""
        lowest, highest = int(self.batches.labels.min()), int(self.batches.labels.max())
        classes = self.student.num_classes
        if lowest < 0 or (classes and highest >= classes):
            raise ImagesError(
                f"Labels run from {lowest} to {highest}; {self.student.name} knows classes 0 to {classes - 1}. Give the class order of the network."
            )

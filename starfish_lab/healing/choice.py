"""How a pruned network is healed, as plain data: the part of a recipe that `healing.heal` reads."""

from __future__ import annotations

from dataclasses import dataclass, field

from starfish_lab.checks import at_least, one_of
from starfish_lab.errors import RecipeError

OPTIMISERS = ("adam", "adamw", "sgd")
AUGMENTATIONS = ("none", "flip", "light", "crop", "timm")
SCHEDULES = ("cosine", "linear", "constant")
PRECISIONS = ("float32", "tf32", "bf16")
TRAINS = ("weights", "affine", "all")


@dataclass(frozen=True, kw_only=True)
class HealingChoice:
    """How the pruned network is healed: `repair`, without gradients, then `method`, by training. Either may be 'none'.

    Defaults are STARFISH's (arXiv 2606.01126, authors' released defaults). `repair_options` go to the repair, `options` to
    the method. Training is `steps` optimiser steps long; None means `epochs` over the images.

    `images` is 'calibration', or 'training' (`images.training` of the recipe), shuffled in every epoch. `order` of the
    calibration images is 'fixed', every epoch alike, or 'shuffled'. `augmentation` is 'none', 'flip', 'light' (random resized
    crop of 60 to 100 % of the area and flip), 'crop' (8 to 100 %) or 'timm' (that, RandAugment m9, colour jitter, random
    erasing 0.25).

    The learning rate rises over `warmup` steps, then follows `schedule` to `final_learning_rate`: 'cosine', 'linear' or
    'constant' (which stays). `average` is the decay of an exponential moving average of what trains, which is then the
    result; 0 takes the last step's. `gradient_clip` 0 clips nothing. `trains` is 'weights' (surviving entries of the pruned
    layers), 'affine' (those, and biases and norms inside the network) or 'all' (every parameter); zeros always stay.

    `teacher` says how the dense network's answers are kept: 'exact' (float32), or 'half' (float16, as the authors do; half
    the memory). `precision` is 'float32', 'tf32' (factors of products rounded to 10 bits, on CUDA alone) or 'bf16' (autocast,
    weights in float32). `compile` runs the pruned network's forward pass through torch.compile.
    """

    method: str = "starfish"
    repair: str = "none"
    steps: int | None = None
    epochs: int = 10
    batch_size: int = 32
    learning_rate: float = 6e-4
    final_learning_rate: float = 1e-6
    warmup: int = 0
    schedule: str = "cosine"
    average: float = 0.0
    optimiser: str = "adam"
    weight_decay: float = 0.0
    gradient_clip: float = 0.0
    trains: str = "weights"
    images: str = "calibration"
    order: str = "fixed"
    augmentation: str = "none"
    teacher: str = "exact"
    precision: str = "float32"
    compile: bool = False
    options: dict[str, object] = field(default_factory=dict)
    repair_options: dict[str, object] = field(default_factory=dict)
    seed: int = 0

    def validate(self) -> None:
        from starfish_lab.healing import METHODS, REPAIRS

        METHODS.check(self.method)
        REPAIRS.check(self.repair)
        if self.steps is not None:
            at_least("healing.steps", self.steps, 1)
        at_least("healing.epochs", self.epochs, 1)
        at_least("healing.batch_size", self.batch_size, 1)
        at_least("healing.warmup", self.warmup, 0)
        one_of("healing.schedule", self.schedule, SCHEDULES)
        one_of("healing.optimiser", self.optimiser, OPTIMISERS)
        one_of("healing.trains", self.trains, TRAINS)
        one_of("healing.images", self.images, ("calibration", "training"))
        one_of("healing.order", self.order, ("fixed", "shuffled"))
        one_of("healing.augmentation", self.augmentation, AUGMENTATIONS)
        one_of("healing.teacher", self.teacher, ("exact", "half"))
        one_of("healing.precision", self.precision, PRECISIONS)
        for name in ("weight_decay", "gradient_clip"):
            if not getattr(self, name) >= 0:
                raise RecipeError(f"healing.{name} is {getattr(self, name):g}: give a number of at least 0.")
        if not 0 <= self.average < 1:
            raise RecipeError(f"healing.average is {self.average:g}: give the decay of the average, from 0 (none) to below 1, such as 0.98.")
        if not 0 <= self.final_learning_rate <= self.learning_rate or self.learning_rate == 0:
            raise RecipeError(
                f"healing.learning_rate {self.learning_rate:g} falls to healing.final_learning_rate {self.final_learning_rate:g}: "
                "the first must be above 0, the second at least 0 and no larger than the first."
            )

    def total_steps(self, images: int) -> int:
        """Optimiser steps on `images` images."""
        return self.steps if self.steps is not None else self.epochs * -(-images // self.batch_size)

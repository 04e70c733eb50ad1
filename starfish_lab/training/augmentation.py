"""Random views of training images: what is drawn for an image depends on seed, epoch and image alone.

'flip' mirrors every other image. 'crop' cuts a random box of 8 to 100 % of the area out and resizes it, then flips; 'light' does
so with 60 to 100 % of the prepared image, so that what the network was meant to see stays in view.
'timm' is timm's training transform as the authors of marchenko_pastur §3 call it: crop, flip, RandAugment
'rand-m9-mstd0.5-inc1', colour jitter 0.4 (which timm itself leaves out beside RandAugment), random erasing 0.25 with noise.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.auto_augment import RandAugment
from timm.data.transforms import str_to_interp_mode
from torch import Tensor
from torchvision.transforms import functional as F

from starfish_lab.errors import RecipeError
from starfish_lab.models.network import Preprocessing
from starfish_lab.recipe import AUGMENTATIONS

AREA = (0.08, 1.0)  # of the image that 'crop' and 'timm' keep
LIGHT_AREA = (0.6, 1.0)  # that 'light' keeps
RATIO = (3 / 4, 4 / 3)  # of a crop's width to its height
ATTEMPTS = 10  # at a box that fits, before the largest central one is taken


def flip(image: Tensor, rng: random.Random) -> Tensor:
    """A prepared image (C, H, W), mirrored with probability 1/2."""
    return image.flip(-1) if rng.random() < 0.5 else image


def crop(image: Image.Image | Tensor, rng: random.Random, preprocessing: Preprocessing, area: tuple[float, float] = AREA) -> Tensor:
    """A random box of a picture or of a prepared image (C, H, W), resized to the input size and flipped; → (C, H, W), normalised."""
    size = list(preprocessing.input_size[1:])
    width, height = image.size if isinstance(image, Image.Image) else (image.shape[-1], image.shape[-2])
    view = F.resized_crop(image, *box(height, width, rng, area), size, str_to_interp_mode(preprocessing.interpolation), antialias=True)
    if not isinstance(view, Tensor):
        view = F.normalize(F.to_tensor(view), preprocessing.mean, preprocessing.std)
    return flip(view, rng)


def box(height: int, width: int, rng: random.Random, share: tuple[float, float] = AREA) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a random crop: area uniform in `share`, aspect ratio log-uniform in RATIO (Szegedy et al., arXiv 1409.4842)."""
    for _ in range(ATTEMPTS):
        area = height * width * rng.uniform(*share)
        ratio = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return rng.randint(0, height - h), rng.randint(0, width - w), h, w
    w, h = min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))
    return (height - h) // 2, (width - w) // 2, h, w


def timm_transform(preprocessing: Preprocessing) -> Callable[[Image.Image], Tensor]:
    """timm's training transform: picture → (C, H, W). It draws from the global random numbers: call it inside `seeded`."""
    transform = create_transform(
        input_size=preprocessing.input_size, is_training=True, interpolation=preprocessing.interpolation,
        mean=preprocessing.mean, std=preprocessing.std, scale=AREA, ratio=RATIO, hflip=0.5,
        auto_augment="rand-m9-mstd0.5-inc1", color_jitter=0.4, re_prob=0.25, re_mode="pixel", re_count=1,
    )  # fmt: skip
    for op in next(step for step in transform.transforms if isinstance(step, RandAugment)).ops:
        if op.name.startswith("Posterize"):
            op.level_fn = _one_bit_at_least(op.level_fn)
    return transform


def _one_bit_at_least(level: Callable[[float, dict], tuple[int]]) -> Callable[[float, dict], tuple[int]]:
    """At the top of the scale timm keeps 0 bits of a colour: a black image in former versions of Pillow, an error in later ones."""
    return lambda magnitude, hparams: (max(1, level(magnitude, hparams)[0]),)


@contextmanager
def seeded() -> Iterator[Callable[[random.Random], None]]:
    """Yields a function that seeds all global random numbers of the CPU; afterwards they go on as if nothing had been drawn."""
    states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()

    def seed(rng: random.Random) -> None:
        number = rng.getrandbits(32)
        random.seed(number)
        np.random.seed(number)
        torch.default_generator.manual_seed(number)

    try:
        yield seed
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.default_generator.set_state(states[2])


def generator(seed: int, epoch: int, image: int) -> random.Random:
    """The random numbers of one image in one epoch."""
    return random.Random(f"{seed} {epoch} {image}")


def check(augmentation: str, *, pictures: bool) -> None:
    """Raise RecipeError where these images cannot be augmented like that."""
    if augmentation not in AUGMENTATIONS:
        raise RecipeError(f"There is no augmentation {augmentation!r}. Choose one of: {', '.join(AUGMENTATIONS)}.")
    if augmentation == "timm" and not pictures:
        raise RecipeError(
            "The augmentation 'timm' changes pictures, and these images are prepared tensors with no picture files behind them. "
            "Choose 'flip', 'light' or 'crop', or give images from files."
        )

"""What surrounds training: random numbers of its own, arithmetic as chosen, and torch's errors put into words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from starfish_lab import settings
from starfish_lab.errors import ImagesError, LabError


@contextmanager
def explained(what: str) -> Iterator[list[int]]:
    """Torch's errors that a person can act on, in words. Yields a list for the sizes of the batches met."""
    sizes: list[int] = []
    try:
        yield sizes
    except torch.OutOfMemoryError:
        batches = f" with batches of {max(sizes)} images" if sizes else ""
        raise LabError(
            f"The device has too little memory for {what}{batches}. "
            f"Lower the batch size, or {settings.TEACHER_MEMORY_GB.name}, or choose a device with more memory."
        ) from None
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ImagesError(
            f"A batch of {what} holds 1 image, and batch norm needs two at this image size. "
            "Change the number of images or the batch size so that the last batch holds at least two."
        ) from None


def own_randomness(device: torch.device):
    """Seeding inside leaves torch's random numbers outside as they were."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


@contextmanager
def arithmetic(precision: str) -> Iterator[None]:
    """Products of float32 matrices inside in TF32 where `precision` is 'tf32' and the device has it; afterwards as before."""
    before = torch.get_float32_matmul_precision()
    if precision == "tf32":
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)

"""A network as it is run: its images in the right format, its arithmetic around every call."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor

from starfish_lab.execution import precision as arithmetic


class Run:
    """What is called to run a network, without autograd and in its precision, whatever ran before it.

    The network is on the device and in evaluation mode, and stays there: compressed weights cannot be moved.

    forward : (B, C, H, W) → (B, classes); the module, or what torch.compile made of it
    """

    def __init__(self, forward: Callable[[Tensor], Tensor], *, precision: str = "float32", device: str = "cpu", channels_last: bool = False):
        self.forward, self.precision, self.device = forward, precision, device
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def inputs(self, images: Tensor) -> Tensor:
        """The images (B, C, H, W) as the network takes them: device, format of numbers, layout. Not part of what is timed."""
        return images.to(self.device, arithmetic.dtype_of(self.precision)).contiguous(memory_format=self.memory_format)

    def __call__(self, images: Tensor) -> Tensor:
        """Logits (B, classes) of images from `inputs`."""
        with torch.inference_mode(), self._products(), arithmetic.autocast(self.precision, self.device):
            return self.forward(images)

    def _products(self):
        return arithmetic.products(self.precision) if self.device.startswith("cuda") else nullcontext()  # elsewhere there is no TF32

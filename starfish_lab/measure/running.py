"""The state a module must be in while it is measured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(module: nn.Module, device: str) -> Iterator[nn.Module]:
    """The module on the device, in evaluation mode and without autograd; afterwards put back as it was found."""
    home = next((p.device for p in module.parameters()), torch.device(device))
    modes = {child: child.training for child in module.modules()}
    module.to(device).eval()
    try:
        with torch.inference_mode():
            yield module
    finally:
        module.to(home)
        for child, training in modes.items():
            child.training = training

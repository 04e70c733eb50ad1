"""In which arithmetic a network runs: the format of its weights, and how products are rounded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from starfish_lab.models.network import Network

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}  # of weights and images; the others keep both in float32
AMPERE = (8, 0)  # the compute capability that brought TF32, bf16 and 2:4 products


def dtype_of(precision: str) -> torch.dtype:
    """The format of weights and images."""
    return DTYPES.get(precision, torch.float32)


def capability(device: str) -> tuple[int, int] | None:
    """Compute capability of a CUDA device, None where there is none to ask."""
    if not device.startswith("cuda") or not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_capability(device)


def refuses(precision: str, *, device: str) -> str | None:
    """Why a device does not calculate so, in one sentence; None where it does, or where the device is not here to ask."""
    if precision != "tf32":
        return None
    found = capability(device)
    if device.startswith("cuda") and (found is None or found >= AMPERE):
        return None
    return f"TF32 needs a CUDA GPU of compute capability ≥ 8.0, and {device} is none: choose float32 or bf16."


def cast(network: Network, precision: str, device: str) -> Network:
    """A copy on the device in evaluation mode, weights and buffers in the precision's format."""
    copied = network.copy()
    copied.module.to(device, dtype_of(precision)).eval()
    return copied


def autocast(precision: str, device: str):
    """In which the forward pass of 'autocast' runs: products in bf16, weights in float32."""
    return torch.autocast(torch.device(device).type, torch.bfloat16) if precision == "autocast" else nullcontext()


@contextmanager
def products(precision: str) -> Iterator[None]:
    """Products of float32 factors inside are float32's own, or TF32's where that is the precision; afterwards as before.

    PyTorch's default is neither: matrix products are exact and convolutions are rounded to TF32.
    """
    cudnn, before = torch.backends.cudnn, torch.get_float32_matmul_precision()
    convolutions = cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        cudnn.allow_tf32 = precision == "tf32"
        yield
    finally:
        torch.set_float32_matmul_precision(before)
        cudnn.allow_tf32 = convolutions

"""What the device can do at most, measured: TFLOP/s of large matrix products in each precision, GB/s of copying memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from statistics import median

import torch
from torch.nn import functional as F

from starfish_lab.execution import precision as arithmetic
from starfish_lab.measure import latency

SIZES = {"cuda": (1024, 2048, 4096, 8192), "cpu": (256, 512, 1024)}  # of square matrices
COPIED = {"cuda": 2**30, "cpu": 2**27}  # bytes: beyond every cache
SECONDS, CALLS = 0.2, 3  # so long at least, and so often
LONG = 0.1  # seconds of a product after which no larger one is tried


def measure(device: str, precisions: Iterable[str]) -> list[dict[str, object]]:
    """One row a precision: precision, tflops, gb_per_s (bytes read and written), shape (of the fastest product).

    Autocast multiplies in bf16, so its peak is that of bf16.
    """
    kind = device if device in SIZES else "cuda"
    gb_per_s = _bandwidth(device, COPIED[kind])
    rows = []
    for name in dict.fromkeys(precisions):
        found = _product("bf16" if name == "autocast" else name, device, SIZES[kind])
        rows.append({"precision": name, **found, "gb_per_s": gb_per_s})
    return rows


@torch.inference_mode()
def _product(precision: str, device: str, sizes: tuple[int, ...]) -> dict[str, object]:
    best = {"tflops": 0.0, "shape": ""}
    with arithmetic.products(precision):
        for n in sizes:
            # random numbers: on zeros a GPU draws less power and runs faster than it ever will on weights
            a, b = (torch.randn(n, n, device=device).to(arithmetic.dtype_of(precision)) for _ in range(2))
            seconds = _seconds(device, partial(F.linear, a, b))  # as networks call it
            best = max(best, {"tflops": 2 * n**3 / seconds / 1e12, "shape": f"{n}x{n}x{n}"}, key=lambda row: row["tflops"])
            if seconds > LONG:
                break
    return best


@torch.inference_mode()
def _bandwidth(device: str, size: int) -> float:
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / _seconds(device, partial(target.copy_, source)) / 1e9


def _seconds(device: str, call: Callable[[], object]) -> float:
    timer = latency.timer_of(device, single=False)
    timer(call, 1)  # chooses a kernel
    times: list[float] = []
    while len(times) < CALLS or sum(times) < SECONDS:
        times += timer(call, 1)
    return median(times)

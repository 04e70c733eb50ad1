"""The waterfall: which layer's time went where. Measured apart from the race, because listening to every layer costs time itself."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from statistics import median

from torch import nn

from starfish_lab.measure.own_time import own_times
from starfish_lab.models.network import Network

PASSES, WARM = 10, 3


def waterfall(network: Network, call: Callable[[], object], *, device: str) -> list[dict[str, object]]:
    """Rows in the order in which layers first run: layer, kind (linear, conv, attention, norm or other), ms, share (of their sum).

    `call` runs the network once, not compiled: a compiled one has no layers any more. A layer's time is that between its beginning and its
    end, less that of the layers inside it, by CUDA events or the clock; medians over ten passes. Linear layers and convolutions go by
    their names, the products of an attention by '<attention>.matmul', norms and all else (activations, sums, reordering) by their block.
    """
    for _ in range(WARM):
        call()
    modules = dict(network.module.named_modules())
    rows: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0] * PASSES)
    for i in range(PASSES):
        for name, seconds in own_times(network.module, modules, call, device=device):
            rows[_place(network, name, modules[name])][i] += 1e3 * seconds
    found = {place: max(0.0, median(ms)) for place, ms in rows.items()}
    total = sum(found.values()) or 1.0
    return [{"layer": layer, "kind": kind, "ms": ms, "share": ms / total} for (layer, kind), ms in found.items() if ms > 0]


def _place(network: Network, name: str, module: nn.Module) -> tuple[str, str]:
    """Row and kind of a module."""
    kind = _kind(network, name, module)
    if kind in ("linear", "conv"):
        return name, kind
    if kind == "attention":
        return f"{name}.matmul", kind
    return f"{network.block_of(name) or 'outside blocks'}, {kind}", kind


def _kind(network: Network, name: str, module: nn.Module) -> str:
    """By the class, or by what its name says: kernels bring classes of their own."""
    words = type(module).__name__.lower()
    if isinstance(module, nn.Linear) or "linear" in words:
        return "linear"
    if isinstance(module, nn.Conv2d) or "conv2d" in words or "im2col" in words:
        return "conv"
    if name in {attention.name for attention in network.attentions} or "attention" in words:
        return "attention"
    return "norm" if "norm" in words else "other"

"""The waterfall: which layer's time went where. Measured apart from the race, because listening to every layer costs time itself."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from statistics import median

import torch
from torch import nn

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
    with _Listener(network.module, device) as listener:
        passes = [listener.listen(call) for _ in range(PASSES)]
    rows: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0] * PASSES)
    modules = dict(network.module.named_modules())
    for name in dict.fromkeys(name for times in passes for name in times):
        row = rows[_place(network, name, modules[name])]
        for i, times in enumerate(passes):
            row[i] += 1e3 * times.get(name, 0.0)
    found = {place: max(0.0, median(ms)) for place, ms in rows.items()}
    total = sum(found.values()) or 1.0
    return [{"layer": layer, "kind": kind, "ms": ms, "share": ms / total} for (layer, kind), ms in found.items() if ms > 0]


class _Listener:
    """Hears every module begin and end."""

    def __init__(self, module: nn.Module, device: str):
        self._module, self._device, self._cuda = module, device, device.startswith("cuda")

    def __enter__(self) -> _Listener:
        self._open: list[tuple[str, object]] = []
        self._heard: list[tuple[str, str | None, object, object]] = []  # name, the module around it, beginning, end
        self._hooks = []
        for name, module in self._module.named_modules():
            self._hooks.append(module.register_forward_pre_hook(lambda *_, name=name: self._open.append((name, self._mark()))))
            self._hooks.append(module.register_forward_hook(lambda *_, name=name: self._ended()))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def listen(self, call: Callable[[], object]) -> dict[str, float]:
        """{module: seconds of its own} of one pass."""
        self._heard.clear()
        call()
        if self._cuda:
            torch.cuda.synchronize(self._device)
        own: dict[str, float] = defaultdict(float)
        for name, around, began, ended in self._heard:
            seconds = began.elapsed_time(ended) / 1e3 if self._cuda else ended - began
            own[name] += seconds
            if around is not None:
                own[around] -= seconds
        return own

    def _ended(self) -> None:
        name, began = self._open.pop()
        self._heard.append((name, self._open[-1][0] if self._open else None, began, self._mark()))

    def _mark(self) -> object:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event


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

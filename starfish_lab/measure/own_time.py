"""What each module of a network takes by itself in one forward pass, without what the modules inside it take: by hooks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

Mark = tuple[str, bool, object]  # module, whether it begins, when


def own_times(module: nn.Module, names: Iterable[str], call: Callable[[], object], *, device: str) -> list[tuple[str, float]]:
    """(submodule, seconds) of every call of the named submodules that `call` makes, in the order in which they end.

    Time in a submodule that is not named counts for the named one around it. By CUDA events, which stand in the stream and make
    nobody wait, or the monotonic clock.
    """
    clock = _Events(device) if device.startswith("cuda") else _Clock()
    marks: list[Mark] = []
    with _listening(module, names, marks, clock.now):
        call()
    return _own(marks, clock.between)


@contextmanager
def _listening(module: nn.Module, names: Iterable[str], marks: list[Mark], now: Callable[[], object]) -> Iterator[None]:
    handles = []
    try:
        for name in names:
            place = module.get_submodule(name)
            handles.append(place.register_forward_pre_hook(lambda *_, name=name: marks.append((name, True, now()))))
            handles.append(place.register_forward_hook(lambda *_, name=name: marks.append((name, False, now()))))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _own(marks: list[Mark], between: Callable[[object, object], float]) -> list[tuple[str, float]]:
    found, open_calls = [], []
    for name, begins, moment in marks:
        if begins:
            open_calls.append([moment, 0.0])
            continue
        began, inside = open_calls.pop()
        whole = between(began, moment)
        found.append((name, whole - inside))
        if open_calls:
            open_calls[-1][1] += whole
    return found


class _Clock:
    now = staticmethod(time.perf_counter)

    def between(self, first: float, second: float) -> float:
        return second - first


class _Events:
    """Waits once, when the first difference is asked for."""

    def __init__(self, device: str) -> None:
        self._device, self._waited = device, False

    def now(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))  # the present device may be another
        return event

    def between(self, first: torch.cuda.Event, second: torch.cuda.Event) -> float:
        if not self._waited:
            torch.cuda.synchronize(self._device)
            self._waited = True
        return first.elapsed_time(second) / 1e3

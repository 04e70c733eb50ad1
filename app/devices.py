"""Where a run may go: devices of living workers, GPUs by name wherever one joins, and what to say while none has one."""

from __future__ import annotations

import pandas as pd

from app import state
from starfish_lab import literature
from starfish_lab.errors import LabError
from starfish_lab.jobs import accelerators
from starfish_lab.jobs.accelerators import GPU

AUTO = "auto"
COLUMNS = ["worker", "device", "title", "pid", "run", "started_at", "heartbeat_at", "alive"]


def capacity() -> tuple[pd.DataFrame, str]:
    """Living workers and nodes as the backend knows them, one row each, and '' or why that cannot be told just now."""
    try:
        return state.backend().capacity(), ""
    except LabError as error:
        return pd.DataFrame(columns=COLUMNS), str(error)


def offered(alive: pd.DataFrame, chosen: str = AUTO) -> list[str]:
    """What can be asked for: any free worker, devices of living workers, then GPUs by name, of the workers and of the literature."""
    names = [*map(accelerators.short, alive["title"].fillna("")), *sorted(literature.latencies()["gpu"].unique())]
    return list(dict.fromkeys([AUTO, *alive["device"], "cpu", *(GPU + name for name in names if name), chosen]))


def asked(text: str) -> str | None:
    """What a person typed as a device: 'A40' means any GPU of that name. None where it is no device.

    >>> asked("cpu"), asked("A40"), asked(" gpu:H100 "), asked("a room with a view")
    ('cpu', 'gpu:A40', 'gpu:H100', None)
    """
    text = text.strip()
    return next((wanted for wanted in (text, GPU + text) if accelerators.valid(wanted)), None)


def label(wanted: str) -> str:
    """A device as a person reads it.

    >>> label("auto"), label("cuda:1"), label("gpu:A40")
    ('Any free worker', 'cuda:1', 'Any A40')
    """
    return "Any free worker" if wanted == AUTO else f"Any {wanted.removeprefix(GPU)}" if wanted.startswith(GPU) else wanted


def fits(wanted: str, alive: pd.DataFrame) -> pd.DataFrame:
    """The living workers that may take a run which wants this device."""
    able = [accelerators.fits(wanted, row.device, row.title or "") for row in alive.itertuples()]
    return alive[pd.Series(able, index=alive.index, dtype=bool)]


def waits(wanted: str, alive: pd.DataFrame) -> str:
    """What a run with this wish waits for while no living worker has the device, after 'it'; '' where one does."""
    if len(fits(wanted, alive)):
        return ""
    if wanted.startswith(GPU):
        name = wanted.removeprefix(GPU)
        return f"waits until a node with {'an' if name[0].upper() in 'AEFHILMNORSX8' else 'a'} {name} joins"
    there, where = ("", "") if wanted == AUTO else (f" on {wanted}", f" --device {wanted}")
    return f"waits until a worker{there} is started: `python -m starfish_lab worker{where}`"

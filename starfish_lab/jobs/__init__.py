"""Jobs: workers apart from the web server claim runs from the store and do them, on this machine or on a Ray cluster's nodes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from starfish_lab import settings
from starfish_lab.errors import LabError

if TYPE_CHECKING:
    from starfish_lab.jobs.protocol import Backend
    from starfish_lab.store import Store


def backend(store: Store) -> Backend:
    """What executes this store's runs, by the setting STARFISH_LAB_BACKEND. Raises LabError where that is no backend."""
    from starfish_lab.jobs.protocol import LocalBackend
    from starfish_lab.jobs.ray_backend import RayBackend

    return LocalBackend(store) if address() is None else RayBackend(store)


def address() -> str | None:
    """Address of the Ray cluster that the setting names: ray://host:port, host:port or auto; None for the local backend."""
    wanted = settings.BACKEND()
    if wanted == "local":
        return None
    if wanted != "auto" and not re.fullmatch(r"(ray://)?[\w.\-]+:\d{1,5}", wanted):
        raise LabError(f"{settings.BACKEND.name} is '{wanted}': expected local, auto, ray://host:port or host:port, such as ray://head:10001.")
    return wanted

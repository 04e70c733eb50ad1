"""Jobs: workers apart from the web server claim runs from the store and do them, on this machine or on a Ray cluster's nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starfish_lab.jobs.protocol import Backend
    from starfish_lab.store import Store


def backend(store: Store) -> Backend:
    """What executes this store's runs, by the setting STARFISH_LAB_BACKEND. Raises LabError where that is no backend."""
    from starfish_lab.jobs.protocol import LocalBackend
    from starfish_lab.jobs.ray_backend import RayBackend, address

    return LocalBackend(store) if address() is None else RayBackend(store)

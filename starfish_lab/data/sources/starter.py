"""Handwritten digits of scikit-learn, split as the starter was trained: 540 test it, 256 others may calibrate."""

from __future__ import annotations

from starfish_lab.data.images import InMemory
from starfish_lab.data.listing import Listing
from starfish_lab.models import starter
from starfish_lab.recipe import ImagesChoice


def listing(choice: ImagesChoice, role: str) -> Listing | None:
    """The images of the role; those that trained the starter are in neither."""
    images, labels = starter.digits()
    indices = starter.card()["split"]["test" if role == "evaluation" else "calibration"]
    return Listing([InMemory(f"digit {i}", images[i]) for i in indices], [int(labels[i]) for i in indices])

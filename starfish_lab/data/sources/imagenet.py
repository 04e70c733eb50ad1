"""An ImageNet folder as it is usually laid out: one sub-folder a class, named by WordNet id (n01440764 …)."""

from __future__ import annotations

import re
from pathlib import Path

from starfish_lab.data.listing import Listing, by_folder
from starfish_lab.errors import ImagesError
from starfish_lab.recipe import ImagesChoice


def listing(choice: ImagesChoice, role: str) -> Listing | None:
    """The validation folder evaluates; a training folder, where given, calibrates."""
    path = choice.path if role == "evaluation" else choice.calibration_path
    if path is None:
        return None
    found = by_folder(Path(path).expanduser())
    odd = sorted({label for label in found.labels or ["no sub-folders"] if not re.fullmatch(r"n\d{8}", label)})
    if role == "evaluation" and odd:
        raise ImagesError(
            f"{path} is not laid out by WordNet id: it has {odd[0]} where n01440764 or the like is expected. Sort the images into such folders."
        )
    return found

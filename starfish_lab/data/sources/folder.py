"""A folder or zip with one sub-folder a class; a flat one serves for calibration."""

from __future__ import annotations

from pathlib import Path

from starfish_lab.data.listing import Listing, by_folder
from starfish_lab.recipe import ImagesChoice


def listing(choice: ImagesChoice, role: str) -> Listing | None:
    """Labels are the sub-folders' names."""
    path = choice.path if role == "evaluation" else choice.calibration_path
    return by_folder(Path(path).expanduser()) if path else None

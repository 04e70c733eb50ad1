"""A folder or zip of images and a CSV that names file and label, one row an image."""

from __future__ import annotations

from pathlib import Path

from starfish_lab.data.listing import Listing, by_folder, by_table
from starfish_lab.recipe import ImagesChoice


def listing(choice: ImagesChoice, role: str) -> Listing | None:
    """Calibration images may go without labels, and with `calibration_path` alone without a table."""
    path, table = choice.path, choice.csv
    if role == "calibration":
        if choice.calibration_path is None and choice.calibration_csv is None:
            return None
        path, table = choice.calibration_path or choice.path, choice.calibration_csv
    folder = Path(path).expanduser()
    if table is None:
        return by_folder(folder)
    return by_table(
        folder, Path(table).expanduser(), file_column=choice.file_column, label_column=choice.label_column, labels_needed=role == "evaluation"
    )

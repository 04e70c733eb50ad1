"""What a source finds: images, and labels as they are written there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from starfish_lab.data.images import SUFFIXES, Item, Stored, stored
from starfish_lab.errors import ImagesError


@dataclass(frozen=True)
class Listing:
    """Images and their labels in words or numbers; `labels` None where nothing says what an image shows."""

    items: list[Item]
    labels: list[str] | list[int] | None
    note: str = ""


def by_folder(path: Path) -> Listing:
    """A folder or zip with one sub-folder a class, at any depth below it; a flat one has no labels."""
    items = stored(path)
    if not items:
        raise ImagesError(f"{path} holds no images. It takes one sub-folder a class, with {', '.join(SUFFIXES[:5])} … files in them.")
    parts = [item.name.split("/") for item in items]
    while path.is_file() and len({p[0] for p in parts}) == 1 and all(len(p) > 2 for p in parts):
        parts = [p[1:] for p in parts]  # a zip often wraps all in one folder
    if all(len(p) == 1 for p in parts):
        return Listing(items, None)
    inside = [(item, p[0]) for item, p in zip(items, parts) if len(p) > 1]
    left = len(items) - len(inside)
    note = f"{left} images beside the class folders of {path.name} were left out: no folder says what they show." if left else ""
    return Listing([item for item, _ in inside], [label for _, label in inside], note)


def by_table(path: Path, table: Path, *, file_column: str, label_column: str, labels_needed: bool = True) -> Listing:
    """The images in a folder or zip that a CSV names, one a row, in its order.

    Whole numbers in the label column are places in the network's output; anything else is a class by id or name.
    """
    frame = _read(table)
    wanted = [file_column, label_column] if labels_needed else [file_column]
    for column in wanted:
        if column not in frame:
            raise ImagesError(f"{table.name} has no column '{column}'. Its columns: {', '.join(frame.columns)}.")
    there = {item.name: item for item in stored(path)}
    found = [there.get(_inside(file, table)) for file in frame[file_column]]
    missing = [file for file, item in zip(frame[file_column], found) if item is None]
    if len(missing) == len(found):
        some = f"it holds {next(iter(there))}, among {len(there)}" if there else "it holds no images"
        raise ImagesError(f"None of the {len(found)} files of {table.name} is in {path.name}: '{(missing or ['nothing'])[0]}' is the first, {some}.")
    items: list[Stored] = [item for item in found if item is not None]
    note = f"{len(missing)} of {len(found)} rows of {table.name} name files that are not in {path.name}, the first {missing[0]}." if missing else ""
    if label_column not in frame:
        return Listing(items, None, note)
    labels = [label.strip() for label, item in zip(frame[label_column], found) if item is not None]
    if all(label.removeprefix("-").isdecimal() for label in labels):
        return Listing(items, [int(label) for label in labels], note)
    if "" in labels:
        raise ImagesError(f"{table.name} gives no label for {items[labels.index('')].name}. Fill the column '{label_column}' or take the row out.")
    return Listing(items, labels, note)


def _read(table: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(table, dtype=str, keep_default_na=False)
    except OSError as error:
        raise ImagesError(f"The table {table} cannot be read: {error.strerror or error}. Give the path of a CSV file.") from None
    except (ValueError, pd.errors.ParserError) as error:
        raise ImagesError(f"{table.name} is no CSV table: {str(error).partition(chr(10))[0]}. Its first line must name the columns.") from None


def _inside(file: str, table: Path) -> str:
    """The name of a file below the folder; one that leads out of it is refused."""
    parts = [part for part in file.strip().replace("\\", "/").split("/") if part not in ("", ".")]
    if ".." in parts:
        raise ImagesError(f"{table.name} names '{file}', which lies outside the folder of images. Name files below it.")
    return "/".join(parts)

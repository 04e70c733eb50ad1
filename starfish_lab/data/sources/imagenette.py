"""Imagenette, ten easy classes of ImageNet: downloaded by torchvision into images.path."""

from __future__ import annotations

from pathlib import Path

from starfish_lab.data.listing import Listing, by_folder
from starfish_lab.errors import ImagesError
from starfish_lab.recipe import ImagesChoice

FOLDER = "imagenette2-320"  # shorter side 320 pixels: enough for networks that see 224


def listing(choice: ImagesChoice, role: str) -> Listing | None:
    """Its validation images evaluate, its training images calibrate."""
    root = Path(choice.path).expanduser()
    split = "val" if role == "evaluation" else "train"
    if not (root / FOLDER / split).is_dir():
        _download(root, split)
    return by_folder(root / FOLDER / split)


def _download(root: Path, split: str) -> None:
    from torchvision.datasets import Imagenette

    try:
        root.mkdir(parents=True, exist_ok=True)
        Imagenette(root, split=split, size="320px", download=True)
    except (OSError, RuntimeError) as error:
        raise ImagesError(
            f"Imagenette cannot be downloaded into {root}: {str(error).partition(chr(10))[0]}. "
            f"Unpack {FOLDER}.tgz there on a machine with access and copy it, or choose the source 'folder'."
        ) from None

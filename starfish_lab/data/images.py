"""Images as a network wants them: decoded when needed, prepared by the network's own preprocessing."""

from __future__ import annotations

import io
import os
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from PIL import Image
from timm.data import create_transform
from torch import LongTensor, Tensor

from starfish_lab.errors import ImagesError
from starfish_lab.models.network import Preprocessing

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


def transform(preprocessing: Preprocessing) -> Callable[[Image.Image], Tensor]:
    """timm's evaluation transform: resize to size / crop_pct, centre crop, scale to 0…1, normalise; PIL → (C, H, W)."""
    return create_transform(
        input_size=preprocessing.input_size, is_training=False, interpolation=preprocessing.interpolation,
        mean=preprocessing.mean, std=preprocessing.std, crop_pct=preprocessing.crop_pct,
    )  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """One image where it lies: a file, or a member of a zip. `name` is what a person calls it by."""

    name: str
    path: Path
    member: str = ""

    def place(self) -> tuple[str, str]:
        """Equal for two listings of the same file."""
        return str(self.path.resolve()), self.member

    def size(self) -> int:
        """Bytes of the file."""
        return _archive(self.path).getinfo(self.member).file_size if self.member else self.path.stat().st_size

    def read(self) -> bytes:
        """The file's bytes."""
        return _archive(self.path).read(self.member) if self.member else self.path.read_bytes()

    def head(self, count: int) -> bytes:
        """The file's first bytes."""
        with _archive(self.path).open(self.member) if self.member else self.path.open("rb") as file:
            return file.read(count)

    def open(self) -> Image.Image:
        """Decoded, in RGB. Raises whatever the decoder makes of a broken file."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # palette and EXIF remarks help nobody here
            return Image.open(io.BytesIO(self.read())).convert("RGB")


@dataclass(frozen=True)
class InMemory:
    """One image that a package brings along."""

    name: str
    image: Image.Image

    def place(self) -> tuple[str, str]:
        return self.name, ""

    def size(self) -> int:
        return len(self.read())

    def read(self) -> bytes:
        return self.image.tobytes()

    def head(self, count: int) -> bytes:
        return self.read()[:count]

    def open(self) -> Image.Image:
        return self.image.convert("RGB")


Item = Stored | InMemory


def stored(path: Path) -> list[Stored]:
    """Every image file under a folder or in a zip, by name; hidden files and those without an image's suffix stay out."""
    if path.is_dir():
        # class folders are often links to where the images really lie
        found = [Path(folder, file) for folder, _, files in os.walk(path, followlinks=True) for file in files]
        images = [Stored(file.relative_to(path).as_posix(), file) for file in found]
    elif path.is_file():
        images = [Stored(member, path, member) for member in _archive(path).namelist()]
    else:
        raise ImagesError(f"There is no folder or zip {path}. Give the path of one that holds images.")
    return sorted((i for i in images if _is_image(i.name)), key=lambda image: image.name)


def _is_image(name: str) -> bool:
    hidden = any(part.startswith((".", "__MACOSX")) for part in name.split("/"))
    return not hidden and name.lower().endswith(SUFFIXES)


def _archive(path: Path) -> zipfile.ZipFile:
    """The open zip; opened again in another process, and when the file has changed."""
    try:
        return _opened(path, path.stat().st_mtime_ns, os.getpid())
    except (zipfile.BadZipFile, OSError) as error:
        raise ImagesError(f"{path.name} cannot be read as a zip: {error}. Give a folder or a whole zip file.") from None


@lru_cache(maxsize=8)
def _opened(path: Path, _changed: int, _process: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


class ImageSet:
    """Images with names and, where known, labels.

    Nothing is decoded before it is asked for, so that 50,000 images need no more memory than one batch.
    An image that cannot be decoded is left out and its name appended to `skipped`.

    >>> images = ImageSet.of(torch.zeros(3, 1, 8, 8), labels=torch.tensor([0, 1, 0]))
    >>> len(images), [tuple(batch.shape) for _, batch in images.batches(2)]
    (3, [(2, 1, 8, 8), (1, 1, 8, 8)])
    """

    def __init__(
        self,
        names: Sequence[str],
        labels: LongTensor | None,
        image: Callable[[int], Tensor | None],
        *,
        picture: Callable[[int], Image.Image | None] | None = None,
        preprocessing: Preprocessing | None = None,
    ):
        self.names, self.labels, self.preprocessing = list(names), labels, preprocessing
        self.skipped: list[str] = []
        self._image, self._picture, self._tensor = image, picture, None

    @classmethod
    def of(cls, images: Tensor, labels: LongTensor | None = None, names: Sequence[str] | None = None) -> ImageSet:
        """Images (n, C, H, W) that are already prepared."""
        return cls(names or [f"image {i}" for i in range(len(images))], labels, images.__getitem__)

    @classmethod
    def lazy(cls, items: Sequence[Item], labels: LongTensor | None, preprocessing: Preprocessing) -> ImageSet:
        """Images decoded and prepared whenever they are asked for."""
        prepare = transform(preprocessing)

        def image(index: int) -> Tensor | None:
            try:
                return prepare(items[index].open())
            except Exception:  # whatever a decoder makes of a broken file: the image is left out and named
                return None

        def picture(index: int) -> Image.Image | None:
            try:
                return items[index].open()
            except Exception:
                return None

        return cls([item.name for item in items], labels, image, picture=picture, preprocessing=preprocessing)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def has_pictures(self) -> bool:
        """True where images are decoded when asked for, so that they can be had as they were before preparation."""
        return self._picture is not None

    def image(self, index: int) -> Tensor | None:
        """One prepared image (C, H, W), None if it cannot be decoded. Several threads may ask at once."""
        return self._image(index)

    def picture(self, index: int) -> Image.Image | None:
        """One image in RGB as it was before preparation, None if it cannot be decoded. Only where `has_pictures`."""
        return self._picture(index)

    def skip(self, index: int) -> None:
        """Name an image that cannot be decoded, once."""
        if self.names[index] not in self.skipped:
            self.skipped.append(self.names[index])

    def batches(self, size: int) -> Iterator[tuple[LongTensor, Tensor]]:
        """Indices (b,) and images (b, C, H, W), in order, at most `size` at a time."""
        indices: list[int] = []
        images: list[Tensor] = []
        for index in range(len(self)):
            image = self._image(index)
            if image is None:
                self.skip(index)
                continue
            indices.append(index)
            images.append(image)
            if len(images) == size:
                yield torch.tensor(indices), torch.stack(images)
                indices, images = [], []
        if images:
            yield torch.tensor(indices), torch.stack(images)

    def tensor(self) -> Tensor:
        """All images (n, C, H, W) float32, decoded once and kept."""
        if self._tensor is None:
            images = [self._image(index) for index in range(len(self))]
            broken = [name for name, image in zip(self.names, images) if image is None]
            if broken:
                raise ImagesError(f"These images cannot be read: {', '.join(broken[:5])}. Replace them or take them out of the list.")
            self._tensor = torch.stack(images)
        return self._tensor

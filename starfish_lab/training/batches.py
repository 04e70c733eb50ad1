"""Which images a training step sees: the same for the same seed and step, whatever was asked before."""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import NamedTuple

import torch
from PIL import Image
from torch import LongTensor, Tensor

from starfish_lab.data.images import ImageSet
from starfish_lab.errors import ImagesError
from starfish_lab.models.network import Preprocessing
from starfish_lab.training import augmentation as augmenting
from starfish_lab.training.checkpoint import fingerprint

READERS = min(8, os.cpu_count() or 1)  # threads that decode or augment the next batch while a step runs


class Batch(NamedTuple):
    """The images of one step."""

    index: int | None  # number of the batch where every epoch repeats the very same tensors; None where images vary
    images: Tensor  # (B, C, H, W)
    labels: LongTensor | None  # (B,)
    rows: LongTensor | None = None  # (B,) numbers of the images, where an image is the same tensor whenever it comes


class Batches:
    """`batches(step)` gives the batch of step 1, 2, … on the CPU: epoch after epoch over all images, the last batch of each smaller.

    Parameters
    ----------
    images : (n, C, H, W) prepared, or an ImageSet. One with picture files behind it is decoded anew for every batch; a
        picture that cannot be decoded is left out of its batch and named in `skipped`
    labels : (n,); None takes those of the ImageSet
    shuffle : a new order in every epoch
    augmentation : 'none', 'flip', 'light', 'crop' or 'timm', see `augmentation`; 'timm' takes picture files
    preprocessing : the network's; None takes that of the ImageSet. Only 'crop' of prepared tensors does without
    seed : of order and augmentation

    Threads decode and augment one batch ahead. `count` is the number of images, `per_epoch` that of batches, `size` that of
    images in a batch; `prepared` are the images where they are in memory and not augmented, else None.
    """

    def __init__(
        self,
        images: Tensor | ImageSet,
        labels: LongTensor | None = None,
        *,
        batch_size: int,
        shuffle: bool = False,
        augmentation: str = "none",
        preprocessing: Preprocessing | None = None,
        seed: int = 0,
    ):
        if isinstance(images, ImageSet):
            labels = images.labels if labels is None else labels
            preprocessing = preprocessing or images.preprocessing
        self.count = len(images)
        if self.count == 0:
            raise ImagesError("There are no images to train on. Give at least one.")
        if labels is not None and len(labels) != self.count:
            raise ImagesError(f"{len(labels)} labels for {self.count} images. Give one for each image, in the same order.")
        self._files = images if isinstance(images, ImageSet) and images.has_pictures else None
        augmenting.check(augmentation, pictures=self._files is not None)
        self._tensor = images if isinstance(images, Tensor) else None if self._files is not None else images.tensor()
        if self._tensor is not None and preprocessing is None:
            preprocessing = Preprocessing(input_size=tuple(self._tensor.shape[1:]))
        self.labels, self.size, self._shuffle, self._augmentation, self._seed = labels, batch_size, shuffle, augmentation, seed
        self.prepared = self._tensor if augmentation == "none" else None
        self.per_epoch = -(-self.count // batch_size)
        self._preprocessing = preprocessing
        self._varies = shuffle or augmentation != "none"
        self._timm = augmenting.timm_transform(preprocessing) if augmentation == "timm" else None
        self._order = lru_cache(maxsize=2)(self._shuffled)  # of this epoch and the next one
        self._readers: ThreadPoolExecutor | None = None
        self._ahead: tuple[int, list[Future]] = (0, [])

    @property
    def skipped(self) -> list[str]:
        """Names of pictures that could not be decoded."""
        return [] if self._files is None else self._files.skipped

    def __call__(self, step: int) -> Batch:
        epoch, index = divmod(step - 1, self.per_epoch)
        rows = self._rows(epoch, index)
        if self.prepared is not None:
            images = self.prepared[rows]
        else:
            rows, images = self._read(step, epoch, rows)
        known = torch.tensor(_listed(rows, self.count)) if self.prepared is not None else None
        return Batch(None if self._varies else index, images, None if self.labels is None else self.labels[rows], known)

    def fingerprint(self) -> str:
        """Changes with the images, their order and their augmentation. Of prepared images every so manieth value counts, of files their names."""
        images = {"images": self._tensor.flatten(1)[:, ::101]} if self._tensor is not None else self._files.names
        labels = {} if self.labels is None else {"labels": self.labels}
        return fingerprint(images, labels, [self.size, self._shuffle, self._augmentation, self._seed])

    def _rows(self, epoch: int, index: int) -> slice | LongTensor:
        part = slice(index * self.size, min((index + 1) * self.size, self.count))
        return self._order(epoch)[part] if self._shuffle else part

    def _shuffled(self, epoch: int) -> LongTensor:
        return torch.randperm(self.count, generator=torch.Generator().manual_seed(self._seed * 1_000_003 + epoch))

    def _view(self, image: Tensor | Image.Image, epoch: int, row: int) -> Tensor:
        rng = augmenting.generator(self._seed, epoch, row)
        if self._augmentation == "flip":
            return augmenting.flip(image, rng)
        area = augmenting.LIGHT_AREA if self._augmentation == "light" else augmenting.AREA
        return augmenting.crop(image, rng, self._preprocessing, area)

    def _read(self, step: int, epoch: int, rows: slice | LongTensor) -> tuple[LongTensor, Tensor]:
        """Rows that can be decoded, and their images as they are in this epoch; sets the readers to the next step."""
        known, futures = self._ahead
        if known != step:
            for future in futures:
                future.cancel()
            futures = self._decoding(step)
        self._ahead = step + 1, self._decoding(step + 1)
        found = {row: future.result() for row, future in zip(_listed(rows, self.count), futures)}
        for row in [row for row, image in found.items() if image is None]:
            self._files.skip(row)
            del found[row]
        if not found:
            raise ImagesError(f"No image of a whole batch can be read, {self.skipped[-1]} among them. Replace them or take them out of the list.")
        if self._timm:  # draws from global random numbers, so it cannot run in threads
            with augmenting.seeded() as seed:
                for row, picture in found.items():
                    seed(augmenting.generator(self._seed, epoch, row))
                    found[row] = self._timm(picture)
        return torch.tensor(list(found)), torch.stack(list(found.values()))

    def _decoding(self, step: int) -> list[Future]:
        self._readers = self._readers or ThreadPoolExecutor(READERS, thread_name_prefix="images")
        epoch, index = divmod(step - 1, self.per_epoch)
        return [self._readers.submit(self._decoded, epoch, row) for row in _listed(self._rows(epoch, index), self.count)]

    def _decoded(self, epoch: int, row: int) -> Tensor | Image.Image | None:
        """In a reader's thread: all that draws no global random numbers."""
        if self._files is None:
            image = self._tensor[row]
        else:
            image = self._files.picture(row) if self._augmentation in ("crop", "timm") else self._files.image(row)
        return image if image is None or self._augmentation in ("none", "timm") else self._view(image, epoch, row)


def _listed(rows: slice | LongTensor, count: int) -> list[int]:
    return list(range(*rows.indices(count))) if isinstance(rows, slice) else rows.tolist()

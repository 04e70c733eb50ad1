"""Images: where they come from, which calibrate, which show drift, which evaluate."""

from __future__ import annotations

from starfish_lab.data.images import ImageSet
from starfish_lab.data.splits import SOURCES, Splits, open_images

__all__ = ["SOURCES", "ImageSet", "Splits", "open_images"]

"""Thumbnails of images whose answer changed, few enough to keep with a run."""

from __future__ import annotations

import pandas as pd

from starfish_lab.data.images import ImageSet
from starfish_lab.data.thumbnails import thumbnail
from starfish_lab.models.network import Network

MOST_IMAGES = 480
MOST_BYTES = 2_000_000  # of base64, about
FIRST = ("never", "broken", "flipped", "back")  # of equal turn, what is rarest and worst comes first


def chosen(images: pd.DataFrame) -> list[int]:
    """Places of the images to show, all that changed in turns: the first of each group and class, then the second of each, and so on.

    `images` is the frame of `groups.images`. Which are chosen depends on it alone.
    """
    changed = images[images["group"].isin(FIRST)].sort_values("image")
    turn = changed.groupby(["group", "label"]).cumcount()
    order = changed.assign(turn=turn, first=changed["group"].map(FIRST.index)).sort_values(["turn", "first", "label"], kind="stable")
    return order["image"].tolist()


def thumbnail_rows(images: pd.DataFrame, evaluation: ImageSet, network: Network) -> list[dict[str, object]]:
    """Rows of the table 'thumbnails' (image, name, jpeg: base64), of at most MOST_IMAGES images and MOST_BYTES."""
    rows, room = [], MOST_BYTES
    for place in chosen(images)[:MOST_IMAGES]:
        pixels = evaluation.image(place)
        if pixels is None:  # it could be read before
            continue
        jpeg = thumbnail(pixels, network.preprocessing)
        room -= len(jpeg)
        if room < 0:
            break
        rows.append({"image": place, "name": evaluation.names[place], "jpeg": jpeg})
    return rows

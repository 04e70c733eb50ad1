"""A strip of images whose answers are followed while a network heals, the same images at every look.

Rows of the strip: image (its place in the evaluation set), name, label, dense, dense_confidence, pruned, pruned_confidence, jpeg (a
thumbnail, base64). Rows of a look: image, answer, confidence. Labels and answers are places in the network's output.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from starfish_lab.data.images import ImageSet
from starfish_lab.data.thumbnails import thumbnail
from starfish_lab.measure.accuracy import Predictions
from starfish_lab.models.network import Network

FLIPPED, KEPT = 8, 4


def chosen(dense: Predictions, pruned: Predictions) -> NDArray[np.int64]:
    """Places in the two arrays: the first 8 images whose answer pruning flipped and the first 4 whose answer it kept, in their order.

    Where there are fewer of one kind, the other fills up.
    """
    flipped = dense.top1 != pruned.top1
    wanted = max(FLIPPED, FLIPPED + KEPT - int((~flipped).sum()))
    first = np.flatnonzero(flipped)[:wanted]
    return np.sort(np.concatenate([first, np.flatnonzero(~flipped)[: FLIPPED + KEPT - len(first)]]))


class Strip:
    """The images chosen among `images`, which both networks answered in full; `places` are theirs in the evaluation set."""

    def __init__(self, images: ImageSet, places: NDArray, dense: Predictions, pruned: Predictions, network: Network):
        self._at, self._places = chosen(dense, pruned), places
        self.rows = [
            {
                "image": int(places[i]), "name": images.names[i], "label": int(dense.labels[i]),
                **{f"{stage}{what}": value for stage, found in (("dense", dense), ("pruned", pruned)) for what, value in _answer(found, i).items()},
                "jpeg": thumbnail(images.image(int(i)), network.preprocessing),
            }
            for i in self._at
        ]  # fmt: skip

    def look(self, answers: Predictions, *, step: int) -> list[dict[str, object]]:
        """A row an image, from the answers to all images."""
        found = ((int(self._places[i]), _answer(answers, i)) for i in self._at)
        return [{"step": step, "image": image, "answer": answer[""], "confidence": answer["_confidence"]} for image, answer in found]


def _answer(answers: Predictions, i: int) -> dict[str, object]:
    return {"": int(answers.top1[i]), "_confidence": round(float(answers.confidence[i]), 4)}

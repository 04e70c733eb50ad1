"""What every network answered to every evaluation image, as few and small rows.

answers : a row a class: label, and lists over its images: image (place in the evaluation set), and for each stage STAGE (the answer) and
    STAGE_confidence (its probability). `groups.images` makes a row an image of them.
classes : a row a class that is a label or an answer: place (in the network's output), name
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce

import numpy as np

from starfish_lab.data.classes import class_name
from starfish_lab.measure.accuracy import Predictions
from starfish_lab.models.network import Network


def common(answers: Mapping[str, Predictions]) -> dict[str, Predictions]:
    """The answers to those images that every network answered, in the order of the set."""
    places = reduce(np.intersect1d, [found.indices for found in answers.values()])
    return {stage: at(found, places) for stage, found in answers.items()}


def at(answers: Predictions, places: np.ndarray) -> Predictions:
    """The answers to the images at these places (ascending), all of which were answered."""
    found = np.searchsorted(answers.indices, places)
    return Predictions(places, answers.top5[found], answers.labels[found], confidence=answers.confidence[found])


def answer_rows(answers: Mapping[str, Predictions]) -> list[dict[str, object]]:
    """Rows of the table 'answers', in the order of labels; the networks answered the same images."""
    first = next(iter(answers.values()))
    rows = []
    for label in np.unique(first.labels):
        of_class = np.flatnonzero(first.labels == label)
        row = {"label": int(label), "image": first.indices[of_class].tolist()}
        for stage, found in answers.items():
            row |= {stage: found.top1[of_class].tolist(), f"{stage}_confidence": _rounded(found.confidence[of_class])}
        rows.append(row)
    return rows


def class_rows(network: Network, answers: Mapping[str, Predictions]) -> list[dict[str, object]]:
    """Rows of the table 'classes', by place."""
    places = np.unique(np.concatenate([part for found in answers.values() for part in (found.labels, found.top1)]))
    return [{"place": int(place), "name": class_name(int(place), network)} for place in places]


def _rounded(values: np.ndarray) -> list[float | None]:
    return [None if value != value else round(value, 4) for value in values.astype(float).tolist()]

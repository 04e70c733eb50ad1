"""Which images calibrate, which show drift and which evaluate; no image is in two of them."""

from __future__ import annotations

import contextlib
import hashlib
from collections import defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
from torch import LongTensor

from starfish_lab.data.classes import indices
from starfish_lab.data.images import ImageSet, Item
from starfish_lab.data.listing import Listing
from starfish_lab.errors import ImagesError
from starfish_lab.models.network import Network
from starfish_lab.recipe import ImagesChoice
from starfish_lab.registry import Registry

SOURCES = Registry("starfish_lab.data.sources", provides="listing", kind="image source")


@dataclass(frozen=True)
class Splits:
    """The three sets, and what a person should know about how they came about."""

    calibration: ImageSet
    drift: ImageSet
    evaluation: ImageSet
    notes: list[str]


@dataclass(frozen=True)
class _Pool:
    """Images with labels (n,) in the network's order, or without."""

    items: list[Item]
    labels: LongTensor | None

    def chosen(self, places: list[int], network: Network) -> ImageSet:
        labels = None if self.labels is None else self.labels[places]
        return ImageSet.lazy([self.items[i] for i in places], labels, network.preprocessing)


def open_images(choice: ImagesChoice, network: Network) -> Splits:
    """List the images, drawn by `choice.seed` into three sets that share no file and no content.

    Calibration and drift images are drawn class by class in turn where labels are known. One that cannot be decoded, or
    whose content also occurs among the images it must stay apart from, is passed over and the next one drawn.
    Raises ImagesError if the source cannot be read, its labels do not fit the network, or too few images are left.
    """
    choice.validate()
    listing = SOURCES.get(choice.source)
    notes: list[str] = []
    pool = _labelled(listing(choice, "evaluation"), network, notes)
    found = listing(choice, "calibration")
    rng = np.random.default_rng(choice.seed)
    everything = range(len(pool.items))
    if found is None:
        source, apart = pool, pool.items
    else:
        evaluation = _ordered(everything, choice, rng)
        source, apart = _labelled(found, network, notes, optional=True), [pool.items[i] for i in evaluation]
    drawn = _draw(source, choice.calibration + choice.drift, apart, rng, notes)
    if found is None:
        evaluation = _ordered([i for i in everything if i not in set(drawn)], choice, rng)
    if pool.labels is None:
        notes.append("The evaluation images have no labels: accuracy is not measured.")
    return Splits(
        calibration=source.chosen(drawn[: choice.calibration], network),
        drift=source.chosen(drawn[choice.calibration :], network),
        evaluation=pool.chosen(evaluation, network),
        notes=notes,
    )


def _labelled(listing: Listing, network: Network, notes: list[str], *, optional: bool = False) -> _Pool:
    if listing.note:
        notes.append(listing.note)
    if listing.labels is None:
        return _Pool(listing.items, None)
    try:
        labels, remark = indices(listing.labels, network)
    except ImagesError as error:
        if not optional:
            raise
        notes.append(f"The labels of the calibration images are not used: {error}")
        return _Pool(listing.items, None)
    if remark and remark not in notes:
        notes.append(remark)
    return _Pool(listing.items, labels)


def _ordered(places: Iterable[int], choice: ImagesChoice, rng: np.random.Generator) -> list[int]:
    """The evaluation images among `places`, as many as asked for."""
    places = list(places)
    wanted = choice.evaluation if choice.evaluation is not None else len(places)
    if not places or len(places) < wanted:
        raise ImagesError(
            f"{len(places)} images are left to evaluate on, and {max(wanted, 1)} are asked for. Ask for fewer or give more; "
            "calibration and drift images of the same source are taken out first."
        )
    if choice.order == "seeded":
        places = rng.permutation(places).tolist()
    return places[:wanted]


def _draw(pool: _Pool, count: int, apart: list[Item], rng: np.random.Generator, notes: list[str]) -> list[int]:
    """Places of `count` images of the pool: readable, and like none in `apart` nor each other."""
    others = _Contents(apart)
    taken = _Contents([])
    drawn: list[int] = []
    broken: list[str] = []
    twins: list[str] = []
    for place in _in_turn(pool, rng):
        if len(drawn) == count:
            break
        item = pool.items[place]
        if not _readable(item):
            broken.append(item.name)
        elif others.has_twin(item) or taken.has_twin(item):
            twins.append(item.name)
        else:
            drawn.append(place)
            taken.add(item)
    if broken:
        notes.append(f"{len(broken)} images cannot be read and were left out of calibration and drift: {_some(broken)}.")
    if twins:
        notes.append(f"{len(twins)} images occur twice and were kept out of calibration and drift: {_some(twins)}.")
    if len(drawn) < count:
        raise ImagesError(
            f"{len(drawn)} images are left to draw calibration and drift images from, and {count} are asked for: of {len(pool.items)}, "
            f"{len(broken)} cannot be read and {len(twins)} occur elsewhere too. Ask for fewer or give more."
        )
    return drawn


def _in_turn(pool: _Pool, rng: np.random.Generator) -> list[int]:
    """Every place once: shuffled, one class after the other where classes are known."""
    order = rng.permutation(len(pool.items)).tolist()
    if pool.labels is None:
        return order
    classes: dict[Hashable, list[int]] = defaultdict(list)
    for place in order:
        classes[int(pool.labels[place])].append(place)
    return [place for turn in zip_longest(*classes.values()) for place in turn if place is not None]


class _Contents:
    """Images by their content; only those of equal size in bytes are ever read and compared."""

    def __init__(self, items: Iterable[Item]):
        self._by_size: dict[int, list[Item]] = defaultdict(list)
        self._digests: dict[int, bytes] = {}
        for item in items:
            self.add(item)

    def add(self, item: Item) -> None:
        with contextlib.suppress(OSError):  # a file that cannot be asked for its size is like no other
            self._by_size[item.size()].append(item)

    def has_twin(self, item: Item) -> bool:
        """True if another image here, or another listing of this very file, has the same content."""
        rivals = [other for other in self._by_size.get(item.size(), ()) if other is not item]
        return any(other.place() == item.place() or self._digest(other) == self._digest(item) for other in rivals)

    def _digest(self, item: Item) -> bytes:
        if id(item) not in self._digests:
            try:
                self._digests[id(item)] = hashlib.sha256(item.read()).digest()
            except Exception:  # no permission, a damaged member of a zip: no content to be equal to
                self._digests[id(item)] = b""
        return self._digests[id(item)]


def _readable(item: Item) -> bool:
    try:
        item.open()
    except Exception:  # whatever a decoder makes of a broken file
        return False
    return True


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (" …" if len(names) > 5 else "")

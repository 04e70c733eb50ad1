"""Which images calibrate, which show drift, which train and which evaluate; no image is in two of them."""

from __future__ import annotations

import contextlib
import hashlib
from collections import defaultdict
from collections.abc import Iterable
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


HEAD = 4096  # bytes that tell nearly all files of equal size apart, so that few are read whole


@dataclass(frozen=True)
class Splits:
    """The sets, and what a person should know about how they came about."""

    calibration: ImageSet
    drift: ImageSet
    evaluation: ImageSet
    notes: list[str]
    training: ImageSet | None = None  # None where the calibration images train


@dataclass(frozen=True)
class _Pool:
    """Images with labels (n,) in the network's order, or without."""

    items: list[Item]
    labels: LongTensor | None

    def chosen(self, places: list[int], network: Network) -> ImageSet:
        labels = None if self.labels is None else self.labels[places]
        return ImageSet.lazy([self.items[i] for i in places], labels, network.preprocessing)


def open_images(choice: ImagesChoice, network: Network) -> Splits:
    """List the images, drawn by `choice.seed` into sets that share no file and no content.

    Calibration, drift and training images are drawn class by class in turn where labels are known. One whose content also
    occurs among the images it must stay apart from is passed over and the next one drawn. So is, for calibration and
    drift, one that cannot be decoded; training images are too many to decode beforehand, so a broken one is left out when
    its batch is made. Training images come after the others from where these come from: training has no say in which
    images calibrate or show drift, and in which evaluate only where these are all that remain.
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
        source, evaluation = pool, None
        apart = _Contents(pool.items)
    else:
        evaluation = _ordered(everything, choice, rng)
        source, apart = _labelled(found, network, notes, optional=True), _Contents(pool.items[i] for i in evaluation)
    order = _in_turn(source, rng)
    drawn = _draw(source, order, choice.calibration + choice.drift, apart, notes)
    taken = set(drawn)
    training = None
    if found is None:
        last = choice.evaluation is None  # all that nothing else takes evaluate
        if last and choice.training is None:
            raise ImagesError(
                "images.training and images.evaluation both take all images that remain, from the same source. Give a number for one of them."
            )
        if last:
            training = _training(source, [i for i in order if i not in taken], choice.training, apart, notes)
            taken |= set(training or ())
        evaluation = _ordered([i for i in everything if i not in taken], choice, rng)
        taken |= set(evaluation)
        apart = _Contents(pool.items[i] for i in evaluation)
    if training is None:
        for i in drawn[choice.calibration :]:
            apart.add(source.items[i])
        training = _training(source, [i for i in order if i not in taken], choice.training, apart, notes)
    if pool.labels is None:
        notes.append("The evaluation images have no labels: accuracy is not measured.")
    return Splits(
        calibration=source.chosen(drawn[: choice.calibration], network),
        drift=source.chosen(drawn[choice.calibration :], network),
        evaluation=pool.chosen(evaluation, network),
        notes=notes,
        training=None if training is None else source.chosen(training, network),
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


def _draw(pool: _Pool, order: list[int], count: int, others: _Contents, notes: list[str]) -> list[int]:
    """The first `count` places in order whose images are readable, and like none among others nor each other."""
    taken = _Contents([])
    drawn: list[int] = []
    broken: list[str] = []
    twins: list[str] = []
    for place in order:
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


def _training(pool: _Pool, order: list[int], count: int | None, others: _Contents, notes: list[str]) -> list[int] | None:
    """The first `count` places in order (None: all) whose images are like none among others; None where none are asked for."""
    if count == 0:
        return None
    drawn: list[int] = []
    left_out: list[str] = []
    for place in order:
        if len(drawn) == count:
            break
        item = pool.items[place]
        try:
            twin = others.has_twin(item)
        except OSError:  # a link to nowhere: not even its size can be had
            twin = True
        if twin:
            left_out.append(item.name)
        else:
            drawn.append(place)
    if left_out:
        notes.append(f"{len(left_out)} images occur elsewhere too or are not there, and were kept out of training: {_some(left_out)}.")
    if len(drawn) < (count or 1):
        raise ImagesError(
            f"{len(drawn)} images are left to train on after those that calibrate, show drift and evaluate, and {count or 'some'} are asked for. "
            "Ask for fewer or give more."
        )
    return drawn


def _in_turn(pool: _Pool, rng: np.random.Generator) -> list[int]:
    """Every place once: shuffled, one class after the other where classes are known."""
    order = rng.permutation(len(pool.items)).tolist()
    if pool.labels is None:
        return order
    labels = pool.labels.tolist()
    classes: dict[int, list[int]] = defaultdict(list)
    for place in order:
        classes[labels[place]].append(place)
    return [place for turn in zip_longest(*classes.values()) for place in turn if place is not None]


class _Contents:
    """Images by their content. Only those of equal size in bytes are ever read, and whole only where their beginnings are equal too.

    So a million training images cost a look at their size each, and a few kilobytes for those that share it with another.
    """

    def __init__(self, items: Iterable[Item]):
        self._by_size: dict[int, list[Item]] = defaultdict(list)
        self._digests: dict[tuple[int, int | None], bytes] = {}
        for item in items:
            self.add(item)

    def add(self, item: Item) -> None:
        with contextlib.suppress(OSError):  # a file that cannot be asked for its size is like no other
            self._by_size[item.size()].append(item)

    def has_twin(self, item: Item) -> bool:
        """True if another image here, or another listing of this very file, has the same content."""
        rivals = [other for other in self._by_size.get(item.size(), ()) if other is not item]
        if any(other.place() == item.place() for other in rivals):
            return True
        rivals = [other for other in rivals if self._digest(other, HEAD) == self._digest(item, HEAD)]
        return any(self._digest(other) == self._digest(item) for other in rivals)

    def _digest(self, item: Item, count: int | None = None) -> bytes:
        """Of the first `count` bytes, or of all."""
        if (id(item), count) not in self._digests:
            try:
                content = item.read() if count is None else item.head(count)
                self._digests[id(item), count] = hashlib.sha256(content).digest()
            except Exception:  # no permission, a damaged member of a zip: no content to be equal to
                self._digests[id(item), count] = b""
        return self._digests[id(item), count]


def _readable(item: Item) -> bool:
    try:
        item.open()
    except Exception:  # whatever a decoder makes of a broken file
        return False
    return True


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (" …" if len(names) > 5 else "")

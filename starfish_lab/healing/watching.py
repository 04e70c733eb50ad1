"""Looks at a network while it heals: drift of every block, accuracy, spectra and a strip of answers at a few steps, to explain healing.

A look costs a forward pass over a few images, leaves the network and all random numbers as they are, and keeps rows, never
a copy of the network. Healing with looks ends bit for bit where it ends without them.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from starfish_lab.data.images import ImageSet
from starfish_lab.gallery.answers import at
from starfish_lab.healing.followed_spectra import FollowedSpectra
from starfish_lab.healing.strip import Strip
from starfish_lab.measure.accuracy import Predictions, accuracy_row, predict
from starfish_lab.measure.drift import drift, states
from starfish_lab.models.network import Network
from starfish_lab.progress import Reporter

if TYPE_CHECKING:
    from starfish_lab.healing.heal import HealingResult

DRIFT_IMAGES = 64  # at most: the dense network's states of all of them are kept in memory meanwhile
EVALUATION_IMAGES = 256  # at most, the first that can be read: an interval of about ± 6 percent points
TABLES = ("healing_drift", "healing_accuracy", "healing_spectra", "healing_strip")


def look_at(steps: int, snapshots: int) -> tuple[int, ...]:
    """The steps to look at, about `snapshots` of them: 0, the last, and between them in geometric progression, for healing is fast at first.

    >>> look_at(130, 6), look_at(4, 6), look_at(130, 0), look_at(0, 6)
    ((0, 1, 3, 11, 38, 130), (0, 1, 2, 3, 4), (), (0,))
    """
    if snapshots == 0 or steps == 0:
        return (0,) if snapshots else ()
    between = np.geomspace(1, steps, max(1, snapshots - 1)) if snapshots > 2 else []
    return tuple(sorted({0, steps, *(round(step) for step in between)}))


def images_seen(step: int, images: int, batch_size: int) -> int:
    """How many images training has gone through after a step, each counted as often as it came: the last batch of an epoch may be smaller.

    >>> images_seen(3, 40, 16), images_seen(4, 40, 16)
    (40, 56)
    """
    epochs, more = divmod(step, -(-images // batch_size))
    return epochs * images + more * batch_size


class Watch:
    """The observer of `heal`: `watch(step)` looks at the student as it stands after a step; step 0 comes before the first and begins anew.

    Parameters
    ----------
    dense, student : networks whose blocks correspond; the student is the very one that heals
    images : drift images (n, C, H, W), of which the first 64 are used; the dense network answers once
    evaluation : images of which the first 256 that can be read give the accuracy; without labels there is none
    layers : whose spectra are followed; the student is as pruning left it when the watch is made
    answers : {'dense', 'pruned': what these networks answered to `evaluation`}: with them a strip of images is followed
    file : keeps the rows beside a checkpoint, so that healing which goes on from there still has those of before

    Attributes
    ----------
    seconds : what looking has cost so far; healing pays none of it
    """

    def __init__(
        self, dense: Network, student: Network, images: Tensor, evaluation: ImageSet, *, layers: Sequence[str] = (),
        answers: dict[str, Predictions] | None = None, device: str = "cpu", reporter: Reporter | None = None, file: Path | None = None,
    ):  # fmt: skip
        began = time.perf_counter()
        self._dense, self._student, self._device = dense, student, device
        self._reporter, self._file = reporter or Reporter(), file
        self._images = images[:DRIFT_IMAGES]
        self._known = states(dense, self._images, device=device)
        self._evaluation, places = _first(evaluation)
        self._spectra = FollowedSpectra(dense, student, list(layers), device=device)
        self._before = {} if not answers or self._evaluation is None else {stage: at(found, places) for stage, found in answers.items()}
        self._strip = Strip(self._evaluation, places, **self._before, network=dense) if self._before else None
        self._tables: dict[str, list[dict[str, object]]] = {name: [] for name in TABLES}
        self._first_step: int | None = None  # looked at by this very process
        self._started = 0.0
        self.seconds = time.perf_counter() - began

    def __call__(self, step: int) -> None:
        """Look, and remember what is seen."""
        began = time.perf_counter()
        if self._first_step is None:
            self._first_step = step
            self._tables = self._saved(before=step)
            so_far = max((row["seconds"] for row in self._tables["healing_drift"]), default=0.0)
            self._started = began - self.seconds - so_far
        when = {"step": step, "seconds": began - self._started - self.seconds}
        for row in drift(self._dense, self._student, self._images, device=self._device, known=self._known):
            if row.pop("tokens") in ("all", "image"):
                self._tables["healing_drift"].append(when | row)
                self._reporter.metric(f"drift.{row['depth']}", step, row["cosine_distance"])
        self._tables["healing_spectra"] += self._spectra.look(self._student, step=step)
        if self._evaluation is not None:
            answers = predict(self._student, self._evaluation, device=self._device)
            found, before = accuracy_row(answers), {f"top1_{stage}": float(known.correct.mean()) for stage, known in self._before.items()}
            self._tables["healing_accuracy"].append(when | {name: found[name] for name in ("top1", "low", "high", "images")} | before)
            self._tables["healing_strip"] += self._strip.look(answers, step=step) if self._strip else []
            self._reporter.metric("top1", step, found["top1"])
        self._save()
        self.seconds += time.perf_counter() - began

    def finish(self, result: HealingResult) -> dict[str, list[dict[str, object]]]:
        """{table of the report: rows in the order of steps}, once healing is done.

        healing_drift : step, seconds (of healing up to there, the repair with it, the looks without), block, depth, cosine_distance,
            relative_l2, cka (over all tokens, see `measure.drift`); a row a step and block
        healing_accuracy : step, seconds, top1, low, high (95 % Wilson), images, and with `answers` top1_dense and top1_pruned of the same images
        healing_spectra : see `followed_spectra`
        strip, healing_strip : see `healing.strip`
        """
        if self._first_step is None:  # the interruption came after the last step
            self._tables = self._saved(before=result.steps + 1)
        if not any(row["step"] == result.steps for row in self._tables["healing_drift"]):
            self(result.steps)
        resumed = self._first_step or 0
        shift = result.seconds - self._tables["healing_drift"][-1]["seconds"] if resumed else 0.0  # steps before `resumed` ran unseen
        for row in [*self._tables["healing_drift"], *self._tables["healing_accuracy"]]:
            row["seconds"] += result.repair_seconds + (shift if row["step"] >= resumed else 0.0)
        spectra = self._spectra.rows + self._tables["healing_spectra"]
        return self._tables | {"healing_spectra": spectra, "strip": self._strip.rows if self._strip else []}

    def _saved(self, *, before: int) -> dict[str, list[dict[str, object]]]:
        """What was seen before an interruption, up to but without a step: healing may have gone back to an earlier one."""
        with suppress(OSError, ValueError, TypeError, KeyError):
            saved = json.loads(self._file.read_text()) if self._file and before else dict.fromkeys(TABLES, [])
            return {name: [row for row in saved.get(name, []) if row["step"] < before] for name in TABLES}
        return {name: [] for name in TABLES}

    def _save(self) -> None:
        """The rows, whole or not at all. A full disk costs only what a resumed run would show of before."""
        if self._file is None:
            return
        part = self._file.with_name(self._file.name + ".part")
        with suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps(self._tables))
            os.replace(part, self._file)


def _first(evaluation: ImageSet) -> tuple[ImageSet | None, NDArray]:
    """The first readable images, decoded once, and their places; no images without labels."""
    found = None if evaluation.labels is None else next(evaluation.batches(EVALUATION_IMAGES), None)
    if found is None:
        return None, np.zeros(0, int)
    return ImageSet.of(found[1], evaluation.labels[found[0]], [evaluation.names[i] for i in found[0]]), found[0].numpy()

"""Looks at a network while it heals: the drift of every block and the accuracy at a few steps, so that healing can be explained.

A look costs a forward pass over a few images, leaves the network and all random numbers as they are, and keeps rows, never
a copy of the network. Healing with looks ends bit for bit where it ends without them.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from starfish_lab.data.images import ImageSet
from starfish_lab.measure.accuracy import accuracy_row, predict
from starfish_lab.measure.drift import drift, states
from starfish_lab.models.network import Network
from starfish_lab.progress import Reporter

if TYPE_CHECKING:
    from starfish_lab.healing.heal import HealingResult

DRIFT_IMAGES = 64  # at most: the dense network's states of all of them are kept in memory meanwhile
EVALUATION_IMAGES = 256  # at most, the first that can be read: an interval of about ± 6 percent points
TABLES = ("healing_drift", "healing_accuracy")


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
    file : keeps the rows beside a checkpoint, so that healing which goes on from there still has those of before

    Attributes
    ----------
    seconds : what looking has cost so far; healing pays none of it
    """

    def __init__(
        self, dense: Network, student: Network, images: Tensor, evaluation: ImageSet, *,
        device: str = "cpu", reporter: Reporter | None = None, file: Path | None = None,
    ):  # fmt: skip
        began = time.perf_counter()
        self._dense, self._student, self._device = dense, student, device
        self._reporter, self._file = reporter or Reporter(), file
        self._images = images[:DRIFT_IMAGES]
        self._known = states(dense, self._images, device=device)
        self._evaluation = _first(evaluation)
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
        if self._evaluation is not None:
            found = accuracy_row(predict(self._student, self._evaluation, device=self._device))
            self._tables["healing_accuracy"].append(when | {name: found[name] for name in ("top1", "low", "high", "images")})
            self._reporter.metric("top1", step, found["top1"])
        self._save()
        self.seconds += time.perf_counter() - began

    def finish(self, result: HealingResult) -> dict[str, list[dict[str, object]]]:
        """{'healing_drift': a row a step and block, 'healing_accuracy': a row a step}, in the order of steps, once healing is done.

        Columns: step, seconds (of healing up to there, the repair with it, the looks without), block, depth, cosine_distance,
        relative_l2, cka (over all tokens, see `measure.drift`); and step, seconds, top1, low, high (95 % Wilson), images.
        """
        if self._first_step is None:  # the interruption came after the last step
            self._tables = self._saved(before=result.steps + 1)
        if not any(row["step"] == result.steps for row in self._tables["healing_drift"]):
            self(result.steps)
        resumed = self._first_step or 0
        shift = result.seconds - self._tables["healing_drift"][-1]["seconds"] if resumed else 0.0  # steps before `resumed` ran unseen
        for row in [row for rows in self._tables.values() for row in rows]:
            row["seconds"] += result.repair_seconds + (shift if row["step"] >= resumed else 0.0)
        return self._tables

    def _saved(self, *, before: int) -> dict[str, list[dict[str, object]]]:
        """What was seen before an interruption, up to but without a step: healing may have gone back to an earlier one."""
        with suppress(OSError, ValueError, TypeError, KeyError):
            saved = json.loads(self._file.read_text()) if self._file and before else dict.fromkeys(TABLES, [])
            return {name: [row for row in saved[name] if row["step"] < before] for name in TABLES}
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


def _first(evaluation: ImageSet) -> ImageSet | None:
    """The first readable images, decoded once; None without labels."""
    found = None if evaluation.labels is None else next(evaluation.batches(EVALUATION_IMAGES), None)
    return None if found is None else ImageSet.of(found[1], evaluation.labels[found[0]])

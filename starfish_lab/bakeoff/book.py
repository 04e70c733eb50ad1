"""The book of finished cells: JSON lines, each under the fingerprint of all that decided it, so that none is ever baked twice."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np

from starfish_lab.measure.accuracy import Predictions

NAME = "cells.jsonl"


class Book:
    """Finished cells by their key, in `folder`/cells.jsonl; in memory alone without a folder.

    A line is {"key", "label", "tables": {table: rows}, "answers"} and is written at once when its cell is done. A last line that a
    kill cut short is passed over. Several processes may write the same book.
    """

    def __init__(self, folder: Path | None):
        self._path = None if folder is None else Path(folder) / NAME
        self._cells: dict[str, dict] = {}
        if self._path is not None and self._path.exists():
            for line in self._path.read_text(encoding="utf-8").splitlines():
                try:
                    entry = json.loads(line)
                    self._cells[entry["key"]] = entry
                except (ValueError, KeyError, TypeError):
                    continue

    def get(self, key: str) -> dict | None:
        """The cell's line, or None."""
        return self._cells.get(key)

    def keep(
        self, key: str, label: str, tables: dict[str, list[dict[str, object]]], answers: Predictions | None, *, lasting: bool = True
    ) -> dict:  # fmt: skip
        """Write a finished cell, unless another try might end otherwise (`lasting` False); returns its line."""
        entry = {"key": key, "label": label, "tables": tables, "answers": None if answers is None else packed(answers)}
        self._cells[key] = entry
        if self._path is not None and lasting:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            line = (json.dumps(entry) + "\n").encode()
            with self._path.open("ab+") as file:
                if file.tell() and not _ends_a_line(file):
                    line = b"\n" + line
                file.write(line)  # appended in one piece
                file.flush()
                os.fsync(file.fileno())
        return entry


def packed(answers: Predictions) -> dict[str, object]:
    """What paired comparisons need of a network's answers: which image, and whether right."""
    indices = answers.indices.tolist()
    everything = indices[-1] + 1
    return {"images": everything, "missing": sorted(set(range(everything)) - set(indices)), "right": "".join("01"[bool(c)] for c in answers.correct)}


def unpacked(entry: dict[str, object]) -> Predictions:
    """Answers again: class 0 stands for the right one, 1 for any other."""
    indices = np.setdiff1d(np.arange(entry["images"]), np.array(entry["missing"], dtype=int))
    right = np.array([mark == "1" for mark in entry["right"]])
    return Predictions(indices, np.where(right, 0, 1)[:, None], np.zeros(len(indices), dtype=int))


def _ends_a_line(file) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"

"""Checkpoints of a training phase: written whole or not at all, read without executing anything."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import time
import zipfile
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from starfish_lab.progress import Reporter

# Saving takes at most this share of the time: a large network is saved less often than the cadence asks.
SHARE_OF_TIME = 0.05

FAILURES = (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile)  # torch raises any of these


class Checkpoint:
    """The file a run continues from after a crash.

    Parameters
    ----------
    path : the file; None keeps none
    key : fingerprint of the run, see `fingerprint`; a file with another one is not used
    seconds : save no more often than this; 0 saves at every step
    what : the kind of training, for what is said of it

    `beside` is saved with every state, and comes back with it: what was done before the steps.
    """

    def __init__(self, path: Path | None, *, key: str, seconds: float, reporter: Reporter, what: str = "healing"):
        self._path = None if path is None else Path(path)
        self._key, self._reporter, self._what = key, reporter, what
        self._seconds = self._wait = seconds
        self._saved_at = time.monotonic()
        self._failed = False
        self.beside: dict[str, object] = {}
        self._held: dict | None = None
        self._peeked = False

    def peek(self) -> dict | None:
        """What `load` will return."""
        if not self._peeked:
            self._held, self._peeked = self._read(), True
        return self._held

    def load(self) -> dict | None:
        """The saved state, or None to start afresh; says so where a file is there but of no use."""
        found = self.peek()
        self._held, self._peeked = None, False
        return found

    def _read(self) -> dict | None:
        if self._path is None or not self._path.exists():
            return None
        try:
            with zipfile.ZipFile(self._path) as archive:  # torch itself compares no checksums
                if damaged := archive.testzip():
                    raise ValueError(damaged)
            state = torch.load(self._path, map_location="cpu", weights_only=True)
            key = state.pop("key")
        except FAILURES + (AttributeError, TypeError) as error:
            self.useless(type(error).__name__)
            return None
        if key != self._key:
            self._reporter.note(
                f"The checkpoint {self._path.name} is of another run (other recipe, masks, weights or images): "
                f"{self._what} starts from the first step."
            )
            return None
        return state

    def useless(self, why: str) -> None:
        """Say that the file cannot be used."""
        self._reporter.note(f"The checkpoint {self._path.name} cannot be read ({why}): {self._what} starts from the first step.")

    def due(self) -> bool:
        return self._path is not None and time.monotonic() - self._saved_at >= self._wait

    def save(self, state: dict) -> None:
        """Write the state, replacing the file at once. A full disk is noted and costs only the chance to resume."""
        if self._path is None:
            return
        began = time.monotonic()
        part = self._path.with_name(self._path.name + ".part")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                torch.save({"key": self._key, **self.beside, **state}, file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(self._path)
        except FAILURES as error:
            with suppress(OSError):
                part.unlink()
            if not self._failed:
                self._reporter.note(
                    f"A checkpoint of {self._what} could not be saved ({error}). The run goes on; after a crash it would start from an earlier step."
                )
            self._failed = True
        self._saved_at = time.monotonic()
        if self._seconds > 0:
            self._wait = max(self._seconds, (self._saved_at - began) / SHARE_OF_TIME)


def fingerprint(*parts: object) -> str:
    """64 hex digits that change with any of the parts: plain data (as JSON), tensors, and dicts of tensors.

    >>> fingerprint({"steps": 3}, torch.zeros(2)) == fingerprint({"steps": 3}, torch.zeros(3))
    False
    """
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            _update(digest, part)
        elif isinstance(part, dict) and any(isinstance(value, Tensor) for value in part.values()):
            for name, tensor in part.items():
                digest.update(str(name).encode())
                _update(digest, tensor)
        else:
            digest.update(json.dumps(part, sort_keys=True).encode())
        digest.update(b"\n")
    return digest.hexdigest()


def _update(digest: hashlib._Hash, tensor: Tensor) -> None:
    digest.update(str(tuple(tensor.shape)).encode())
    digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())

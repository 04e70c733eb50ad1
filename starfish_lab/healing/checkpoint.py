"""Checkpoints of a healing run: written whole or not at all, read without executing anything."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pickle
import time
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn

from starfish_lab.healing.session import Session
from starfish_lab.progress import Reporter
from starfish_lab.pruning.masks import Masks
from starfish_lab.recipe import HealingChoice

# Saving takes at most this share of the time: a large network is saved less often than the cadence asks.
SHARE_OF_TIME = 0.05

FAILURES = (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError)  # torch raises any of these


class Checkpoint:
    """The file a run continues from after a crash.

    Parameters
    ----------
    path : the file; None keeps none
    key : fingerprint of the run, see `key_of`; a file with another one is not used
    seconds : save no more often than this; 0 saves at every step
    """

    def __init__(self, path: Path | None, *, key: str, seconds: float, reporter: Reporter):
        self._path = None if path is None else Path(path)
        self._key, self._reporter = key, reporter
        self._seconds = self._wait = seconds
        self._saved_at = time.monotonic()
        self._failed = False

    def load(self) -> dict | None:
        """The saved state, or None to start afresh; says so where a file is there but of no use."""
        if self._path is None or not self._path.exists():
            return None
        try:
            state = torch.load(self._path, map_location="cpu", weights_only=True)
            key = state.pop("key")
        except FAILURES + (AttributeError, TypeError) as error:
            self._reporter.note(f"The checkpoint {self._path.name} cannot be read ({type(error).__name__}): healing starts from the first step.")
            return None
        if key != self._key:
            self._reporter.note(
                f"The checkpoint {self._path.name} is of another run (other recipe, masks, weights or images): healing starts from the first step."
            )
            return None
        return state

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
                torch.save({"key": self._key, **state}, file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(self._path)
        except FAILURES as error:
            with suppress(OSError):
                part.unlink()
            if not self._failed:
                self._reporter.note(
                    f"A healing checkpoint could not be saved ({error}). Healing goes on; after a crash it would start from an earlier step."
                )
            self._failed = True
        self._saved_at = time.monotonic()
        if self._seconds > 0:
            self._wait = max(self._seconds, (self._saved_at - began) / SHARE_OF_TIME)


def key_of(session: Session, masks: Masks, choice: HealingChoice) -> str:
    """Fingerprint of everything that decides the result: choice, masks, dense weights, images, labels."""
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(choice), sort_keys=True).encode())
    for name, mask in masks.items():
        digest.update(name.encode())
        _update(digest, mask)
    for name, tensor in session.dense.module.state_dict().items():
        digest.update(name.encode())
        _update(digest, tensor)
    for batch in session.batches:
        _update(digest, batch.flatten(1)[:, ::101])  # some values of every image tell it from any other
    for labels in session.labels or ():
        _update(digest, labels)
    return digest.hexdigest()


def _update(digest: hashlib._Hash, tensor: Tensor) -> None:
    digest.update(str(tuple(tensor.shape)).encode())
    digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())


def state_of(module: nn.Module, masks: Masks) -> dict[str, Tensor]:
    """What healing changes in a module: masked weights, and buffers such as running statistics."""
    return {f"{name}.weight": module.get_submodule(name).weight.detach() for name in masks} | dict(module.named_buffers())


@torch.no_grad()
def restore(module: nn.Module, masks: Masks, saved: dict[str, Tensor]) -> None:
    """Put a saved `state_of` back, in place."""
    for name, tensor in state_of(module, masks).items():
        tensor.copy_(saved[name])

"""Healed networks where every machine of a team finds them: a directory that all of them see, or any address fsspec reads.

A network is two files in a folder named RUN-DIGEST, so that two labs may share the place. Each file appears under its name whole, and
recipe.json last: where that is, the network is whole. With an empty setting networks stay where they were made.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from starfish_lab import settings
from starfish_lab.errors import LabError, StoreError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

    from starfish_lab.progress import Reporter

WEIGHTS, DESCRIPTION = "network.safetensors", "recipe.json"  # the two files of a saved network; the second is written last


def keep(healed: Path, run_id: int, reporter: Reporter) -> str | None:
    """Where the healed network of a run lies from now on; None where the run has none. A copy that fails is told and loses nothing."""
    if not (healed / DESCRIPTION).exists():
        return None
    try:
        return publish(healed, run_id)
    except LabError as error:
        reporter.note(f"{error} The network of this run is on the machine that made it alone, in {healed}.")
        return str(healed)


def publish(folder: Path, run_id: int) -> str:
    """Copy a network's folder to the artefacts, unless it is there. Returns its path, or its address where that is no directory.

    Raises StoreError where the place cannot be written, and then leaves no network there that looks whole.
    """
    root = settings.ARTEFACTS()
    if not root:
        return str(folder)
    name = f"{run_id}-{hashlib.sha256((folder / DESCRIPTION).read_bytes()).hexdigest()[:12]}"
    with _in_words(root, "written"):
        files, place, local = _open(f"{root.rstrip('/')}/{name}")
        if not files.exists(f"{place}/{DESCRIPTION}"):
            files.makedirs(place, exist_ok=True)
            for path in sorted(folder.iterdir(), key=lambda path: path.name == DESCRIPTION):
                partial = f"{place}/.{uuid.uuid4().hex}.partial"
                files.put_file(str(path), partial)
                files.mv(partial, f"{place}/{path.name}")
    return place if local else f"{root.rstrip('/')}/{name}"


def fetch(artefact: str) -> Path:
    """The network's folder on this machine: a path as it is, what lies at an address as a copy in the lab's home, made once.

    Raises StoreError where the address cannot be read.
    """
    if "://" not in artefact:
        return Path(artefact).expanduser()
    folder = _copy(artefact)
    if (folder / DESCRIPTION).exists():
        return folder
    partial = folder.with_name(f".{uuid.uuid4().hex}.partial")
    with _in_words(artefact, "read"):
        files, place, _ = _open(artefact)
        partial.mkdir(parents=True)
        try:
            for name in (WEIGHTS, DESCRIPTION):
                files.get_file(f"{place}/{name}", str(partial / name))
            with contextlib.suppress(OSError):  # another process was quicker; its copy is the same
                os.replace(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder


def reachable(artefact: str) -> bool:
    """Whether this machine can try to fetch it: a directory that is here, or any address."""
    return "://" in artefact or Path(artefact).is_dir()


def weights(path: str) -> Path:
    """The file of weights that a recipe names on this machine: a file, or the folder or address of a healed network."""
    if path.endswith(f"/{WEIGHTS}"):
        return fetch(path.removesuffix(f"/{WEIGHTS}")) / WEIGHTS
    found = fetch(path)
    return found / WEIGHTS if found.is_dir() else found


def remove(artefact: str) -> None:
    """Remove what `publish` copied, and its copy here; nothing outside the present setting's place, and nothing that cannot be reached."""
    root = settings.ARTEFACTS()
    if not root:
        return
    with contextlib.suppress(StoreError), _in_words(artefact, "removed"):
        files, place, _ = _open(artefact)
        if place.rpartition("/")[0] == _open(root)[1].rstrip("/"):
            shutil.rmtree(_copy(artefact), ignore_errors=True)
            files.rm(place, recursive=True)


def _copy(artefact: str) -> Path:
    """Where the copy of what lies at an address is kept: under its last name, for people, and a digest of it all."""
    return settings.home() / "artefacts" / f"{artefact.rstrip('/').rpartition('/')[2]}-{hashlib.sha256(artefact.encode()).hexdigest()[:8]}"


def _open(address: str) -> tuple[AbstractFileSystem, str, bool]:
    """The file system of an address, the path in it, and whether that is a path of this machine."""
    import fsspec
    from fsspec.implementations.local import LocalFileSystem

    files, place = fsspec.core.url_to_fs(os.path.expanduser(address))
    return files, place, isinstance(files, LocalFileSystem)


@contextlib.contextmanager
def _in_words(place: str, what: str):
    """Whatever a file system raises, each of its own kind, as one sentence."""
    try:
        yield
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise StoreError(f"{place} cannot be {what} ({reason}): check that it can be reached and that {settings.ARTEFACTS.name} is right.") from error

"""Every environment variable the lab reads, in one place."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from starfish_lab.errors import LabError


@dataclass(frozen=True)
class Setting:
    """One environment variable: its name, the value used without it, and what it decides."""

    name: str
    default: str
    meaning: str

    def __call__(self) -> str:
        return os.environ.get(self.name, "").strip() or self.default


HOME = Setting("STARFISH_LAB_HOME", "~/.starfish-lab", "folder for the store, checkpoints and healed networks")
DATABASE_URL = Setting("STARFISH_LAB_DATABASE_URL", "", "SQLAlchemy URL of the store; empty: SQLite in the home folder")
ARTEFACTS = Setting("STARFISH_LAB_ARTEFACTS", "", "where healed networks go: a directory all machines see, or an fsspec URL; empty: the home folder")
BACKEND = Setting(
    "STARFISH_LAB_BACKEND", "local",
    "what does the runs: local (workers that the lab starts), or a Ray cluster: ray://head:10001, host:port, or auto for the one this machine is in",
)  # fmt: skip
DEVICES = Setting("STARFISH_LAB_DEVICES", "auto", "devices to start a worker for: auto (beside Ray none), or cpu, mps, cuda:0,cuda:1 …")
THREADS = Setting("STARFISH_LAB_THREADS", "0", "CPU threads a worker uses; 0: all cores, of a Ray node one")
TEACHER_MEMORY_GB = Setting("STARFISH_LAB_TEACHER_MEMORY_GB", "4", "memory for cached teacher states; beyond it they are recomputed")
PORT = Setting("STARFISH_LAB_PORT", "8501", "port of the browser app")
ADMINS = Setting("STARFISH_LAB_ADMINS", "", "addresses of the first admins, with commas between, where people sign in")
ROLE = Setting("STARFISH_LAB_ROLE", "viewer", "role of others who sign in: viewer, runner, admin, or none to let in only those on the page Team")
QUOTA = Setting("STARFISH_LAB_QUOTA", "0", "jobs that one person may have running and queued at once; 0: as many as wanted")
KIT = Setting("STARFISH_LAB_KIT", "../shared/kit", "real weights and images that some tests measure on; they skip without it")

REQUIRE_BROWSER = Setting("STARFISH_LAB_REQUIRE_BROWSER", "", "any value: the browser test fails where no Chromium is, instead of being skipped")

ALL = (HOME, DATABASE_URL, ARTEFACTS, BACKEND, DEVICES, THREADS, TEACHER_MEMORY_GB, PORT, ADMINS, ROLE, QUOTA, KIT, REQUIRE_BROWSER)


def number(setting: Setting, kind: type = int) -> float:
    """A setting's value as a number. Raises LabError where it is none."""
    try:
        return kind(setting())
    except ValueError:
        raise LabError(f"{setting.name} is '{setting()}': expected a number, such as {setting.default}.") from None


ROOT = Path(__file__).resolve().parent.parent
ASSETS = ROOT / "assets"


def home() -> Path:
    """The lab's folder, created when first asked for."""
    folder = Path(HOME()).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def database_url() -> str:
    """URL of the store: the setting, or SQLite in the home folder."""
    return DATABASE_URL() or f"sqlite:///{home() / 'lab.db'}"

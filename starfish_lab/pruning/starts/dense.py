"""The dense network itself."""

from __future__ import annotations

from pathlib import Path

from starfish_lab.data import Splits
from starfish_lab.models.network import Network
from starfish_lab.progress import Reporter
from starfish_lab.pruning.cycles import StartResult
from starfish_lab.recipe import StartChoice

TRAINS = False


def start(dense: Network, choice: StartChoice, splits: Splits | None, *, device: str, reporter: Reporter, folder: Path | None) -> StartResult:
    """A copy of the network, with nothing done to it."""
    return StartResult(dense.copy())

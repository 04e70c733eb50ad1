"""The command `evidence`: write a pack, or look whether one is as it was made."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pandas as pd

from starfish_lab import settings
from starfish_lab.errors import LabError
from starfish_lab.evidence import archive

CHARTS = "app.review.evidence"  # draws: the library itself holds no charts, so a process of the pages' side writes the file


def add(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    parser.add_argument("--runs", type=_numbers, default=[], metavar="3,4,5", help="numbers of finished runs")
    parser.add_argument("--out", default="evidence.zip", metavar="FILE.zip", help="where to write the pack")
    parser.add_argument("--check", metavar="FILE.zip", help="instead: compare every file of a pack with its hash")


def main(arguments: argparse.Namespace) -> pd.DataFrame:
    """The files of the pack with their hashes. Raises LabError where nothing could be written, or a checked pack is not as it was made."""
    if arguments.check:
        found = archive.check(arguments.check)
        if (found["found"] != "as made").any():
            wrong = "; ".join(f"{row.file} is {row.found}" for row in found.itertuples() if row.found != "as made")
            raise LabError(f"{arguments.check} is not as it was made: {wrong}. Ask for the pack anew.")
        return found
    if not arguments.runs:
        raise LabError("evidence needs the numbers of finished runs: give them as in --runs 3,4,5. The command runs lists them.")
    out = Path(arguments.out).resolve()
    runs = ",".join(map(str, arguments.runs))
    done = subprocess.run([sys.executable, "-m", CHARTS, "--runs", runs, "--out", str(out)], cwd=settings.ROOT, capture_output=True, text=True)
    if done.returncode:
        raise LabError(done.stderr.strip().rpartition("\n")[2] or f"Nothing was written to {out}: exit status {done.returncode}.")
    return archive.check(out)


def _numbers(text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is no list of runs: expected were numbers with commas between, such as 3,4,5") from None

"""Exporting runs on the command line."""

from __future__ import annotations

import argparse

from starfish_lab.arguments import comma_separated
from starfish_lab.exporting import PROJECT, TARGETS


def add(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument(
        "--to", choices=list(TARGETS), required=True, help="the tracker; its client is installed apart: " + ", ".join(TARGETS.values())
    )
    parser.add_argument("--runs", type=comma_separated(int), required=True, metavar="N,M,…", help="numbers of the runs")
    parser.add_argument("--uri", default="", help="the tracker's address; without it, what its client is set to")
    parser.add_argument("--project", default=PROJECT, help="MLflow's experiment, W&B's project")

"""What a worker does for each kind of run. Every room is imported by the first run that needs it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from starfish_lab import settings
from starfish_lab.progress import Reporter
from starfish_lab.report import Report
from starfish_lab.store import Run, Store


def _experiment(run: Run, *, store: Store, reporter: Reporter, folder: Path, device: str) -> Report:
    from starfish_lab import experiment

    return experiment.run(run.recipe, reporter=reporter, folder=folder, device=device)


def _latency(run: Run, *, store: Store, reporter: Reporter, folder: Path, device: str) -> Report:
    from starfish_lab.latency.run import run as measure

    return measure(run.plan, reporter=reporter, device=device)


def _layer_times(run: Run, *, store: Store, reporter: Reporter, folder: Path, device: str) -> Report:
    from starfish_lab.prediction import layer_times

    return layer_times.run(run.recipe, reporter=reporter, device=device)


def _profile(run: Run, *, store: Store, reporter: Reporter, folder: Path, device: str) -> Report:
    from starfish_lab import profile, whatif
    from starfish_lab.models.loading import load

    store.save_profile(whatif.profile_key(run.recipe.model), profile.compute(load(run.recipe.model), device=device))
    return Report()


def _merging(run: Run, *, store: Store, reporter: Reporter, folder: Path, device: str) -> Report:
    from starfish_lab import tokens_view

    return tokens_view.compute(run.recipe, reporter=reporter, device=device)


def _picture(run: Run, *, store: Store, reporter: Reporter, folder: Path, device: str) -> Report:
    from starfish_lab.gallery import own_picture

    return own_picture.compute(run.plan, reporter=reporter, device=device)


def _bakeoff(run: Run, *, store: Store, reporter: Reporter, folder: Path, device: str) -> Report:
    from starfish_lab.bakeoff.run import run as bake

    return bake(run.plan, reporter=reporter, folder=settings.home() / "bakeoff", device=device)  # one book for all: none repeats another's cells


def _sensitivity(run: Run, *, store: Store, reporter: Reporter, folder: Path, device: str) -> Report:
    from starfish_lab.sensitivity.run import run as measure

    return measure(run.plan, reporter=reporter, folder=settings.home() / "sensitivity", device=device)  # one book for all, as of bake-offs


KINDS: dict[str, Callable[..., Report]] = {
    "experiment": _experiment, "profile": _profile, "merging": _merging, "picture": _picture, "layer_times": _layer_times, "latency": _latency,
    "bakeoff": _bakeoff, "sensitivity": _sensitivity,
}  # fmt: skip

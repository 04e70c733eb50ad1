"""Seconds that each lesson computes: the live ones in the web process, the others as a worker does them, two threads."""

from __future__ import annotations

import time

import numpy as np


def main(*, threads: str = "2", device: str = "cpu") -> None:
    """One line a lesson."""
    import torch

    from app.lessons import LESSONS
    from starfish_lab import experiment
    from starfish_lab.latency.run import run as measure
    from starfish_lab.lessons import noise, spike

    torch.set_num_threads(int(threads))
    for name, live in (("noise", lambda: noise.eigenvalues(400, 4000)), ("spike", lambda: _curve(spike.Planted(300, 3000)))):
        began = time.perf_counter()
        live()
        print(f"{name}: {1e3 * (time.perf_counter() - began):.0f} ms at its largest settings", flush=True)
    for lesson in LESSONS:
        if lesson.job is None:
            continue
        began = time.perf_counter()
        if lesson.job.kind == "sweep":
            for recipe in lesson.job.plan.recipes():
                experiment.run(recipe, device=device)
        else:
            measure(lesson.job.plan, device=device)
        print(f"{lesson.slug}: {time.perf_counter() - began:.1f} s of the 60 that are allowed", flush=True)


def _curve(planted) -> None:
    for theta in np.linspace(0, 3, 31):
        planted.largest(theta)


if __name__ == "__main__":
    main()

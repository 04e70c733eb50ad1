"""What a node of the pretended Ray cluster does for a run: no network, just steps, each of which leaves a line behind."""

from __future__ import annotations

import os
import time
from pathlib import Path

from starfish_lab.jobs import ray_task, worker
from starfish_lab.report import Report


def do(run_id, wanted, url, stale_seconds, environment):
    """As `ray_task.do`, without torch and on whatever device is pretended. A run's name says what it does."""
    worker._prepare = lambda: None
    worker._title = worker._choose = lambda device: device
    worker.KINDS["experiment"] = _pretend
    worker.POLL_SECONDS = 0.1
    ray_task.do(run_id, wanted, url, stale_seconds, environment)


def broken(*_):
    """A node that lacks something."""
    raise ModuleNotFoundError("No module named 'starfish_lab'")


def _pretend(run, *, store, reporter, folder, device):
    reporter.stage("pretend")
    if run.name == "fails":
        print("the last words before it fell over")
        raise ValueError("nothing fits")
    while run.name == "asleep":  # deaf: not even an interruption wakes it
        time.sleep(60)
    while run.name == "busy":  # never asks whether it should stop
        pass
    while run.name == "polite" or (run.name == "held" and not Path(os.environ["STARFISH_LAB_HOME"], "go").exists()):
        reporter.check()
        time.sleep(0.02)
    reporter.metric("done", 1, float(run.attempt))
    return Report({"provenance": [{"name": "device", "value": device}, {"name": "pid", "value": os.getpid()}]})

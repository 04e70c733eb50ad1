"""A Python module in a process of its own, which ends with the one that started it, even if that one is killed.

    python -m starfish_lab.attached streamlit run app/main.py

The starter holds the other end of this process's standard input. When it goes, however it goes, the
system closes the pipe and this process ends: in good order first, the hard way after a grace.
"""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

from starfish_lab import settings

GRACE_SECONDS = 5.0


def start(module: Sequence[str], **options: object) -> subprocess.Popen:
    """A child that runs a module with its arguments, ends with this process, and does not hear the terminal's Ctrl-C itself."""
    path = os.pathsep.join(filter(None, (str(settings.ROOT), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "starfish_lab.attached", *module]
    return subprocess.Popen(command, stdin=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path}, start_new_session=True, **options)


def _end_with_starter() -> None:
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with_starter, daemon=True).start()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)

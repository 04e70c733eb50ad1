"""Run a Python module in a process that ends with the one that started it, even if that one is killed.

    python -m starfish_lab.jobs.attached streamlit run app/main.py

The starter holds the other end of this process's standard input. When it goes, however it goes, the
system closes the pipe and this process ends: in good order first, the hard way after a grace.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time

GRACE_SECONDS = 5.0


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

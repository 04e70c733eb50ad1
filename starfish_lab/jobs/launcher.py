"""App and workers together: started by one command, stopped together."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import webbrowser

from starfish_lab import settings
from starfish_lab.attached import start
from starfish_lab.errors import LabError
from starfish_lab.jobs import address

GRACE_SECONDS = 8.0  # a worker hands its run back within this time
POLL_SECONDS = 0.2
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 60.0
WELL_AFTER_SECONDS = 60.0  # a worker that lived this long starts anew without a longer pause
ACCELERATOR_TRACES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
LIST_DEVICES = "from starfish_lab.measure.hardware import devices; print(*(entry['name'] for entry in devices()))"


def launch(*, port: int | None = None, devices: str | None = None, open_browser: bool = True, app: list[str] | None = None) -> int:
    """Start the app and one worker a device, or what hands runs to Ray, and wait until Ctrl-C, SIGTERM or the app's own end. Returns the exit code.

    `devices` is 'auto' or a list such as 'cuda:0,cuda:1'; None asks the settings, as for the port. `app` is
    the module and its arguments that serve the pages. Raises LabError where the port is taken.
    """
    port = port or settings.number(settings.PORT)
    cluster = address()
    _check_port(port)
    stop = threading.Event()
    for name in {"SIGINT", "SIGTERM", "SIGHUP"} & set(dir(signal)):
        signal.signal(getattr(signal, name), lambda *_: stop.set())

    server = start(app or _streamlit(port), stdout=subprocess.DEVNULL)  # its banner would print the address a second time
    workers: list[_Worker] = []
    try:
        workers += _workers(cluster, devices or settings.DEVICES())
        url, shown = f"http://localhost:{port}", False
        while not stop.wait(POLL_SECONDS):
            if server.poll() is not None:
                print(f"The app ended (exit code {server.returncode}).", flush=True)
                return server.returncode
            if not shown and _answers(port):
                shown = True
                print(f"STARFISH Lab is at {url}; workers: {', '.join(worker.title for worker in workers)}. Ctrl-C stops all.", flush=True)
                if open_browser:
                    webbrowser.open(url)
            for worker in workers:
                worker.look_after()
        return 0
    finally:
        _stop([server, *(worker.process for worker in workers)])


class _Worker:
    """One worker process, started again when it dies, after a pause that doubles from death to death."""

    def __init__(self, title: str, module: list[str]):
        self.title, self._module = title, module
        self._pause = FIRST_PAUSE_SECONDS
        self._again_at: float | None = None
        self._begin()

    def _begin(self) -> None:
        self.process = start(self._module)
        self._began_at = time.monotonic()

    def look_after(self) -> None:
        if self.process.poll() is None:
            return
        now = time.monotonic()
        if self._again_at is None:
            if now - self._began_at > WELL_AFTER_SECONDS:
                self._pause = FIRST_PAUSE_SECONDS
            self._again_at = now + self._pause
            print(f"The worker on {self.title} ended (exit code {self.process.returncode}). It starts again in {self._pause:g} s.", flush=True)
            self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)
        elif now >= self._again_at:
            self._again_at = None
            self._begin()


def _workers(cluster: str | None, devices: str) -> list[_Worker]:
    """A worker a device; where a Ray cluster does the runs, the process that hands them over, and workers only where devices are named."""
    ray = [_Worker(f"Ray at {cluster}", ["starfish_lab.jobs.ray_dispatcher"])] if cluster else []
    names = [] if cluster and devices == "auto" else _devices(devices)
    return ray + [_Worker(device, ["starfish_lab.jobs.worker", "--device", device]) for device in names]


def _stop(processes: list[subprocess.Popen]) -> None:
    """End all: ask, wait, then kill."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + GRACE_SECONDS
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _streamlit(port: int) -> list[str]:
    return ["streamlit", "run", str(settings.ROOT / "app" / "main.py"), "--server.port", str(port), "--server.headless", "true"]


def _devices(choice: str) -> list[str]:
    """Devices to start a worker for. 'auto': every CUDA GPU, else Apple's, else the CPU.

    The launcher imports no torch. A machine without a trace of an accelerator is not asked at all, which
    saves its first page the seconds of an import.
    """
    if choice != "auto":
        return [device for device in choice.replace(",", " ").split()]
    if sys.platform != "darwin" and not shutil.which("nvidia-smi") and not any(map(os.path.exists, ACCELERATOR_TRACES)):
        return ["cpu"]
    answer = subprocess.run([sys.executable, "-c", LIST_DEVICES], cwd=settings.ROOT, capture_output=True, text=True)
    found = answer.stdout.split()
    return [name for name in found if name.startswith("cuda")] or [name for name in found if name == "mps"] or ["cpu"]


def _check_port(port: int) -> None:
    with socket.socket() as listener:
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that was just left is free
        try:
            listener.bind(("", port))
        except OSError as error:
            raise LabError(
                f"Port {port} cannot be used: {error.strerror}. Another program, perhaps this lab itself, listens there. "
                f"Choose another with --port or {settings.PORT.name}."
            ) from None


def _answers(port: int) -> bool:
    with socket.socket() as caller:
        caller.settimeout(POLL_SECONDS)
        return caller.connect_ex(("127.0.0.1", port)) == 0

"""A real browser on the real app: the started app, a page that fails on console errors, and what must hold of any page.

The fixtures `lab`, `browser` and `page` are everybody's: conftest.py names them. One app serves all tests of a session, which run one
after the other ('alone'), so a test takes a run's number from the link and not for granted.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from starfish_lab import settings
from starfish_lab.store import Store

ROOT = Path(__file__).resolve().parent.parent
PAGES = {"explore": ""} | {page: page for page in (
    "spectra", "tokens", "gallery", "prune_and_heal", "bake_off", "runs", "compare", "trade_offs", "latency", "paper", "team", "learn",
)}  # fmt: skip
WIDTHS, SCHEMES = (1440, 800), ("light", "dark")
CHROMIUM = ["--no-sandbox", "--disable-background-networking"]
DRAWN = ".js-plotly-plot, [data-testid=stDataFrame], .cards"  # what a page shows once its figures are there


@dataclass(frozen=True)
class Lab:
    """A running app: its address, its home, when it was started (`time.perf_counter`) and its processes."""

    url: str
    home: Path
    started: float
    process: subprocess.Popen

    @property
    def store(self) -> Store:
        """The store that the app reads."""
        return Store(f"sqlite:///{self.home / 'lab.db'}")


@contextmanager
def started(home: Path) -> Iterator[Lab]:
    """The app and its worker, started as the README says, on a store of their own; stopped by Ctrl-C."""
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "STARFISH_LAB_HOME": str(home), "STARFISH_LAB_DEVICES": "cpu", "BROWSER": "true"}
    environment.pop("OMP_NUM_THREADS", None)  # the worker may use the whole machine, as a person's would
    at = time.perf_counter()
    app = subprocess.Popen([sys.executable, "-m", "starfish_lab", "app", "--port", str(port)], cwd=ROOT, env=environment)
    try:
        _wait_for_port(port, app)
        yield Lab(f"http://localhost:{port}", home, at, app)
    finally:
        app.send_signal(signal.SIGINT)
        assert app.wait(30) == 0, "Ctrl-C must stop app and worker in good order"


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    """The session's app."""
    with started(tmp_path_factory.mktemp("lab")) as running:
        yield running


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium."""
    playwright = pytest.importorskip("playwright.sync_api")
    path = chromium()
    if path is None:
        if settings.REQUIRE_BROWSER():
            pytest.fail("No Chromium on the path, and STARFISH_LAB_REQUIRE_BROWSER asks for one.")
        pytest.skip("no Chromium on the path")
    with playwright.sync_playwright() as api:
        opened = api.chromium.launch(executable_path=path, args=CHROMIUM)
        yield opened
        opened.close()


@pytest.fixture
def page(browser):
    """A page of 1440 pixels that fails the test on an error in the browser's console."""
    with opened(browser) as view:
        yield view


@contextmanager
def opened(browser, *, width: int = 1440, scheme: str = "light"):
    """A page of its own, like a new visitor's. What its console calls an error fails whoever opened it."""
    context = browser.new_context(viewport={"width": width, "height": 1000}, color_scheme=scheme, accept_downloads=True)
    view, errors = context.new_page(), []
    view.on("pageerror", lambda error: errors.append(str(error)))
    view.on("console", lambda message: errors.append(message.text) if message.type == "error" and not _probes(message) else None)
    try:
        yield view
    finally:
        context.close()
    assert not errors, errors


def _probes(message) -> bool:
    """Streamlit looks for its server beside a page's own address first, and finds it one level up."""
    return "404" in message.text and "/_stcore/" in message.location["url"]


def settled(page, *, pause_ms: int = 600) -> None:
    """Wait until Streamlit has stopped running and nothing is a skeleton any more."""
    page.wait_for_function("!document.querySelector('[data-testid=stSkeleton], [data-testid=stStatusWidgetRunningIcon], [data-stale=true]')")
    page.wait_for_timeout(pause_ms)


def unharmed(page) -> None:
    """No traceback and no error on the page."""
    assert page.locator("[data-testid=stException]").count() == 0
    assert "Traceback" not in page.inner_text("body")
    alerts = page.locator("[data-testid=stAlertContentError]")
    assert alerts.count() == 0, alerts.first.inner_text()


def chromium() -> str | None:
    """Path of a Chromium that Playwright can drive, or None."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def wait(condition: Callable[[], object], seconds: float) -> None:
    """Wait for a condition outside the browser."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds:.0f} s in vain"
        time.sleep(0.1)


def _wait_for_port(port: int, process: subprocess.Popen) -> None:
    def answers() -> bool:
        assert process.poll() is None, "the app ended before it answered"
        with socket.socket() as caller:
            return caller.connect_ex(("127.0.0.1", port)) == 0

    wait(answers, 60)

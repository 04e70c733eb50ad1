"""The whole main job in a real browser: choose, look, prune, heal, compare, come back, download, cancel.

`pytest tests/test_browser.py --screenshots DIR` keeps the pictures of every page.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import zipfile

import pytest
from conftest import ROOT, chromium

from starfish_lab import settings

pytestmark = pytest.mark.alone
PAGES = {"explore": "", **{page: page for page in ("spectra", "tokens", "prune_and_heal", "bake_off", "runs", "compare", "latency", "paper")}}


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The app and its worker, started as the README says, on a store of their own."""
    home = tmp_path_factory.mktemp("lab")
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "STARFISH_LAB_HOME": str(home), "STARFISH_LAB_DEVICES": "cpu", "BROWSER": "true"}
    environment.pop("OMP_NUM_THREADS", None)  # the worker may use the whole machine, as a person's would
    started = time.perf_counter()
    app = subprocess.Popen([sys.executable, "-m", "starfish_lab", "app", "--port", str(port)], cwd=ROOT, env=environment)
    try:
        _wait_for_port(port, app)
        yield f"http://localhost:{port}", started
    finally:
        app.send_signal(signal.SIGINT)
        assert app.wait(30) == 0, "Ctrl-C must stop app and worker in good order"


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    path = chromium()
    if path is None:
        if settings.REQUIRE_BROWSER():
            pytest.fail("No Chromium on the path, and STARFISH_LAB_REQUIRE_BROWSER asks for one.")
        pytest.skip("no Chromium on the path")
    with playwright.sync_playwright() as api:
        opened = api.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-background-networking"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser):
    """A page of 1440 pixels that fails the test on an error in the browser's console."""
    context = browser.new_context(viewport={"width": 1440, "height": 1000}, accept_downloads=True)
    opened, errors = context.new_page(), []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    yield opened
    context.close()
    assert not errors


@pytest.mark.timeout(600)
def test_the_main_job(address, browser, page, tmp_path, screenshots):
    url, started = address
    page.goto(url)
    page.get_by_role("button", name="Prune & heal").wait_for()
    page.locator(".js-plotly-plot").first.wait_for()
    print(f"first page usable {time.perf_counter() - started:.1f} s after the command")
    _settled(page)
    _no_error(page)
    page.get_by_text("cpu: idle").first.wait_for(timeout=60_000)

    # one click: the starter loses 90 % and heals, live
    clicked = time.perf_counter()
    page.get_by_role("button", name="Prune & heal").click()
    page.wait_for_url(re.compile("run=1"))
    page.get_by_role("progressbar").first.wait_for()

    # the browser closes, comes back by the link, and finds the run where it is
    link = page.url
    page.goto("about:blank")
    page.goto(link)
    page.get_by_role("heading", name="Run 1").wait_for()
    page.locator(".js-plotly-plot").nth(1).wait_for(timeout=60_000)  # loss and drift of blocks, while it heals
    if screenshots:
        page.wait_for_timeout(4_000)
        page.screenshot(path=str(screenshots / "healing.png"))
    page.get_by_text("done", exact=True).first.wait_for(timeout=240_000)
    print(f"done {time.perf_counter() - clicked:.0f} s after the click")
    page.locator(".js-plotly-plot").nth(1).wait_for()
    _settled(page)
    _no_error(page)
    for stage in ("dense", "pruned", "healed"):
        page.locator(".figures td.stage", has_text=stage).first.wait_for()

    # the healed network and the tables come down
    page.get_by_role("button", name="Download", exact=True).click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Network (safetensors)").click()
    download.value.save_as(tmp_path / "network.zip")
    page.keyboard.press("Escape")
    names = zipfile.ZipFile(tmp_path / "network.zip").namelist()
    assert {"network.safetensors", "recipe.json"} <= {name.rpartition("/")[2] for name in names}
    answer = subprocess.run(
        [sys.executable, "-m", "starfish_lab", "evaluate", "--network", str(tmp_path / "network.zip"), "--json"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    healed = json.loads(answer.stdout)[0]["top1"]
    page.get_by_text(f"{100 * healed:.1f} %").first.wait_for()  # what the page shows is what the file does

    # tokens merge on the chosen images
    page.goto(f"{url}/tokens?merge=1")
    page.get_by_role("button", name="Merge tokens").click()
    page.locator(".js-plotly-plot").first.wait_for(timeout=60_000)
    _no_error(page)

    # two healers side by side
    page.goto(f"{url}/bake_off?steps=10&healers_all=none,starfish")
    page.get_by_role("button", name="Heal with all").click()
    page.get_by_text("done", exact=True).first.wait_for(timeout=180_000)
    page.locator(".js-plotly-plot").first.wait_for()
    _no_error(page)

    # every page, wide and narrow, light and dark
    for name, path in PAGES.items():
        for width in (1440, 800):
            for scheme in ("light", "dark"):
                _look(browser, f"{url}/{path}?{'merge=1' if name == 'tokens' else 'run=1&runs=1'}", name, width, scheme, screenshots)

    # a second run is cancelled, and says so
    page.goto(f"{url}/?sparsity=0.75&steps=5000")
    page.get_by_text("cpu: idle").first.wait_for(timeout=30_000)
    page.get_by_role("button", name="Prune & heal").click()
    page.get_by_role("progressbar").first.wait_for()
    page.get_by_role("button", name="Cancel").click()
    page.get_by_text("cancelled", exact=True).first.wait_for(timeout=60_000)
    _no_error(page)


@pytest.mark.timeout(120)
def test_a_link_full_of_nonsense_opens_a_page(address, page):
    url, _ = address
    for path in PAGES.values():
        page.goto(f"{url}/{path}?sparsity=lots&pattern=%00&keep=-4&run=x&runs=1,,z&model=%2Fetc%2Fpasswd&layer=%3Cscript%3E")
        page.get_by_text("The link says").first.wait_for()
        _settled(page)
        _no_error(page)


def _look(browser, url: str, name: str, width: int, scheme: str, folder) -> None:
    context = browser.new_context(viewport={"width": width, "height": 1000}, color_scheme=scheme)
    view = context.new_page()
    view.goto(url)
    view.locator(".js-plotly-plot, [data-testid=stDataFrame]").first.wait_for()
    _settled(view)
    _no_error(view)
    wide = view.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0, f"{name} scrolls sideways by {wide} pixels at {width}"
    if folder:
        view.screenshot(path=str(folder / f"{name}_{width}_{scheme}.png"), full_page=False)
    context.close()


def _settled(page) -> None:
    """Wait until Streamlit has stopped running and nothing is a skeleton any more."""
    page.wait_for_function("!document.querySelector('[data-testid=stSkeleton], [data-testid=stStatusWidgetRunningIcon]')")
    page.wait_for_timeout(600)


def _no_error(page) -> None:
    assert page.locator("[data-testid=stException]").count() == 0
    assert "Traceback" not in page.inner_text("body")
    alerts = page.locator("[data-testid=stAlertContentError]")
    assert alerts.count() == 0, alerts.first.inner_text()


def _wait_for_port(port: int, process: subprocess.Popen) -> None:
    for _ in range(600):
        assert process.poll() is None, "the app ended before it answered"
        with socket.socket() as caller:
            if caller.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    pytest.fail("the app did not answer within a minute")

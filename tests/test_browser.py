"""The whole main job in a real browser: choose, look, prune, heal, compare, come back, download, cancel.

`pytest tests/test_browser.py --screenshots DIR` keeps the pictures of every page.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import zipfile

import pytest
import synthetic
from browsing import PAGES, ROOT, settled, unharmed

pytestmark = pytest.mark.alone


@pytest.mark.timeout(600)
def test_the_main_job(lab, page, tmp_path, screenshots):
    url = lab.url
    page.goto(url)
    page.get_by_role("button", name="Prune & heal").wait_for()
    page.locator(".js-plotly-plot").first.wait_for()
    settled(page)
    unharmed(page)
    page.get_by_text("cpu: idle").first.wait_for(timeout=60_000)

    # one click: the starter loses 90 % and heals, live
    clicked = time.perf_counter()
    page.get_by_role("button", name="Prune & heal").click()
    page.wait_for_url(re.compile(r"run=\d"))
    run = re.search(r"run=(\d+)", page.url)[1]
    page.get_by_role("progressbar").first.wait_for()

    # the browser closes, comes back by the link, and finds the run where it is
    link = page.url
    page.goto("about:blank")
    page.goto(link)
    page.get_by_role("heading", name=f"Run {run}").wait_for()
    page.locator(".js-plotly-plot").nth(1).wait_for(timeout=60_000)  # loss and drift of blocks, while it heals
    if screenshots:
        page.wait_for_timeout(4_000)
        page.screenshot(path=str(screenshots / "healing.png"))
    page.get_by_text("done", exact=True).first.wait_for(timeout=240_000)
    print(f"done {time.perf_counter() - clicked:.0f} s after the click")
    page.locator(".js-plotly-plot").nth(1).wait_for()
    settled(page)
    unharmed(page)
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
    unharmed(page)

    # two healers side by side
    page.goto(f"{url}/bake_off?steps=10&healers_all=none,starfish")
    page.get_by_role("button", name="Heal with all").click()
    page.get_by_text("done", exact=True).first.wait_for(timeout=180_000)
    page.locator(".js-plotly-plot").first.wait_for()
    unharmed(page)

    # a second run is cancelled, and says so
    page.goto(f"{url}/?sparsity=0.75&steps=5000")
    page.get_by_text("cpu: idle").first.wait_for(timeout=30_000)
    page.get_by_role("button", name="Prune & heal").click()
    page.get_by_role("progressbar").first.wait_for()
    page.get_by_role("button", name="Cancel").click()
    page.get_by_text("cancelled", exact=True).first.wait_for(timeout=60_000)
    unharmed(page)


@pytest.mark.timeout(120)
def test_a_link_full_of_nonsense_opens_a_page(lab, page):
    for path in PAGES.values():
        page.goto(f"{lab.url}/{path}?sparsity=lots&pattern=%00&keep=-4&run=x&runs=1,,z&model=%2Fetc%2Fpasswd&layer=%3Cscript%3E")
        page.get_by_text("The link says").first.wait_for()
        settled(page)
        unharmed(page)


def test_pages_that_share_a_control_agree_on_it(lab, page):
    first, second = (synthetic.done(lab.store, healed=healed, seed=seed) for seed, healed in enumerate((0.9, 0.95)))
    page.goto(f"{lab.url}/trade_offs?runs={first},{second}&cost=parameters_m")
    for there in ("Compare", "Trade-offs"):
        settled(page)
        page.locator("[data-testid=stTopNavSection]").filter(has_text="Review").click()
        page.locator("[data-testid=stTopNavDropdownLink]").filter(has_text=there).click()
        page.get_by_text("Accuracy against" if there == "Trade-offs" else "Published figures").first.wait_for()
        settled(page)
        unharmed(page)
        assert page.get_by_role("radio", name="Parameters").first.is_checked(), there

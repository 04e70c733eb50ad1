"""Every page, wide and narrow, light and dark: axe finds nothing serious, text can be read, the keyboard reaches every control, all are named.

`pytest tests/test_accessibility.py --screenshots DIR` keeps the pictures of every page.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import synthetic
from axe_playwright_python.base import AXE_SCRIPT
from browsing import DRAWN, PAGES, SCHEMES, WIDTHS, opened, settled, unharmed, wait

from starfish_lab.bakeoff.plan import BakeOff
from starfish_lab.recipe import HealingChoice, MeasureChoice, Recipe

pytestmark = pytest.mark.alone
LOOKS = (Path(__file__).parent / "accessibility.js").read_text()

# What is being drawn again fades for a moment, on pages that poll every few seconds.
NEVER_FADED = "[data-stale] {opacity: 1 !important; transition: none !important}"

# What Streamlit itself draws so and nothing on our side mends: (axe's rule, part of the element's HTML). All else fails.
KNOWN: tuple[tuple[str, str], ...] = ()


@pytest.fixture(scope="module")
def queries(lab):
    """{page: query} of links that show something: a run and a bake-off that the app's worker made, beside runs that never ran."""
    store, quick = lab.store, MeasureChoice(latency=False, spectra=False)
    run = store.submit(Recipe(healing=HealingChoice(steps=10), measure=quick))
    few = Recipe(healing=HealingChoice(steps=4), measure=quick)
    baked = store.submit(BakeOff(recipe=few, healers=("starfish", "none"), seeds=(0,), rates=()), "bakeoff")
    other, timed = synthetic.done(store, name="other", sparsity=0.75), synthetic.latency_run(store)
    wait(lambda: {store.run(number).status for number in (run, baked)} <= {"done", "failed"}, 300)
    assert {store.run(number).status for number in (run, baked)} == {"done"}
    return {"bake_off": f"bake_all={baked}", "latency": f"run={timed}", "compare": f"runs={run},{other}", "tokens": "merge=1"} | dict.fromkeys(
        PAGES.keys() - {"bake_off", "latency", "compare", "tokens"}, f"run={run}&runs={run},{other}"
    )


@pytest.mark.timeout(600)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_for_everybody(lab, browser, queries, name, scheme, screenshots):
    with opened(browser, scheme=scheme) as view:
        view.goto(f"{lab.url}/{PAGES[name]}?{queries[name]}")
        view.locator(DRAWN).first.wait_for(timeout=60_000)
        settled(view)
        view.add_style_tag(content=NEVER_FADED)
        view.evaluate(AXE_SCRIPT)
        view.evaluate(LOOKS)
        for width in WIDTHS:
            view.set_viewport_size({"width": width, "height": 1000})
            settled(view)
            unharmed(view)
            if screenshots:
                view.screenshot(path=str(screenshots / f"{name}_{width}_{scheme}.png"))
            assert view.evaluate("looks.sideways()") <= 0, f"{name} scrolls sideways at {width}"
            assert view.evaluate("looks.overlaps()") == [], f"controls of {name} overlap at {width}"
            assert view.evaluate("looks.faint()") == [], f"text in charts of {name} is faint at {width}, {scheme}"
            assert _serious(view) == []
        if scheme == SCHEMES[0]:
            assert view.evaluate("looks.unnamed()") == []
            assert _missed_by_keyboard(view) == []


def _serious(view) -> list[str]:
    """What axe calls serious or critical, apart from what is known: 'rule: element, why'."""
    found = view.evaluate("axe.run({exclude: [['.main-svg']]}, {resultTypes: ['violations']})")["violations"]
    nodes = [(rule["id"], node) for rule in found if rule["impact"] in ("serious", "critical") for node in rule["nodes"]]
    return [f"{rule}: {node['html'][:200]}, {node['failureSummary']}" for rule, node in nodes if not _known(rule, node["html"])]


def _known(rule: str, html: str) -> bool:
    return any(rule == known and part in html for known, part in KNOWN)


def _missed_by_keyboard(view, *, most: int = 300) -> list[str]:
    """Visible controls that Tab never focuses, from the top of the page around to it."""
    view.evaluate("looks.watch()")
    for pressed in range(most):
        view.keyboard.press("Tab")
        if pressed % 10 == 9 and view.evaluate("looks.around()"):
            break
    return view.evaluate("looks.missed()")

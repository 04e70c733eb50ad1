"""A person new to the field goes through lessons 1 to 5 in a real browser: predicts, checks, runs what needs a network, and goes on."""

from __future__ import annotations

import time

import pytest
from browsing import settled, unharmed

from app.lessons import LESSONS

pytestmark = pytest.mark.alone
BAR = 240  # seconds; on two cores with nothing else a lesson computes for under 60 (tests/bars.py learn)


@pytest.mark.timeout(900)
def test_lessons_one_to_five(lab, page, screenshots):
    page.goto(f"{lab.url}/learn")
    for number, lesson in enumerate(LESSONS[:5], start=1):
        page.get_by_role("heading", name=lesson.title).wait_for()
        settled(page)
        asked, computed = time.perf_counter(), 0.0
        first, second = lesson.questions
        answer(page, first, 0)
        if lesson.job is not None:
            page.get_by_text("The run will tell.").wait_for()
            page.get_by_role("button", name="Run it").click()
            judged(page, first, BAR)
            computed = time.perf_counter() - asked
        judged(page, first)
        answer(page, second, len(second.options) - 1)
        judged(page, second)
        page.locator(".js-plotly-plot").first.wait_for()
        settled(page)
        unharmed(page)
        if screenshots:
            page.screenshot(path=str(screenshots / f"lesson_{number}.png"))
        print(f"lesson {number}: {time.perf_counter() - asked:.1f} s, {computed:.1f} s of them computing")
        assert computed < BAR, f"lesson {number} computed for {computed:.0f} s"
        page.get_by_role("button", name="Next").click()
    page.get_by_role("heading", name=LESSONS[5].title).wait_for()


@pytest.mark.timeout(120)
def test_a_room_is_led_by_the_keyboard(lab, page):
    page.goto(f"{lab.url}/learn")
    page.get_by_role("heading", name=LESSONS[0].title).wait_for()
    settled(page)
    page.get_by_role("button", name="Present").click()
    page.get_by_text("End presenting").wait_for()
    settled(page)
    assert not page.locator("[data-testid=stSidebar]").is_visible()
    assert page.evaluate("parseFloat(getComputedStyle(document.documentElement).fontSize)") > 20
    page.keyboard.press("PageDown")
    page.get_by_role("heading", name=LESSONS[1].title).wait_for()
    settled(page)
    page.keyboard.press("PageUp")
    page.get_by_role("heading", name=LESSONS[0].title).wait_for()
    settled(page)
    page.keyboard.press("Escape")
    page.get_by_text("End presenting").wait_for(state="detached")
    page.locator("[data-testid=stSidebar]").wait_for()
    unharmed(page)


def answer(page, question, place: int) -> None:
    """Predict one of the options."""
    card = page.locator(f".st-key-question_{question.key.replace('.', '_')}")
    card.locator("[role=radiogroup] label").nth(place).click()
    card.get_by_role("button", name="Check").click()
    card.get_by_role("button", name="Check").wait_for(state="detached")


def judged(page, question, seconds: float = 30) -> None:
    """Wait until the computed answer stands in the question's card."""
    card = page.locator(f".st-key-question_{question.key.replace('.', '_')}")
    card.locator(".stMarkdownBadge").wait_for(timeout=1000 * seconds)

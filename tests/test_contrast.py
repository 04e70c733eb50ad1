"""Text of charts can be read: at least 4.5 to 1 on the paper of either theme, as WCAG 2 asks (AA)."""

from __future__ import annotations

import tomllib

import numpy as np
import pytest
from conftest import ROOT

from app.charts import bakeoff, cells, theme

LEAST = 4.5


def luminance(colour: str) -> float:
    """Relative luminance of '#rrggbb'."""
    parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def test_black_on_white_is_the_most_there_is():
    assert contrast("#000000", "#ffffff") == pytest.approx(21) and contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_ink_and_the_colours_of_stages_can_be_read_on_paper(dark):
    inks = {"ink": theme.ink(dark), "quiet": theme.ink(dark, quiet=True), "plus": bakeoff.PLUS[dark]}
    inks |= {stage: theme.stage_colour(stage, dark) for stage in theme.STAGES}
    assert {name: round(contrast(ink, theme.paper(dark)), 2) for name, ink in inks.items() if contrast(ink, theme.paper(dark)) < LEAST} == {}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_pages_share_the_charts_colours_and_their_own_can_be_read(scheme):
    dark = scheme == "dark"
    pages = tomllib.loads((ROOT / "app" / ".streamlit" / "config.toml").read_text())["theme"][scheme]
    assert pages["backgroundColor"] == theme.paper(dark) and pages["textColor"] == theme.ink(dark)
    assert pages["chartCategoricalColors"] == [theme.stage_colour(stage, dark) for stage in theme.STAGES]
    for ground in (pages["backgroundColor"], pages["secondaryBackgroundColor"], pages["sidebar"]["backgroundColor"]):
        assert min(contrast(pages[name], ground) for name in ("textColor", "linkColor", "primaryColor")) >= LEAST


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("share", np.linspace(0, 1, 41))
def test_a_figure_in_a_cell_can_be_read_on_any_colour_of_the_scale(share, dark):
    behind = "#" + "".join(f"{round(255 * part):02x}" for part in cells.colour(share, dark))
    assert contrast(cells.ink(share, dark), behind) >= LEAST

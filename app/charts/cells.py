"""Figures inside the cells of a heat map, black or white: Plotly's own choice is too faint on the middle of a scale."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from app.charts import theme

MOST = 8  # columns whose cells still have room for figures


def figures(z: np.ndarray) -> np.ndarray:
    """Two significant digits for each cell."""
    return np.array([[f"{value:.2g}" for value in row] for row in np.asarray(z, float)])


def write(
    fig: go.Figure, texts: np.ndarray, z: np.ndarray, *, x: Sequence, y: Sequence, largest: float, dark: bool, axes: dict[str, int] | None = None
) -> None:
    """Texts (rows, columns) over the cells z of a heat map coloured by `theme.sequential` from 0 to `largest`; nothing where either is missing."""
    z, texts = np.asarray(z, float), np.asarray(texts)
    row, column = np.nonzero(np.isfinite(z) & (texts != ""))
    fig.add_scatter(
        x=[x[j] for j in column], y=[y[i] for i in row], text=texts[row, column], mode="text", hoverinfo="skip", showlegend=False,
        textfont={"size": 11, "color": [ink(value / (largest or 1), dark) for value in z[row, column]]}, **axes or {},
    )  # fmt: skip


def ink(share: float, dark: bool) -> str:
    """Black or white, whichever has more contrast with the scale's colour at a share of its length (at least 4.5:1 on any colour).

    >>> ink(0.0, dark=False), ink(1.0, dark=False)
    ('#000000', '#ffffff')
    """
    behind = luminance(colour(share, dark))
    return "#000000" if (behind + 0.05) ** 2 > 0.05 * 1.05 else "#ffffff"


def colour(share: float, dark: bool) -> np.ndarray:
    """Red, green and blue from 0 to 1 of `theme.sequential` at a share of its length, mixed between its stops as Plotly does."""
    places, stops = zip(*theme.sequential(dark))
    parts = np.array([[int(stop[i : i + 2], 16) / 255 for i in (1, 3, 5)] for stop in stops])
    return np.array([np.interp(share, places, part) for part in parts.T])


def luminance(rgb: np.ndarray) -> float:
    """Relative luminance of a colour from 0 to 1 each (WCAG 2.2, section 'relative luminance')."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])

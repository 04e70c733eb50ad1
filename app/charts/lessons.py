"""Charts of the lessons on random matrices: noise against its law, and a signal that leaves the bulk."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from app.charts import theme
from starfish_lab.lessons import spike
from starfish_lab.spectra import marchenko_pastur as mp

BINS = 40


def noise(values: np.ndarray, *, gamma: float, sigma: float, shape: tuple[int, int], distance: float, dark: bool = False) -> go.Figure:
    """Eigenvalues of one noise matrix as a histogram, the law as a line, its edges marked. `distance` is Kolmogorov's."""
    low, high = mp.edges(gamma, sigma**2)
    title = f"{shape[0]:,} × {shape[1]:,} numbers drawn at random fill {theme.number(float(values[0]))} to {theme.number(float(values[-1]))}"
    fig = theme.figure(title, dark=dark, height=400, x="Eigenvalue λ = s²/n", y="Share per unit of λ", keep="noise")
    _histogram(fig, values, dark=dark)
    _law(fig, gamma, sigma, dark=dark, name=f"Marchenko–Pastur law, at most {theme.number(distance)} away")
    for value, name in ((low, "σ²(1 − √γ)²"), (high, "σ²(1 + √γ)²")):
        _mark(fig, value, name, dark=dark)
    fig.update_xaxes(range=[0, 1.32 * max(high, float(values[-1]))])  # room for the name of the upper edge
    return fig


def spiked(values: np.ndarray, *, gamma: float, expected: float, limit: float, seen: bool, dark: bool = False) -> go.Figure:
    """Eigenvalues of noise with one planted signal; the largest is a diamond, and theory's place for it a dashed line where it is `seen`.

    `limit` is what noise alone stays under.
    """
    top, edge = float(values[-1]), mp.edges(gamma)[1]
    clear = top > limit
    title = "One eigenvalue stands clear of the bulk" if clear else "Nothing stands clear of the bulk"
    fig = theme.figure(title, dark=dark, height=400, x="Eigenvalue λ = s²/n", y="Share per unit of λ", keep="spiked")
    heights = _histogram(fig, values, dark=dark, upto=edge)
    _law(fig, gamma, 1.0, dark=dark, name="law of noise alone")
    _mark(fig, edge, "edge", dark=dark)
    if seen:
        line = {"color": theme.ink(dark, quiet=True), "width": 2, "dash": theme.ORIGIN_DASH["estimate"]}
        fig.add_scatter(x=[expected, expected], y=[0, max(heights)], mode="lines", name="theory's place", line=line, hoverinfo="skip")
    colour = theme.ink(dark)
    fig.add_scatter(
        x=[top], y=[0.05 * max(heights)], mode="markers", name="largest eigenvalue", cliponaxis=False,
        marker={"symbol": "diamond" if clear else "diamond-open", "size": 12, "color": colour, "line": {"color": colour, "width": 1.5}},
        hovertemplate=f"largest λ %{{x:.3f}}, theory {expected:.3f}<extra></extra>",
    )  # fmt: skip
    fig.update_xaxes(range=[0, max(1.25 * edge, 1.08 * max(top, expected))])
    return fig


def transition(curve: pd.DataFrame, *, theta: float, gamma: float, dark: bool = False) -> go.Figure:
    """Overlap of the largest eigenvalue's vector with the planted one, over the signal's strength; columns theta, overlap. Theory dashed."""
    threshold, grid = spike.threshold(gamma), np.linspace(curve["theta"].min(), curve["theta"].max(), 241)
    fig = theme.figure(
        f"Below θ = {theme.number(threshold)} the direction is lost", dark=dark, height=320, x="Strength of the signal θ",
        y="Overlap, squared cosine", keep="transition",
    )  # fmt: skip
    teal, quiet = theme.stage_colour("healed", dark), theme.ink(dark, quiet=True)
    fig.add_scatter(
        x=grid, y=[spike.expected(strength, gamma).overlap for strength in grid], mode="lines", name="theory", hoverinfo="skip",
        line={"color": quiet, "width": 2, "dash": theme.ORIGIN_DASH["estimate"]},
    )  # fmt: skip
    fig.add_scatter(
        x=curve["theta"], y=curve["overlap"], mode="lines+markers", name="this matrix", line={"color": teal, "width": 2}, marker={"size": 5},
        hovertemplate="θ %{x:.2f}: overlap %{y:.2f}<extra></extra>",
    )  # fmt: skip
    _mark(fig, threshold, "γ<sup>1/4</sup>", dark=dark)
    fig.add_vline(x=theta, line={"color": theme.ink(dark), "width": 2})
    fig.update_yaxes(range=[-0.02, 1.02])
    return fig


def _histogram(fig: go.Figure, values: np.ndarray, *, dark: bool, upto: float | None = None) -> np.ndarray:
    """Bars whose areas sum to 1; returns their heights. With `upto` the bins are those of the bulk, continued as far as there are values."""
    top = float(values[-1]) * 1.0001
    width = (min(upto, top) if upto else top) / BINS
    edges = np.arange(0, top + width, width)
    counts = np.histogram(values, edges)[0]
    heights = counts / (len(values) * width)
    fig.add_bar(
        x=(edges[1:] + edges[:-1]) / 2, y=heights, width=width, name="eigenvalues", customdata=counts, showlegend=False,
        marker={"color": theme.tint(theme.stage_colour("dense", dark), 0.45), "line": {"width": 0}},
        hovertemplate="λ near %{x:.3g}: %{customdata} eigenvalues<extra></extra>",
    )  # fmt: skip
    fig.update_layout(bargap=0)
    return heights


def _law(fig: go.Figure, gamma: float, sigma: float, *, dark: bool, name: str) -> None:
    """The density over its support; of a square matrix, where it grows without bound at 0, from a little above."""
    low, high = mp.edges(gamma, sigma**2)
    x = low + (high - low) * np.sin(np.linspace(0.02, np.pi / 2, 240)) ** 2  # closer together where the density bends
    teal = theme.stage_colour("healed", dark)
    fig.add_vrect(x0=low, x1=high, fillcolor=theme.tint(teal, 0.08), line_width=0, layer="below")
    fig.add_scatter(x=x, y=mp.density(x, gamma, sigma**2), mode="lines", name=name, hoverinfo="skip", line={"color": teal, "width": 3})


def _mark(fig: go.Figure, x: float, name: str, *, dark: bool) -> None:
    quiet = theme.ink(dark, quiet=True)
    fig.add_vline(x=x, line={"color": quiet, "width": 1.2, "dash": "dot"})
    fig.add_annotation(
        x=x, y=1, yref="paper", xanchor="left", yanchor="top", xshift=3, text=f"{name} = {theme.number(x)}", showarrow=False,
        font={"size": 12, "color": quiet}, bgcolor=theme.tint(theme.paper(dark), 0.85),  # of a square matrix it stands on the bars
    )  # fmt: skip

"""Spectra of many matrices in small, in one figure.

A pair of axes for each panel, or a bar for each bin, would keep a browser busy for a second: all panels share one
plane, in which a panel is one unit wide and high, and everything of a kind is one trace with gaps.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from app.charts import spectra, theme

MOST_PANELS = 48
COLUMNS = 12
LABEL_PX, PANEL_PX = 30, 86
WIDE, HIGH = 0.93, PANEL_PX / (PANEL_PX + LABEL_PX)  # what a panel fills of its unit
GAP = np.array([[np.nan], [np.nan]])


def grid(table: pd.DataFrame, *, selected: tuple[str, str] = ("", ""), dark: bool = False) -> go.Figure:
    """Small spectra in one figure, at most 48: roles below each other, depth from left to right.

    λ is drawn in units of the bulk's upper edge on one log scale for all, counts in units of a panel's highest. A
    clear bar over each panel takes the pointer and carries (layer, part) as customdata.
    """
    rows = spectra.add_role(table[table["depth"] >= 0])
    order = spectra.roles(table)
    shown = rows.sort_values("role", key=lambda names: names.map(order.index), kind="stable").head(MOST_PANELS)
    places = _places(shown)
    wide, deep = (max(place) + 1 for place in zip(*places)) if places else (1, 1)
    fig = theme.figure(_title(shown, len(rows)), dark=dark, height=84 + (LABEL_PX + PANEL_PX) * deep, keep=",".join(order))
    fig.update_xaxes(visible=False, fixedrange=True, range=[0, wide - 1 + WIDE])
    fig.update_yaxes(visible=False, fixedrange=True, range=[-deep, 0])
    fig.update_layout(showlegend=False, bargap=0, margin={"t": 48, "b": 12, "l": 12, "r": 12})
    drawn = [(row, x, y) for (_, row), (x, y) in zip(shown.iterrows(), places) if len(row["counts"])]
    if not drawn:
        return fig
    span = _span(shown)
    slate, _, teal = (theme.stage_colour(stage, dark) for stage in theme.STAGES)
    is_chosen = [(row["layer"], row["part"]) == tuple(selected) for row, _, _ in drawn]
    hold = np.array([bool(row["applies"]) for row, _, _ in drawn])
    bins, laws, edges, spikes = (list(parts) for parts in zip(*(_panel(*place, span) for place in drawn)))
    for chosen in (False, True):
        area = [part for part, this in zip(bins, is_chosen) if this == chosen]
        fill = {"fill": "toself", "fillcolor": theme.tint(slate, 0.85 if chosen else 0.42)}
        _add(fig, area, mode="lines", line={"width": 0}, **fill)
    for holds, dash in ((True, "solid"), (False, "dot")):
        _add(fig, [part for part, this in zip(laws, hold) if this == holds], mode="lines", line={"color": teal, "width": 1.6, "dash": dash})
    _add(fig, edges, mode="lines", line={"color": theme.ink(dark, quiet=True), "width": 1, "dash": "dot"})
    _add(fig, spikes, mode="markers", marker={"symbol": "diamond", "size": 5, "color": theme.ink(dark)})
    fig.add_scatter(
        x=[x for _, x, _ in drawn], y=[HIGH - y - 1 for _, _, y in drawn], mode="text", textposition="top right", hoverinfo="skip",
        text=[_label(row, chosen) for (row, _, _), chosen in zip(drawn, is_chosen)], textfont={"size": 11, "color": theme.ink(dark)},
    )  # fmt: skip
    return fig.add_bar(
        x=[x + WIDE / 2 for _, x, _ in drawn], base=[-y - 1 for _, _, y in drawn], y=[HIGH] * len(drawn), width=WIDE, unselected_marker_opacity=1,
        marker={"color": "rgba(0,0,0,0)", "line": {"width": 0}}, customdata=[[row["layer"], row["part"]] for row, _, _ in drawn],
        hovertext=[_facts(row) for row, _, _ in drawn], hovertemplate="%{hovertext}<extra></extra>",
    )  # fmt: skip


def _add(fig: go.Figure, parts: list[np.ndarray], **how: object) -> None:
    """One trace of many pieces, each an array (2, points)."""
    parts = [part for part in parts if part.shape[1]]
    if parts:
        x, y = np.hstack([piece for part in parts for piece in (part, GAP)][:-1])
        fig.add_scatter(x=x, y=y, hoverinfo="skip", **how)


def _panel(row: pd.Series, x: int, y: int, span: tuple[float, float]) -> tuple[np.ndarray, ...]:
    """Histogram, law, edge and spikes of the panel whose upper left corner is (x, −y), each (2, points) in the common plane."""
    edges, counts = np.array(row["bin_edges"], float), np.array(row["counts"], float)
    unit = spectra.bulk(row)[1]
    values, heights = spectra.density(row, 40)
    spikes, top = np.array(row["spike_values"], float), max([*counts, *heights])

    def placed(eigenvalues: np.ndarray, height: np.ndarray) -> np.ndarray:
        along = (np.log10(np.maximum(eigenvalues / (unit or 1.0), 1e-12)) - span[0]) / (span[1] - span[0])
        return np.array([x + WIDE * np.clip(along, 0, 1), HIGH * height / top - y - 1])

    return (
        placed(np.repeat(edges, 2), np.r_[0, np.repeat(counts, 2), 0]),
        placed(values, heights),
        placed(np.full(2 if unit else 0, unit), np.array([0, top] if unit else [])),
        placed(spikes, np.full(len(spikes), 0.06 * top)),
    )


def _facts(row: pd.Series) -> str:
    figures = f"σ₊ {theme.number(row['sigma_plus'])}, largest s {theme.number(row['top'])}"
    return f"<b>{spectra.name(row)}</b><br>{row['verdict']}<br>{figures}"


def _label(row: pd.Series, chosen: bool) -> str:
    """Above a panel: role and block, the number of spikes, or × where the law does not hold."""
    count = f"◆ {int(row['spikes'])}" if row["applies"] else "×"
    text = f"{row['role']} {row['depth']}  <span style='opacity:.7'>{count}</span>"
    return f"<b>{text}</b>" if chosen else text


def _span(shown: pd.DataFrame) -> tuple[float, float]:
    """One range of λ/λ₊ for all panels, in powers of ten: from the lowest bulk to the largest spike, at most a hundred times the edge."""
    lows, highs = [0.3], [1.5]
    for _, row in shown.iterrows():
        lower, upper = spectra.bulk(row)
        if upper and len(row["bin_edges"]):
            lows.append(max(lower, row["bin_edges"][0]) / upper)
            highs.append(row["bin_edges"][-1] / upper)
    return math.log10(max(min(lows), 1e-3)) - 0.05, math.log10(min(max(highs), 100)) + 0.1


def _places(shown: pd.DataFrame) -> list[tuple[int, int]]:
    """Column and line of each panel: roles below each other, each wrapped after 12 columns."""
    places, line = [], 0
    for _, group in shown.groupby("role", sort=False):
        places += [(i % COLUMNS, line + i // COLUMNS) for i in range(len(group))]
        line += math.ceil(len(group) / COLUMNS)
    return places


def _title(shown: pd.DataFrame, total: int) -> str:
    poor = int((~shown["applies"].astype(bool)).sum())
    which = f"{len(shown)} of {total} matrices" if total > len(shown) else f"{total} matrices"
    if poor == 0:
        return f"{which}: every bulk is Marchenko–Pastur"
    return f"{which}: {poor} are not noise with a few spikes" if poor < len(shown) else f"{which}: none is noise with a few spikes"

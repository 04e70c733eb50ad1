"""Eigenvalues of weight matrices against the Marchenko–Pastur bulk: one enlarged, one figure over depth. All in small: spectra_grid.

Rows are those of `spectra.layers.spectra_table`: a histogram of λ = s²/n with bins even in log λ, the fitted σ, the
edge σ₊ as a singular value, and the λ of the spikes. What is drawn is counts a bin, so the density f of the law
becomes (p − k) · f(λ) · λ · ln r for k spikes and bins whose edges grow by the factor r.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from app.charts import theme
from app.charts.cells import write
from starfish_lab.spectra import marchenko_pastur as mp

ROLES = ("qkv", "q", "k", "v", "proj", "fc1", "fc2")  # the order in which kinds of matrices are listed; others follow

# Figures of a layer that a heat map can show: (name in a sentence, unit for the colour bar, format on hover).
VALUES = {
    "spikes": ("spikes", "spikes", ".0f"),
    "bulk_fraction": ("bulk fraction", "share of eigenvalues in the bulk", ".3f"),
    "sigma_plus": ("bulk edge σ₊", "σ₊, singular value", ".3g"),
    "stable_rank": ("stable rank", "stable rank", ".3g"),
    "fit_error": ("fit error", "max |F − F_MP|", ".3g"),
}


def add_role(table: pd.DataFrame) -> pd.DataFrame:
    """The table with a column `role`: q, k, v, proj, fc1, fc2, conv1 …"""
    return table.assign(role=[theme.role(layer, part) for layer, part in zip(table["layer"], table["part"])])


def roles(table: pd.DataFrame) -> list[str]:
    """The roles that occur inside blocks, in the field's order."""
    found = dict.fromkeys(add_role(table[table["depth"] >= 0])["role"])
    return [role for role in ROLES if role in found] + [role for role in found if role not in ROLES]


def name(row: pd.Series) -> str:
    """What a matrix is called in a title: 'q, block 3', or its layer's name outside every block."""
    return f"{theme.role(row['layer'], row['part'])}, block {row['depth']}" if row["depth"] >= 0 else row["layer"]


def spectrum(row: pd.Series, *, dark: bool = False, control: bool = False, moved: float | None = None, height: int = 340) -> go.Figure:
    """One matrix: histogram over a log axis, bulk shaded, density as a line, edge labelled, spikes as diamonds.

    With `control`, also the same entries in random order, where the row knows them. `moved` is an edge σ₊ that a person put elsewhere.
    """
    keep = row["layer"] + row["part"]
    fig = theme.figure(_title(row), dark=dark, height=height, x="Eigenvalue λ = s²/n (log scale)", y="Eigenvalues a bin", keep=keep)
    edges, counts = np.array(row["bin_edges"], float), np.array(row["counts"], float)
    if len(counts) == 0:
        return fig.update_layout(annotations=[_nothing(row, dark)])
    slate, amber, teal, ink = (*(theme.stage_colour(stage, dark) for stage in theme.STAGES), theme.ink(dark))
    fig.add_bar(
        **_histogram(edges, counts), name="eigenvalues", showlegend=False, marker={"color": theme.tint(slate, 0.45)},
        hovertemplate="λ %{customdata[0]:.3g} to %{customdata[1]:.3g}<br>%{y:.0f} eigenvalues<extra></extra>",
    )  # fmt: skip
    permuted = np.array(row["control_counts"], float) if control and isinstance(row.get("control_counts"), list) else np.zeros(0)
    if len(permuted):
        steps = np.repeat(edges, 2)[1:-1], np.repeat(permuted, 2)
        fig.add_scatter(x=steps[0], y=steps[1], mode="lines", name="same entries, permuted", line={"color": amber, "width": 1.5}, hoverinfo="skip")
    x, y = density(row)
    (lower, upper), lowest = bulk(row), edges[0]
    if len(x):
        dash = "solid" if row["applies"] else "dot"
        fig.add_vrect(x0=max(lower, edges[0]), x1=upper, fillcolor=theme.tint(teal, 0.1), line_width=0, layer="below")
        fig.add_vline(x=upper, line={"color": ink, "width": 1.2, "dash": "dot"})
        fig.add_scatter(x=x, y=y, mode="lines", name="Marchenko–Pastur bulk", hoverinfo="skip", line={"color": teal, "width": 2.5, "dash": dash})
        fig.add_annotation(
            x=math.log10(upper), y=1, yref="paper", yanchor="bottom", showarrow=False, font={"size": 12, "color": ink},
            text=f"edge σ₊ = {theme.number(row['sigma_plus'])}",
            xanchor="right" if upper > 0.5 * edges[-1] else "center",  # else it would be cut off at the right
        )  # fmt: skip
    if moved:
        place = moved**2 / max(row["rows"], row["cols"])
        fig.add_vline(x=place, line={"color": amber, "width": 2.5})
        fig.add_scatter(x=[None], y=[None], mode="lines", name=f"edge by hand = {theme.number(moved)}", line={"color": amber, "width": 2.5})
        upper, lowest = max(upper, place), min(edges[0], place)
    spikes = np.array(row["spike_values"], float)
    if len(spikes):
        fig.add_scatter(
            x=spikes, y=np.full(len(spikes), 0.04 * counts.max()), mode="markers", name="spikes",
            customdata=np.sqrt(spikes * max(row["rows"], row["cols"])), hovertemplate="spike: λ %{x:.3g}, s %{customdata:.3g}<extra></extra>",
            marker={"symbol": "diamond", "size": 8, "color": ink, "line": {"color": theme.paper(dark), "width": 1}},
        )  # fmt: skip
    low, high = np.log10([lowest, max(edges[-1], 1.1 * upper)])
    ticks = _ticks(low, high)
    fig.update_xaxes(type="log", range=[low - 0.02, high + 0.04], tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks])
    fig.update_yaxes(range=[0, 1.06 * max([*counts, *y, *permuted])])
    return fig.update_layout(bargap=0, margin={"t": 80}, legend={"y": 1.07})


def density(row: pd.Series, points: int = 160) -> tuple[np.ndarray, np.ndarray]:
    """The fitted law in counts a bin, over its support; empty where nothing was fitted."""
    edges = np.array(row["bin_edges"], float)
    if len(edges) < 2 or not row["sigma"]:
        return np.zeros(0), np.zeros(0)
    p, n = min(row["rows"], row["cols"]), max(row["rows"], row["cols"])
    spikes = int(row["spikes"]) if row["applies"] else 0  # a bulk with k spikes beside it is (p − k) × (n − k) noise
    gamma, scale, sigma2 = (p - spikes) / (n - spikes), n / (n - spikes), row["sigma"] ** 2
    low, high = mp.edges(gamma, sigma2)
    x = np.geomspace(max(low, edges[0] * scale), high, points)
    return x / scale, (p - spikes) * mp.density(x, gamma, sigma2) * x * math.log(edges[1] / edges[0])


def heatmap(table: pd.DataFrame, value: str = "spikes", *, dark: bool = False) -> go.Figure:
    """One figure of every matrix: roles from top to bottom, depth from left to right.

    Cells carry (layer, part, verdict) as customdata; × marks those that the law does not describe.
    """
    rows = add_role(table[table["depth"] >= 0])
    label, unit, form = VALUES[value]
    order = roles(rows)
    cells = rows.pivot_table(index="role", columns="depth", values=value, aggfunc="first").reindex(order)
    poor = rows.assign(poor=~rows["applies"].astype(bool)).pivot_table(index="role", columns="depth", values="poor", aggfunc="first").reindex(order)
    layers = rows.drop_duplicates(["role", "depth"]).set_index(["role", "depth"])[["layer", "part", "verdict"]]
    custom = [[list(layers.loc[(role, depth)]) if (role, depth) in layers.index else ["", "", ""] for depth in cells.columns] for role in order]
    fig = theme.figure(_heat_title(rows, value, label), dark=dark, height=96 + 29 * len(order), x="Block, by depth", keep=value)
    fig.update_layout(margin={"t": 46})
    z, largest = cells.to_numpy(float), rows[value].astype(float).max() or 1
    fig.add_heatmap(
        z=z, x=list(cells.columns), y=order, customdata=custom, xgap=2, ygap=2,
        colorscale=theme.sequential(dark), zmin=0, zmax=largest,
        colorbar={"title": {"text": unit, "side": "right", "font": {"size": 12}}, "thickness": 12, "outlinewidth": 0, "len": 1.0},
        hovertemplate=f"%{{y}} of block %{{x}}<br>{label} %{{z:{form}}}<br>%{{customdata[2]}}<extra></extra>", hoverongaps=False,
    )  # fmt: skip
    write(fig, np.array(_cell_texts(cells, poor, form)), z, x=list(cells.columns), y=order, largest=largest, dark=dark)
    fig.update_xaxes(showgrid=False, fixedrange=True, dtick=1 if len(cells.columns) <= 24 else 2)
    fig.update_yaxes(showgrid=False, fixedrange=True, autorange="reversed", type="category")
    return fig


def _title(row: pd.Series) -> str:
    """The finding: how many spikes stand outside the bulk, or that there is no bulk."""
    if not row["applies"]:
        return f"MP does not describe {name(row)}"
    count = int(row["spikes"])
    spikes = f"{count} spike{'s' if count > 1 else ''} ({theme.percent(row['spike_energy'], 0)} of energy)" if count else "pure noise"
    return f"{name(row)}: {spikes}"


def _heat_title(rows: pd.DataFrame, value: str, label: str) -> str:
    known = rows[rows[value].notna()]
    if known.empty:
        return f"No {label} is known"
    if value == "spikes" and not known["spikes"].any():
        return "No matrix has a spike"
    most = known.loc[known[value].astype(float).idxmax()]
    if value == "spikes":
        return f"Most spikes: {int(most[value])} in {name(most)}"
    return f"Largest {label}: {theme.number(float(most[value]))} in {name(most)}"


def _cell_texts(cells: pd.DataFrame, poor: pd.DataFrame, form: str) -> list[list[str]]:
    """Figures where there is room for them, and × where the law does not hold."""
    room = len(cells.columns) <= 12
    return [
        [(f"{value:{form}}" if room and value == value else "") + ("×" if crossed == 1 else "") for value, crossed in zip(*pair)]
        for pair in zip(cells.to_numpy(float), poor.to_numpy(float))
    ]


def bulk(row: pd.Series) -> tuple[float, float]:
    """Lower and upper edge in λ; 0 where nothing was fitted."""
    n = max(row["rows"], row["cols"])
    known = row["sigma_plus"] == row["sigma_plus"] and row["sigma_plus"]
    return (row["lower_edge"] ** 2 / n, row["sigma_plus"] ** 2 / n) if known else (0.0, 0.0)


def _histogram(edges: np.ndarray, counts: np.ndarray) -> dict[str, object]:
    """Bars that touch, on a log axis."""
    return {
        "x": (edges[1:] + edges[:-1]) / 2, "width": np.diff(edges), "y": counts, "customdata": np.column_stack([edges[:-1], edges[1:]]),
    }  # fmt: skip


def _ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 of each power of ten between two powers of ten; fewer where the axis is long."""
    steps = (1, 2, 5) if high - low < 2 else (1,) if high - low > 3 else (1, 3)
    values = [step * 10.0**power for power in range(math.floor(low), math.ceil(high) + 1) for step in steps]
    return [value for value in values if low <= math.log10(value) <= high]


def _nothing(row: pd.Series, dark: bool) -> dict[str, object]:
    return {
        "text": row["verdict"],
        "showarrow": False,
        "xref": "paper",
        "yref": "paper",
        "x": 0.5,
        "y": 0.5,
        "font": {"color": theme.ink(dark, quiet=True)},
    }

"""Which layers can bear it: damage over layer and sparsity, and the least summed damage from accuracy to speed."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from app.charts import theme
from starfish_lab.sensitivity import stored

DECADES = 4  # below the largest damage that still have colour


def curves(
    rows: pd.DataFrame, *, damage: str, shares: dict[str, float] | None = None, units: bool = False, dark: bool = False, keep: object = True
) -> go.Figure:
    """A column a layer over depth, a row a level: the deeper the colour, the more this layer alone hurts at this sparsity.

    `rows` is a table `sensitivity`; `damage` names one of `stored.DAMAGES`; `shares` {layer: share that the present choice takes} are
    drawn as marks; `units` says that layers stand for groups of units. Colours are logarithmic over DECADES decades; below them is none.
    """
    name, column, unit = stored.DAMAGES[damage]
    table = stored.with_loss(rows)
    layers = table.drop_duplicates("layer")
    fig = theme.figure(
        _title(table, column),
        dark=dark,
        height=380,
        y="Share of these units alone (%)" if units else "Sparsity of this layer alone (%)",
        keep=(keep, len(layers)),
    )
    places = theme.layer_axis(fig, layers, dark=dark)
    levels = sorted(table["level"].unique())
    wide = table.pivot(index="level", columns="layer", values=column).reindex(index=levels, columns=list(places))
    top = float(np.nanmax(wide.to_numpy(), initial=0.0)) or 1.0
    z = np.log10(np.clip(wide.to_numpy(float) / top, 10.0**-DECADES, 1.0)) + DECADES
    fig.add_heatmap(
        x=list(places.values()), y=list(range(len(levels))), z=z, coloraxis="coloraxis", xgap=1, ygap=1, name="damage",
        hovertext=_hover(table, column, name, levels, list(places)), hovertemplate="%{hovertext}<extra></extra>",
    )  # fmt: skip
    if shares:
        fig.add_scatter(
            x=[places[layer] for layer in shares if layer in places],
            y=[_row(share, levels) for layer, share in shares.items() if layer in places], mode="markers", name="the present choice",
            marker={**theme.marker("pruned", dark=dark, size=9), "line": {"color": theme.paper(dark), "width": 1}}, cliponaxis=False,
            customdata=[(layer, 100 * share) for layer, share in shares.items() if layer in places],
            hovertemplate="%{customdata[0]}<br>the present choice takes %{customdata[1]:.1f} %<extra></extra>",
        )  # fmt: skip
    ticks = list(range(DECADES + 1))
    fig.update_layout(
        coloraxis={
            "colorscale": theme.sequential(dark), "cmin": 0, "cmax": DECADES,
            "colorbar": {
                "title": {"text": name, "side": "right", "font": {"size": 12}}, "thickness": 12, "outlinewidth": 0, "tickmode": "array",
                "tickvals": ticks, "ticktext": [f"{'≤ ' if i == 0 else ''}{theme.number(top * 10.0 ** (i - DECADES))}" for i in ticks],
            },
        },
        yaxis={
            "tickmode": "array", "tickvals": list(range(len(levels))), "ticktext": [f"{100 * level:g}" for level in levels],
            "range": [-0.5, len(levels) - 0.5], "showgrid": False,
        },
    )  # fmt: skip
    fig.update_xaxes(fixedrange=True)
    fig.update_yaxes(fixedrange=True)
    return fig


def _row(share: float, levels: list[float]) -> float:
    """Where a sparsity stands between the rows of levels; below the first by as much as it is of it."""
    return float(np.interp(share, [0.0, *levels, 1.0], [-0.5, *range(len(levels)), len(levels) - 0.5]))


def _title(table: pd.DataFrame, column: str) -> str:
    means = table.groupby("layer", sort=False)[column].mean()
    if means.empty or means.max() <= 0:
        return "No layer hurts alone"
    depths = table.drop_duplicates("layer").set_index("layer")["depth"]
    least, most = (f"{theme.role(layer)} of block {depths[layer]}" if depths[layer] >= 0 else layer for layer in (means.idxmax(), means.idxmin()))
    return f"{least} bears least, {most} most"


def _hover(table: pd.DataFrame, column: str, name: str, levels: list[float], layers: list[str]) -> list[list[str]]:
    known = {(row["level"], row["layer"]): row for row in table.to_dict("records")}
    return [[_said(known.get((level, layer)), column, name) for layer in layers] for level in levels]


def _said(row: dict | None, column: str, name: str) -> str:
    if row is None:
        return "not measured"
    lines = [f"<b>{row['layer']}</b> alone at {theme.percent(row['sparsity'])}", f"{name.lower()} {theme.number(row[column])}"]
    if row.get("top1") is not None and row.get("top1") == row.get("top1"):
        lines.append(f"top-1 {theme.percent(row['top1'])}, interval {theme.percent(row['low'])} to {theme.percent(row['high'])}")
        lines.append(f"dense {theme.percent(row['top1_dense'])}, n = {row['images']}")
    else:
        lines.append(f"answers kept: {theme.percent(row['agreement'])} of {row['images']} images")
    return "<br>".join(lines)


def front(
    best: pd.DataFrame, here: tuple[float, float], *, unit: str, damage: str, dark: bool = False, keep: object = True
) -> go.Figure:  # fmt: skip
    """The least summed damage from accuracy (left) to speed (right), beside every layer losing the same, and where the present choice stands.

    `best` is `spending.Along.front`, `here` (position, damage) of the present choice, `unit` in words what is spent. All of it is an
    estimate: damages of layers alone, summed up.
    """
    position, now = here
    least = float(np.interp(position, best["position"], best["damage"]))
    fig = theme.figure(
        _front_title(now, least), dark=dark, height=330, x=f"Share of the {unit} that goes (%)", y=f"Summed damage, estimate ({damage})", keep=keep
    )
    for column, name, ink in (
        ("damage", "along the curves", theme.stage_colour("pruned", dark)),
        ("uniform", "uniform", theme.ink(dark, quiet=True)),
    ):
        fig.add_scatter(
            x=100 * best["position"], y=best[column].clip(lower=1e-9), mode="lines", name=name,
            line={"color": ink, "width": 2 if column == "damage" else 1.5, "dash": theme.ORIGIN_DASH["estimate"]},
            hovertemplate=f"{name}<br>%{{x:.0f}} % gone, summed damage %{{y:.3g}}<extra>estimate</extra>",
        )  # fmt: skip
    fig.add_scatter(
        x=[100 * position], y=[max(now, 1e-9)], mode="markers", name="the present choice", cliponaxis=False,
        marker=theme.marker("pruned", origin="estimate", dark=dark, size=12),
        hovertemplate="the present choice<br>%{x:.1f} % gone, summed damage %{y:.3g}<extra>estimate</extra>",
    )  # fmt: skip
    fig.update_xaxes(range=[0, 100], fixedrange=True)
    fig.update_yaxes(type="log", fixedrange=True, exponentformat="power", dtick=1)
    return fig


def _front_title(now: float, least: float) -> str:
    if least <= 0 or now <= 1.02 * least:
        return "The present choice is spent along the curves"
    return f"Along the curves the same would cost {theme.number(now / least)}× less damage"

"""Charts of healers side by side: who recovers how much, how it comes about, and how little data or how much sparsity they bear."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from app.charts import theme

PLUS = {False: "#115e59", True: "#14a394"}  # starfish_plus: the healed stage's hue, darker
DASHES = ("dash", "dot", "dashdot", "longdash", "longdashdot")
SYMBOLS = ("square", "triangle-up", "pentagon", "triangle-down", "hexagon", "star")
SHARE = "Share of the dense accuracy (%)"
AXES = {"images": "Calibration images, log scale", "sparsity": "Sparsity of the prunable weights (%)"}
LONG = 16  # characters of a name on one line
LABEL_GAP = 16  # pixels between two names at a chart's right edge


@dataclass(frozen=True)
class Look:
    """How a healer is drawn."""

    colour: str
    dash: str = "solid"
    symbol: str = "diamond"
    width: float = 2.0

    def line(self) -> dict[str, object]:
        return {"color": self.colour, "dash": self.dash, "width": self.width}

    def marker(self, size: int = 9) -> dict[str, object]:
        return {"color": self.colour, "symbol": self.symbol, "size": size, "line": {"color": self.colour, "width": 1.5}}


def looks(healers: pd.DataFrame, *, dark: bool = False) -> dict[str, Look]:
    """{healer: its look}. Columns used: healer, steps, labels.

    What trains without labels is teal, what used labels grey, what does not train amber; within a hue dashes and symbols tell apart.
    """
    found: dict[str, Look] = {"none": Look(theme.stage_colour("pruned", dark), symbol="x", dash="dot")}
    found |= {"starfish": Look(theme.stage_colour("healed", dark), width=3.0), "starfish_plus": Look(PLUS[dark], width=3.0, symbol="star-diamond")}
    places = dict.fromkeys(("pruned", "healed", "labels"), 0)
    for row in healers.drop_duplicates("healer").sort_values("healer").itertuples():
        if row.healer in found:
            continue
        kind = "labels" if row.labels else "healed" if row.steps else "pruned"
        place = places[kind]
        places[kind] += 1
        colour = theme.ink(dark, quiet=True) if kind == "labels" else theme.stage_colour(kind, dark)
        found[row.healer] = Look(colour, dash=DASHES[place % len(DASHES)], symbol=SYMBOLS[place % len(SYMBOLS)])
    return found


def by_healer(
    found: pd.DataFrame, seeds: pd.DataFrame, *, title: str, literature: pd.DataFrame | None = None, dark: bool = False, keep: object = True
) -> go.Figure:
    """Share of the dense accuracy that each healer recovers, the best on top, with its 95 % interval; each seed a small mark.

    `found` is a summary (`app.bakeoff_rows.summary`) of one sparsity and number of images, `seeds` its rows seed by seed (healer, share).
    `literature` (label, share, source) stands below them, hollow.
    """
    shown = found.dropna(subset=["share"])[::-1].sort_values("share", kind="stable")  # of equals the first stands on top
    published = [] if literature is None else list(literature.sort_values("share").itertuples())
    fig = theme.figure(title, dark=dark, height=130 + _row_height(len(shown) + len(published)), x=SHARE, keep=keep)
    for row in published:
        fig.add_scatter(
            x=[100 * row.share], y=[row.label], mode="markers", name=row.label, showlegend=False, cliponaxis=False, marker=_hollow(row.label, dark),
            hovertemplate=f"{row.label}<br>%{{x:.0f}} % of dense<br>{row.source}<extra>literature</extra>",
        )  # fmt: skip
    styles = looks(found, dark=dark)
    for row in shown.itertuples():
        look = styles[row.healer]
        several = seeds[seeds["healer"] == row.healer].dropna(subset=["share"]) if len(seeds) else seeds
        if len(several) > 1:
            fig.add_scatter(
                x=100 * several["share"], y=[row.label] * len(several), mode="markers", name=f"{row.label}, seeds", showlegend=False,
                marker={"symbol": "line-ns-open", "size": 12, "color": theme.tint(look.colour, 0.7)}, cliponaxis=False, hoverinfo="skip",
            )  # fmt: skip
        fig.add_scatter(
            x=[100 * row.share], y=[row.label], mode="markers", name=row.label, showlegend=False, marker=look.marker(12), cliponaxis=False,
            error_x=_error(row, look.colour),
            customdata=[[100 * row.top1, 100 * row.low, 100 * row.high, row.evaluated, "with labels" if row.labels else "without labels"]],
            hovertemplate=f"{row.label}, %{{customdata[4]}}<br>%{{x:.1f}} % of dense<br>top-1 %{{customdata[0]:.1f}} %, 95 % interval "
            "%{customdata[1]:.1f} to %{customdata[2]:.1f} %<br>n = %{customdata[3]}<extra>measured</extra>",
        )  # fmt: skip
    fig.add_vline(x=100, line={"color": theme.stage_colour("dense", dark), "width": 1, "dash": "dot"}, annotation={
        "text": "dense", "font": {"size": 12, "color": theme.stage_colour("dense", dark)}}, annotation_position="top")  # fmt: skip
    fig.update_yaxes(categoryorder="array", categoryarray=[row.label for row in [*published, *shown.itertuples()]], showgrid=False)
    fig.update_yaxes(range=[-0.6, len(published) + len(shown) - 0.3])
    fig.update_xaxes(range=[-2, max([102.0, *(100 * shown["share_high"] + 1)])])
    beside = {"xref": "paper", "x": 1, "xanchor": "left", "xshift": 8, "showarrow": False, "font": {"size": 12}}
    shares = [
        {**beside, "y": row.label, "text": f"{100 * row.share:.{0 if row in published else 1}f} %"} for row in [*published, *shown.itertuples()]
    ]
    return fig.update_layout(margin_r=64, annotations=[*fig.layout.annotations, *shares])


def over(
    found: pd.DataFrame, axis: str, *, title: str, knees: pd.DataFrame | None = None, literature: pd.DataFrame | None = None, dark: bool = False,
    keep: object = True,
) -> go.Figure:  # fmt: skip
    """Share of the dense accuracy over `axis` ('images' or 'sparsity'), a line a healer with 95 % intervals, its name at its end.

    `found` is a summary. `knees` (healer, knee_images) marks where more images change nothing that is resolved. `literature`
    (label, sparsity, share, source) is drawn hollow.
    """
    fig = theme.figure(title, dark=dark, height=460, x=AXES[axis], y=SHARE, keep=keep)
    shown = found.dropna(subset=["share"]).sort_values(axis)
    styles, ends, last = looks(found, dark=dark), [], []
    healers = list(dict.fromkeys(shown["healer"]))
    halo = {} if knees is None else dict(zip(knees["healer"], knees["knee_images"]))
    for place, healer in enumerate(healers):
        rows, look = shown[shown["healer"] == healer], styles[healer]
        x = _aside(rows[axis], axis, place - (len(healers) - 1) / 2)
        if healer in halo:
            at = rows["images"].to_numpy() == halo[healer]
            fig.add_scatter(
                x=x[at], y=100 * rows["share"].to_numpy()[at], mode="markers", name="knee", showlegend=False, hoverinfo="skip", cliponaxis=False,
                marker={"symbol": "circle", "size": 24, "color": theme.tint(look.colour, 0.28)},
            )  # fmt: skip
        fig.add_trace(_line(rows, x, axis, look))
        ends.append([rows["label"].iloc[-1], np.log10(x[-1]) if axis == "images" else x[-1], 100 * rows["share"].iloc[-1], look.colour])
        last.append(rows[axis].iloc[-1] == shown[axis].max())
    edge = max((end[1] for end in ends), default=0.0)
    ends = [(name, edge if at_edge else x, y, colour) for (name, x, y, colour), at_edge in zip(ends, last)]  # names in a column beside the last marks
    top, bottom = _limits(100 * shown["share_high"], 100 * shown["share_low"])
    if literature is not None and len(literature):
        for i in range(len(literature)):
            fig.add_trace(_published(literature.iloc[i : i + 1], dark))
        top, bottom = max(top, 100 * literature["share"].max() + 5), min(bottom, 100 * literature["share"].min() - 5)
    fig.update_yaxes(range=[bottom, top])
    ticks = sorted(shown[axis].unique())
    if axis == "images":
        fig.update_xaxes(type="log", tickmode="array", tickvals=ticks, ticktext=[f"{int(n):,}" for n in ticks])
        fig.update_xaxes(range=[np.log10(ticks[0]) - 0.06, np.log10(ticks[-1]) + 0.05] if ticks else None)
    else:
        fig.update_xaxes(tickmode="array", tickvals=[100 * s for s in ticks], ticktext=[f"{100 * s:g}" for s in ticks])
        fig.update_xaxes(range=[100 * ticks[0] - 2, 100 * ticks[-1] + 1.5] if ticks else None)
    _dense(fig, dark)
    return _named(fig, ends, bottom, top, dark)


def course(curves: pd.DataFrame, found: pd.DataFrame, *, x: str, title: str, unit: str, dark: bool = False, keep: object = True) -> go.Figure:
    """Share of the dense accuracy while healing, a line a healer; what has ended has a mark with its 95 % interval on all images.

    `curves`: healer, label, seed, x, share (fraction), steps, labels. `found`: rows that ended, of each seed, with the columns of a summary
    and x in the column `at`.
    """
    fig = theme.figure(title, dark=dark, height=400, x=unit, y=SHARE, keep=keep)
    styles, ends = looks(pd.concat([curves[["healer", "steps", "labels"]], found[["healer", "steps", "labels"]]]), dark=dark), {}
    for (healer, _), rows in curves.dropna(subset=["share"]).groupby(["healer", "seed"], sort=False):
        rows, look = rows.sort_values(x), styles[healer]
        fig.add_scatter(
            x=rows[x], y=100 * rows["share"], mode="lines+markers", name=rows["label"].iloc[0], showlegend=False, line=look.line(),
            marker=look.marker(5), cliponaxis=False,
            hovertemplate=f"{rows['label'].iloc[0]}<br>{unit.lower()} %{{x:.3g}}<br>%{{y:.1f}} % of dense<extra>on few images</extra>",
        )  # fmt: skip
        ends[healer] = (rows["label"].iloc[0], rows[x].iloc[-1], 100 * rows["share"].iloc[-1], look.colour)
    for row in found.dropna(subset=["share", "at"]).itertuples():
        look = styles[row.healer]
        fig.add_scatter(
            x=[row.at], y=[100 * row.share], mode="markers", name=f"{row.label}, ended", showlegend=False, marker=look.marker(11), cliponaxis=False,
            error_y=_error(row, look.colour), hovertemplate=f"{row.label}, ended<br>%{{y:.1f}} % of dense<extra>measured</extra>",
        )  # fmt: skip
        ends[row.healer] = (row.label, row.at, 100 * row.share, look.colour)
    shares = pd.concat([100 * curves["share"], 100 * found["share_high"], 100 * found["share_low"]]).dropna()
    top, bottom = _limits(shares, shares)
    fig.update_yaxes(range=[bottom, top])
    reach = max([0.0, *curves[x].dropna(), *found["at"].dropna()])
    fig.update_xaxes(range=[-0.02 * reach, 1.02 * reach] if reach else None)
    _dense(fig, dark)
    return _named(fig, ends.values(), bottom, top, dark)


def losses(curves: pd.DataFrame, *, dark: bool = False, keep: object = True) -> go.Figure:
    """Each healer's loss relative to its own first one, over its steps, log scale. Columns: healer, label, seed, step, loss, steps, labels."""
    shown = curves[curves["loss"] > 0]
    fig = theme.figure("Does every loss fall?", dark=dark, height=400, x="Healing step", y="Loss / first loss, log scale", keep=keep)
    styles, ends, low = looks(curves, dark=dark), {}, 0.5
    for (healer, _), rows in shown.groupby(["healer", "seed"], sort=False):
        rows, look = rows.sort_values("step"), styles[healer]
        relative = rows["loss"] / rows["loss"].iloc[0]
        low = min(low, float(relative.min()))
        fig.add_scatter(
            x=rows["step"], y=relative, mode="lines", name=rows["label"].iloc[0], showlegend=False, line=look.line(),
            customdata=rows["loss"], hovertemplate=f"{rows['label'].iloc[0]}, step %{{x}}<br>loss %{{customdata:.3g}}<extra></extra>",
        )  # fmt: skip
        ends[healer] = (rows["label"].iloc[0], rows["step"].iloc[-1], float(np.log10(relative.iloc[-1])), look.colour)
    bottom, top = np.log10(low) - 0.15, 0.3
    fig.update_yaxes(type="log", exponentformat="power", dtick=1, range=[bottom, top])
    reach = max([1.0, *shown["step"]])
    fig.update_xaxes(range=[0, 1.02 * reach])
    return _named(fig, ends.values(), bottom, top, dark)


def _line(rows: pd.DataFrame, x: np.ndarray, axis: str, look: Look) -> go.Scatter:
    label, unit = rows["label"].iloc[0], "images" if axis == "images" else "% sparsity"
    return go.Scatter(
        x=x, y=100 * rows["share"], mode="lines+markers", name=label, showlegend=False, line=look.line(), marker=look.marker(), cliponaxis=False,
        error_y={
            "array": 100 * (rows["share_high"] - rows["share"]), "arrayminus": 100 * (rows["share"] - rows["share_low"]),
            "thickness": 1.2, "width": 4, "color": theme.tint(look.colour, 0.7),
        },
        customdata=np.column_stack([rows[axis] * (1 if axis == "images" else 100), 100 * rows[["top1", "low", "high"]], rows["seeds"]]),
        hovertemplate=f"{label}, %{{customdata[0]:g}} {unit}<br>%{{y:.1f}} % of dense<br>top-1 %{{customdata[1]:.1f}} %, 95 % interval "
        "%{customdata[2]:.1f} to %{customdata[3]:.1f} %<br>seeds: %{customdata[4]}<extra>measured</extra>",
    )  # fmt: skip


def _published(literature: pd.DataFrame, dark: bool) -> go.Scatter:
    return go.Scatter(
        x=100 * literature["sparsity"], y=100 * literature["share"], mode="markers+text", name="published", showlegend=False, cliponaxis=False,
        marker=_hollow(literature["label"].iloc[0], dark), text=literature["label"], textposition="bottom center",
        textfont={"size": 11, "color": theme.ink(dark, quiet=True)}, customdata=literature[["source"]].to_numpy(),
        hovertemplate="%{text}<br>%{y:.0f} % of dense at %{x:.0f} %<br>%{customdata[0]}<extra>literature</extra>",
    )  # fmt: skip


def _hollow(label: str, dark: bool) -> dict[str, object]:
    colour = theme.stage_colour("healed", dark) if "STARFISH" in label else theme.ink(dark, quiet=True)
    return {"symbol": "diamond-open", "size": 12, "color": colour, "line": {"color": colour, "width": 1.5}}


def _error(row, colour: str) -> dict[str, object]:
    return {
        "array": [100 * (row.share_high - row.share)], "arrayminus": [100 * (row.share - row.share_low)],
        "thickness": 1.8, "width": 6, "color": theme.tint(colour, 0.8),
    }  # fmt: skip


def _row_height(rows: int) -> int:
    """Pixels that so many rows of names take: closer together where there are many."""
    return (44 if rows <= 8 else 32) * max(rows, 1)


def _dense(fig: go.Figure, dark: bool) -> None:
    """The dense network's level, named at its right end: names of fast healers stand at the left one."""
    colour = theme.stage_colour("dense", dark)
    said = {"text": "dense", "font": {"size": 12, "color": colour}}
    fig.add_hline(y=100, line={"color": colour, "width": 1, "dash": "dot"}, annotation=said, annotation_position="top right")


def _aside(values: pd.Series, axis: str, place: float) -> np.ndarray:
    """Where a healer's marks stand: a little beside its neighbours', so that intervals do not hide one another."""
    return values.to_numpy() * 1.015**place if axis == "images" else 100 * values.to_numpy() + 0.25 * place


def _limits(high: pd.Series, low: pd.Series) -> tuple[float, float]:
    """(top, bottom) of an axis of shares in percent, dense within."""
    return max(106.0, float(high.max()) + 2 if len(high) else 0.0), max(0.0, float(low.min()) - 4) if len(low) else 0.0


def _named(fig: go.Figure, ends: Iterable[tuple[str, float, float, str]], bottom: float, top: float, dark: bool) -> go.Figure:
    """Each line's name (name, x, y, colour) at its end, moved up or down where names would stand on each other. x and y as the axes count."""
    ordered = sorted(ends, key=lambda end: end[2])
    if not ordered:
        return fig
    inside = fig.layout.height - 130  # what the axes are high, in pixels, about
    ordered = [(_two_lines(name), *rest) for name, *rest in ordered]
    gaps = [LABEL_GAP * (1 + ("<br>" in below[0] or "<br>" in above[0])) * (top - bottom) / inside for below, above in zip(ordered, ordered[1:])]
    places = [max(bottom, min(top, end[2])) for end in ordered]
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + gaps[i - 1])
    for i in reversed(range(len(places))):
        ceiling = top if i == len(places) - 1 else places[i + 1] - gaps[i]
        places[i] = min(places[i], ceiling)
    for (name, x, _, colour), place in zip(ordered, places):
        fig.add_annotation(
            xref="x", x=x, xanchor="left", xshift=10, yref="y domain", y=(place - bottom) / (top - bottom), yanchor="middle", text=name,
            showarrow=False, font={"size": 12, "color": colour}, align="left", bgcolor=theme.tint(theme.paper(dark), 0.7),
        )  # fmt: skip
    return fig.update_layout(margin_r=24 + int(6.6 * max(len(line) for end in ordered for line in end[0].split("<br>"))), margin_t=56)


def _two_lines(name: str) -> str:
    """A long chain on two lines, so that charts of narrow pages keep room for what they show."""
    return name.replace(" + ", "<br>+ ", 1) if len(name) > LONG else name

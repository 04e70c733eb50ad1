"""The look that all charts share: colours, symbols, fonts, axes, numbers.

`figure(title)` starts every chart. `layer_axis` gives every per-layer chart the same axis: depth from left to
right, faint lines between blocks. Stages differ by colour and symbol, origins by fill and dash, never by colour.
"""

from __future__ import annotations

import math
import textwrap
from functools import cache

import pandas as pd
import plotly.graph_objects as go

STAGES = ("dense", "pruned", "healed")
STAGE_COLOURS = {"dense": "#475569", "pruned": "#b26200", "healed": "#0d8070"}  # slate, amber, teal on light
STAGE_COLOURS_DARK = {"dense": "#8291b5", "pruned": "#f5a524", "healed": "#2dd4bf"}
STAGE_SYMBOLS = {"dense": "circle", "pruned": "x", "healed": "diamond"}

ORIGIN_SUFFIX = {"measured": "", "literature": "-open", "estimate": "-open"}  # appended to a marker symbol
ORIGIN_DASH = {"measured": "solid", "literature": "solid", "estimate": "dash"}

# Attention and MLP are one hue at two depths; what is neither stands between them.
KIND_NAMES = {"attention": "Attention", "mlp": "MLP", "other": "Convolution and other"}
KIND_OPACITY = {"attention": 1.0, "mlp": 0.5, "other": 0.75}

NARROW = 430  # pixels that a chart has beside the sidebar of a narrow window
TITLE_WIDTH, TITLE_LINE, LEGEND_ROW = 54, 22, 16  # characters of a title that fit there; pixels; pixels

FONT = '"Source Sans", "Source Sans Pro", -apple-system, "Segoe UI", sans-serif'
_INK = {False: "#0f172a", True: "#e2e8f0"}
_QUIET = {False: "#5b6878", True: "#9aa8b8"}
_GRID = {False: "#e6eaef", True: "#27323e"}
_PAPER = {False: "#ffffff", True: "#10161d"}

# Drift and other magnitudes: 0 is the paper's own colour, the most is the deepest violet. Dark starts from dark paper.
SEQUENTIAL = ["#ffffff", "#ece7f5", "#d2c6e8", "#b39fd6", "#9478c1", "#7653a8", "#593288", "#3c1a63"]
SEQUENTIAL_DARK = ["#10161d", "#211f38", "#372b5a", "#523c83", "#7154ab", "#957acb", "#bba6e4", "#e6dcfa"]

CONFIG = {"displaylogo": False, "modeBarButtonsToRemove": ["lasso2d", "select2d", "autoScale2d"], "responsive": True}


def stage_colour(stage: str, dark: bool = False) -> str:
    """Colour of a stage on the present paper."""
    return (STAGE_COLOURS_DARK if dark else STAGE_COLOURS)[stage]


def ink(dark: bool = False, *, quiet: bool = False) -> str:
    """Colour of text; quiet for what should stay in the background."""
    return (_QUIET if quiet else _INK)[dark]


def paper(dark: bool = False) -> str:
    """Colour of the page behind a chart."""
    return _PAPER[dark]


def tint(colour: str, opacity: float) -> str:
    """'#rrggbb' at an opacity, as Plotly's rgba."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity:g})"


def sequential(dark: bool = False) -> list[list[object]]:
    """Plotly colour scale for magnitudes: 0 looks like no ink at all."""
    colours = SEQUENTIAL_DARK if dark else SEQUENTIAL
    return [[i / (len(colours) - 1), colour] for i, colour in enumerate(colours)]


def marker(stage: str, *, origin: str = "measured", dark: bool = False, size: int = 9) -> dict[str, object]:
    """Marker of a stage: colour and symbol say the stage, filled or hollow says measured or not."""
    colour = stage_colour(stage, dark)
    return {"color": colour, "symbol": STAGE_SYMBOLS[stage] + ORIGIN_SUFFIX[origin], "size": size, "line": {"color": colour, "width": 1.5}}


@cache
def template(dark: bool = False) -> go.layout.Template:
    """Fonts, margins, hover and axes of every chart; paper stays transparent so that the page shows through."""
    axis = {
        "gridcolor": _GRID[dark],
        "zeroline": False,
        "linecolor": _GRID[dark],
        "ticks": "",
        "automargin": True,
        "title": {"font": {"size": 13, "color": _QUIET[dark]}, "standoff": 8},
        "tickfont": {"size": 12, "color": _QUIET[dark]},
    }
    layout = go.Layout(
        font={"family": FONT, "size": 13, "color": _INK[dark]},
        title={
            "font": {"size": 17, "weight": 600},
            "x": 0,
            "xanchor": "left",
            "y": 1,
            "yref": "container",
            "yanchor": "top",
            "pad": {"l": 4, "t": 10},
        },
        colorway=[stage_colour(stage, dark) for stage in STAGES],
        colorscale={"sequential": sequential(dark)},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 8, "r": 12, "t": 66, "b": 8},
        xaxis=axis,
        yaxis=axis,
        hoverlabel={"font": {"family": FONT, "size": 13, "color": _INK[dark]}, "bgcolor": _PAPER[dark], "bordercolor": _QUIET[dark], "align": "left"},
        legend={"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom", "font": {"size": 12}, "bgcolor": "rgba(0,0,0,0)"},
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": _GRID[dark], "activecolor": _QUIET[dark]},
        bargap=0.15,
        dragmode=False,
    )
    return go.layout.Template(layout=layout)


def figure(title: str, *, dark: bool = False, height: int = 400, x: str = "", y: str = "", keep: object = True) -> go.Figure:
    """An empty chart in the lab's look. `title` is a finding or a question in words.

    `x` and `y` are axis titles with their units. Zoom survives redrawing for as long as `keep` stays equal.
    """
    fig = go.Figure()
    fig.update_layout(template=template(dark), title_text=title, height=height, uirevision=str(keep), xaxis_title_text=x, yaxis_title_text=y)
    return fig


def wrapped(fig: go.Figure) -> go.Figure:
    """The same chart, its title on as many lines as a narrow page needs, with room for these and for a legend of two rows."""
    title = (fig.layout.title.text or "").replace(" %", "\u00a0%")  # a number stays with its unit
    lines = textwrap.wrap(title, TITLE_WIDTH, break_on_hyphens=False)
    if len(lines) > 1 and "<" not in title:  # as even as they can be
        widths = range(len(title) // len(lines), TITLE_WIDTH + 1)
        lines = next(found for width in widths if len(found := textwrap.wrap(title, width, break_on_hyphens=False)) == len(lines))
        more = TITLE_LINE * (len(lines) - 1)
        fig.update_layout(title_text="<br>".join(lines), title_pad={"l": 4, "t": 10 + more / 2})  # Plotly sets lines around the first one's place
        _higher(fig, more)
    listed = [trace for trace in fig.data if getattr(trace, "showlegend", False) is not False and trace.name]  # pictures stand in no legend
    names = {trace.legendgroup or trace.name for trace in listed}
    wide = sum(6 * len(name) + 45 for name in names)  # pixels, about
    if wide > NARROW and (fig.layout.legend.y is None or fig.layout.legend.y >= 1):
        _higher(fig, LEGEND_ROW)
    return fig


def legend_below(fig: go.Figure, *, room: int = 30) -> go.Figure:
    """The same chart with its legend under the axis title, `room` pixels higher: where long names would stand in each other's and the title's way."""
    height = fig.layout.height + room
    inside = max(height - 140, 60)  # what the axes are high, about; 62 pixels under them is room for ticks and title
    return fig.update_layout(height=height, legend={"y": -62 / inside, "yanchor": "top"})


def _higher(fig: go.Figure, more: float) -> None:
    """Room above what is drawn, which stays as large as it was."""
    margin = fig.layout.margin.t if fig.layout.margin.t is not None else fig.layout.template.layout.margin.t
    fig.update_layout(margin_t=margin + more, height=fig.layout.height + more)


def layer_axis(fig: go.Figure, layers: pd.DataFrame, *, dark: bool = False) -> dict[str, int]:
    """Give a chart the axis all per-layer charts share; returns {layer name: position}.

    `layers` needs the columns layer, block and depth, in depth order. Ticks stand in the middle of blocks and show
    their number; faint lines stand between blocks. Layers outside every block (depth -1) get no tick.
    """
    order = layers.drop_duplicates("layer").reset_index(drop=True)
    runs = order["block"].ne(order["block"].shift()).cumsum()
    blocks = [(int(rows["depth"].iloc[0]), rows.index[0], rows.index[-1]) for _, rows in order.groupby(runs)]
    every = max(1, math.ceil(len(blocks) / 24))
    ticks = [(f"{depth}", (first + last) / 2) for depth, first, last in blocks if depth >= 0 and depth % every == 0]
    line = {"type": "line", "xref": "x", "yref": "paper", "y0": 0, "y1": 1, "layer": "below", "line": {"color": _GRID[dark], "width": 1}}
    fig.update_layout(
        shapes=[*fig.layout.shapes, *({**line, "x0": last + 0.5, "x1": last + 0.5} for _, _, last in blocks[:-1])],
        xaxis={
            "tickmode": "array",
            "tickvals": [middle for _, middle in ticks],
            "ticktext": [text for text, _ in ticks],
            "range": [-0.6, len(order) - 0.4],
            "showgrid": False,
            "title": {"text": "Block, by depth"},
        },
    )
    return {layer: position for position, layer in enumerate(order["layer"])}


def role(layer: str, part: str = "") -> str:
    """What a weight matrix does in its block, in the field's short names: q, k, v, qkv, proj, fc1, fc2, conv1 …

    >>> role("blocks.3.attn.qkv", "q"), role("blocks.3.mlp.fc1"), role("layer1.0.downsample.0")
    ('q', 'fc1', 'downsample')
    """
    if part:
        return part
    words = [word for word in layer.split(".") if not word.isdigit()]
    return words[-1] if words else layer


def number(value: float | None, unit: str = "") -> str:
    """Three significant digits and the unit; a dash for what is not known.

    >>> number(0.98765), number(1234.5, "ms"), number(5), number(None)
    ('0.988', '1,230 ms', '5', '–')
    """
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return f"0 {unit}".strip()
    rounded = float(f"{value:.3g}")
    decimals = max(0, 2 - math.floor(math.log10(abs(rounded))))
    text = f"{value:.2e}" if abs(rounded) < 1e-4 else f"{rounded:,.{decimals}f}"
    text = text if not (isinstance(value, int) or float(value).is_integer()) or abs(value) >= 1000 else f"{value:.0f}"
    return f"{text} {unit}".strip()


def count(value: float) -> str:
    """A count as the field writes it: 1,234 · 56.8 k · 2.36 M · 1.02 G.

    >>> count(980), count(36864), count(2359296)
    ('980', '36.9 k', '2.36 M')
    """
    for least, unit, letter in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(value) >= least:
            return number(value / unit, letter)
    return f"{value:,.0f}"


def percent(fraction: float | None, digits: int = 1) -> str:
    """A fraction as percent: 0.9 → '90.0 %'."""
    return "–" if fraction is None or not math.isfinite(fraction) else f"{100 * fraction:.{digits}f} %"


def sentence(text: str) -> str:
    """The text with a capital in front; the rest stays: 'noise with 2 spikes' → 'Noise with 2 spikes'."""
    return text[:1].upper() + text[1:]

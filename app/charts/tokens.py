"""Charts of token merging: which patches of a picture share a token, and how many tokens and multiply-adds that leaves over depth."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from PIL import Image

from app.charts import theme

_CLEAR = [[0, "rgba(0,0,0,0)"], [1, "rgba(0,0,0,0)"]]


def merge_map(picture: Mapping[str, object], patches: pd.DataFrame, *, dark: bool = False, keep: object = True) -> go.Figure:
    """A picture beside the patches that share a token after a block: filled with their mean colour and outlined.

    picture: png (base64), rows and cols of patches. patches: depth (one), row, col, token, size; a row a patch. Axes count patches.
    """
    rows, cols = int(picture["rows"]), int(picture["cols"])
    tokens, sizes = (_grid(patches, name, rows, cols) for name in ("token", "size"))
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(str(picture["png"])))).convert("RGB"))
    fig = theme.figure(_map_title(int(patches["depth"].iloc[0]), tokens, sizes), dark=dark, height=470, keep=keep)
    for axis, shown in (("", pixels), ("2", filled(pixels, tokens, sizes))):
        fig.add_trace(_image(shown, rows, cols, axis))
    outlines = _outlines(tokens, sizes)
    for colour, width in (("rgba(0,0,0,0.55)", 3.5), ("rgba(255,255,255,0.95)", 1.5)):  # visible on bright and on dark pictures
        fig.add_scatter(
            x=[x for line in outlines for x in (*line[0], None)], y=[y for line in outlines for y in (*line[1], None)], mode="lines",
            line={"color": colour, "width": width}, hoverinfo="skip", showlegend=False, xaxis="x2", yaxis="y2", name="outlines",
        )  # fmt: skip
    words = np.where(sizes > 1, np.char.add(sizes.astype(str), " patches share this token"), "a token of its own")
    fig.add_heatmap(
        z=sizes, x=list(range(cols)), y=list(range(rows)), colorscale=_CLEAR, showscale=False, xaxis="x2", yaxis="y2", name="sizes", text=words,
        hovertemplate="row %{y}, column %{x}<br>%{text}<extra></extra>",
    )  # fmt: skip
    for number, (start, end, text) in enumerate(((0.0, 0.49, "What the network sees"), (0.51, 1.0, "One colour, one outline: one token")), start=1):
        hidden = {"visible": False, "showgrid": False}
        fig.update_layout({
            f"xaxis{number}": {**hidden, "domain": [start, end], "range": [-0.55, cols - 0.45], "constrain": "domain", "anchor": f"y{number}"},
            f"yaxis{number}": {
                **hidden, "range": [rows - 0.45, -0.55], "scaleanchor": f"x{number}", "constrain": "domain", "constraintoward": "top",
                "anchor": f"x{number}",
            },
        })  # fmt: skip
        fig.add_annotation(
            text=text, x=(start + end) / 2, y=1, xref="paper", yref="paper", xanchor="center", yanchor="bottom", showarrow=False,
            font={"size": 12, "color": theme.ink(dark, quiet=True)},
        )  # fmt: skip
    return fig


def filled(pixels: np.ndarray, tokens: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The picture (H, W, 3) with the patches of every merged token in their mean colour; what has not merged stays as it is."""
    rows, cols = tokens.shape
    high, wide = pixels.shape[0] // rows, pixels.shape[1] // cols
    cut = pixels[: high * rows, : wide * cols].reshape(rows, high, cols, wide, 3).swapaxes(1, 2).copy()  # (rows, cols, high, wide, 3)
    for token in np.unique(tokens[sizes > 1]):
        inside = tokens == token
        cut[inside] = cut[inside].mean(axis=(0, 1, 2)).round().astype(np.uint8)
    return cut.swapaxes(1, 2).reshape(high * rows, wide * cols, 3)


def tokens_over_depth(estimate: pd.DataFrame, measured: pd.DataFrame, *, saved: float, dark: bool = False) -> go.Figure:
    """Tokens that leave every block, and below them the share of the block's multiply-adds that merging saves.

    estimate: depth, tokens, share_saved (fraction), by the schedule. measured: depth, tokens, of a run; may be empty.
    `saved` is the share of the whole network's multiply-adds.
    """
    title = f"{theme.percent(saved)} fewer multiply-adds in all, by estimate" if saved else "Nothing merges, nothing is saved"
    fig = theme.figure(title, dark=dark, height=330)
    colour = theme.stage_colour("pruned", dark)
    fig.add_scatter(
        x=estimate["depth"], y=estimate["tokens"], mode="lines+markers", name="tokens, by the schedule", cliponaxis=False,
        line={"color": colour, "width": 1.5, "dash": theme.ORIGIN_DASH["estimate"]},
        marker=theme.marker("pruned", origin="estimate", dark=dark, size=8),
        hovertemplate="after block %{x}<br>%{y} tokens<extra>estimate</extra>",
    )  # fmt: skip
    if len(measured):
        fig.add_scatter(
            x=measured["depth"], y=measured["tokens"], mode="markers", name="tokens, as run", cliponaxis=False,
            marker=theme.marker("pruned", dark=dark, size=8), hovertemplate="after block %{x}<br>%{y} tokens<extra>measured</extra>",
        )  # fmt: skip
    hatch = {"shape": "/", "fillmode": "overlay", "fgcolor": theme.paper(dark), "fgopacity": 0.4, "size": 7, "solidity": 0.2}
    fig.add_bar(
        x=estimate["depth"], y=100 * estimate["share_saved"], name="MACs saved, by the schedule", yaxis="y2",
        marker={"color": theme.tint(colour, 0.75), "pattern": hatch}, hovertemplate="block %{x}<br>%{y:.1f} % fewer MACs<extra>estimate</extra>",
    )  # fmt: skip
    every = max(1, -(-len(estimate) // 24))
    fig.update_layout(
        xaxis={"title": {"text": "Block, by depth"}, "anchor": "y2", "tickvals": list(estimate["depth"])[::every], "showgrid": False},
        yaxis={"title": {"text": "Tokens left"}, "domain": [0.46, 1], "rangemode": "tozero"},
        yaxis2={"title": {"text": "MACs saved (%)"}, "domain": [0, 0.36], "rangemode": "tozero", "anchor": "x"},
    )
    return fig


def _map_title(depth: int, tokens: np.ndarray, sizes: np.ndarray) -> str:
    left = len(np.unique(tokens))
    if left == tokens.size:
        return f"After block {depth} each of the {tokens.size} patches still has a token of its own"
    return f"After block {depth}, {left} tokens hold the {tokens.size} patches; the largest holds {sizes.max()}"


def _grid(patches: pd.DataFrame, column: str, rows: int, cols: int) -> np.ndarray:
    grid = np.zeros((rows, cols), dtype=int)
    grid[patches["row"], patches["col"]] = patches[column]
    return grid


def _image(pixels: np.ndarray, rows: int, cols: int, axis: str) -> go.Image:
    """Pixels laid over axes that count patches."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    dx, dy = cols / pixels.shape[1], rows / pixels.shape[0]
    source = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    return go.Image(source=source, x0=dx / 2 - 0.5, y0=dy / 2 - 0.5, dx=dx, dy=dy, hoverinfo="skip", xaxis=f"x{axis}", yaxis=f"y{axis}")


def _outlines(tokens: np.ndarray, sizes: np.ndarray) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """Edges ((x, x), (y, y)) between patches of different tokens of which one at least has merged, and around those at the border."""
    rows, cols = tokens.shape
    token, merged = np.pad(tokens, 1, constant_values=-1), np.pad(sizes > 1, 1)
    lines = []
    for row in range(rows + 1):
        for col in range(cols + 1):
            here = (row + 1, col + 1)
            left = (row + 1, col), ((col - 0.5, col - 0.5), (row - 0.5, row + 0.5))
            above = (row, col + 1), ((col - 0.5, col + 0.5), (row - 0.5, row - 0.5))
            for other, line in (left, above):
                if token[here] != token[other] and (merged[here] or merged[other]):
                    lines.append(line)
    return lines

"""Where networks look: shares of attention laid over the picture that they see."""

from __future__ import annotations

import base64
import io

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from PIL import Image

from app.charts import theme

DARKEST, LIGHTEST = 50, 210  # grey of the picture under the marks, which stand out on it whether it was dark or bright
MARK = "139, 92, 246"
SCALE = [[0, f"rgba({MARK}, 0)"], [1, f"rgba({MARK}, 0.9)"]]


def maps(picture: dict[str, object], attention: pd.DataFrame, *, dark: bool = False, keep: object = True) -> go.Figure:
    """For each stage the picture in grey, with each patch as violet as its share of the attention.

    picture: png (base64), rows and cols of patches; attention: stage, values (rows · cols). All stages share one scale.
    """
    rows, cols = int(picture["rows"]), int(picture["cols"])
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(str(picture["png"])))).convert("RGB"))
    grids = {row["stage"]: np.array(row["values"], float).reshape(rows, cols) for row in attention.to_dict("records")}
    fig = theme.figure(_title(grids), dark=dark, height=390, keep=keep)
    wide, source = 1 / len(grids), _png(grey(pixels))
    for number, (stage, grid) in enumerate(grids.items(), start=1):
        axes, start = {"xaxis": f"x{number}", "yaxis": f"y{number}"}, (number - 1) * wide
        dx, dy = cols / pixels.shape[1], rows / pixels.shape[0]
        fig.add_trace(go.Image(source=source, x0=dx / 2 - 0.5, y0=dy / 2 - 0.5, dx=dx, dy=dy, hoverinfo="skip", **axes))
        fig.add_heatmap(
            z=100 * grid, coloraxis="coloraxis", name=stage, **axes,
            hovertemplate=f"{stage}: row %{{y}}, column %{{x}}<br>%{{z:.2f}} % of the attention<extra></extra>",
        )  # fmt: skip
        hidden = {"visible": False, "showgrid": False, "constrain": "domain"}
        fig.update_layout({
            f"xaxis{number}": {**hidden, "domain": [start, start + 0.97 * wide], "range": [-0.5, cols - 0.5], "anchor": f"y{number}"},
            f"yaxis{number}": {**hidden, "range": [rows - 0.5, -0.5], "scaleanchor": f"x{number}", "constraintoward": "top", "anchor": f"x{number}"},
        })  # fmt: skip
        fig.add_annotation(
            text=stage, x=start + 0.485 * wide, y=1, xref="paper", yref="paper", xanchor="center", yanchor="bottom",
            showarrow=False, font={"size": 13, "color": theme.ink(dark)},
        )  # fmt: skip
    bar = {"title": {"text": "Share of the attention (%)", "side": "top", "font": {"size": 12}}, "thickness": 10, "outlinewidth": 0}
    place = {"orientation": "h", "len": 0.5, "x": 0.5, "y": 0, "yanchor": "top"}
    return fig.update_layout(coloraxis={"colorscale": SCALE, "cmin": 0, "colorbar": bar | place})


def grey(pixels: np.ndarray) -> np.ndarray:
    """The picture (H, W, 3) without colour, black and white drawn closer together."""
    light = pixels.mean(axis=2, keepdims=True) / 255
    return np.repeat((DARKEST + (LIGHTEST - DARKEST) * light).round().astype(np.uint8), 3, axis=2)


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    """Share of the attention to patches that two maps have in common, 0 to 1.

    >>> overlap(np.array([0.2, 0.2]), np.array([0.4, 0.0]))
    0.5
    """
    a, b = (grid / grid.sum() if grid.sum() else grid for grid in (first, second))
    return float(np.minimum(a, b).sum())


def _title(grids: dict[str, np.ndarray]) -> str:
    if "dense" not in grids or len(grids) < 2:
        return "Where the network looks"
    shares = [f"{stage} {'shares ' * (i == 0)}{theme.percent(overlap(grids['dense'], grids[stage]), 0)}" for i, stage in enumerate(list(grids)[1:])]
    shares[0] += " of the dense network's attention"
    return theme.sentence(", ".join(shares))


def _png(pixels: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"

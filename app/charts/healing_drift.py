"""Charts of healing seen from inside: drift of every block before, during and after, and the accuracy that comes back with it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from app.charts import cells, theme
from app.charts.drift import METRICS, distances

KEEPS = 0.5  # a block that keeps this share of its drift has not healed


def finding(before: pd.Series, after: pd.Series) -> str:
    """Which blocks healed, in a sentence. Drift of each block, indexed by depth, pruned and healed.

    >>> before = pd.Series([0.1, 0.2, 0.4, 0.4])
    >>> finding(before, pd.Series([0.01, 0.02, 0.24, 0.24]))
    'Blocks 2 and 3 keep 60 % of their drift, the others 10 %'
    >>> finding(before, before / 8), finding(before, 2 * before)
    ('Every block loses at least 87 % of its drift', 'No block loses half of its drift')
    """
    before = before[before > 0]
    kept = (after / before).dropna()
    slow = kept[kept >= KEEPS].index
    if kept.empty:
        return "No block drifted"
    if slow.empty:
        return f"Every block loses at least {int(100 * (1 - kept.max()) + 1e-9)} % of its drift"
    if len(slow) == len(kept):
        return "No block loses half of its drift"
    others = kept.index.difference(slow)
    of_slow, of_others = (after[blocks].sum() / before[blocks].sum() for blocks in (slow, others))
    keep = "keeps {} of its drift" if len(slow) == 1 else "keep {} of their drift"
    rest = "the other" if len(others) == 1 else "the others"
    return f"{_blocks(list(slow), len(kept))} {keep.format(theme.percent(of_slow, 0))}, {rest} {theme.percent(of_others, 0)}"


def _blocks(depths: list[int], count: int) -> str:
    """'Block 3', 'Blocks 2 and 5', 'Blocks 9 to 12', '7 of 12 blocks'."""
    runs = [[depths[0]]]
    for depth in depths[1:]:
        if depth == runs[-1][-1] + 1:
            runs[-1].append(depth)
        else:
            runs.append([depth])
    words = [f"{run[0]} to {run[-1]}" if len(run) > 2 else " and ".join(map(str, run)) for run in runs]
    if len(depths) == 1:
        return f"Block {depths[0]}"
    if len(runs) > 2 or (len(runs) == 2 and any(" and " in word for word in words)):
        return f"{len(depths)} of {count} blocks"
    return f"Blocks {' and '.join(words)}"


def at_step(
    drift: pd.DataFrame, seen: pd.DataFrame, *, step: int, metric: str = "cosine_distance", dark: bool = False, keep: object = True
) -> go.Figure:
    """Drift over depth: pruned and healed as lines, and between them a bar a block for one step of healing.

    `drift` is the report's table of that name, `seen` its 'healing_drift'. The axis is the same for every step.
    """
    ends = {stage: _of(drift[drift["stage"] == stage], metric) for stage in theme.STAGES[1:]}
    looks = distances(seen.assign(tokens="all"), metric=metric, tokens="all")
    now = looks[looks["step"] == step].set_index("depth")["distance"].sort_index()
    largest = max([looks["distance"].max(), *(line.max() for line in ends.values())])
    fig = theme.figure(finding(ends["pruned"], ends["healed"]), dark=dark, height=340, x="Block, by depth", y=METRICS[metric][1], keep=keep)
    fig.add_bar(
        x=now.index, y=now, name=f"after step {step}",
        marker={
            "color": now, "colorscale": theme.sequential(dark), "cmin": 0, "cmax": largest,
            "line": {"color": theme.ink(dark, quiet=True), "width": 1},
        },
        hovertemplate=f"step {step}, block %{{x}}<br>{METRICS[metric][0].lower()} %{{y:.3g}}<extra></extra>",
    )  # fmt: skip
    for stage, line in ends.items():
        fig.add_scatter(
            x=line.index, y=line, mode="lines+markers", name=stage, marker=theme.marker(stage, dark=dark),
            line={"color": theme.stage_colour(stage, dark), "width": 2}, cliponaxis=False,
            hovertemplate=f"{stage}, block %{{x}}<br>{METRICS[metric][0].lower()} %{{y:.3g}}<extra></extra>",
        )  # fmt: skip
    fig.update_xaxes(dtick=1 if len(now) <= 24 else 4, showgrid=False)
    fig.update_yaxes(range=[0, 1.06 * largest])
    fig.update_layout(bargap=0.35)
    return fig


def over_steps(
    drift: pd.DataFrame, seen: pd.DataFrame, *, step: int | None = None, metric: str = "cosine_distance", dark: bool = False, keep: object = True
) -> go.Figure:  # fmt: skip
    """Drift of each block (left to right by depth) at each step that was looked at (upwards, from pruned). Tables as for `at_step`.

    The row of `step` is outlined.
    """
    looks = distances(seen.assign(tokens="all"), metric=metric, tokens="all")
    grid = looks.pivot_table(index="step", columns="depth", values="distance")
    pruned = _of(drift[drift["stage"] == "pruned"], metric).reindex(grid.columns)
    rows = ["pruned", *(f"step {step}" for step in grid.index)]
    fig = theme.figure(_first_healed(grid, pruned), dark=dark, height=340, x="Block, by depth", keep=keep)
    z, largest = np.vstack([pruned, grid]), max(float(looks["distance"].max()), float(pruned.max()))
    fig.add_heatmap(
        x=list(grid.columns), y=rows, z=z, name="blocks", xgap=1, ygap=2, zmin=0, zmax=largest, colorscale=theme.sequential(dark),
        colorbar={"title": {"text": METRICS[metric][0], "side": "right", "font": {"size": 12}}, "thickness": 12, "outlinewidth": 0},
        hovertemplate=f"block %{{x}}, %{{y}}<br>{METRICS[metric][0].lower()} %{{z:.3g}}<extra></extra>",
    )  # fmt: skip
    if len(grid.columns) <= cells.MOST:
        cells.write(fig, cells.figures(z), z, x=list(grid.columns), y=rows, largest=largest, dark=dark)
    fig.update_layout(margin_t=48)
    fig.update_xaxes(dtick=1 if len(grid.columns) <= 24 else 4, showgrid=False)
    fig.update_yaxes(type="category", showgrid=False)
    if step is not None:
        row, ink = rows.index(f"step {step}"), theme.stage_colour("healed", dark)
        fig.add_shape(type="rect", xref="paper", x0=0, x1=1, y0=row - 0.5, y1=row + 0.5, line={"color": ink, "width": 2})
    return fig


def _first_healed(grid: pd.DataFrame, pruned: pd.Series) -> str:
    """When drift as a whole had fallen by half."""
    share = grid.mean(axis=1) / pruned.mean() if pruned.mean() else pd.Series(dtype=float)
    halved = share[share <= KEEPS]
    if share.empty or halved.empty:
        return "Drift never falls by half"
    step = halved.index[0]
    return f"At step {step} half of the drift is gone" if step else "Half of the drift is gone before the first step"


def accuracy(seen: pd.DataFrame, dense: float | None, *, step: int | None = None, dark: bool = False, keep: object = True) -> go.Figure:
    """Top-1 at each step that was looked at, with its 95 % Wilson interval. Columns: step, top1, low, high, images.

    Where the columns top1_dense and top1_pruned say how those networks did on the same images, they are lines; else `dense`, on all
    images, is one. `step` is ringed.
    """
    seen = seen.sort_values("step")
    same = "top1_dense" in seen
    n = int(seen["images"].iloc[-1])
    title = f"From {100 * seen['top1'].iloc[0]:.1f} % to {100 * seen['top1'].iloc[-1]:.1f} % in {seen['step'].iloc[-1]} steps"
    fig = theme.figure(title, dark=dark, height=340, x="Healing step", y=f"Top-1 accuracy (%), n = {n}", keep=keep)
    at = [str(step) for step in seen["step"]]
    colour = theme.stage_colour("healed", dark)
    fig.add_scatter(
        x=at, y=100 * seen["top1"], mode="lines+markers", name="while it heals", marker=theme.marker("healed", dark=dark),
        line={"color": colour, "width": 2}, cliponaxis=False, customdata=seen[["low", "high", "seconds"]].to_numpy(),
        error_y={"array": 100 * (seen["high"] - seen["top1"]), "arrayminus": 100 * (seen["top1"] - seen["low"]), "thickness": 1.2, "width": 4},
        hovertemplate="step %{x}, after %{customdata[2]:.3g} s<br>%{y:.1f} %, interval %{customdata[0]:.1%} to %{customdata[1]:.1%}<extra></extra>",
    )  # fmt: skip
    lines = {stage: seen[f"top1_{stage}"].iloc[0] for stage in ("dense", "pruned")} if same else {"dense": dense} if dense is not None else {}
    for stage, top1 in lines.items():
        fig.add_scatter(
            x=at, y=[100 * top1] * len(at), mode="lines", name=stage, line={"color": theme.stage_colour(stage, dark), "width": 1.5},
            hovertemplate=f"{stage}, {'the same' if same else 'all evaluation'} images: %{{y:.1f}} %<extra></extra>",
        )  # fmt: skip
    if step is not None and (now := seen[seen["step"] == step]["top1"]).size:
        ring = {"symbol": "circle-open", "size": 18, "color": theme.ink(dark), "line": {"width": 2}}
        fig.add_scatter(x=[str(step)], y=100 * now, mode="markers", name=f"step {step}", marker=ring, hoverinfo="skip", cliponaxis=False)
    fig.update_xaxes(type="category", showgrid=False)
    fig.update_yaxes(rangemode="tozero")
    return fig


def _of(rows: pd.DataFrame, metric: str) -> pd.Series:
    """Distance by depth, all tokens together."""
    return distances(rows, metric=metric, tokens="all").set_index("depth")["distance"].sort_index()

"""Lineage: which run came from which, and what it reached."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from app.charts import theme


def family(runs: pd.DataFrame, run: int) -> pd.DataFrame:
    """The run, its ancestors and everything descended from the oldest of them, parents first, with a column `generation`.

    `runs` has the columns id and parent. A parent that no longer exists ends the line of ancestors.
    """
    parent = {int(row.id): int(row.parent) for row in runs.itertuples() if pd.notna(row.parent)}
    known = {int(i) for i in runs["id"]}
    root = run
    while parent.get(root) in known:
        root = parent[root]
    found = {root: 0}
    for child in sorted(parent):  # a child always has a higher number than its parent
        if parent[child] in found:
            found[child] = found[parent[child]] + 1
    members = runs[runs["id"].isin(found)].sort_values("id")
    return members.assign(generation=[found[int(i)] for i in members["id"]])


def lineage(members: pd.DataFrame, *, chosen: int, dark: bool = False, keep: object = True) -> go.Figure:
    """A family of runs: generations from left to right, healed accuracy upwards, a line from parent to child.

    Columns: id, name, parent, generation, top1_healed (a fraction; runs without one stand at the bottom, hollow).
    """
    fig = theme.figure(f"Run {chosen} and its {len(members) - 1} relatives", dark=dark, height=300, x="Generation", y="Healed top-1 (%)", keep=keep)
    accuracy = 100 * members["top1_healed"].astype(float)
    floor = accuracy.min() if accuracy.notna().any() else 0.0
    members = members.assign(shown=accuracy.fillna(floor), known=accuracy.notna())
    at = members.set_index("id")
    x, y = [], []
    for row in members.itertuples():
        if pd.notna(row.parent) and row.parent in at.index:
            x += [at.loc[row.parent, "generation"], row.generation, None]
            y += [at.loc[row.parent, "shown"], row.shown, None]
    fig.add_scatter(
        x=x, y=y, mode="lines", name="parent to child", hoverinfo="skip", showlegend=False, line={"color": theme.ink(dark, quiet=True), "width": 1}
    )
    fig.add_scatter(
        x=members["generation"], y=members["shown"], mode="markers+text", text=[str(i) for i in members["id"]], textposition="top center",
        name="runs", showlegend=False, cliponaxis=False,
        marker={
            "symbol": ["diamond" if known else "diamond-open" for known in members["known"]], "color": theme.stage_colour("healed", dark),
            "size": [16 if i == chosen else 10 for i in members["id"]],
        },
        customdata=members[["id", "name", "status"]].to_numpy(),
        hovertemplate="run %{customdata[0]} %{customdata[1]}<br>%{customdata[2]}<br>%{y:.1f} %<extra></extra>",
    )  # fmt: skip
    fig.update_xaxes(dtick=1, showgrid=False)
    return fig

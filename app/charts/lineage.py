"""Lineage: from the dense network to what each run made of it, and from run to run."""

from __future__ import annotations

from html import escape

import pandas as pd
import plotly.graph_objects as go

from app.charts import theme

LINES = {  # kind of edge: what it says, dash, width
    "stage": ("within a run", "solid", 1.5), "continued": ("goes on from its network", "solid", 3.0),
    "cloned": ("cloned from its recipe", "dot", 1.5),
}  # fmt: skip
BULGE = 0.22  # of a column: how far the line to a clone bends aside, so that it passes the marks between
ROW, LONG = 34, 22  # pixels; characters of a name
ROOM = 2.1  # columns to the right of the last mark, for figures and what a run changed


def lineage(
    nodes: pd.DataFrame, edges: pd.DataFrame, *, names: dict[int, str], changes: dict[int, str], chosen: tuple[int, ...] = (), dark: bool = False,
    keep: object = True,
) -> go.Figure:  # fmt: skip
    """A row a run, a column a stage; accuracy and multiply-adds beside a run's last mark, and what it changed against the run it comes from.

    `nodes` and `edges` have the columns NODES and EDGES of `app.review.lineage`. customdata of a mark is [run]. Runs of `chosen` are large.
    """
    rows = list(names)
    fig = theme.figure(_title(nodes, chosen), dark=dark, height=150 + ROW * len(rows), keep=keep)
    for kind, (says, dash, width) in LINES.items():
        _edges(fig, edges[edges["kind"] == kind], says, dash, width, dark)
    for stage in (*theme.STAGES, "other"):
        of_stage = nodes[nodes["stage"] == stage] if stage in theme.STAGES else nodes[~nodes["stage"].isin(theme.STAGES)]
        if len(of_stage):
            fig.add_trace(_marks(of_stage, stage, changes, chosen, dark))
    for row in nodes[nodes["last"]].itertuples():
        changed = f"<span style='color:{theme.ink(dark, quiet=True)}'>  {_short(changes.get(row.run, ''), 2 * LONG)}</span>"
        fig.add_annotation(
            x=row.x, y=row.y, xshift=12, xanchor="left", text=f"{_figures(row)}{changed}", showarrow=False, font={"size": 12}, align="left"
        )
    heads = nodes.groupby("x")["name"].agg(lambda found: " or ".join(dict.fromkeys(found))).map(theme.sentence)
    fig.update_xaxes(
        side="top", tickmode="array", tickvals=list(heads.index), ticktext=list(heads), range=[-0.25, heads.index.max() + ROOM], showgrid=False
    )  # fmt: skip
    labels = [f"<b>{run}</b>  {_short(names[run], LONG)}" if run in chosen else f"{run}  {_short(names[run], LONG)}" for run in rows]
    fig.update_yaxes(tickmode="array", tickvals=list(range(len(rows))), ticktext=labels, range=[len(rows) - 0.4, -0.6], showgrid=False)
    return theme.legend_below(fig.update_layout(margin_t=70), room=0).update_layout(legend_y=-0.02)


def _title(nodes: pd.DataFrame, chosen: tuple[int, ...]) -> str:
    runs, dense = nodes["run"].nunique(), int((nodes["stage"] == "dense").sum())
    if len(chosen) == 1 and runs > 1:
        return f"Run {chosen[0]} and its {runs - 1} relative{'s' if runs > 2 else ''}"
    return f"{runs} run{'s' if runs > 1 else ''} of {dense} dense network{'s' if dense > 1 else ''}"


def _edges(fig: go.Figure, edges: pd.DataFrame, says: str, dash: str, width: float, dark: bool) -> None:
    """All edges of a kind as one trace: to a clone in a bow to the left, to what goes on from a network down and then along its row."""
    if edges.empty:
        return
    kind, x, y = edges["kind"].iloc[0], [], []
    for edge in edges.itertuples():
        between = {
            "cloned": [(min(edge.x0, edge.x1) - BULGE, (edge.y0 + edge.y1) / 2)], "continued": [(edge.x0, edge.y1)], "stage": [],
        }[kind]  # fmt: skip
        x += [edge.x0, *(place[0] for place in between), edge.x1, None]
        y += [edge.y0, *(place[1] for place in between), edge.y1, None]
    colour = theme.tint(theme.ink(dark, quiet=True), 0.55)
    line = {"color": colour, "width": width, "dash": dash, "shape": "spline" if kind == "cloned" else "linear", "smoothing": 1.3}
    fig.add_scatter(x=x, y=y, mode="lines", name=says, hoverinfo="skip", line=line, showlegend=kind != "stage")


def _marks(nodes: pd.DataFrame, stage: str, changes: dict[int, str], chosen: tuple[int, ...], dark: bool) -> go.Scatter:
    known = stage in theme.STAGES
    marker = theme.marker(stage, dark=dark) if known else {"symbol": "circle-open-dot", "color": theme.ink(dark, quiet=True)}
    hover = [
        "<br>".join(
            filter(None, [_short(row.label, 80), f"{row.name}: {_figures(row)}", _interval(row), _short(changes.get(row.run, ""), 80), row.status])
        )
        for row in nodes.itertuples(index=False)
    ]
    sizes = [15 if node.run in chosen or node.stage == "dense" else 10 for node in nodes.itertuples()]
    return go.Scatter(
        x=nodes["x"], y=nodes["y"], mode="markers", name=stage if known else "not finished", cliponaxis=False, hovertext=hover,
        marker={**marker, "opacity": 1, "size": sizes},
        customdata=[[int(run)] for run in nodes["run"]], hovertemplate="%{hovertext}<extra></extra>",
    )  # fmt: skip


def _figures(row) -> str:
    """Accuracy and multiply-adds in words."""
    macs = "" if pd.isna(row.macs_g) else theme.number(row.macs_g, "G MACs") if row.macs_g >= 0.1 else theme.number(1e3 * row.macs_g, "M MACs")
    accuracy = "" if pd.isna(row.top1) else theme.percent(row.top1)
    return " · ".join(filter(None, [accuracy, macs])) or str(row.status)


def _interval(row) -> str:
    return "" if pd.isna(row.low) else f"95 % interval {theme.percent(row.low)} to {theme.percent(row.high)}, n = {row.images:.0f}"


def _short(text: str, most: int) -> str:
    """What a person typed, so long that it fits, and never a tag."""
    return escape(text if len(text) <= most else text[: most - 1] + "…", quote=False)

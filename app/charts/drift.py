"""Charts of drift: how far each block's output has moved from its dense twin, 0 for not at all."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from app.charts import cells, theme

# What is drawn always grows with distance, so CKA, a likeness, is drawn as 1 − CKA.
METRICS = {
    "cosine_distance": ("Cosine distance", "1 − cosine, mean over tokens and images"),
    "relative_l2": ("Relative L2", "‖pruned − dense‖ / ‖dense‖"),
    "cka": ("CKA distance", "1 − debiased linear CKA"),
}
CLOSER = 20  # runs from which on their rows stand closer together
TOKENS = {"all": "All tokens", "class": "Class token", "patch": "Patch tokens", "image": "Whole image"}


def distances(drift: pd.DataFrame, *, metric: str, tokens: str) -> pd.DataFrame:
    """Rows of one group of tokens with a column `distance`. Networks without tokens have 'image' alone, shown under 'all' too."""
    if drift.empty:
        return drift.assign(distance=pd.Series(dtype=float))
    wanted = drift["tokens"].eq(tokens) | (drift["tokens"].eq("image") & (tokens == "all"))
    rows = drift[wanted]
    return rows.assign(distance=1 - rows["cka"] if metric == "cka" else rows[metric])


def over_depth(drift: pd.DataFrame, *, metric: str = "cosine_distance", tokens: str = "all", dark: bool = False, keep: object = True) -> go.Figure:
    """Distance from dense over depth for one run, pruned and healed. Columns: stage, block, depth, tokens and the metrics."""
    rows = distances(drift, metric=metric, tokens=tokens)
    name, unit = METRICS[metric]
    fig = theme.figure(_depth_title(rows), dark=dark, height=340, x="Block, by depth", y=unit, keep=keep)
    for stage in theme.STAGES[1:]:
        of_stage = rows[rows["stage"] == stage].sort_values("depth") if len(rows) else rows
        if of_stage.empty:
            continue
        fig.add_scatter(
            x=of_stage["depth"], y=of_stage["distance"], mode="lines+markers", name=stage, marker=theme.marker(stage, dark=dark),
            line={"color": theme.stage_colour(stage, dark), "width": 2}, cliponaxis=False, customdata=of_stage[["block"]].to_numpy(),
            hovertemplate=f"{stage}, block %{{x}} (%{{customdata[0]}})<br>{name.lower()} %{{y:.3g}}<extra></extra>",
        )  # fmt: skip
    fig.update_xaxes(dtick=1 if rows.empty or rows["depth"].max() < 24 else 4, showgrid=False)
    fig.update_yaxes(rangemode="tozero")
    return fig


def _depth_title(rows: pd.DataFrame) -> str:
    pruned = rows[rows["stage"] == "pruned"].set_index("depth")["distance"] if len(rows) else rows
    if not len(pruned):
        return "Where does the network drift?"
    worst = pruned.idxmax()
    healed = rows[rows["stage"] == "healed"].set_index("depth")["distance"]
    if worst in healed.index:
        return f"Block {worst} drifts most: {theme.number(pruned[worst])} pruned, {theme.number(healed[worst])} healed"
    return f"Block {worst} drifts most: {theme.number(pruned[worst])}"


def by_run(
    drift: pd.DataFrame, labels: dict[int, str], *, metric: str = "cosine_distance", tokens: str = "all", dark: bool = False, keep: object = True
) -> go.Figure:
    """Distance from dense, a row a run and a column a block, pruned above healed on one colour scale.

    `drift` has the columns run, stage, depth, tokens and the metrics; `labels` names the runs, in the order shown.
    """
    rows = distances(drift, metric=metric, tokens=tokens)
    stages = [stage for stage in theme.STAGES[1:] if len(rows) and stage in set(rows["stage"])]
    runs = [run for run in labels if len(rows) and run in set(rows["run"])]
    fig = theme.figure(_runs_title(rows, labels), dark=dark, height=104, keep=keep)
    if not stages:
        return fig.update_layout(height=192)
    heatmaps, gap = (26 if len(runs) <= CLOSER else 15) * len(runs) * len(stages), 36 * (len(stages) - 1)  # pixels
    fig.update_layout(height=104 + 36 + heatmaps + gap)
    largest = float(rows["distance"].max())
    depths = list(range(int(rows["depth"].max()) + 1))
    titles = [stage.capitalize() for stage in stages]
    fig.set_subplots(rows=len(stages), cols=1, shared_xaxes=True, vertical_spacing=gap / (heatmaps + gap), subplot_titles=titles)
    for panel, stage in enumerate(stages, start=1):
        grid = rows[rows["stage"] == stage].pivot_table(index="run", columns="depth", values="distance").reindex(index=runs, columns=depths)
        fig.add_heatmap(
            x=depths, y=[labels[run] for run in runs], z=grid.to_numpy(), coloraxis="coloraxis", name=stage, xgap=1, ygap=2, row=panel, col=1,
            hovertemplate=f"%{{y}}, {stage}, block %{{x}}<br>{METRICS[metric][0].lower()} %{{z:.3g}}<extra></extra>",
        )  # fmt: skip
        if len(depths) <= cells.MOST:
            names = [labels[run] for run in runs]
            cells.write(fig, cells.figures(grid), grid, x=depths, y=names, largest=largest, dark=dark, axes={"row": panel, "col": 1})
    fig.update_layout(
        coloraxis={
            "colorscale": theme.sequential(dark), "cmin": 0, "cmax": largest,
            "colorbar": {"title": {"text": METRICS[metric][0], "side": "right", "font": {"size": 12}}, "thickness": 12, "outlinewidth": 0},
        },
    )  # fmt: skip
    fig.update_annotations(font_size=13)
    fig.update_xaxes(dtick=1 if len(depths) <= 24 else 4, showgrid=False)
    fig.update_xaxes(title_text="Block, by depth", row=len(stages), col=1)
    fig.update_yaxes(autorange="reversed", showgrid=False)
    return fig


def _runs_title(rows: pd.DataFrame, labels: dict[int, str]) -> str:
    if rows.empty:
        return "Where do the chosen runs drift?"
    by_stage = rows.pivot_table(index="run", columns="stage", values="distance", aggfunc="mean").reindex(columns=["healed", "pruned"])
    means = by_stage["healed"].fillna(by_stage["pruned"])  # a run ends healed, or pruned where it was not healed
    if len(means) < 2 or means.max() - means.min() < 0.01 * means.max():
        return "Where do the chosen runs drift?"
    return f"Run {means.idxmin()} stays closest to dense, run {means.idxmax()} drifts most"

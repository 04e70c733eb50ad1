"""Accuracy class by class: dense, pruned and healed, the class that lost most on top."""

from __future__ import annotations

import html

import pandas as pd
import plotly.graph_objects as go

from app.charts import theme

MOST = 20


def worst_first(damage: pd.DataFrame) -> pd.DataFrame:
    """The table 'class_damage' with what lost most at the last stage first; of equals, what lost most on the way."""
    return damage.sort_values(["difference_pp", "pruned", "label"], kind="stable", ignore_index=True)


def last_stage(damage: pd.DataFrame) -> str:
    """'healed', or 'pruned' of a run that was not healed."""
    return "healed" if "healed" in damage else "pruned"


def finding(damage: pd.DataFrame) -> str:
    """What happened to the classes, in a sentence.

    >>> rows = pd.DataFrame({"name": ["cat", "dog"], "pruned": [0, 0], "healed": [.5, .9], "difference_pp": [-40.0, 1], "resolved": [True, False]})
    >>> finding(rows)
    'cat loses most, 40.0 pp; 1 of 2 classes is resolved from dense'
    >>> finding(rows.assign(resolved=False))
    'No class is resolved from dense'
    """
    resolved = damage[damage["resolved"].astype(bool)]
    if resolved.empty:
        return "No class is resolved from dense"
    worst = resolved.loc[resolved["difference_pp"].idxmin()]
    verb, by = ("loses most", -worst["difference_pp"]) if worst["difference_pp"] < 0 else ("gains least", worst["difference_pp"])
    return (
        f"{worst['name']} {verb}, {by:.1f} pp; {len(resolved)} of {len(damage)} classes {'is' if len(resolved) == 1 else 'are'} resolved from dense"
    )


def by_class(damage: pd.DataFrame, *, dark: bool = False, keep: object = True) -> go.Figure:
    """Top-1 of each class at each stage with its 95 % Wilson interval, at most MOST classes. `damage` is the table with a column `name`."""
    damage = damage.assign(name=damage["name"].map(html.escape))  # Plotly takes tags for its own
    shown = worst_first(damage).head(MOST)
    rows = [f"{row.name_} ({row.images})" for row in shown.rename(columns={"name": "name_"}).itertuples()]
    fig = theme.figure(finding(damage), dark=dark, height=130 + 30 * max(len(shown), 3), x="Top-1 accuracy (%)", keep=keep)
    stages = [stage for stage in theme.STAGES if stage in damage]
    for place, stage in enumerate(stages):
        at = [row + 0.22 * (place - (len(stages) - 1) / 2) for row in range(len(shown))]
        top1 = 100 * shown[stage]
        fig.add_scatter(
            x=top1, y=at, mode="markers", name=stage, marker=theme.marker(stage, dark=dark), cliponaxis=False,
            error_x={
                "array": 100 * shown[f"{stage}_high"] - top1, "arrayminus": top1 - 100 * shown[f"{stage}_low"], "thickness": 1.2, "width": 3,
                "color": theme.stage_colour(stage, dark),
            },
            customdata=list(zip(rows, shown[f"{stage}_correct"], shown["images"], shown["verdict"])),
            hovertemplate=f"%{{customdata[0]}}, {stage}<br>%{{customdata[1]}} of %{{customdata[2]}} right, %{{x:.1f}} %"
            "<br>against dense: %{customdata[3]}<extra></extra>",
        )  # fmt: skip
    fig.update_yaxes(tickvals=list(range(len(rows))), ticktext=rows, range=[len(rows) - 0.4, -0.6], showgrid=False)
    fig.update_xaxes(range=[-1, 101])
    return fig

"""The MAC ledger: one network's cost by every way of counting."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from app.charts import theme

NAMES = {
    "as printed": "As results are printed", "block input": "As arXiv 2606.02608 counts", "true": "True, zeros free",
    "kernels of today": "Kernels of today", "no sparse kernel": "No sparse kernel", "fvcore, thop": "fvcore, thop",
}  # fmt: skip


def conventions(totals: pd.DataFrame, *, dark: bool = False, keep: object = True) -> go.Figure:
    """Bars of `ledger.totals`: what is left (amber) of the dense cost (grey) under each convention, the reduction in words under their names."""
    unit, name = (1e3, "M") if totals["dense_g"].max() < 0.1 else (1.0, "G")
    fig = theme.figure(_title(totals), dark=dark, height=120 + 44 * len(totals), x=f"Multiply-adds of one image ({name} MACs)", keep=keep)
    labels = [NAMES.get(convention, convention) for convention in totals["convention"]]
    fig.add_bar(
        x=unit * totals["after_g"], y=labels, orientation="h", name="left", customdata=totals[["reduction_pct", "note"]].to_numpy(),
        marker={"color": theme.stage_colour("pruned", dark)},
        hovertemplate=f"%{{y}}: %{{x:.4g}} {name}, %{{customdata[0]:.2f}} % fewer<br>%{{customdata[1]}}<extra>calculated</extra>",
    )  # fmt: skip
    saved = unit * (totals["dense_g"] - totals["after_g"])
    words = [f"{label}<br><b>{f'−{cut:.2f} %' if cut > 0.005 else 'nothing saved'}</b>" for label, cut in zip(labels, totals["reduction_pct"])]
    fig.add_bar(
        x=saved, y=labels, orientation="h", name="saved", hoverinfo="skip", marker={"color": theme.tint(theme.stage_colour("dense", dark), 0.28)},
    )  # fmt: skip
    fig.update_xaxes(range=[0, 1.04 * unit * float(totals["dense_g"].max())], fixedrange=True)
    fig.update_yaxes(autorange="reversed", fixedrange=True, tickmode="array", tickvals=labels, ticktext=words)
    return fig.update_layout(barmode="stack")


def _title(totals: pd.DataFrame) -> str:
    cuts = totals.set_index("convention")["reduction_pct"]
    if cuts.max() < 0.005:
        return "Nothing is saved yet, whoever counts"
    return f"Zeros and merged tokens would save {cuts['true']:.1f} % of multiply-adds; kernels of today save {cuts['kernels of today']:.1f} %"

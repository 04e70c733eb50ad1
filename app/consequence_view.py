"""Under the budget on Explore: the drift to expect and what is certain, from the profile alone."""

from __future__ import annotations

from functools import cache

import pandas as pd
import streamlit as st

from app import basis, frame
from app.charts import consequence as charts
from starfish_lab import consequence, settings
from starfish_lab.whatif import Profile, WhatIf

MEASURED = settings.ASSETS / "measured" / "predicted_drift.csv"
NETWORKS = {"starter": "the bundled network", "vit": "a ViT-Tiny trained on Tiny ImageNet"}
DRIFT = (
    "Dashed: an estimate from the weights alone, before healing. Read it for which block and which choice, not for how much{held}: a run measures it."
)
BOUND = (
    "For certain, whatever the layer sees: with an input of norm ‖v‖₂ no entry of its output moves by more than the mark times that norm, so "
    "its budget B_T is at most twice this · mean ‖v‖₂, per unit L. It says nothing of labels: what the layers behind make of it, the factor L, "
    "is not known before a run."
)
SPLIT = "Hollow, as the split over layers is an estimate itself: the bound holds for layers that lose just so many. "


def draw(profile: Profile, predicted: WhatIf, selected: str) -> None:
    """Two charts over depth, beside each other."""
    recipe = basis.current()
    found = consequence.follow(profile, predicted, recipe.pruning, start=recipe.start)
    left, right = st.columns([3, 2], gap="medium")
    with left:
        frame.chart(
            charts.drift(found.blocks, predicted.layers, rule=consequence.RULE, dark=frame.dark()), key="predicted_drift", data=found.blocks,
            caption=DRIFT.format(held=_held()),
        )  # fmt: skip
    with right:
        if found.why:
            st.caption(f"No certificate before a run: {found.why}.")
            return
        estimate = found.label == consequence.ESTIMATE
        frame.chart(
            charts.certificate(found.layers, predicted.layers, selected=selected, estimate=estimate, dark=frame.dark()), key="bound",
            data=found.layers, caption=(SPLIT if estimate else "") + BOUND,
        )  # fmt: skip


@cache
def _held() -> str:
    """How well such estimates sorted where drift was measured, and how far off their size was; '' where no measurement is delivered."""
    if not MEASURED.exists():
        return ""
    rows = pd.read_csv(MEASURED)
    ranks = " and ".join(f"{row.rank_all:.2f} on {NETWORKS.get(row.network, row.network)}" for row in rows.itertuples())
    sizes = " and ".join(f"{row.ratio:.2g}" for row in rows.itertuples())
    return f" (measured: rank correlation {ranks}, over {rows['choices'].max()} choices each; size off by a median factor of {sizes})"

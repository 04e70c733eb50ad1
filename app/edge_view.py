"""The chosen layer's spectrum on Explore, the slider that moves its edge, and what the edges make of the budget, in words."""

from __future__ import annotations

import math

import pandas as pd
import streamlit as st

from app import basis, frame, state
from app.charts import spectra, theme
from app.choice import as_words
from starfish_lab.errors import LabError
from starfish_lab.pruning import rules
from starfish_lab.pruning.budgets import mp_edge
from starfish_lab.recipe import Recipe
from starfish_lab.whatif import Profile, WhatIf

PARTS = {"qkv": "q, k, v together"}
SIGNALS = {"sigma_plus": "the MP edge σ₊", "hill_alpha": "Hill's α of the tail"}
WHOLE = ("", "qkv")  # parts whose edge the budget reads
REACH = 2  # the slider goes from a half of the fitted edge to twice of it
STEPS = 100  # from the one end to the fitted edge
READING = (
    "Inside the shaded bulk the matrix looks like noise; spikes beyond the edge are what it learned. It does not say which single weights matter."
)


def draw(profile: Profile, selected: str, predicted: WhatIf) -> None:
    """The spectrum, its edge to move, and how to read both."""
    rows = profile.spectra[profile.spectra["layer"] == selected] if len(profile.spectra) else profile.spectra
    if rows.empty:
        st.caption(f"{selected} has no spectrum in this profile.")
        return
    rows = rows.set_index("part", drop=False)
    parts = {part: PARTS.get(part, part) for part in rows.index}
    part = state.get("part", rows.index[0])
    if part not in parts:  # of the layer that was selected before
        part = rows.index[0]
        state.put("part", None)
    row = rows.loc[part]
    moved = moved_edges(predicted)
    frame.chart(
        spectra.spectrum(row, dark=frame.dark(), moved=moved.get(selected) if part in WHOLE else None),
        key="spectrum",
        controls=lambda: len(parts) > 1 and switch("Part", parts, "part"),
    )
    if part in WHOLE:
        _slider(selected, float(row["sigma_plus"]), moved)
    st.caption(f"**{theme.sentence(row['verdict'])}.** {_why_its_weight(profile, selected, predicted)}{READING}")


def switch(label: str, names: dict[str, str], value: str) -> None:
    """A small switch under a chart, kept in the address bar; the first name is the default."""
    st.segmented_control(
        label, list(names), format_func=names.get, required=True, label_visibility="collapsed", **state.tie_value(value, next(iter(names)))
    )


def moved_edges(predicted: WhatIf) -> dict[str, float]:
    """{layer: σ₊} of the edges that a person moved, globs spelt out."""
    edges = basis.current().pruning.options.get("edges") or {}
    return rules.by_layer("pruning.options.edges", edges, list(predicted.layers["layer"]))


def _slider(layer: str, fitted: float, moved: dict[str, float]) -> None:
    """The edge of one layer, from half to twice the fitted one; a word on why it moves nothing where it does not."""
    chosen = state.choice()
    if chosen.budget != "mp_edge":
        if chosen.pattern == "unstructured":
            st.caption("Under the budget *By MP edge* this edge can be moved, and the budget of all layers follows.")
        return
    if not (math.isfinite(fitted) and fitted > 0):
        st.caption("No edge was fitted to this layer, so there is none to move.")
        return
    acting = regime(basis.current())[1]
    why = "" if acting.decay else "edges play no part at this sparsity"
    why = why or ("" if acting.signal == "sigma_plus" else f"here the budget follows {SIGNALS[acting.signal]}, not the edge")
    key, now = f"edge.{layer}", moved.get(layer, fitted)
    if st.session_state.get(key) != now:
        st.session_state[key] = now
    st.slider(
        f"Edge σ₊ of {layer}, as a singular value (fitted: {theme.number(fitted)})" + (f": {why}" if why else ""),
        min(fitted / REACH, now), max(fitted * REACH, now), step=fitted / REACH / STEPS, format="%.3g", disabled=bool(why), key=key,
        help="Where the bulk ends. A higher edge lets more of this layer go, and less of the others.",
        on_change=_move, args=(layer, fitted, key, moved),
    )  # fmt: skip


def _move(layer: str, fitted: float, key: str, moved: dict[str, float]) -> None:
    """The edge becomes part of the choice beside those `moved` before; put back to where it was fitted, it leaves it."""
    edge = float(f"{st.session_state[key]:.4g}")
    others = {name: value for name, value in moved.items() if name != layer}
    state.change(edges=as_words(others if abs(edge / fitted - 1) < 0.5 / STEPS / REACH else others | {layer: edge}))


def cause(predicted: WhatIf) -> str:
    """Which regime the budget by MP edges is in, and what that does to w."""
    sparsity, (signal, beta, s_d, decay) = regime(basis.current())
    weights = predicted.layers["edge_weight"]
    if decay == 0:
        return f"At {theme.percent(sparsity, 0)} edges play no part any more (from s_d = {s_d:g} on): every w is 1, the budget is the global one."
    told = ", ".join(f"{value:g} for {kind}" for kind, value in beta.items()) if isinstance(beta, dict) else f"{beta:g}"
    return (
        f"The marks are each layer's edge weight w = 1 + β · d · z: at {theme.percent(sparsity, 0)} its signal z is {SIGNALS[signal]}, β is {told}, "
        f"and d = 1 − s/{s_d:g} = {decay:.2g}; w runs from {weights.min():.2f} to {weights.max():.2f}. The smallest |W|/w go."
    )


def regime(recipe: Recipe) -> tuple[float, mp_edge.Regime]:
    """The sparsity at which edges decide, and the regime there: the start's where nothing goes beyond it."""
    if recipe.pruning.pattern == "kept":
        return recipe.start.sparsity, mp_edge.regime(recipe.start.sparsity)
    given = {name: value for name, value in recipe.pruning.options.items() if name != "edges"}
    return recipe.pruning.sparsity, mp_edge.regime(recipe.pruning.sparsity, **given)


def idle() -> bool:
    """True where edges move nothing at the present sparsity. A recipe that makes no sense is told elsewhere."""
    try:
        return regime(basis.current())[1].decay == 0
    except LabError:
        return False


def _why_its_weight(profile: Profile, selected: str, predicted: WhatIf) -> str:
    """What its spectrum makes of a layer's edge weight, in a sentence; '' where edges do not decide."""
    if "edge_weight" not in predicted.layers:
        return ""
    weight = predicted.layers.set_index("layer")["edge_weight"][selected]
    signal = regime(basis.current())[1].signal
    known: pd.Series = profile.layers.set_index("layer")[signal].reindex(predicted.layers["layer"]).astype(float)
    if signal == "sigma_plus":
        known = known.mask(known.index.isin(moved := moved_edges(predicted)), known.index.map(moved).astype(float))
    side = "above" if known[selected] > known.mean() else "below"
    name = {"sigma_plus": "σ₊", "hill_alpha": "Hill's α"}[signal]
    if abs(weight - 1) < 0.005:
        return f"Its edge weight w is {weight:.2f}: magnitude alone decides. "
    found, mean = theme.number(known[selected]), theme.number(known.mean())
    return f"Its {name} of {found} is {side} the layers' mean of {mean}, so weights up to w = {weight:.2f} times the common threshold go. "

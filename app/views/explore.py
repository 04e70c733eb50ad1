"""Explore: what a sparsity would take from each layer, and what remains, before anything runs."""

from __future__ import annotations

import pandas as pd
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from app import basis, before_controls, faster_card, faster_rows, frame, launch, ledger_view, results, state
from app.charts import budget, spectra, theme
from app.choice import suits
from starfish_lab import whatif
from starfish_lab.healing import METHODS
from starfish_lab.prediction.card import ESTIMATE, Card
from starfish_lab.pruning import BUDGETS, SCORES, SOLVERS
from starfish_lab.pruning.budgets import mp_edge
from starfish_lab.recipe import Recipe
from starfish_lab.whatif import Profile, WhatIf

PATTERNS = {"unstructured": "Unstructured", "n_m": "N:M", "structured": "Structured", "kept": "As started"}
BUDGET_NAMES = {"uniform": "Uniform", "global": "Global", "mp_edge": "By MP edge"}
UNITS = {"mlp": "MLP units", "qk": "Q/K dimensions"}
PARTS = {"qkv": "q, k, v together"}
PATTERN_HELP = (
    "Unstructured: any weight may go. N:M: N of every M weights in a row stay. Structured: whole units go. "
    "As started: what the start lacks, and no more (choose a start or merging under More)."
)
SPARSITY_HELP = "Share of the prunable weights (structured: of the units) that goes."
BUDGET_HELP = (
    "Who loses how much. Uniform: every layer the same share. Global: the least important weights, wherever they are. "
    "By MP edge: more where a layer's bulk reaches further up, less where it does not."
)
MEASURES = {"weights": "Weights", "macs": "MACs", "share": "Share lost"}
SPEED = {
    "unstructured": "mask only: no speed-up expected",
    "n_m": "mask only: no speed-up without hardware for it",
    "structured": "sliced: really smaller; a run measures how much faster",
    "kept": "mask only: no speed-up expected",
}
SIGNALS = {"sigma_plus": "the MP edge σ₊", "hill_alpha": "Hill's α of the tail"}


def page() -> None:
    profile = frame.profile()
    predicted = frame.prediction(profile)
    rows = frame.stage_rows(profile, predicted)
    frame.figures(faster_card.expected(rows, profile))
    _controls(profile)
    if predicted is None:
        return
    selected = _selected(predicted.layers)
    with st.container(key="pair"):
        left, right = st.columns([3, 2], gap="medium")
        with left:
            _budget(predicted, selected)
        with right:
            _spectrum(profile, selected, predicted)
    place = _launch(predicted)
    card = faster_card.draw(profile, basis.current())
    place.caption(_comes_to(predicted, card), width="stretch", text_alignment="right")
    _details(profile, predicted)
    _ledger(profile)


def _controls(profile: Profile) -> None:
    """What is pruned, how much, by which rule, and behind More what comes before."""
    chosen = state.choice()
    patterns = [name for name in PATTERNS if name != "kept" or chosen.start != "dense" or chosen.merge]
    budgets = [*BUDGET_NAMES, *(name for name in BUDGETS.names() if name not in BUDGET_NAMES)]
    with st.container(horizontal=True, vertical_alignment="top", gap="medium"):
        st.segmented_control("Pattern", patterns, format_func=PATTERNS.get, required=True, help=PATTERN_HELP, **state.tie("pattern"))
        if chosen.pattern == "n_m":
            st.number_input("Keep N", 1, 63, step=1, width=110, help="Weights that stay in every group.", **state.tie("keep"))
            st.number_input("of M", 2, 64, step=1, width=110, help="Size of a group: consecutive input weights.", **state.tie("group"))
        elif chosen.pattern != "kept":
            st.slider("Sparsity", 0.05, 0.99, step=0.01, format="percent", width=200, help=SPARSITY_HELP, **state.tie("sparsity"))
        if chosen.pattern == "structured":
            st.pills("Units", list(UNITS), selection_mode="multi", format_func=UNITS.get, **state.tie("units"))
        if chosen.pattern == "unstructured":
            st.selectbox("Budget", budgets, format_func=lambda name: BUDGET_NAMES.get(name, name), width=150, help=BUDGET_HELP, **state.tie("budget"))
        if chosen.pattern != "kept":
            _score(chosen)
        before_controls.popover(profile)


def _score(chosen: state.Choice) -> None:
    """Scores, then solvers, as far as they go with the pattern."""
    entries = {name: SCORES for name in SCORES.names()} | {name: SOLVERS for name in SOLVERS.names()}
    names = [name for name in entries if chosen.pattern in suits(name)]
    described = [f"**{_score_name(name)}** {entries[name].describe(name).partition(': ')[2] or entries[name].describe(name)}" for name in names]
    hint = "A score says which weights matter least; a solver chooses them together with new values for the others.\n\n" + "\n\n".join(described)
    st.selectbox("Score", names, format_func=_score_name, width=185, help=hint, **state.tie("score"))


def _score_name(name: str) -> str:
    return f"{theme.sentence(results.name(name))} (solver)" if name in SOLVERS.names() else theme.sentence(results.name(name))


def _selected(layers: pd.DataFrame) -> str:
    """The layer whose spectrum is shown: the clicked one, else the first."""
    wanted = state.get("layer", "")
    return wanted if wanted in set(layers["layer"]) else layers["layer"].iloc[0]


def _budget(predicted: WhatIf, selected: str) -> None:
    measure = state.get("show", "weights", allowed=list(MEASURES))
    rule = predicted.notes[0] if predicted.estimate and predicted.notes else ""
    clicked = frame.chart(
        budget.budget(predicted.layers, measure=measure, selected=selected, rule=rule, dark=frame.dark()),
        key="budget",
        select=True,
        data=predicted.layers,
        controls=lambda: _switch("Bars show", MEASURES, "show"),
        caption="A bar is a layer, in the order the network computes: amber goes, grey stays; click one for its spectrum. "
        + ("Hatched: estimated from the profile. " if rule else "")
        + (f"{_cause(predicted)} " if "edge_weight" in predicted.layers else "")
        + "It does not say how much accuracy these weights carry: a run does.",
    )
    if clicked and clicked != selected:
        state.put("layer", clicked)
        st.rerun()


def _cause(predicted: WhatIf) -> str:
    """Which regime the budget by MP edges is in, and what that does to w."""
    sparsity, (signal, beta, s_d, decay) = _regime(basis.current())
    weights = predicted.layers["edge_weight"]
    if decay == 0:
        return f"At {theme.percent(sparsity, 0)} edges play no part any more (from s_d = {s_d:g} on): every w is 1, the budget is the global one."
    told = ", ".join(f"{value:g} for {kind}" for kind, value in beta.items()) if isinstance(beta, dict) else f"{beta:g}"
    return (
        f"The marks are each layer's edge weight w = 1 + β · d · z: at {theme.percent(sparsity, 0)} its signal z is {SIGNALS[signal]}, β is {told}, "
        f"and d = 1 − s/{s_d:g} = {decay:.2g}; w runs from {weights.min():.2f} to {weights.max():.2f}. The smallest |W|/w go."
    )


def _regime(recipe: Recipe) -> tuple[float, mp_edge.Regime]:
    """The sparsity at which edges decide, and the regime there: the start's where nothing goes beyond it."""
    if recipe.pruning.pattern == "kept":
        return recipe.start.sparsity, mp_edge.regime(recipe.start.sparsity)
    return recipe.pruning.sparsity, mp_edge.regime(recipe.pruning.sparsity, **recipe.pruning.options)


def _why_its_weight(profile: Profile, selected: str, predicted: WhatIf) -> str:
    """What its spectrum makes of a layer's edge weight, in a sentence; '' where edges do not decide."""
    if "edge_weight" not in predicted.layers:
        return ""
    weight = predicted.layers.set_index("layer")["edge_weight"][selected]
    signal = _regime(basis.current())[1].signal
    known = profile.layers.set_index("layer")[signal].reindex(predicted.layers["layer"])
    side = "above" if known[selected] > known.mean() else "below"
    name = {"sigma_plus": "σ₊", "hill_alpha": "Hill's α"}[signal]
    if abs(weight - 1) < 0.005:
        return f"Its edge weight w is {weight:.2f}: magnitude alone decides. "
    found, mean = theme.number(known[selected]), theme.number(known.mean())
    return f"Its {name} of {found} is {side} the layers' mean of {mean}, so weights up to w = {weight:.2f} times the common threshold go. "


def _spectrum(profile: Profile, selected: str, predicted: WhatIf) -> None:
    rows = profile.spectra[profile.spectra["layer"] == selected].set_index("part", drop=False)
    if rows.empty:
        st.caption(f"{selected} has no spectrum in this profile.")
        return
    parts = {part: PARTS.get(part, part) for part in rows.index}
    part = state.get("part", rows.index[0])
    if part not in parts:  # of the layer that was selected before
        part = rows.index[0]
        state.put("part", None)
    row = rows.loc[part]
    frame.chart(
        spectra.spectrum(row, dark=frame.dark()),
        key="spectrum",
        controls=lambda: len(parts) > 1 and _switch("Part", parts, "part"),
        caption=f"**{theme.sentence(row['verdict'])}.** {_why_its_weight(profile, selected, predicted)}"
        "Inside the shaded bulk the matrix looks like noise; spikes beyond the edge are what it learned. "
        "It does not say which single weights matter.",
    )


def _switch(label: str, names: dict[str, str], value: str) -> None:
    """A small switch under a chart, kept in the address bar; the first name is the default."""
    st.segmented_control(
        label, list(names), format_func=names.get, required=True, label_visibility="collapsed", **state.tie_value(value, next(iter(names)))
    )


def _launch(predicted: WhatIf) -> DeltaGenerator:
    """The button that does it. Returns room beside it for what it comes to, which the card below decides."""
    recipe = basis.current()
    dense = predicted.layers[predicted.layers["note"].astype(bool) & (predicted.layers["removed"] == 0)]
    with frame.actions():
        place = st.empty()
        if origin := basis.origin():
            hint = "What no page shows (seeds, options, layers) comes from it. Press to let go of it."
            st.button(f"On {origin}", type="tertiary", icon=":material/close:", help=hint, on_click=basis.let_go)
        hint = f"{METHODS.describe(recipe.healing.method)} {results.healing(recipe)}"
        if st.button("Prune & heal", type="primary", icon=":material/healing:", help=hint):
            launch.queue(recipe)
            st.switch_page("views/prune_and_heal.py")
    for text in (results.before(recipe), *predicted.notes[predicted.estimate :]):  # the rule of an estimate stands in the chart
        if text:
            st.caption(text)
    for reason, rows in dense.groupby("note", sort=False):
        st.caption(f"{len(rows)} layers stay dense, {reason}: {', '.join(rows['layer'].head(6))}{' …' if len(rows) > 6 else ''}")
    return place


def _comes_to(predicted: WhatIf, card: Card | None) -> str:
    """What goes, and what to expect of the clock, in words."""
    prunable, whole = (theme.percent(predicted.totals[f"sparsity_{of}"]) for of in ("prunable", "all"))
    return f"**{prunable}** of prunable weights, **{whole}** of all parameters go · {_speed(basis.current(), card)}"


def _speed(recipe: Recipe, card: Card | None) -> str:
    if card is not None and card.kind == ESTIMATE:
        headline = faster_rows.headline(card)
        return f"{card.execution}, batch {card.batch}: {headline[0].lower()}{headline[1:]}"
    said = SPEED[recipe.pruning.pattern]
    return f"{said}; merged tokens really go: a run measures it" if any(recipe.tokens.r) else said


def _ledger(profile: Profile) -> None:
    details = st.expander("Multiply-adds, by every way of counting", on_change="rerun", key="ledger_details")
    if details.open:
        with details:
            ledger_view.section(profile)


def _details(profile: Profile, predicted: WhatIf) -> None:
    details = st.expander("Every layer", on_change="rerun", key="details")
    if not details.open:
        return
    with details:
        for note in predicted.notes:
            st.caption(note)
        rows = predicted.layers
        if rows["macs_g"].max() < 0.1:  # in G MACs these would be strings of zeros
            rows = rows.assign(macs_g=1e3 * rows["macs_g"], macs_g_effective=1e3 * rows["macs_g_effective"])
            rows = rows.rename(columns={"macs_g": "macs_m", "macs_g_effective": "macs_m_effective"})
        frame.table(
            rows, key="layers",
            column_config={
                "layer": "Layer", "block": None, "depth": "Block", "kind": "Kind",
                "weights": st.column_config.NumberColumn("Weights", format="localized"),
                "removed": st.column_config.NumberColumn("Lost", format="localized"),
                "sparsity": st.column_config.ProgressColumn("Share lost", min_value=0, max_value=1, format="percent"),
                **{f"macs_{unit.lower()}": st.column_config.NumberColumn(f"MACs ({unit})", format="%.3g") for unit in "MG"},
                **{f"macs_{unit.lower()}_effective": st.column_config.NumberColumn(f"MACs left ({unit})", format="%.3g") for unit in "MG"},
                "note": "Left dense because",
                "edge_weight": st.column_config.NumberColumn("Edge weight w", format="%.2f"),
            },
        )  # fmt: skip
        _outside(profile)


def _outside(profile: Profile) -> None:
    """What no pattern looks at, and why. In none of the counts above."""
    rows = whatif.outside(profile, basis.current().pruning)
    beside = profile.facts["parameters"] - int(profile.layers["weights"].sum())
    st.caption(
        f"**{results.count(len(rows), 'more layer')}** no pattern looks at, so {'it is' if len(rows) == 1 else 'they are'} in no count above. "
        f"Norms, biases and embeddings hold {theme.count(beside)} parameters besides; they always stay as they are."
    )
    if len(rows):
        frame.table(
            rows, key="outside", column_order=["layer", "weights", "note"],
            column_config={"layer": "Layer", "weights": st.column_config.NumberColumn("Weights", format="localized"), "note": "Left dense because"},
        )  # fmt: skip


page()

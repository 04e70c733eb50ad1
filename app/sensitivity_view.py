"""Which layers can bear it: sensitivity curves of the network on show, and the slider that spends along them.

The slider writes the share of every layer into the choice (`layers`), so the recipe, the link and all of Explore follow it.
"""

from __future__ import annotations

import pandas as pd
import streamlit as st

from app import acts, basis, faster_rows, frame, launch, profiles, state, waiting
from app import choice as choices
from app.charts import sensitivity as charts
from starfish_lab import settings
from starfish_lab.errors import LabError, StoreError
from starfish_lab.pruning.rules import BY_LAYER
from starfish_lab.recipe import Recipe
from starfish_lab.sensitivity import stored
from starfish_lab.sensitivity.layer_ms import layer_ms
from starfish_lab.sensitivity.parts import parts, shares
from starfish_lab.sensitivity.plan import PATTERNS, Sensitivity
from starfish_lab.sensitivity.spending import UNITS, Along, sparsity
from starfish_lab.whatif import Profile

TABLES = 20  # newest tables of layer times that are read
WATCHED = "sens"  # in the address bar: the run that measures
SHOWN_BY = {"drift": "Drift images, no labels", "evaluation": "Evaluation images"}
WHAT = (
    "Each layer is pruned alone at a few levels, the rest stays dense, and the network's end is compared with the dense network's. "
    "A worker measures that once for these images and this score; from then on the budget can be spent along the curves."
)
CURVES = (
    "A column is a layer alone, the deeper the colour the more it hurts (logarithmic); crosses are what the present choice takes. "
    "It does not say what several layers pruned together do to each other, nor what healing brings back."
)
UNITS_CURVES = (
    "A column is a group of units alone, an MLP's or a block's inner channels by its first layer, Q/K dimensions by qkv; the deeper the colour the "
    "more it hurts (logarithmic); crosses are what the present choice takes. It does not say what several groups pruned together do to each "
    "other, nor what healing brings back."
)
FRONT = (
    "Dashed, an estimate: damages of layers alone, summed up; lower is better. "
    "It ranks choices well where layers fail one by one, and says little where many fail at once."
)
SLIDER = (
    "The share that goes, from accuracy (little) to speed (much). At every position each layer loses what makes the sum of the damages least: "
    "the next piece goes where it costs least damage for what it saves: multiply-adds, weights, or time on a device whose layers were timed. "
    "Only units are cut out and make a network smaller; zeros alone make nothing faster: see 'Will it be faster?'."
)


def expander(profile: Profile) -> None:
    """Closed until asked for, and read only then."""
    details = st.expander("Which layers can bear it?", on_change="rerun", key="sens_details")
    if details.open:
        with details:
            section(profile, basis.current())


def section(profile: Profile, recipe: Recipe) -> None:
    """Curves, the slider and where the present choice stands; or the button that has them measured."""
    if recipe.pruning.pattern not in PATTERNS:
        st.caption(
            "Layers lose shares of their own under 'Unstructured', groups of units under 'Structured': choose one to see who can bear how much."
        )
        return
    units = recipe.pruning.pattern == "structured"
    if units and profile.facts["structured_refusal"]:
        return  # the page says it where the choice is made
    on = st.segmented_control(
        "Damage is seen on", list(SHOWN_BY), format_func=SHOWN_BY.get, required=True, **state.tie_value("sens_on", "drift", allowed=SHOWN_BY)
    )
    plan = Sensitivity.of(recipe, on=on)
    number = stored.find(state.store(), plan)
    if number is None:
        _invite(plan)
        return
    rows = _rows(settings.database_url(), number)
    names = stored.damages(rows)
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        damage = st.segmented_control(
            "Damage", names, format_func=lambda name: stored.DAMAGES[name][0], required=True, **state.tie_value("sens_by", "kl", allowed=names)
        )  # fmt: skip
        spent = recipe.pruning.pattern in BY_LAYER
        along, taken = _along(profile, recipe, rows, damage) if spent else (None, None)
        unit = _slider(along, taken) if along else ""
    fig = charts.curves(rows, damage=damage, shares=taken, units=units, dark=frame.dark(), keep=(number, damage))
    read = UNITS_CURVES if units else CURVES
    frame.chart(fig, key="sensitivity", caption=f"{read} Damage: {stored.DAMAGES[damage][2]}. Measured by run {number}.", data=stored.with_loss(rows))
    if along:
        here = (along.position(taken, unit), along.damage(taken))
        best = _front(settings.database_url(), number, damage, unit, along.layers, tuple(along.prices[unit].tolist()), along)
        fig = charts.front(best, here, unit=UNITS[unit], damage=stored.DAMAGES[damage][0].lower(), dark=frame.dark(), keep=(number, damage, unit))
        frame.chart(fig, key="sensitivity_front", caption=FRONT, data=best)
    elif spent:
        st.caption("Some of these layers were not measured, so nothing can be spent along the curves.")


def _along(profile: Profile, recipe: Recipe, rows: pd.DataFrame, damage: str) -> tuple[Along | None, dict[str, float] | None]:
    """The curves of the layers at hand, and what the present choice takes of each."""
    try:
        predicted = profiles.predict(profile, recipe)
    except LabError:  # the page says it where the choice is made
        return None, None
    layers, choice = predicted.layers, recipe.pruning
    times = _times(profile, recipe, tuple(layers["layer"]))
    if choice.pattern != "structured":
        return Along.of(rows, damage, layers, times), dict(zip(layers["layer"], layers["sparsity"].tolist()))
    groups, attentions = profile.groups.itertuples(), profile.attentions.itertuples()
    alone = parts(choice, groups, attentions, layers["layer"], profile.facts["structured_refusal"])
    priced = rows.drop_duplicates("layer").set_index("layer").reindex(list(alone)).reset_index()
    times = times and {part: sum(share * times[layer] for layer, share in of.items()) for part, of in alone.items()}
    return Along.of(rows, damage, priced, times), shares(choice, alone)


def _slider(along: Along, taken: dict[str, float]) -> str:
    """Accuracy ⟷ speed; returns what is spent."""
    unit = "macs_g"
    if state.get("sens_spend", unit, allowed=UNITS) not in along.units:
        state.put("sens_spend", None)  # of another network, or of a device whose layers are not timed any more
    if len(along.units) > 1:
        tied = state.tie_value("sens_spend", "macs_g", allowed=UNITS)
        unit = st.segmented_control("Spend", along.units, format_func=lambda name: UNITS[name].capitalize(), required=True, **tied)
    key, now = "sens_position", min(0.97, max(0.05, round(along.position(taken, unit), 2)))
    if st.session_state.get(key) != now:
        st.session_state[key] = now

    def spend() -> None:
        found = along.spent(st.session_state[key], unit)
        sizes = dict(zip(along.layers, along.prices["weights"].astype(int).tolist()))
        overall = round(sparsity(found, sizes), 6)
        state.change(layers=choices.as_words(found), sparsity=min(0.99, max(0.01, overall)))

    st.slider("Accuracy ⟷ speed", 0.05, 0.97, step=0.01, format="percent", width=320, help=SLIDER, key=key, on_change=spend)
    if not state.choice().layers:
        hint = "Each layer loses what makes the sum of the damages least, at the share that goes now."
        st.button("Spend along the curves", key="sens_spent", icon=":material/trending_down:", help=hint, on_click=spend)
    else:
        hint = "The shares set by hand or by the slider are forgotten; the budget decides, at the same sparsity. Units then all lose the same share."
        st.button("Leave it to the budget", key="sens_forget", icon=":material/undo:", help=hint, on_click=lambda: state.change(layers=()))
    return unit


def _invite(plan: Sensitivity) -> None:
    """What will be here, and the button that brings it; while a worker measures, how far it is."""
    st.markdown(WHAT)
    store = state.store()
    number = next(filter(None, (stored.find(store, plan, status=status) for status in ("running", "queued"))), None)
    if number is not None:
        st.fragment(waiting.line, run_every="2s")(number, will="measure the layers", does="measures layer by layer", cancel="sens_cancel")
        return
    try:
        last = store.run(state.get(WATCHED, 0)) if state.get(WATCHED, 0) else None
    except (StoreError, OverflowError):
        last = None
    if last is not None and last.kind == stored.KIND and last.error:
        st.error(f"Run {last.id} stopped: {last.error}", icon=":material/error:")
    with frame.actions():
        if acts.button(
            "Measure layer by layer", icon=":material/ssid_chart:", key="sens_measure", help="What is measured by then survives an interruption."
        ):
            launch.queue(plan, kind=stored.KIND, name=WATCHED)
            st.rerun()


def _times(profile: Profile, recipe: Recipe, layers: tuple[str, ...]) -> dict[str, float]:
    """What the layers take on the recipe's device, where that was timed."""
    runs = state.store().runs(kind="layer_times", status="done", limit=TABLES)
    ids = tuple(sorted(int(number) for number in runs["id"]))
    return _layer_ms(settings.database_url(), ids, profile.facts["name"], recipe.device, len(profile.pieces), layers, profile) if ids else {}


@st.cache_data(max_entries=32, show_spinner=False)
def _layer_ms(url: str, ids: tuple[int, ...], model: str, device: str, pieces: int, layers: tuple[str, ...], _profile: Profile) -> dict[str, float]:
    """Of the device timed last; `pieces` tells a network that was profiled anew."""
    tables = faster_rows.tables(state.store().table(ids, "layer_times"), model=model, wanted=device)
    return layer_ms(_profile, next(iter(tables.values())), layers) if tables else {}


@st.cache_data(max_entries=16, show_spinner=False)
def _rows(url: str, number: int) -> pd.DataFrame:
    """The table of a finished run, which never changes; `url` keeps stores apart."""
    return state.store().table([number], "sensitivity").drop(columns="run")


@st.cache_data(max_entries=64, show_spinner=False)
def _front(url: str, number: int, damage: str, unit: str, layers: tuple[str, ...], prices: tuple[float, ...], _along: Along) -> pd.DataFrame:
    """Of the run's curves and what these layers cost; the arguments before `_along` tell one such front from another."""
    return _along.front(unit)

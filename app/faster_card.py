"""The card 'Will it be faster?': the answer before anything runs, its reasons, and how good such answers were so far.

An estimate is dashed and says its rule on hover; where no layer of the device was timed, one button has that done. The link keeps which
execution (card_as), batch (card_batch) and device (card_on) it speaks of.
"""

from __future__ import annotations

import html
from dataclasses import replace

import pandas as pd
import streamlit as st

from app import acts, basis, devices, faster_rows, frame, launch, profiles, results, state, waiting
from starfish_lab import settings
from starfish_lab.errors import LabError, StoreError
from starfish_lab.prediction import card as cards
from starfish_lab.prediction import score
from starfish_lab.recipe import Recipe
from starfish_lab.report import Report
from starfish_lab.store import Run
from starfish_lab.whatif import Profile

TABLES = 20  # newest tables of layer times that are read
SCORED = 20  # newest runs whose measurements are held against predictions
ICONS = {"faster": ":material/speed:", "not faster": ":material/block:", "unknown": ":material/help:"}
TIMING = "layer_times"  # the kind of run that makes a table, and what the link calls the one that is watched
SCORES = {
    "run": st.column_config.NumberColumn("Run", width=60),
    "execution": "Execution",
    "batch": st.column_config.NumberColumn("Batch", width=60),
    "predicted": st.column_config.NumberColumn("Predicted (×)", format="%.2f", help="From layer times, over dense in the same precision."),
    "low": st.column_config.NumberColumn("from", format="%.2f", help="95 % interval of the prediction."),
    "high": st.column_config.NumberColumn("to", format="%.2f"),
    "measured": st.column_config.NumberColumn("Measured (×)", format="%.2f"),
    "error": st.column_config.NumberColumn("Off by", format="percent"),
    "inside": st.column_config.CheckboxColumn("Within"),
}
HINT = "What is expected of the clock before a run: what is left of every layer, times what such layers took on the device."


def expected(rows: list[dict[str, object]], profile: Profile) -> list[dict[str, object]]:
    """The rows of the four figures for the present choice; where no latency was measured yet, with what is expected of one image at a time."""
    try:
        recipe = basis.current()
        tables = _tables(profile, recipe, _ids(TIMING, TABLES))
        if not tables:
            return rows
        table = tables[_standing("card_on", list(tables))]
        label = _standing("card_as", faster_rows.executions(recipe, table["precision"].unique()))
        card = _card(profile, recipe, table, label, 1)
    except LabError:  # the page says it where the choice is made
        return rows
    for row in rows[1:] if card.kind == cards.ESTIMATE else ():
        if card.low is None or card.verdict == "unknown":
            row["why_latency_ms"] = "cannot be told"
        else:
            said = f"{card.speedup:.2f}× <small>({card.low:.2f} to {card.high:.2f})</small>"
            row |= {"expected_latency_ms": said, "rule_latency_ms": f"{card.verdict}, as expected of {label} over dense. {card.basis}"}
    return rows


def draw(profile: Profile, recipe: Recipe) -> cards.Card | None:
    """The card for what is about to be launched; returns what it says, None where that cannot be told."""
    numbers = _ids(TIMING, TABLES)
    tables = _tables(profile, recipe, numbers)
    with st.container(border=True, key="faster"):
        with st.container(horizontal=True, vertical_alignment="center", gap="medium"):
            st.markdown("**Will it be faster?**", width="content", help=HINT)
            table, label, batch = _asked(recipe, tables)
        try:
            card = _card(profile, recipe, table, label, batch)
        except LabError as error:
            st.caption(str(error))
            return None
        _answer(card)
        _score(profile, recipe, card, numbers)
        if card.seconds_to_measure is not None or (card.kind == cards.ESTIMATE and card.verdict == "unknown"):
            _measure(recipe, card)
    return card


def measured(run: Run, report: Report) -> None:
    """What was expected of a finished run that was timed, beside what was measured; nothing where no table says anything."""
    try:
        profile = profiles.find(run.recipe.model)
    except LabError:  # a weights file that is gone by now
        return
    if profile is None or not report.tables.get("latency"):
        return
    rows = _compared(settings.database_url(), run.id, _ids(TIMING, TABLES), len(profile.pieces), profile)
    for row in rows.to_dict("records"):
        st.caption(f":material/speed: {faster_rows.outcome(row)}")


def _tables(profile: Profile, recipe: Recipe, numbers: tuple[int, ...]) -> dict[str, pd.DataFrame]:
    return _by_device(settings.database_url(), numbers, profile.facts["name"], recipe.device)


def _asked(recipe: Recipe, tables: dict[str, pd.DataFrame]) -> tuple[pd.DataFrame, str, int]:
    """Of which table, execution and batch the card speaks; a control stands there only where there is something to choose."""
    name = _choose("Device", "card_on", list(tables), 260)
    table = tables.get(name, pd.DataFrame())
    label = _choose("Execution", "card_as", faster_rows.executions(recipe, table["precision"].unique() if len(table) else ()), 230)
    timed = sorted(int(batch) for batch in (table["batch"].unique() if len(table) else recipe.measure.batch_sizes))
    batch = _choose("Batch", "card_batch", timed, 100, lambda size: f"batch {size}", usual=timed[-1])
    return table, label, batch


def _choose(label: str, name: str, offered: list, width: int, show=str, *, usual: object = None):
    """One of what is offered, kept in the link; None where nothing is."""
    if len(offered) < 2:
        return offered[0] if offered else None
    usual = offered[0] if usual is None else usual
    if _standing(name, offered, usual) != state.get(name, usual):
        state.put(name, None)  # left over from another recipe or device
    return st.selectbox(label, offered, format_func=show, width=width, label_visibility="collapsed", **state.tie_value(name, usual))


def _standing(name: str, offered: list, usual: object = None):
    """What the link asks for where that is offered, else the usual; None where nothing is offered."""
    usual = offered[0] if usual is None and offered else usual
    wanted = state.get(name, usual) if offered else None
    return wanted if wanted in offered else usual


def _answer(card: cards.Card) -> None:
    """Verdict, figure, reasons and basis."""
    icon, figure, headline = ICONS[card.verdict], faster_rows.expected(card), faster_rows.headline(card)
    if card.kind == cards.ESTIMATE and figure and headline == card.headline.rstrip("."):
        words = {"faster": "Faster", "not faster": "Not faster", "unknown": "Cannot be told"}[card.verdict]
        about = f"{card.execution} at batch {card.batch}, over the dense network in the same precision"
        st.html(
            f'<span style="font-weight:600">{words}: <span title="{html.escape(card.basis)}" style="border-bottom:1.5px dashed currentColor">'
            f"{figure}</span></span> <small style='opacity:.75'>{html.escape(about)}</small>"
        )
    else:
        st.markdown(f"{icon} **{headline}** · {card.execution}, batch {card.batch}")
    if card.reasons:
        st.markdown("\n".join(f"- {reason}" for reason in card.reasons))
    st.caption(card.basis)


def _measure(recipe: Recipe, card: cards.Card) -> None:
    """The button that has the layers of this network timed where runs go, once more where that told nothing, and how far it is."""
    number = state.get(TIMING, 0)
    try:
        run = state.store().run(number) if number else None
    except (StoreError, OverflowError):
        run = None
    if run is not None and run.active:
        st.fragment(waiting.line, run_every="2s")(run.id, will="time the layers", does="times the layers")
        return
    if run is not None and run.error:
        st.error(f"Run {run.id} stopped: {run.error}", icon=":material/error:")
    where = "this device" if recipe.device == devices.AUTO else devices.label(recipe.device).replace("Any ", "an ")
    again, takes = "", ""
    if card.seconds_to_measure is None:
        again = " again"
    else:
        takes = f": about {results.duration(card.seconds_to_measure)} by its MACs"
    with frame.actions():
        hint = f"Times every distinct layer of this network{takes}. Nothing is healed."
        if acts.button(f"Measure {where}{again}", icon=":material/timer:", key="measure_layers", help=hint):
            batches = tuple(sorted({*recipe.measure.batch_sizes, card.batch}))
            launch.queue(replace(recipe, measure=replace(recipe.measure, batch_sizes=batches)), kind=TIMING, name=TIMING)
            st.rerun()


def _score(profile: Profile, recipe: Recipe, card: cards.Card, tables: tuple[int, ...]) -> None:
    """What was expected and then measured of this very pruning; and, when asked for, how good such answers were for this network so far."""
    url = settings.database_url()
    runs = [number for kind in ("latency", "experiment") for number in _ids(kind, SCORED, model=recipe.model.name)] if tables else []
    same = [number for number in sorted(runs, reverse=True) if _work_of(url, number) == _work(recipe)]
    rows = _compared(url, same[0], tables, len(profile.pieces), profile) if same else pd.DataFrame()
    for row in rows[(rows["execution"] == card.execution) & (rows["batch"] == card.batch)].to_dict("records") if len(rows) else ():
        st.caption(f":material/target: {faster_rows.outcome(row)}")
    if not runs:
        return
    details = st.expander("How good were such answers so far?", on_change="rerun", key="faster_score")
    if details.open:
        with details, st.spinner("Holding every measurement against what would have been said before it"):
            found = pd.concat([_compared(url, number, tables, len(profile.pieces), profile).assign(run=number) for number in sorted(runs)])
            st.markdown(str(score.score(found)))
            if len(found):
                frame.table(found, key="faster_scores", column_config=SCORES, column_order=list(SCORES))


def _ids(kind: str, most: int, *, model: str | None = None) -> tuple[int, ...]:
    """Numbers of the newest finished runs of a kind, and of one network, the oldest first."""
    return tuple(sorted(state.store().numbers(kind=kind, status="done", limit=most, **({"model": model} if model else {}))))


@st.cache_data(max_entries=8, show_spinner=False)
def _rows(url: str, ids: tuple[int, ...]) -> pd.DataFrame:
    """Rows of tables of layer times, which never change; `url` keeps stores apart."""
    return state.store().table(ids, "layer_times")


@st.cache_data(max_entries=16, show_spinner=False)
def _by_device(url: str, ids: tuple[int, ...], model: str, wanted: str) -> dict[str, pd.DataFrame]:
    """What `faster_rows.tables` makes of these tables: thousands of rows, the same on every rerun."""
    return faster_rows.tables(_rows(url, ids), model=model, wanted=wanted)


@st.cache_data(max_entries=200, show_spinner=False)
def _compared(url: str, number: int, tables: tuple[int, ...], pieces: int, _profile: Profile) -> pd.DataFrame:
    """Predictions beside what a finished run measured; `pieces` tells a network that was profiled anew."""
    return score.compared(_profile, state.store().run(number).recipe, _rows(url, tables), state.store().table([number], "latency"))


@st.cache_data(max_entries=1000, show_spinner=False)
def _work_of(url: str, number: int) -> str:
    return _work(state.store().run(number).recipe)


def _work(recipe: Recipe) -> str:
    """What decides how fast a pruned network may be: its shapes."""
    return repr((recipe.model.name, recipe.pruning, recipe.tokens))


def _card(profile: Profile, recipe: Recipe, table: pd.DataFrame, label: str, batch: int) -> cards.Card:
    key = (settings.database_url(), recipe.fingerprint(), recipe.device, tuple(table["run"].unique()) if len(table) else (), label, batch)
    return _made(key, len(profile.pieces), profile, recipe, table)


@st.cache_data(max_entries=100, show_spinner=False)
def _made(key: tuple, pieces: int, _profile: Profile, _recipe: Recipe, _table: pd.DataFrame) -> cards.Card:
    """The card of a key, which names all that it follows from."""
    *_, label, batch = key
    return cards.card(_profile, _recipe, _table, label, batch, device="" if _recipe.device == devices.AUTO else _recipe.device)

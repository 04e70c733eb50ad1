"""Latency: is it really faster, on which machine, and compared with what."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from app import frame, latency_details, latency_files, latency_form, latency_published, latency_rows, latency_trust, profiles, published, state
from app.charts import latency as charts
from app.charts import theme
from app.latency_rows import spoken, word
from starfish_lab import literature, settings

KNOWN = 200  # newest done runs whose timings are read
RUNS = 4  # on show at once
SWEEP = (
    "Higher is faster; filled marks were measured here with their 95 % interval, hollow ones are published, the broad line is the best dense. "
    "Lines of different runs, machines or authors are not to be compared with each other."
)


@st.cache_data(max_entries=24, show_spinner=False)
def read(url: str, ids: tuple[int, ...], table: str) -> pd.DataFrame:
    """A table of finished runs, which never change; `url` keeps stores apart."""
    return state.store().table(ids, table)


def measurements(done: pd.DataFrame) -> pd.DataFrame:
    """Every latency row of the finished runs, with its network."""
    found = read(settings.database_url(), tuple(int(run) for run in done["id"]), "latency")
    if found.empty:
        return found
    return latency_rows.whole(found.assign(model=found["run"].map(done.set_index("id")["model"])))


def pick(timings: pd.DataFrame, published_rows: pd.DataFrame) -> tuple[str, str]:
    """Card and network. Measured machines first, then those of the literature."""
    here = list(dict.fromkeys(timings.sort_values("run", ascending=False)["device_name"])) if len(timings) else []
    covered = {gpu for name in here for gpu in published.cards(name)}
    cards = [*here, *(gpu for gpu in sorted(published_rows["gpu"].unique()) if gpu not in covered)]
    asked = state.get("card", cards[0])
    if asked not in cards and (ours := [name for name in here if asked in published.cards(name)]):
        state.put("card", ours[0])  # a link from before one was measured
    with st.container(horizontal=True, vertical_alignment="bottom"):
        card = st.selectbox(
            "Machine", cards, format_func=lambda name: name if name in here else f"{name} (literature)",
            **state.tie_value("card", cards[0], allowed=cards),
        )  # fmt: skip
        models = list(dict.fromkeys([
            *(timings.loc[timings["device_name"] == card, "model"] if len(timings) else ()),
            *sorted(published_rows.loc[published_rows["gpu"].isin(published.cards(card)), "model"].unique()),
        ]))  # fmt: skip
        wanted = (state.choice().model, *published.names(state.choice().model), "ViT-B/16")
        usual = next((model for model in wanted if model in models), models[0])
        if state.get("network", usual) not in models:
            state.put("network", None)  # left over from another card
        model = st.selectbox("Network", models, **state.tie_value("network", usual))
    return card, model


def narrow(rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of the runs on show, and those of them whose executions are drawn."""
    runs = [int(run) for run in sorted(rows["run"].unique(), reverse=True)]
    wanted = [run for run in state.ids("timed") if run in runs][:RUNS] or runs[:1]
    with st.container(horizontal=True, vertical_alignment="bottom"):
        if len(runs) > 1:
            st.multiselect("Runs", runs, format_func=lambda run: f"run {run}", max_selections=RUNS, **_tied("timed_runs", wanted, "timed"))
        rows = rows[rows["run"].isin(wanted)]
        names = {word(label): label for label in dict.fromkeys(latency_rows.timed(rows)["execution"])}
        usual = [word(label) for label in latency_rows.usual(rows)]
        drawn = [name for name in state.get("lines", tuple(usual)) if name in names] or usual
        if len(names) > 2:
            st.multiselect(
                f"Executions drawn, of {len(names)}", list(names), format_func=lambda name: spoken(names.get(name, name)),
                max_selections=latency_rows.LINES, wrap=True, **_tied("drawn_lines", drawn, "lines", usual),
            )  # fmt: skip
    return rows, rows[rows["execution"].isin([names[name] for name in drawn])]


def sweep(rows: pd.DataFrame, hollow: pd.DataFrame, card: str, model: str) -> None:
    """The main figure: images a second over batch size. Nothing below it is drawn until asked for."""
    fig = charts.batch_sweep(rows, hollow, device=card, dark=frame.dark(), keep=f"{card} {model}")
    caption = f"{SWEEP} {latency_rows.intervals(rows)}".strip()
    frame.chart(fig, key="batch_sweep", caption=caption, data=pd.concat([part for part in (rows, hollow) if len(part)]))
    for note, which in latency_rows.remarks(rows).items() if len(rows) else ():
        st.markdown(f"**{theme.sentence(note)}** ({'; '.join(which)}).")


def closer(rows: pd.DataFrame, everywhere: pd.DataFrame, hollow: pd.DataFrame, runs: pd.DataFrame, card: str, model: str) -> None:
    """One look below the sweep, or none. `rows` are of the runs on show, `everywhere` of this network on all machines."""

    def table(name: str) -> pd.DataFrame:
        return read(settings.database_url(), tuple(int(run) for run in rows["run"].unique()), name) if len(rows) else pd.DataFrame()

    here = latency_rows.timed(everywhere[everywhere["device_name"] == card]) if len(everywhere) else everywhere
    looks = {
        "figures": lambda: latency_details.figures(rows),
        "layers": lambda: latency_details.layers(rows, table("latency_layers")),
        "roofline": lambda: latency_details.roofline(rows, table("peak")),
        "accuracy": lambda: latency_details.accuracy(here, runs, hollow, card),
        "macs": lambda: latency_details.against_macs(rows, runs),
        "pair": lambda: latency_trust.pair(everywhere, hollow),
        "sensors": lambda: latency_trust.sensors(table("sensors"), table("hardware")),
        "published": lambda: latency_published.everything(hollow, card, model),
    }
    wanted = latency_details.look()
    if wanted in ("figures", "layers", "roofline", "macs", "sensors") and rows.empty:
        st.info(f"Nothing was measured on {card} yet, so there is nothing to look at more closely. Measure latency brings it.")
    elif wanted:
        looks[wanted]()


def _tied(key: str, shown, name: str, default=None) -> dict[str, object]:
    """Tie a choice of several to the page's own value `name`."""
    if st.session_state.get(key) != list(shown):
        st.session_state[key] = list(shown)
    return {"key": key, "on_change": lambda: state.put(name, st.session_state[key], default=default)}


profile = profiles.find()
if profile is not None:
    frame.figures(frame.stage_rows(profile))
done = state.store().runs(kind=None, status="done", limit=KNOWN)
timings = measurements(done)
released = literature.latencies()
card, model = pick(timings, released)
theirs = released[released["gpu"].isin(published.cards(card)) & released["model"].isin([model, *published.names(model)])]
same = timings[timings["model"] == model] if len(timings) else timings
ours = same[same["device_name"] == card] if len(same) else same
if ours.empty:
    st.markdown(f"**Nothing was measured on {'an ' if card in ('A40', 'A100') else ''}{card} here.** Every figure below is published, none is ours.")
    drawn = ours
else:
    ours, drawn = narrow(ours)
    latency_files.origin(done[done["id"].isin(ours["run"])])
sweep(drawn, theirs, card, model)
if len(ours):
    latency_trust.warnings(ours, read(settings.database_url(), tuple(int(run) for run in ours["run"].unique()), "sensors"))
latency_form.measure(card, done[done["id"].isin(ours["run"])] if len(ours) else done.iloc[:0], literature_only=ours.empty and card in ("A40", "A100"))
if ours.empty and state.get("look", "") != "published":  # where they stand anyway
    latency_published.headlines()
closer(ours, same, theirs, done, card, model)

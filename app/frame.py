"""The frame around every page: the sidebar, the four figures, charts and tables with their downloads.

A page does, in this order:

    profile = frame.profile()                        # or an invitation to make one, and the page ends here
    frame.figures(frame.stage_rows(profile))         # the first row of every page
    frame.chart(fig, key="budget", caption="…", data=table)
    with frame.actions(): st.button("Prune & heal", type="primary")

Fragments that poll wrap their body in `with frame.guard():`, as main wraps the page.
"""

from __future__ import annotations

import html
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pandas as pd
import plotly.graph_objects as go
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from app import connection, devices, profiles, sidebar, state
from app.charts import theme
from starfish_lab import settings
from starfish_lab.errors import LabError, StoreError

profile = profiles.require
prediction = profiles.prediction
stage_rows = profiles.stage_rows

STYLE = """<style>
.figures {display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: .75rem}
.figures section {border: 1px solid rgba(128,140,155,.28); border-radius: .5rem; padding: .5rem .75rem .55rem}
.figures h4 {font-size: .9rem; font-weight: 600; margin: 0 0 .25rem; padding: 0; letter-spacing: 0}
.figures h4 small {font-size: .8rem; font-weight: 400; opacity: .7; margin-left: .2rem}
.figures table {width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums}
.figures td {border: 0; padding: .06rem 0; white-space: nowrap; vertical-align: baseline; line-height: 1.4; font-size: .9rem}
.figures td.stage {width: 4.1rem; opacity: .9}
.figures td.value {font-weight: 600; font-size: 1rem}
.figures td.value small {font-weight: 400; opacity: .75}
.figures td.change {text-align: right; font-size: .85rem; opacity: .8}
.figures tr.estimate td.value span {border-bottom: 1.5px dashed rgba(128,140,155,.9)}
.figures tr.literature td.value span {border-bottom: 1.5px dotted rgba(128,140,155,.9)}
.figures tr.absent td.value {font-weight: 400; font-size: .85rem; opacity: .65}
@media (max-width: 1150px) {
  .st-key-pair [data-testid=stHorizontalBlock] {flex-wrap: wrap}
  .st-key-pair [data-testid=stColumn] {min-width: 100%}
  :is(.st-key-training, .st-key-healer, .st-key-sweep) [data-testid=stHorizontalBlock] {flex-wrap: wrap}
  :is(.st-key-training, .st-key-healer, .st-key-sweep) [data-testid=stColumn] {min-width: calc(50% - 1rem)}
}
[data-testid=stMainBlockContainer] {padding: 4.4rem clamp(1rem, 2.5vw, 3rem) 3rem}
body [data-testid=stCaptionContainer] {color: inherit; opacity: .8}
body :is([kind^=primary]:not(:disabled), [data-tag]) {color: light-dark(#ffffff, #10161d)}
</style>"""
GLYPHS = {"dense": "●", "pruned": "✕", "healed": "◆"}


def begin() -> DeltaGenerator:
    """Everything around a page: style, sidebar, what was wrong with the link, and whether the weights are random. Returns room for notices.

    Where the store does not answer, the page ends here with a sentence; where only the workers are out of reach, it goes on below one.
    """
    st.html(STYLE)
    st.logo(str(settings.ASSETS / "logo.svg"), size="large")
    if problem := sidebar.draw():
        connection.stand_by()
        st.warning(problem, icon=":material/cloud_off:")
    if state.choice().weights == "random":
        st.badge("random weights", icon=":material/casino:", color="orange", help="Nothing was trained: accuracy figures on this page mean nothing.")
    notices = st.container()
    tell(notices)
    return notices


def tell(notices: DeltaGenerator) -> None:
    """What was wrong with the link, where `begin` keeps room for it. Called again after the page, which reads values of its own."""
    for text in state.messages():
        notices.warning(text, icon=":material/link_off:")


@contextmanager
def guard() -> Iterator[None]:
    """No traceback reaches a person: the lab's own errors as they stand, all others as one sentence and a line in the log.

    A store that went away while the page was drawn is waited for.
    """
    try:
        yield
    except LabError as error:
        st.error(str(error), icon=":material/error:")
        if isinstance(error, StoreError) and connection.away():
            connection.watch()
    except Exception:
        logging.getLogger("starfish_lab.app").exception("a page failed")
        st.error(
            "This page met an error it did not expect. The details are in the app's log; the choice and all runs are kept. Reload the page to go on.",
            icon=":material/error:",
        )


def dark() -> bool:
    """True where the browser shows the dark theme."""
    return getattr(st.context.theme, "type", None) == "dark"


def figures(rows: list[dict[str, object]]) -> None:
    """Accuracy, MACs, parameters and latency, a line for each stage, with the change against dense.

    A row is a stage: `stage` ('dense', 'pruned', 'healed'), `origin` ('measured', 'literature', 'estimate'; `origin_<figure>` of one) and what
    is known of `top1`, `low`, `high` (fractions, on `images` images), `macs_g`, `parameters_m`, `latency_ms`; `why_<figure>` says in a few
    words why a figure is missing, `change_<figure>` how it compares with dense where that was measured too; `expected_<figure>` is what is
    expected of it while nobody measured it, by `rule_<figure>`. `device` names where latency was measured.
    """
    device = next((row["device"] for row in rows if row.get("device")), state.choice().device)
    images = next((row["images"] for row in rows if row.get("images")), 0)
    sample = f"top-1, 95 %, n = {theme.count(images)}" if images else "top-1, 95 % interval"
    cards = (
        _card("Accuracy", sample, "top1", rows, show=_accuracy, change=_points),
        _card("MACs", "of one image", "macs_g", rows, show=_macs, change=_ratio("fewer", "more")),
        _card("Parameters", "other than 0", "parameters_m", rows, show=_parameters, change=_ratio("fewer", "more")),
        _card(
            "Latency",
            f"batch 1, {'any device' if device == devices.AUTO else devices.label(device)}",
            "latency_ms",
            rows,
            show=_latency,
            change=lambda value, dense: "",  # medians of their own rounds are no pair: the measured ratio stands in change_latency_ms
        ),
    )
    st.html(f'<div class="figures">{"".join(cards)}</div>')


def chart(
    fig: go.Figure,
    *,
    key: str,
    caption: str = "",
    data: pd.DataFrame | None = None,
    select: bool = False,
    controls: Callable[[], object] | None = None,
) -> object:
    """A chart, under it its controls, its downloads and its caption. With `select`, returns the customdata of a point clicked just now, else None.

    The caption says how to read the chart in one sentence and what it does not say in another. `controls` draws
    what changes this chart alone. `data` is offered as CSV.
    """
    title = fig.layout.title.text
    event = st.plotly_chart(
        theme.wrapped(fig), key=key, theme=None, config=theme.CONFIG, width="stretch", alt=title,
        on_select="rerun" if select else "ignore", selection_mode="points",
    )  # fmt: skip
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        if controls is not None:
            controls()
        with st.container(horizontal=True, horizontal_alignment="right", gap="small"):
            download("Chart", key=key, name=f"{key}.html", make=lambda: fig.to_html(include_plotlyjs=True, config=theme.CONFIG), mime="text/html")
            if data is not None:
                _csv(data, key)
    if caption:
        st.caption(caption)
    return _clicked(key, event.selection.points) if select else None


def table(data: pd.DataFrame, *, key: str, **options) -> object:
    """A table with its CSV download; options go to st.dataframe, whose event is returned."""
    event = st.dataframe(data, key=key, hide_index=True, width="stretch", **options)
    with actions():
        _csv(data, key)
    return event


def download(label: str, *, key: str, name: str, make, mime: str) -> None:
    """A small download button; `make` runs only when it is pressed."""
    kind = name.rpartition(".")[2].upper()
    st.download_button(
        kind, make, file_name=name, mime=mime, key=f"download.{key}", on_click="ignore",
        type="tertiary", icon=":material/download:", help=f"{label} as {kind}",
    )  # fmt: skip


def plain(data: pd.DataFrame) -> pd.DataFrame:
    """A table fit for CSV: lists become space-separated numbers."""
    return data.map(lambda value: " ".join(map(str, value)) if isinstance(value, list) else value)


def actions():
    """A row for the page's primary action, bottom right: `with actions(): st.button(…, type="primary")`."""
    return st.container(horizontal=True, horizontal_alignment="right", vertical_alignment="center", gap="medium")


def _clicked(key: str, points: list[dict]) -> object:
    """customdata of the first selected point, once: a selection that stands since an earlier run is no click."""
    now, before = points[0].get("customdata") if points else None, st.session_state.get(f"clicked.{key}")
    st.session_state[f"clicked.{key}"] = now
    return now if now != before else None


def _csv(data: pd.DataFrame, key: str) -> None:
    download("Table", key=f"{key}.csv", name=f"{key}.csv", make=lambda: plain(data).to_csv(index=False), mime="text/csv")


def _card(name: str, unit: str, figure: str, rows: list[dict], *, show: Callable[[dict], str], change: Callable[[float, float], str]) -> str:
    dense = next((row.get(figure) for row in rows if row["stage"] == "dense"), None)
    lines = "".join(_line(row, figure, show, change, dense) for row in rows)
    return f"<section><h4>{name} <small>{html.escape(unit)}</small></h4><table>{lines}</table></section>"


def _line(row: dict, figure: str, show: Callable[[dict], str], change: Callable[[float, float], str], dense: float | None) -> str:
    stage, origin = row["stage"], row.get(f"origin_{figure}", row.get("origin", "measured"))
    known = row.get(figure) is not None
    expected = "" if known else row.get(f"expected_{figure}", "")
    value = show(row) if known else f"<span>{expected}</span>" if expected else html.escape(str(row.get(f"why_{figure}", "–")))
    beside = row.get(f"change_{figure}") or change(row[figure], dense) if known and dense and stage != "dense" else ""
    cells = f'<td class="value"><span>{value}</span></td><td class="change">{beside}</td>' if known else f'<td class="value" colspan="2">{value}</td>'
    hint = {"estimate": "estimate, from the network's profile", "literature": row.get("source", "literature")}.get(origin, "measured")
    if not known:
        origin, hint = ("estimate", str(row[f"rule_{figure}"])) if expected else ("absent", "not known")
    return (
        f'<tr class="{origin}" title="{stage}: {html.escape(hint)}">'
        f'<td class="stage"><span style="color:{theme.stage_colour(stage, dark())}">{GLYPHS[stage]}</span> {stage}</td>'
        f"{cells}</tr>"
    )


def _accuracy(row: dict) -> str:
    if row.get("low") is None:
        return theme.percent(row["top1"])
    half = max(row["high"] - row["top1"], row["top1"] - row["low"])
    return f"{100 * row['top1']:.1f} % <small>± {100 * half:.1f}</small>"


def _macs(row: dict) -> str:
    return theme.number(row["macs_g"], "G") if row["macs_g"] >= 0.1 else theme.number(1e3 * row["macs_g"], "M")


def _parameters(row: dict) -> str:
    return theme.number(row["parameters_m"], "M") if row["parameters_m"] >= 0.1 else theme.number(1e3 * row["parameters_m"], "k")


def _latency(row: dict) -> str:
    return theme.number(row["latency_ms"], "ms")


def _points(value: float, dense: float) -> str:
    return f"{100 * (value - dense):+.1f} pp".replace("-", "−")


def _ratio(better: str, worse: str) -> Callable[[float, float], str]:
    def change(value: float, dense: float) -> str:
        ratio = dense / value
        if abs(ratio - 1) < 0.005:
            return "unchanged"
        return f"{theme.number(max(ratio, 1 / ratio))}× {better if ratio > 1 else worse}"

    return change

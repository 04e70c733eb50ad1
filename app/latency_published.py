"""What others published about speed: the headline figures with what they really compare, and every published row."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from app import frame, published, state
from app.charts import latency_accuracy
from starfish_lab import literature

ACCURACIES = (
    "Every mark is a published figure, its source under the pointer; none was measured here. "
    "Marks of different methods also differ in training, labels and images: see the table."
)
RATIOS = {"batch": "Batch", "headline": "2:4 over the authors' baseline (×)", "matched": "2:4 over the best dense, same precision (×)"}


def headlines() -> None:
    """The papers' speed-ups side by side: the claim, what it divides, and what the same data say like for like."""
    cards = published.headlines()
    with st.container(key="headlines", horizontal=True, gap="small"):
        for card in cards:
            with st.container(border=True, width=330, height="stretch"):
                st.markdown(f"**{card['claim']}** · {card['where']}")
                matched = "not published" if card["matched"] is None else f"{card['matched']:.3f}×"
                st.markdown(f"Like for like: **{matched}**")
                st.caption(f"{card['setting']}. It compares {card['compares']}. {card['says']} Source: {card['source']}.")
    st.caption("All three are literature. None was measured here, and no ratio of this page leans on them.")


def everything(hollow: pd.DataFrame, card: str, model: str) -> None:
    """What the published figures of the network on show compare, then all published rows."""
    headlines()
    table = published.ratios(hollow)
    if text := published.statement(next(iter(published.cards(card)), card), _paper_name(hollow, model), table):
        st.markdown(text)
    if len(table):
        formats = {
            name: st.column_config.NumberColumn(RATIOS.get(name, name), format="%.3f" if name in ("headline", "matched") else "%.5g")
            for name in table
        }
        order = sorted(table, key=lambda name: [*RATIOS, name].index(name))  # what it comes to first: at 800 pixels the rest is reached by scrolling
        frame.table(table, key="published_latency", column_config=formats, column_order=order)
        st.caption(f"Images/s. Source: {hollow['source'].iloc[0]}")
    accuracies(model)
    with st.expander("All published rows", expanded=state.get("published_rows", False), on_change=_opened, key="published_rows"):
        if state.get("published_rows", False):
            timings, figures = literature.latencies(), literature.accuracies()
            st.caption(f"{len(timings)} timings")
            frame.table(timings, key="all_published_latency")
            st.caption(f"{len(figures)} accuracies")
            frame.table(figures, key="all_published_accuracy")


def accuracies(model: str) -> None:
    """Published accuracies of one network over sparsity; by default of the network on show."""
    table = literature.accuracies()
    networks = sorted(table["model"].unique())
    usual = next((name for name in (model, *published.names(model), "ViT-B/16") if name in networks), networks[0])
    network = st.selectbox("Published accuracies of", networks, **state.tie_value("published_network", usual, allowed=networks))
    rows = table[table["model"] == network].reset_index(drop=True)
    fig = latency_accuracy.published_accuracies(rows, model=network, dark=frame.dark(), keep=network)
    frame.chart(fig, key="published_accuracies", caption=ACCURACIES, data=rows)


def _opened() -> None:
    state.put("published_rows", not state.get("published_rows", False), default=False)


def _paper_name(hollow: pd.DataFrame, model: str) -> str:
    return hollow["model"].iloc[0] if len(hollow) else next(iter(published.names(model)), model)

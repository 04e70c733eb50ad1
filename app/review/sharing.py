"""What a reviewer takes along: a link to the very comparison, a Markdown table for a pull request, and the frozen evidence pack."""

from __future__ import annotations

from urllib.parse import urlencode

import pandas as pd
import streamlit as st

from app import state
from app.review import evidence
from starfish_lab.evidence import summary

PACK = "One HTML file with interactive charts that works offline, with tables (CSV), recipes (JSON), hashes, notes and decisions, in a .zip."


def buttons(runs: pd.DataFrame) -> None:
    """All three, for a row of actions. `runs` are finished runs, rows of the store's list."""
    ids, url, store = [int(run) for run in runs["id"]], link(), state.store()
    with st.popover("Copy link", icon=":material/link:", key="copy_link", on_change="rerun") as opened:
        if opened.open:
            st.markdown("Opens this very comparison: the runs, axes and tables that you see now. The icon on the right copies it.")
            st.code(url, language=None, wrap_lines=True)
    with st.popover("Markdown", icon=":material/markdown_copy:", key="copy_markdown", on_change="rerun") as opened:
        if opened.open:
            st.markdown("For a pull request: a row a run, with the link to this comparison.")
            st.code(summary.markdown(_rows(runs, ids), link=url), language=None, height=280)
    name = f"evidence-{'-'.join(map(str, ids[:8]))}{'-more' if len(ids) > 8 else ''}.zip"
    st.download_button(
        "Evidence pack", lambda: evidence.zipped(store, ids, link=url), name, "application/zip", on_click="ignore",
        icon=":material/inventory_2:", help=PACK, key="evidence_pack",
    )  # fmt: skip


def link() -> str:
    """The address of this page with everything that was chosen on it."""
    query = urlencode(st.query_params.to_dict(), safe=",")
    return f"{st.context.url or ''}{f'?{query}' if query else ''}"


def _rows(runs: pd.DataFrame, ids: list[int]) -> list[dict[str, str]]:
    store = state.store()
    tables = {name: store.table(ids, name) for name in ("latency", "seconds", "comparisons")}
    return summary.rows(runs, **tables, decisions=store.decisions(ids))

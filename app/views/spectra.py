"""Spectra: which layers are noise with a few spikes, which are not, and how pruning and healing change that."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from app import frame, state
from app.charts import spectra, spectra_grid, theme
from starfish_lab import settings

STAGES = {"dense": "Dense", "pruned": "Pruned", "healed": "Healed"}
VALUES = {
    "spikes": "Spikes",
    "bulk_fraction": "Bulk fraction",
    "sigma_plus": "Bulk edge σ₊",
    "stable_rank": "Stable rank",
    "fit_error": "Fit error",
}
NARROW = 8  # blocks, up to which the grid leaves room beside it
FIRST = ("fc1", "fc2", "q", "k", "v", "proj")  # kinds that get a place in the grid first
CONTROL_HELP = "The same entries in random order: what is left of the spectrum when only the sizes of the weights count."
COLUMNS = {
    "layer": "Layer",
    "role": "Matrix",
    "depth": "Block",
    "rows": "Rows",
    "cols": "Columns",
    "sigma": st.column_config.NumberColumn("σ", format="%.3g", help="Standard deviation of the entries of the noise"),
    "sigma_plus": st.column_config.NumberColumn("Edge σ₊", format="%.3g", help="Largest singular value that noise explains"),
    "fit_error": st.column_config.NumberColumn("Fit error", format="%.3g", help="Largest distance between the measured and the fitted distribution"),
    "bulk_fraction": st.column_config.NumberColumn("Bulk", format="percent", help="Share of the singular values inside the bulk"),
    "spikes": "Spikes",
    "spike_energy": st.column_config.NumberColumn("Energy of spikes", format="percent", help="Share of the sum of squares that the spikes hold"),
    "stable_rank": st.column_config.NumberColumn("Stable rank", format="%.3g"),
    "hill_alpha": st.column_config.NumberColumn("Hill α", format="%.3g", help="Exponent of a power law fitted to the tail"),
    "verdict": "Verdict",
}


def page() -> None:
    profile = frame.profile()
    frame.figures(frame.stage_rows(profile))
    with st.container(horizontal=True, vertical_alignment="top", gap="medium"):
        table, whose = _source(profile.spectra)
        kinds = _kinds(table)
    inside = table[table["depth"] >= 0]
    if inside.empty:
        st.caption("This network has no matrices inside its blocks.")
        return
    selected = _selected(inside, kinds)
    with st.container(key="pair"):
        if inside["depth"].nunique() > NARROW:
            _grid(inside, kinds, selected)
            left, right = st.columns(2, gap="medium")
            with left:
                _enlarged(inside, selected, whose)
            with right:
                _over_depth(table, selected)
        else:
            left, right = st.columns([3, 2], gap="medium")
            with left:
                _grid(inside, kinds, selected)
            with right:
                _enlarged(inside, selected, whose)
                _over_depth(table, selected)
    _table(table)


def _source(dense: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Whose spectra: the profile's, or those of a run before and after pruning and healing; and that in words."""
    chosen, run = state.choice(), state.get("run", 0)
    runs = state.store().runs(status="done", limit=200)
    runs = runs[(runs["model"] == chosen.model) & (runs["weights"] == chosen.weights)]
    if runs.empty:
        return dense, "dense"
    names = {0: "None: the dense network"} | {
        int(row.id): f"Run {row.id} · {row.name or f'{row.sparsity:.0%} {row.pattern}'}" for row in runs.itertuples(index=False)
    }
    if run not in names:
        names[run] = f"Run {run}, not done or of another network"
    st.selectbox("Run", list(names), format_func=names.get, width=280, **state.tie_value("run", 0))
    found = _run_spectra(settings.database_url(), run) if run in set(runs["id"]) else pd.DataFrame()
    if found.empty:
        return dense, "dense"
    stages = [stage for stage in STAGES if stage in set(found["stage"])]
    stage = state.get("stage", stages[-1], allowed=stages)
    st.segmented_control("Stage", stages, format_func=STAGES.get, required=True, **state.tie_value("stage", stages[-1]))
    return found[found["stage"] == stage].reset_index(drop=True), f"{stage}, run {run}"


@st.cache_data(max_entries=8, show_spinner="Reading the run's spectra")
def _run_spectra(url: str, run: int) -> pd.DataFrame:
    """The spectra of a finished run, which never change."""
    return state.store().table([run], "spectra")


def _kinds(table: pd.DataFrame) -> list[str]:
    """The kinds of matrices in the grid; at first as many as fit."""
    found = spectra.roles(table)
    usual = _usual(spectra.add_role(table), found)
    if not set(state.get("kinds", usual)) <= set(found):
        state.put("kinds", None)
    st.pills("Matrices", found, selection_mode="multi", help="q, k and v are thirds of the fused qkv layer.", **state.tie_value("kinds", usual))
    return list(state.get("kinds", usual))


def _usual(table: pd.DataFrame, found: list[str]) -> tuple[str, ...]:
    room, taken = spectra_grid.MOST_PANELS, []
    for kind in sorted(found, key=lambda kind: FIRST.index(kind) if kind in FIRST else len(FIRST)):
        panels = int(((table["role"] == kind) & (table["depth"] >= 0)).sum())
        if kind != "qkv" and panels <= room:
            taken.append(kind)
            room -= panels
    return tuple(kind for kind in found if kind in taken) or tuple(found[:1])


def _selected(inside: pd.DataFrame, kinds: list[str]) -> tuple[str, str]:
    """(layer, part) of the enlarged matrix: the clicked one, else the one with most spikes."""
    wanted = (state.get("layer", ""), state.get("part", ""))
    keys = list(zip(inside["layer"], inside["part"]))
    if wanted in keys:
        return wanted
    shown = spectra.add_role(inside)
    shown = shown[shown["role"].isin(kinds)] if shown["role"].isin(kinds).any() else shown
    first = shown.loc[shown["spikes"].astype(float).idxmax()]
    return first["layer"], first["part"]


def _grid(inside: pd.DataFrame, kinds: list[str], selected: tuple[str, str]) -> None:
    rows = spectra.add_role(inside)
    rows = rows[rows["role"].isin(kinds)]
    clicked = frame.chart(
        spectra_grid.grid(rows, selected=selected, dark=frame.dark()),
        key="grid",
        select=True,
        caption="A panel is a matrix: eigenvalues on a log axis, the fitted bulk as a line, its edge dotted, spikes as diamonds with their number; "
        "× marks a matrix that the law does not describe. Click one to enlarge it. Heights are not comparable between panels.",
    )
    _enlarge(clicked)


def _enlarged(inside: pd.DataFrame, selected: tuple[str, str], whose: str) -> None:
    row = inside[(inside["layer"] == selected[0]) & (inside["part"] == selected[1])].iloc[0]
    controlled = isinstance(row.get("control_counts"), list)
    with_control = state.get("control", False) and controlled
    frame.chart(
        spectra.spectrum(row, dark=frame.dark(), control=with_control, height=360),
        key="enlarged",
        controls=lambda: controlled and st.toggle("Randomised control", help=CONTROL_HELP, **state.tie_value("control", False)),
        data=pd.DataFrame({"from": row["bin_edges"][:-1], "to": row["bin_edges"][1:], "eigenvalues": row["counts"]}) if row["counts"] else None,
        caption=f"**{theme.sentence(row['verdict'])}** ({whose}). The line is what noise with the fitted σ = {theme.number(row['sigma'])} "
        "would give; right of the edge stands what noise cannot explain. It does not say whether a spike matters for accuracy.",
    )


def _over_depth(table: pd.DataFrame, selected: tuple[str, str]) -> None:
    value = state.get("value", "spikes", allowed=list(VALUES))
    clicked = frame.chart(
        spectra.heatmap(table, value, dark=frame.dark()),
        key="depth",
        select=True,
        controls=lambda: st.selectbox(
            "Cells show", list(VALUES), format_func=VALUES.get, width=170, label_visibility="collapsed", **state.tie_value("value", "spikes")
        ),
        caption="A cell is a matrix, its block from left to right; × marks one that the law does not describe, whose figures say little. "
        "Edges of differently wide layers are not comparable.",
    )
    _enlarge(clicked)


def _enlarge(clicked: list | None) -> None:
    """Show the matrix that was clicked just now."""
    if clicked and clicked[0]:
        state.put("layer", clicked[0])
        state.put("part", clicked[1])
        st.rerun()


def _table(table: pd.DataFrame) -> None:
    details = st.expander("Every matrix", on_change="rerun", key="matrices")
    if details.open:
        with details:
            frame.table(spectra.add_role(table), key="spectra", column_config=COLUMNS, column_order=list(COLUMNS))


page()

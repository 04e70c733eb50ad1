"""What was measured with the lab itself on real networks, delivered with it, on the page Bake-off: assets/measured/healing.csv."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from app import bakeoff_view, published, results, state
from starfish_lab import settings

TABLE = settings.ASSETS / "measured" / "healing.csv"
NEEDED = {"network", "hardware", "healer", "seed", "sparsity", "images", "steps", "top1", "low", "high", "share", "healing_seconds"}
FEWEST = {"all": 1, "images": 3, "sparsity": 2}  # places on the axis that make a picture


def there() -> bool:
    """True where figures were delivered."""
    return len(_rows()) > 0


def section(axis: str) -> None:
    """The delivered figures of a tab; nothing where none were delivered."""
    rows = _rows()
    parts = {name: found for name, of_network in rows.groupby("network", sort=False) if (found := _parts(of_network, axis))} if len(rows) else {}
    if not parts:
        return
    st.subheader("What we measured", anchor=False)
    networks = list(parts)
    usual = next((name for name in networks if name == state.choice().model), networks[0])
    with st.container(horizontal=True, vertical_alignment="bottom"):
        network = st.selectbox("Measured network", networks, **_tied("measured", usual, networks)) if len(networks) > 1 else networks[0]
        known = list(parts[network])
        what = st.selectbox("At", known, **_tied(f"measured_{axis}", known[0], known)) if len(known) > 1 else known[0]
    found = parts[network][what]
    bakeoff_view.figure(found, axis, key=f"measured_{axis}", model=network)
    st.caption(_how(network, found))
    with st.expander("The rows in a table"):
        bakeoff_view.table(found, pd.DataFrame(), key=f"measured_{axis}_table")


def _parts(rows: pd.DataFrame, axis: str) -> dict[str, pd.DataFrame]:
    """The pictures that the rows of a network can make on a tab: {what they have in common: rows}, those with most healers first."""
    common = {"all": ["sparsity", "images"], "images": ["sparsity"], "sparsity": ["images"]}[axis]
    by = [*(["pattern"] if "pattern" in rows else []), *common, *(["hardware"] if rows["hardware"].nunique() > 1 else [])]
    found = {}
    for values, part in rows.groupby(by, sort=False):
        if axis == "all" or part[axis].nunique() >= FEWEST[axis]:
            found[", ".join(_said(name, value) for name, value in zip(by, values))] = part
    return dict(sorted(found.items(), key=lambda item: -item[1]["healer"].nunique()))


def _said(name: str, value: object) -> str:
    if name == "sparsity":
        return f"{100 * value:g} %"
    return f"{value:,.0f} images" if name == "images" else str(value).replace("_", " ")


def _how(network: str, rows: pd.DataFrame) -> str:
    """Network, hardware and recipe of the figures, in a sentence."""

    def of(column: str, form: str) -> str:
        if column not in rows:
            return ""
        known = [f"{value:g}" if isinstance(value, float) else str(value) for value in sorted(rows[column].dropna().unique())]
        return form.format(" or ".join(known)) if known else ""

    trained = rows[rows["steps"] > 0]
    steps = " or ".join(f"{n:,.0f}" for n in sorted(trained["steps"].unique())[:4])
    parts = [
        of("hardware", "on {}"), of("images", "{} calibration images"), f"{steps} steps" if steps else "", of("batch_size", "batches of {}"),
        of("precision", "{}"), results.count(rows["seed"].nunique(), "seed"),
        f"n = {rows['evaluated'].max():,.0f} evaluation images" if "evaluated" in rows and rows["evaluated"].notna().any() else "",
    ]  # fmt: skip
    called = published.names(network)
    return f"{called[0] if called else network}, measured with this lab: {', '.join(filter(None, parts))}."


def _tied(name: str, usual: str, known: list[str]) -> dict[str, object]:
    if state.get(name, usual) not in known:
        state.put(name, None)  # of another tab or network
    return state.tie_value(name, usual, allowed=known)


def _rows() -> pd.DataFrame:
    if not TABLE.exists():
        return pd.DataFrame()
    return _read(str(TABLE), TABLE.stat().st_mtime_ns)


@st.cache_data(max_entries=2, show_spinner=False)
def _read(path: str, changed: int) -> pd.DataFrame:
    """The raw rows; none where columns are missing."""
    rows = pd.read_csv(path)
    if not set(rows) >= NEEDED:
        return pd.DataFrame()
    whole = rows.assign(top1_dense=rows["top1"] / rows["share"]) if "top1_dense" not in rows else rows
    ratio = rows["share"] / rows["top1"]
    return whole if "share_low" in rows else whole.assign(share_low=rows["low"] * ratio, share_high=rows["high"] * ratio)

"""What was measured with the lab itself on real networks, delivered with it, on the page Bake-off: assets/measured/healing.csv."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from app import bakeoff_rows, bakeoff_view, published, results, state
from starfish_lab import settings

TABLE = settings.ASSETS / "measured" / "healing.csv"
NEEDED = {"network", "hardware", "healer", "seed", "sparsity", "images", "steps", "top1", "low", "high", "share", "healing_seconds"}
FEWEST = {"all": 1, "images": 3, "sparsity": 2}  # places on the axis that make a picture
CELL = ["healer", "seed", "sparsity", "images"]


def there() -> bool:
    """True where figures were delivered."""
    return len(_rows()) > 0


def section(axis: str) -> None:
    """The delivered figures of a tab; nothing where none were delivered."""
    parts = _pictures(str(TABLE), TABLE.stat().st_mtime_ns, axis) if there() else {}
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
    knees = bakeoff_rows.knees(bakeoff_rows.summary(found)) if axis == "images" else None
    bakeoff_view.figure(found, axis, key=f"measured_{axis}", model=network, knees=knees)
    st.caption(_how(network, found))
    details = st.expander("The rows in a table", on_change="rerun", key=f"measured_{axis}_rows")
    if details.open:
        with details:
            bakeoff_view.table(found, pd.DataFrame(), key=f"measured_{axis}_table")


@st.cache_data(max_entries=6, show_spinner=False)
def _pictures(path: str, changed: int, axis: str) -> dict[str, dict[str, pd.DataFrame]]:
    """{network: its `_parts`} of the networks that have any."""
    return {name: found for name, rows in _read(path, changed).groupby("network", sort=False) if (found := _parts(rows, axis))}


def _parts(rows: pd.DataFrame, axis: str) -> dict[str, pd.DataFrame]:
    """The pictures that the rows of a network can make on a tab: {what they have in common: rows}, those with most healers first.

    Rows that differ in anything but healer, seed and the tab's axis never share a picture; what does not train is in that of every training.
    """
    common = [name for name in ("sparsity", "images") if name != axis]
    by = [*common, *(name for name in ("pattern", "masks", "precision", "hardware") if name in rows and rows[name].nunique() > 1)]
    found = {}
    for values, part in rows.groupby(by, sort=False):
        said = [_said(name, value) for name, value in zip(by, values)]
        for trained, chosen in _trainings(part).items():
            if axis != "all":
                chosen = chosen[chosen.groupby("healer")[axis].transform("nunique") > 1]  # one place makes no line
            if len(chosen) and chosen[axis if axis != "all" else "sparsity"].nunique() >= FEWEST[axis]:
                found[", ".join([*said, *trained])] = chosen
    return dict(sorted(found.items(), key=lambda item: -item[1]["healer"].nunique()))


def _trainings(rows: pd.DataFrame) -> dict[tuple[str, ...], pd.DataFrame]:
    """Rows by how long and at which rates they trained, where a healer did so in several ways; else all of them."""
    trained = rows[rows["steps"] > 0]
    several = [name for name in ("steps", "rate_tuned") if name in rows and (trained.groupby(CELL)[name].nunique() > 1).any()]
    if not several:
        return {(): rows}
    return {
        tuple(map(_said, several, values)): rows[(rows["steps"] == 0) | rows.index.isin(part.index)] for values, part in trained.groupby(several)
    }  # fmt: skip


def _said(name: str, value: object) -> str:
    words = {
        "sparsity": lambda: f"{100 * value:g} %", "images": lambda: f"{value:,.0f} images", "steps": lambda: f"{value:,.0f} steps",
        "masks": lambda: f"{results.name(value)} masks", "rate_tuned": lambda: "rates tuned" if value else "rates as they come",
    }  # fmt: skip
    return words.get(name, lambda: str(value).replace("_", " "))()


def _how(network: str, rows: pd.DataFrame) -> str:
    """Network, hardware and recipe of the figures, in a sentence."""

    def of(column: str, form: str, among: pd.DataFrame) -> str:
        known = sorted(among[column].dropna().unique().tolist()) if column in among else []
        words = [f"{value:,g}" if isinstance(value, int | float) else str(value) for value in known]
        return form.format(" or ".join(words) if len(words) < 3 else f"{words[0]} to {words[-1]}") if words else ""

    shown = rows.assign(sparsity=100 * rows["sparsity"])
    trained = shown[shown["steps"] > 0]
    parts = [
        of("hardware", "on {}", shown), of("sparsity", "{} % sparsity", shown), of("images", "{} calibration images", shown),
        of("steps", "{} steps", trained), of("batch_size", "batches of {}", trained), of("precision", "{}", shown),
        results.count(rows["seed"].nunique(), "seed"),
        of("evaluated", "n = {} evaluation images", shown),
    ]  # fmt: skip
    called = published.names(network)
    name = called[0] if called else "The starter" if network == "starter" else network
    return f"{name}, measured with this lab: {', '.join(filter(None, parts))}."


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

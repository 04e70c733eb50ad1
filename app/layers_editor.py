"""Every layer of a pruning choice in a table; under the pattern 'unstructured' a person can set any of them by hand."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from app import basis, frame, results, state
from app.charts import theme
from app.choice import as_words
from starfish_lab import whatif
from starfish_lab.pruning import rules
from starfish_lab.whatif import Profile, WhatIf

BY_HAND = "By hand (%)"
BY_HAND_HELP = "Type the share of this layer's weights that goes, from 0 to 99.9. Empty: what the budget takes. The other layers make up for it."


def draw(profile: Profile, predicted: WhatIf) -> None:
    """The table with its download, and what no pattern looks at. Closed until asked for."""
    details = st.expander("Every layer", on_change="rerun", key="details")
    if not details.open:
        return
    with details:
        for note in predicted.notes:
            st.caption(note)
        if state.choice().pattern == "unstructured":
            st.caption(
                "Type a share under *By hand* to set a layer: it becomes part of the recipe, and the budget shares out the rest so that the "
                "sparsity still holds. It does not say what the layer can bear: the predicted drift is a first hint, a run tells."
            )
            _editor(predicted)
        else:
            frame.table(_readable(predicted.layers), key="layers", column_config=_columns())
        _outside(profile)


def set_by_hand(predicted: WhatIf) -> dict[str, float]:
    """{layer: sparsity} that the recipe sets, globs spelt out."""
    return rules.by_layer("pruning.layers", basis.current().pruning.layers, list(predicted.layers["layer"]))


def _editor(predicted: WhatIf) -> None:
    by_hand = set_by_hand(predicted)
    if st.session_state.get("layers_shown") != by_hand:  # changed elsewhere: what was typed here is out of date
        st.session_state["layers_shown"] = by_hand
        st.session_state["layers_version"] = st.session_state.get("layers_version", 0) + 1
    rows = _readable(predicted.layers)
    rows.insert(1, BY_HAND, (100 * rows["layer"].map(by_hand).astype(float)).round(4))
    key = f"layers.{st.session_state['layers_version']}"
    layers = list(predicted.layers["layer"])
    st.data_editor(
        rows, key=key, hide_index=True, width="stretch", placeholder="by budget", alt="Every layer, with shares to set by hand",
        on_change=_edited, args=(key, layers),
        disabled=[name for name in rows if name != BY_HAND],
        column_config={BY_HAND: st.column_config.NumberColumn(BY_HAND, min_value=0, max_value=99.9, format="%.4g", help=BY_HAND_HELP), **_columns()},
    )  # fmt: skip
    with frame.actions():
        frame.download("Table", key="layers.csv", name="layers.csv", make=lambda: rows.to_csv(index=False), mime="text/csv")


def _edited(key: str, layers: list[str]) -> None:
    """What was typed becomes the recipe's."""
    by_hand = edited(st.session_state["layers_shown"], st.session_state[key]["edited_rows"], layers)
    st.session_state["layers_shown"] = by_hand  # so that the table keeps its place
    state.change(layers=as_words(by_hand))


def edited(by_hand: dict[str, float], rows: dict[int, dict[str, object]], layers: list[str]) -> dict[str, float]:
    """The layers set by hand after edits of table rows, {row: {column: value}}; an emptied cell goes back to the budget.

    >>> edited({"a": 0.5, "b": 0.25}, {0: {BY_HAND: None}, 2: {BY_HAND: 30}}, ["a", "b", "c"])
    {'b': 0.25, 'c': 0.3}
    """
    typed = {layers[int(number)]: cells[BY_HAND] for number, cells in rows.items() if BY_HAND in cells}
    shares = by_hand | {layer: None if share is None else round(min(max(share, 0.0), 99.9) / 100, 6) for layer, share in typed.items()}
    return {layer: shares[layer] for layer in layers if shares.get(layer) is not None}


def _readable(rows: pd.DataFrame) -> pd.DataFrame:
    """The same rows, multiply-adds in M where they would be strings of zeros in G."""
    if rows["macs_g"].max() >= 0.1:
        return rows.copy()
    rows = rows.assign(macs_g=1e3 * rows["macs_g"], macs_g_effective=1e3 * rows["macs_g_effective"])
    return rows.rename(columns={"macs_g": "macs_m", "macs_g_effective": "macs_m_effective"})


def _columns() -> dict[str, object]:
    number = st.column_config.NumberColumn
    return {
        "layer": "Layer", "block": None, "depth": "Block", "kind": "Kind",
        "weights": number("Weights", format="localized"), "removed": number("Lost", format="localized"),
        "sparsity": st.column_config.ProgressColumn("Share lost", min_value=0, max_value=1, format="percent"),
        **{f"macs_{unit.lower()}": number(f"MACs ({unit})", format="%.3g") for unit in "MG"},
        **{f"macs_{unit.lower()}_effective": number(f"MACs left ({unit})", format="%.3g") for unit in "MG"},
        "note": "Left dense because", "edge_weight": number("Edge weight w", format="%.2f"),
    }  # fmt: skip


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

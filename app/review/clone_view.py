"""Clone with one change: a run, one field of its recipe, a new value, and the run that differs in nothing else."""

from __future__ import annotations

import json

import streamlit as st

from app import acts, frame, launch, state
from app.review import fields
from app.review.fields import CHOICE, FLAG, LIST, NUMBER, OPTIONS, WHOLE, Field
from starfish_lab.errors import RecipeError

HELP = {
    LIST: "Several values with commas between.",
    OPTIONS: 'A JSON object, such as {"temperature": 2.0}; {} for the defaults.',
}


def section(ids: list[int], names: dict[int, str]) -> None:
    """The form. Its choices stand in the address bar, so that a link proposes a change."""
    with st.container(border=True):
        st.markdown("One change against a finished run, everything else as it was: what comes out differs by that change alone.")
        row = st.container(horizontal=True, vertical_alignment="bottom")  # as many beside each other as the page is wide
        tied = state.tie_value("clone", ids[0], allowed=ids)
        run = row.selectbox("Run to clone", ids, format_func=lambda run: names[run], width=300, **tied)
        recipe = state.store().run(run).recipe
        known = {field.path: field for field in fields.fields(recipe)}
        path = row.selectbox("Field", list(known), width=260, **state.tie_value("field", "pruning.sparsity", allowed=list(known)))
        field = known[path]
        try:
            with row:
                value = _value(field, key=f"clone_value.{run}.{path}")
            child = fields.changed(recipe, path, value)
        except RecipeError as error:
            st.caption(str(error))
            return
        if twin := launch.twin(child):
            st.caption(f"{twin[1]} Compare with it instead of running it again.")
        with frame.actions():
            st.caption(f"`{path}`: {_words(field.value)} → {_words(value)}", width="content")
            if acts.button("Queue the clone", type="primary", icon=":material/content_copy:", key="queue_clone"):
                launch.queue(child, parent=run)
                st.switch_page("views/prune_and_heal.py")


def _value(field: Field, *, key: str) -> object:
    """The control that fits the field's kind, holding its present value at first."""
    if field.kind == FLAG:
        return st.toggle("New value", field.value, key=key)
    if field.kind == CHOICE:
        return st.selectbox("New value", field.choices, index=field.choices.index(field.value), width=260, key=key)
    if field.kind == WHOLE:
        return st.number_input("New value", value=field.value, step=1, width=260, key=key, placeholder="empty" if field.optional else None)
    if field.kind == NUMBER:
        return st.number_input("New value", value=field.value, step=_step(field.value), format="%g", width=260, key=key)
    return fields.parse(field, st.text_input("New value", fields.shown(field), help=HELP.get(field.kind), width=260, key=key))


def _step(value: float | None) -> float:
    """What the buttons beside a number add: a tenth of its order of magnitude."""
    return 0.05 if not value or value >= 0.05 else float(f"{value / 2:.0e}")


def _words(value: object) -> str:
    return "empty" if value is None else value if isinstance(value, str) else json.dumps(value)

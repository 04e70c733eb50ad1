"""Around a lesson: which one, back and next, reset, the link for a class, and presenter mode."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlencode

import streamlit as st

from app.lessons.lesson import PRESENTING, Lesson, Value

# One root size scales text, controls and spaces alike; sidebar and navigation leave the room to the lesson.
STYLE = """<style>
html {font-size: 1.35em}
[data-testid=stSidebar], [data-testid=stHeader], [data-testid=stExpandSidebarButton] {display: none}
[data-testid=stMainBlockContainer] {padding-top: 1.2rem}
</style>"""
PRESENT_HELP = "Large type and charts, nothing else on the page; Page Down and Page Up, or a presenter's remote, go on and back, Escape ends it."
LINK_HELP = "Opens this lesson with its sliders as they stand. Answers are not in it."


def bar(lessons: Sequence[Lesson], value: Value) -> None:
    """The lesson's tabs, and what can be done with it."""
    presenting, number = PRESENTING.get(), value.get()
    if presenting:
        st.html(STYLE)
    lesson = lessons[number - 1]
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        names = {place: f"{place} {lesson.short}" for place, lesson in enumerate(lessons, start=1)}
        st.segmented_control(
            "Lesson", list(names), format_func=names.get, required=True, label_visibility="collapsed", wrap=True, **value.tied(),
        )  # fmt: skip
        with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="right", gap="small"):
            st.button("Reset", icon=":material/restart_alt:", type="tertiary", key="lesson_reset", on_click=lesson.reset)
            with st.popover("Link for the class", icon=":material/link:", type="tertiary", help=LINK_HELP):
                st.code(link(lesson, number), language=None, wrap_lines=True)
            st.button(
                "End presenting" if presenting else "Present", icon=":material/co_present:", type="tertiary", key="lesson_present",
                shortcut="Esc" if presenting else None, help=None if presenting else PRESENT_HELP, on_click=PRESENTING.put, args=(not presenting,),
            )  # fmt: skip


def feet(lessons: Sequence[Lesson], value: Value) -> None:
    """Back and next, which the keyboard reaches while presenting."""
    number, keys = value.get(), PRESENTING.get()
    with st.container(horizontal=True, horizontal_alignment="distribute"):
        st.button(
            "Back", icon=":material/arrow_back:", key="lesson_back", disabled=number == 1, shortcut="PageUp" if keys else None,
            on_click=value.put, args=(number - 1,),
        )  # fmt: skip
        following = lessons[number].short if number < len(lessons) else ""
        st.button(
            f"Next: {following}" if following else "This is the last lesson", icon=":material/arrow_forward:", icon_position="right", type="primary",
            key="lesson_next", disabled=not following, shortcut="PageDown" if keys else None, on_click=value.put, args=(number + 1,),
        )  # fmt: skip


def link(lesson: Lesson, number: int) -> str:
    """The address that opens a lesson as it stands now."""
    here = st.query_params.to_dict()
    values = {"lesson": str(number)} | {value.name: here[value.name] for value in lesson.values if value.name in here}
    return f"{st.context.url or ''}?{urlencode(values)}"

"""Prediction questions: answer first, then see. What is right is computed, and so is the reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import streamlit as st

from app.charts import theme

SHOWN = -1  # instead of an answer: wanted to see without one


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Which option is right (its place), and why, in the numbers that decide."""

    right: int
    why: str


@dataclass(frozen=True, kw_only=True)
class Question:
    """`key` begins with the lesson's slug and a dot. `answer` is called once somebody has answered; None where nothing is known yet.

    `then` moves the lesson's sliders to what the question is about, so that the figure shows it.
    """

    key: str
    ask: str
    options: tuple[str, ...]
    answer: Callable[[], Answer | None]
    then: Callable[[], None] | None = None


def ask(question: Question) -> bool:
    """Draw a question and, once it is answered, what is right and why. Returns whether it is answered."""
    choice, places = _choice(question.key), range(len(question.options))
    with st.container(border=True, key=f"question_{question.key.replace('.', '_')}"):
        if answered(question):
            _feedback(question, st.session_state[_given(question.key)])
            return True
        st.radio(question.ask, places, index=None, format_func=lambda place: theme.sentence(question.options[place]), key=choice)
        with st.container(horizontal=True, gap="small"):
            ready = st.session_state.get(choice) is not None
            st.button("Check", key=f"{choice}.check", type="primary", disabled=not ready, on_click=_answer, args=(question, False))
            st.button("Show without answering", key=f"{choice}.show", type="tertiary", on_click=_answer, args=(question, True))
    return False


def answered(question: Question) -> bool:
    """Whether somebody answered it, or chose to see without."""
    return _given(question.key) in st.session_state


def forget(slug: str) -> None:
    """All answers of a lesson. For a callback."""
    for key in [key for key in st.session_state if str(key).startswith(f"quiz.{slug}.")]:
        if str(key).endswith(".given"):
            del st.session_state[key]
        elif str(key).endswith(".choice"):
            st.session_state[key] = None  # not deleted: the browser keeps a copy, which goes only so


def closest(value: float, marks: tuple[float, ...]) -> int:
    """The place of the mark that a value is nearest to.

    >>> closest(3.9, (1, 2, 4))
    2
    """
    return min(range(len(marks)), key=lambda place: abs(marks[place] - value))


def step_of(value: float, limits: tuple[float, ...]) -> int:
    """How many of the rising limits a value has reached.

    >>> step_of(0.1, (0.5, 0.9)), step_of(0.6, (0.5, 0.9)), step_of(0.9, (0.5, 0.9))
    (0, 1, 2)
    """
    return sum(value >= limit for limit in limits)


def _feedback(question: Question, given: int) -> None:
    st.markdown(question.ask)
    answer, said = question.answer(), "" if given == SHOWN else f"You said: {question.options[given]}. "
    if answer is None:
        st.markdown(f"{said}The run will tell.")
        return
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        if given == SHOWN:
            st.badge("Answer", icon=":material/visibility:", color="gray")
        elif given == answer.right:
            st.badge("Right", icon=":material/check:", color="green")
        else:
            st.badge("Not so", icon=":material/close:", color="orange")
            st.markdown(said, width="content")
    st.markdown(f"**{theme.sentence(question.options[answer.right])}.** {answer.why}")


def _answer(question: Question, unanswered: bool) -> None:
    chosen = st.session_state.get(_choice(question.key))
    st.session_state[_given(question.key)] = SHOWN if unanswered or chosen is None else chosen
    if question.then is not None:
        question.then()


def _given(key: str) -> str:
    return f"quiz.{key}.given"


def _choice(key: str) -> str:
    return f"quiz.{key}.choice"

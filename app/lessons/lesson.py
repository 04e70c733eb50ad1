"""What a lesson is: its text, its values in the address bar, its questions, its figures, and the job they need."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property

import plotly.graph_objects as go
import streamlit as st

from app import frame, state
from app.lessons import quiz, work
from starfish_lab import settings

FOLDER = settings.ASSETS / "lessons"
LARGER = 1.4  # presenter mode against a desk


@dataclass(frozen=True, kw_only=True)
class Value:
    """A number or a word that a lesson keeps in the address bar, with what it may be."""

    name: str
    default: object
    limits: tuple[float, float] | None = None
    allowed: Collection | None = None

    def get(self) -> object:
        """As it stands; nonsense in a link is told and replaced by the default."""
        return state.get(self.name, self.default, allowed=self.allowed, limits=self.limits)

    def put(self, value: object) -> None:
        """For callbacks and before the widget is drawn."""
        state.put(self.name, value, default=self.default)

    def tied(self) -> dict[str, object]:
        """Keyword arguments of the widget that shows it."""
        return state.tie_value(self.name, self.default, allowed=self.allowed, limits=self.limits)


PRESENTING = Value(name="present", default=False)


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """One lesson. `slug` names its text, `short` its tab.

    `figures` draws controls and charts: of a lesson with a `job` once that is done and the first question is answered, else at once.
    """

    slug: str
    short: str
    values: tuple[Value, ...]
    questions: tuple[quiz.Question, ...]
    figures: Callable[[], None]
    job: work.Work | None = None

    @cached_property
    def _parts(self) -> dict[str, str]:
        """{heading: text} of the lesson's Markdown; its title under ''."""
        title, *parts = re.split(r"^## ", (FOLDER / f"{self.slug}.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
        return {"": title.removeprefix("# ").strip()} | {head: text.strip() for head, _, text in (part.partition("\n") for part in parts)}

    @property
    def title(self) -> str:
        return self._parts[""]

    def text(self, heading: str) -> str:
        """The text under a heading, as Markdown."""
        return self._parts[heading]

    def draw(self) -> None:
        """Words left, figures right; below each other on a narrow page."""
        ready = self.job is None or len(work.known(self.job)) > 0
        with st.container(key="pair"):
            words, figures = st.columns([2, 3], gap="large")
        with words:
            st.markdown(self.text("Idea"))
            for question in self.questions:
                answered = quiz.ask(question)
                if not answered or not ready:
                    break
            st.markdown(f"**Try.** {self.text('Try')}")
        with figures:
            if not ready:
                work.way(self.job)
            elif self.job is not None and not quiz.answered(self.questions[0]):
                st.info("What this lesson shows has been run. Answer the question, then see.", icon=":material/help:")
            else:
                self.figures()

    def reset(self) -> None:
        """Every value back to its default, every answer forgotten. For a callback."""
        for value in self.values:
            value.put(None)
        quiz.forget(self.slug)


def show(fig: go.Figure, *, key: str, caption: str, data=None) -> None:
    """A lesson's chart with its caption and downloads; larger where somebody presents."""
    frame.chart(larger(fig) if PRESENTING.get() else fig, key=f"figure_{key}", caption=caption, data=data)


def larger(fig: go.Figure) -> go.Figure:
    """The same chart for the last row of a room."""
    base = fig.layout.template.layout
    fig.update_layout(
        height=LARGER * fig.layout.height, margin_t=LARGER * (fig.layout.margin.t or base.margin.t), title_font_size=LARGER * base.title.font.size,
        legend_font_size=LARGER * base.legend.font.size, hoverlabel_font_size=LARGER * base.hoverlabel.font.size,
    )  # fmt: skip
    for axes in (fig.update_xaxes, fig.update_yaxes):
        axes(tickfont_size=LARGER * base.xaxis.tickfont.size, title_font_size=LARGER * base.xaxis.title.font.size)
    fig.for_each_annotation(lambda note: note.update(font_size=LARGER * (note.font.size or base.font.size)))
    fig.for_each_trace(lambda trace: trace.update(textfont_size=LARGER * (trace.textfont.size or 12)), lambda trace: hasattr(trace, "textfont"))
    return fig

"""Images with what each network answered to them, as cards: thumbnail, label, a line a network."""

from __future__ import annotations

import html
from collections.abc import Iterable
from dataclasses import dataclass

import streamlit as st

from app import frame
from app.charts import theme

STYLE = """<style>
.cards {display: grid; grid-template-columns: repeat(auto-fill, minmax(8.4rem, 1fr)); gap: .6rem}
.cards figure {margin: 0; padding: .5rem; border: 1px solid rgba(128,140,155,.28); border-radius: .5rem}
.cards figure {display: flex; flex-direction: column; gap: .3rem}
.cards img {width: 96px; height: 96px; object-fit: contain; align-self: center; border-radius: .25rem}
img.pixels {image-rendering: pixelated}
.cards figcaption {font-size: .85rem; line-height: 1.35; overflow-wrap: anywhere}
.cards table {width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .85rem; line-height: 1.35}
.cards td {border: 0; padding: 0 .15rem 0 0; vertical-align: top; overflow-wrap: anywhere}
.cards td.share {text-align: right; white-space: nowrap; opacity: .85; padding: 0}
.cards td.right {font-weight: 600}
.cards td:first-child {width: 1.15rem}
.cards.small {grid-template-columns: repeat(auto-fill, minmax(6.4rem, 1fr)); gap: .4rem}
.cards.small figure {padding: .35rem .4rem; gap: .15rem}
.cards.small img {width: 60px; height: 60px}
</style>"""


@dataclass(frozen=True)
class Answer:
    """What a network says of an image: `stage` gives glyph and colour, `who` its words."""

    stage: str
    who: str
    name: str
    confidence: float | None
    right: bool


@dataclass(frozen=True)
class Card:
    """An image, `jpeg` in base64 or '' where none is kept, and the answers to it."""

    name: str
    label: str
    jpeg: str
    answers: tuple[Answer, ...]


def draw(cards: Iterable[Card], *, small: bool = False) -> None:
    """The cards in rows as wide as there is room for."""
    st.html(f'{STYLE}<div class="cards{" small" * small}">{"".join(map(_card, cards))}</div>')


def _card(card: Card) -> str:
    label, name = html.escape(card.label), html.escape(card.name)
    said = f"{name}, labelled {label}"
    pixels = ' class="pixels"' if len(card.jpeg) < 2400 else ""  # a thumbnail this light has few pixels, which smoothing would only blur
    image = f'<img{pixels} src="data:image/jpeg;base64,{card.jpeg}" alt="{said}">' if card.jpeg else ""
    lines = "".join(map(_line, card.answers))
    return (
        f'<figure title="{said}">{image}<figcaption>label <b>{label}</b></figcaption><table aria-label="Answers to {said}">{lines}</table></figure>'
    )


def _line(answer: Answer) -> str:
    colour = theme.stage_colour(answer.stage, frame.dark())
    right = ' class="right"' if answer.right else ""
    mark = " ✓" if answer.right else ""
    return (
        f'<tr title="{html.escape(answer.who)}"><td><span style="color:{colour}" aria-label="{html.escape(answer.who)}" role="img">'
        f"{frame.GLYPHS[answer.stage]}</span></td><td{right}>{html.escape(answer.name)}{mark}</td>"
        f'<td class="share">{theme.percent(answer.confidence, 0)}</td></tr>'
    )

"""What the address bar and the session hold: one choice that follows a person from page to page.

`choice()` is what everything is about. `change(sparsity=0.75)` replaces fields, `tie("sparsity")` ties a widget to
one. A page keeps values of its own with `get`, `ids`, `put` and `tie_value`. Whatever differs from its default stands
in the address bar, so a link reopens the same view. The address bar is read once, on a session's first run: later
runs write it, because a run asked for before the browser heard of the last change carries an old one.
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection
from dataclasses import fields, replace

import streamlit as st

from app import choice as choices
from app import signing
from app.choice import ALLOWED, DEFAULTS, FORMS, RANGES, SHORT, Choice
from starfish_lab import jobs, settings
from starfish_lab.errors import Forbidden
from starfish_lab.jobs.protocol import Backend
from starfish_lab.recipe import Recipe
from starfish_lab.store import Store
from starfish_lab.store.people import Person
from starfish_lab.store.service import Service

KNOWN_SECONDS = 3.0  # how long a page may show a role that an admin has just taken away; an act is refused at once


def sync(page: str) -> None:
    """Read the link on a session's first run; write the address bar on every run. Called once, by main, with the page that is open."""
    if "choice" not in st.session_state:
        _read()
    if st.session_state.get("page") != page:
        st.session_state["page"] = page
        _untie()
    _write()


def choice() -> Choice:
    """The present choice."""
    return st.session_state["choice"]


def change(**values: object) -> None:
    """Replace fields of the choice, keep what depends on them consistent, and write the address bar."""
    if any(values.get(name, getattr(choice(), name)) != getattr(choice(), name) for name in ("model", "pattern", "units")):
        values = {"layers": (), "edges": (), **values}  # they name layers of the other network, or what the other pattern takes from
    st.session_state["choice"] = choices.consistent(replace(choice(), **values), pattern_first="pattern" in values and "score" not in values)
    _write()


def tie(field: str) -> dict[str, object]:
    """Keyword arguments that tie a widget to a field: `st.slider("Sparsity", 0.05, 0.99, **tie("sparsity"))`."""
    return _tied(f"choice.{field}", getattr(choice(), field), lambda value: change(**{field: tuple(value) if isinstance(value, list) else value}))


def tie_value(
    name: str, default: object, *, allowed: Collection | None = None, limits: tuple[float, float] | None = None
) -> dict[str, object]:  # fmt: skip
    """Keyword arguments that tie a widget to a page's own value. With `allowed` or `limits`, other values in a link are told and replaced."""
    return _tied(f"value.{name}", get(name, default, allowed=allowed, limits=limits), lambda value: put(name, value, default=default))


def get(name: str, default: object, *, allowed: Collection | None = None, limits: tuple[float, float] | None = None) -> object:
    """A page's own value, of the default's type (text, whole number, number, bool). Nonsense in a link: the default."""
    text = st.session_state["values"].get(name)
    if text is None:
        return default
    try:
        value = _parse(text, default)
        if (allowed is None or value in allowed) and (limits is None or limits[0] <= value <= limits[1]):
            return value
    except ValueError:
        pass
    expected = f"one of {', '.join(map(str, allowed))}" if allowed else _expected(default)
    _complain(name, text, f"a number from {limits[0]:g} to {limits[1]:g}" if limits else expected, default)
    put(name, None)
    return default


def ids(name: str) -> tuple[int, ...]:
    """A page's own list of run numbers, as in runs=3,7."""
    text = st.session_state["values"].get(name, "")
    found = tuple(dict.fromkeys(int(word) for word in text.split(",") if re.fullmatch(r"\d{1,9}", word)))
    if text and ",".join(map(str, found)) != text:
        _complain(name, text, "run numbers such as 3,7", ",".join(map(str, found)) or "none")
        put(name, found)
    return found


def put(name: str, value: object, *, default: object = None) -> None:
    """Keep a page's own value; None, empty or the default takes it out of the address bar."""
    if value is None or value == default or value in ("", ()):
        st.session_state["values"].pop(name, None)
    else:
        st.session_state["values"][name] = _text(value)
    _write()


def messages() -> list[str]:
    """What was wrong with the link, once: reading empties the list."""
    return st.session_state.pop("messages", [])


def recipe(selected: Choice | None = None) -> Recipe:
    """The experiment that the choice describes. Raises RecipeError with a text to show as it stands."""
    return choices.recipe(selected or choice())


def adopt(known: Recipe) -> None:
    """Make the choice that of a recipe, e.g. a past run's: clone with edits."""
    change(**choices.values(known))


def store() -> Service:
    """The lab's store, acting for the person of this session: reads pass through, acts are checked and put on record.

    Raises Forbidden where nobody is signed in, or the person has the role 'none'.
    """
    found = _acting()
    if found.signs_in and not person().may("viewer"):
        raise Forbidden(f"You are signed in as {person().who}, who may not use this lab. Ask an admin of it for a role.")
    return found


def person() -> Person:
    """Who uses this session, for what a page shows. Read once in KNOWN_SECONDS; every act reads the role anew."""
    found, now = _acting(), time.monotonic()
    if not found.signs_in:
        return found.person()
    at, url, known = st.session_state.get("person", (-KNOWN_SECONDS, "", None))
    if now - at >= KNOWN_SECONDS or url != found.url or known.who != found.who:
        known = found.person()
        st.session_state["person"] = (now, found.url, known)
    return known


def _acting() -> Service:
    """A new one on every call: the people who share the open store never share this."""
    return _store(settings.database_url()).acting_as(signing.who())


@st.cache_resource(show_spinner=False)
def _store(url: str) -> Store:
    return Store(url)


def backend() -> Backend:
    """What runs recipes: submit, cancel, and which workers are alive. Checked as `store` is."""
    return jobs.backend(store())


def _tied(key: str, value: object, keep) -> dict[str, object]:
    """The widget shows `value` on every run; what a person enters goes to `keep`, except 'nothing selected'."""

    def changed() -> None:
        if st.session_state[key] is not None:
            keep(st.session_state[key])

    value = list(value) if isinstance(value, tuple) else value
    if st.session_state.get(key) != value:  # setting an equal value would push it over what is being typed
        st.session_state[key] = value
    return {"key": key, "on_change": changed}


def _untie() -> None:
    """Forget what tied widgets show: a widget of the same name on another page would take the key for set, and start empty."""
    for key in [key for key in st.session_state if str(key).startswith(("choice.", "value."))]:
        del st.session_state[key]


def _read() -> None:
    names = {SHORT.get(f.name, f.name): f.name for f in fields(Choice)}
    st.session_state["choice"], st.session_state["values"], values = DEFAULTS, {}, {}
    for name, text in st.query_params.to_dict().items():
        if name in names:
            values |= _checked(names[name], name, text)
        elif re.fullmatch(r"[a-z][a-z0-9_]{0,39}", name) and len(text) <= 1000:
            st.session_state["values"][name] = text
    st.session_state["choice"] = choices.consistent(replace(DEFAULTS, **values))


def _checked(field: str, name: str, text: str) -> dict[str, object]:
    """{field: value} from a link, or {} and a message where the value makes no sense."""
    default = getattr(DEFAULTS, field)
    expected = _expected(default)
    try:
        value = _parse(text, default)
    except ValueError:
        value = None
    if field in ALLOWED:
        expected = f"one of {', '.join(ALLOWED[field]())}"
        if value is not None and not set(value if isinstance(value, tuple) else (value,)) <= set(ALLOWED[field]()):
            value = None
    if field in RANGES:
        low, high = RANGES[field]
        expected = f"a number from {low} to {high}"
        if value is not None and not low <= value <= high:
            value = None
    if field in FORMS and not re.fullmatch(FORMS[field], text):
        expected, value = choices.SAID.get(field, f"a {field}'s name"), None
    if value is None or value == ():
        _complain(name, text, expected, default)
        return {}
    return {field: value}


def _write() -> None:
    """Whatever differs from its default, into the address bar."""
    present = choice()
    usual = replace(choices.consistent(replace(DEFAULTS, model=present.model)), model=DEFAULTS.model)
    changed = [f.name for f in fields(Choice) if getattr(present, f.name) != getattr(usual, f.name)]
    wanted = {SHORT.get(name, name): _text(getattr(present, name)) for name in changed}
    wanted |= st.session_state["values"]
    if st.query_params.to_dict() != wanted:
        st.query_params.from_dict(wanted)


def _parse(text: str, default: object) -> object:
    """Text as a value of the default's type. Raises ValueError."""
    if isinstance(default, bool):
        if text not in ("0", "1"):
            raise ValueError(text)
        return text == "1"
    if isinstance(default, tuple):
        return tuple(word for word in text.split(",") if word)
    if isinstance(default, float):
        value = float(text)
        if value - value != 0:  # inf and nan
            raise ValueError(text)
        return value
    return type(default)(text)


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return str(value)


def _expected(default: object) -> str:
    return {bool: "0 or 1", int: "a whole number", float: "a number", tuple: "names with commas between"}.get(type(default), "text")


def _complain(name: str, text: str, expected: str, used: object) -> None:
    shown = text if len(text) <= 40 else text[:40] + "…"
    found = f"The link says {name} = '{shown}'; expected was {expected}. Used instead: {_text(used) or 'nothing'}."
    st.session_state.setdefault("messages", []).append(found)

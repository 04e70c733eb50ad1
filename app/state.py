"""What the address bar and the session hold: one choice that follows a person from page to page.

`choice()` is what everything is about. `change(sparsity=0.75)` replaces fields, `tie("sparsity")` ties a widget to
one. A page keeps values of its own with `get`, `ids`, `put` and `tie_value`. Whatever differs from its default stands
in the address bar, so a link reopens the same view. The address bar is read once, on a session's first run: later
runs write it, because a run asked for before the browser heard of the last change carries an old one.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, fields, replace

import streamlit as st

from starfish_lab import settings
from starfish_lab.errors import RecipeError
from starfish_lab.healing import METHODS
from starfish_lab.jobs.protocol import LocalBackend
from starfish_lab.pruning import BUDGETS, PATTERNS, SCORES
from starfish_lab.recipe import SOURCES, WEIGHTS, HealingChoice, ImagesChoice, ModelChoice, PruningChoice, Recipe
from starfish_lab.store import Store


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What the pages are about, in plain values. Empty text and 0 mean 'not given'."""

    model: str = "starter"
    weights: str = "bundled"
    path: str = ""  # of a weights file
    images: str = "starter"
    images_path: str = ""
    images_csv: str = ""
    label_column: str = "label"  # of both tables
    calibration_path: str = ""
    calibration_csv: str = ""
    calibration: int = 64
    drift: int = 64
    evaluation: int = 0  # 0: all that remain
    score: str = "magnitude"
    budget: str = "uniform"
    pattern: str = "unstructured"
    sparsity: float = 0.9
    keep: int = 2
    group: int = 4
    units: tuple[str, ...] = ("mlp", "qk")
    healing: str = "starfish"
    steps: int = 200  # 0: the paper's 10 epochs over the calibration images
    device: str = "auto"


# Names in the address bar, where they differ from the field's.
SHORT = {
    "path": "file", "images_path": "folder", "images_csv": "table", "label_column": "labels", "calibration_path": "cal_folder",
    "calibration_csv": "cal_table",
    "calibration": "cal", "evaluation": "eval", "group": "of", "healing": "heal",
}  # fmt: skip
ALLOWED = {
    "weights": lambda: WEIGHTS,
    "images": lambda: SOURCES,
    "score": SCORES.names,
    "budget": BUDGETS.names,
    "pattern": PATTERNS.names,
    "units": lambda: ("mlp", "qk"),
    "healing": METHODS.names,
}
RANGES = {
    "calibration": (1, 1_000_000), "drift": (4, 1_000_000), "evaluation": (0, 10_000_000), "sparsity": (0.01, 0.99),
    "keep": (1, 63), "group": (2, 64), "steps": (0, 1_000_000),
}  # fmt: skip
FORMS = {"model": r"[A-Za-z0-9_.\-]{1,100}", "device": r"auto|cpu|mps|cuda(:\d{1,2})?"}
DEFAULTS = Choice()


def sync() -> None:
    """Read the link on a session's first run; write the address bar on every run. Called once, by main."""
    if "choice" not in st.session_state:
        _read()
    _write()


def choice() -> Choice:
    """The present choice."""
    return st.session_state["choice"]


def change(**values: object) -> None:
    """Replace fields of the choice, keep what depends on them consistent, and write the address bar."""
    st.session_state["choice"] = _consistent(replace(choice(), **values))
    _write()


def tie(field: str) -> dict[str, object]:
    """Keyword arguments that tie a widget to a field: `st.slider("Sparsity", 0.05, 0.99, **tie("sparsity"))`."""
    return _tied(f"choice.{field}", getattr(choice(), field), lambda value: change(**{field: tuple(value) if isinstance(value, list) else value}))


def tie_value(name: str, default: object, *, allowed: Collection | None = None) -> dict[str, object]:
    """Keyword arguments that tie a widget to a page's own value. With `allowed`, other values in a link are told and replaced."""
    return _tied(f"value.{name}", get(name, default, allowed=allowed), lambda value: put(name, value, default=default))


def get(name: str, default: object, *, allowed: Collection | None = None) -> object:
    """A page's own value, of the default's type (text, whole number, number, bool). Nonsense in a link: the default."""
    text = st.session_state["values"].get(name)
    if text is None:
        return default
    try:
        value = _parse(text, default)
        if allowed is None or value in allowed:
            return value
    except ValueError:
        pass
    _complain(name, text, f"one of {', '.join(map(str, allowed))}" if allowed else _expected(default), default)
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
    c = selected or choice()
    if c.weights == "file" and not c.path:
        raise RecipeError("Weights from a file need its path: give it under Weights in the sidebar, or choose another origin.")
    if c.images != "starter" and not c.images_path:
        raise RecipeError(f"Images from '{c.images}' need a folder or zip: give its path under Images in the sidebar.")
    return Recipe(
        model=ModelChoice(name=c.model, weights=c.weights, path=c.path or None),
        images=ImagesChoice(
            source=c.images, path=c.images_path or None, csv=c.images_csv or None, label_column=c.label_column or DEFAULTS.label_column,
            calibration_path=c.calibration_path or None, calibration_csv=c.calibration_csv or None,
            calibration=c.calibration, drift=c.drift, evaluation=c.evaluation or None,
        ),
        pruning=PruningChoice(score=c.score, budget=c.budget, pattern=c.pattern, sparsity=c.sparsity, keep=c.keep, group=c.group, units=c.units),
        healing=HealingChoice(method=c.healing, steps=c.steps or None),
        device=c.device,
    )  # fmt: skip


def adopt(known: Recipe) -> None:
    """Make the choice that of a recipe, e.g. a past run's: clone with edits."""
    m, i, p, h = known.model, known.images, known.pruning, known.healing
    change(
        model=m.name, weights=m.weights, path=m.path or "", images=i.source, images_path=i.path or "", images_csv=i.csv or "",
        label_column=i.label_column, calibration_path=i.calibration_path or "", calibration_csv=i.calibration_csv or "",
        calibration=i.calibration, drift=i.drift, evaluation=i.evaluation or 0,
        score=p.score, budget=p.budget, pattern=p.pattern, sparsity=p.sparsity, keep=p.keep, group=p.group, units=p.units,
        healing=h.method, steps=h.steps or 0, device=known.device,
    )  # fmt: skip


def store() -> Store:
    """The lab's store, shared by all sessions."""
    return _store(settings.database_url())


@st.cache_resource(show_spinner=False)
def _store(url: str) -> Store:
    return Store(url)


def backend() -> LocalBackend:
    """What runs recipes: submit, cancel, and which workers are alive."""
    return LocalBackend(store())


def _tied(key: str, value: object, keep) -> dict[str, object]:
    """The widget shows `value` on every run; what a person enters goes to `keep`, except 'nothing selected'."""

    def changed() -> None:
        if st.session_state[key] is not None:
            keep(st.session_state[key])

    value = list(value) if isinstance(value, tuple) else value
    if st.session_state.get(key) != value:  # setting an equal value would push it over what is being typed
        st.session_state[key] = value
    return {"key": key, "on_change": changed}


def _read() -> None:
    names = {SHORT.get(f.name, f.name): f.name for f in fields(Choice)}
    st.session_state["choice"], st.session_state["values"], values = DEFAULTS, {}, {}
    for name, text in st.query_params.to_dict().items():
        if name in names:
            values |= _checked(names[name], name, text)
        elif re.fullmatch(r"[a-z_]{1,20}", name) and len(text) <= 200:
            st.session_state["values"][name] = text
    st.session_state["choice"] = _consistent(replace(DEFAULTS, **values))


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
        expected, value = f"a {field}'s name", None
    if value is None or value == ():
        _complain(name, text, expected, default)
        return {}
    return {field: value}


def _consistent(c: Choice) -> Choice:
    """Bundled weights belong to the starter alone; a path belongs to weights from a file; n:m keeps fewer than it looks at."""
    if c.model == "starter":
        c = replace(c, weights="bundled", path="")
    elif c.weights == "bundled":
        c = replace(c, weights="pretrained")
    if c.weights != "file":
        c = replace(c, path="")
    if c.images == "starter":
        c = replace(c, images_path="", images_csv="", label_column=DEFAULTS.label_column, calibration_path="", calibration_csv="")
    if c.pattern != "unstructured":  # the other patterns take the same share from every layer
        c = replace(c, budget=DEFAULTS.budget)
    return replace(c, keep=min(c.keep, c.group - 1), units=c.units or DEFAULTS.units)


def _write() -> None:
    """Whatever differs from its default, into the address bar."""
    present = choice()
    usual = replace(_consistent(replace(DEFAULTS, model=present.model)), model=DEFAULTS.model)
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
    return f"{value:g}" if isinstance(value, float) else str(value)


def _expected(default: object) -> str:
    return {bool: "0 or 1", int: "a whole number", float: "a number", tuple: "names with commas between"}.get(type(default), "text")


def _complain(name: str, text: str, expected: str, used: object) -> None:
    shown = text if len(text) <= 40 else text[:40] + "…"
    found = f"The link says {name} = '{shown}'; expected was {expected}. Used instead: {_text(used) or 'nothing'}."
    st.session_state.setdefault("messages", []).append(found)

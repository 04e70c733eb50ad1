"""Every healer by one name: a method that trains ('starfish'), a repair without training ('corp'), or both in a chain ('corp+starfish')."""

from __future__ import annotations

import dataclasses

from starfish_lab.errors import RecipeError
from starfish_lab.healing import METHODS, REPAIRS
from starfish_lab.recipe import HealingChoice

FIELDS = {field.name for field in dataclasses.fields(HealingChoice)}


def names() -> list[str]:
    """Methods, then repairs alone, then all chains, each in alphabetical order. 'none' leaves the network as it was pruned."""
    methods, repairs = METHODS.names(), [name for name in REPAIRS.names() if name != "none"]
    chains = (f"{repair}+{method}" for repair in repairs for method in methods if method != "none" and repair != repair_of(method))
    return [*methods, *repairs, *chains]


def split(name: str) -> tuple[str, str]:
    """(repair, method) of a healer. Raises RecipeError where there is none of that name.

    >>> split("starfish"), split("dense"), split("dense+starfish")
    (('none', 'starfish'), ('dense', 'none'), ('dense', 'starfish'))
    """
    repair, chained, method = name.partition("+")
    if not chained:
        repair, method = ("none", name) if name in METHODS.names() else (name, "none")
    if repair not in REPAIRS.names() or method not in METHODS.names():
        raise RecipeError(
            f"There is no healer '{name}'. Methods: {', '.join(METHODS.names())}. Repairs: {', '.join(REPAIRS.names())}. Chain two with a plus: "
            "'dense+starfish'."
        )
    return repair, method


def name(chosen: HealingChoice) -> str:
    """The healer of a choice, by its shortest name: a repair that the method is known with goes without saying, and to leave it out is said.

    >>> name(HealingChoice()), name(HealingChoice(repair="dense")), name(HealingChoice(repair="dense", method="none"))
    ('starfish', 'dense+starfish', 'dense')
    >>> name(HealingChoice(method="starfish_plus", repair="aligned")), name(HealingChoice(method="starfish_plus"))
    ('starfish_plus', 'none+starfish_plus')
    """
    if chosen.repair == repair_of(chosen.method):
        return chosen.method
    return chosen.repair if chosen.method == "none" else f"{chosen.repair}+{chosen.method}"


def repair_of(method: str) -> str:
    """The repair that a method is known with, 'none' for most."""
    return METHODS.constant(method, "DEFAULTS", {}).get("repair", "none")


def choice(name: str, base: HealingChoice) -> HealingChoice:
    """The healing choice of a healer: the settings its sources are known with (DEFAULTS) over those of `base`.

    In a chain the method's come after the repair's, and the repair is the chain's. Options in `base` stay where they belong to
    the same method, or repair.
    """
    repair, method = split(name)
    repair = repair if "+" in name or repair != "none" else repair_of(method)
    found = {
        "method": method, "repair": repair,
        "options": base.options if method == base.method else {}, "repair_options": base.repair_options if repair == base.repair else {},
    }  # fmt: skip
    for registry, entry, kept in ((REPAIRS, repair, "repair_options"), (METHODS, method, "options")):
        for field, value in (registry.constant(entry, "DEFAULTS") or {}).items():
            if field not in FIELDS:
                found[kept] = {**found[kept], field: value}
            elif field != "repair":
                found[field] = {**found[field], **value} if field in ("options", "repair_options") else value
    rate = found.get("learning_rate", base.learning_rate)
    found["final_learning_rate"] = min(found.get("final_learning_rate", base.final_learning_rate), rate)
    return dataclasses.replace(base, **found)


def labels(name: str) -> bool:
    """True where the healer needs labels. Repairs never do."""
    return bool(METHODS.constant(split(name)[1], "NEEDS_LABELS", False))


def trains(name: str) -> bool:
    """True where the healer trains, and so has steps and a learning rate; a repair alone has neither."""
    return split(name)[1] != "none"


def describe(name: str) -> str:
    """What the healer does, in the first line of its file; in a chain both lines."""
    repair, method = split(name)
    said = [REPAIRS.describe(repair)] * (repair != "none") + [METHODS.describe(method)] * (method != "none" or repair == "none")
    return " Then: ".join(said)

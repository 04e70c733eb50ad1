"""Options of a healing choice: whose they are, and whether there are such."""

from __future__ import annotations

from starfish_lab.errors import RecipeError
from starfish_lab.healing import METHODS, REPAIRS
from starfish_lab.recipe import HealingChoice

OF_THE_OPTIMISER = {"momentum": 0.9, "nesterov": False}  # options beside the method's own, for 'sgd'


def checked_options(choice: HealingChoice) -> tuple[dict[str, object], dict[str, object], dict[str, object]]:
    """The options of the method, of the repair and of the optimiser. Raises RecipeError for one that nobody knows."""
    beside = OF_THE_OPTIMISER if choice.optimiser == "sgd" else {}
    _known("options", choice.options, choice.method, [*METHODS.options(choice.method), *beside])
    _known("repair_options", choice.repair_options, choice.repair, list(REPAIRS.options(choice.repair)))
    own = {name: value for name, value in choice.options.items() if name in beside}
    momentum, nesterov = own.get("momentum", 0.9), own.get("nesterov", False)
    if isinstance(momentum, bool) or not isinstance(momentum, int | float) or not 0 <= momentum < 1:
        raise RecipeError(f"healing.options.momentum is {momentum!r}: give a number from 0 to below 1, such as 0.9.")
    if not isinstance(nesterov, bool) or (nesterov and momentum == 0):
        raise RecipeError(f"healing.options.nesterov is {nesterov!r}: give true or false, and true only with a momentum above 0.")
    return {name: value for name, value in choice.options.items() if name not in own}, dict(choice.repair_options), own


def _known(field: str, options: dict[str, object], name: str, known: list[str]) -> None:
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise RecipeError(f"healing.{field}.{unknown[0]} is no option of '{name}'. Its options: {', '.join(known) or 'none'}.")

"""From a ModelChoice to a Network."""

from __future__ import annotations

from torch import nn

from starfish_lab.errors import WeightsError
from starfish_lab.models import FAMILIES
from starfish_lab.models.network import Network


def wrap(module: nn.Module, *, name: str, **known: object) -> Network:
    """A timm module as a Network; its family tells blocks and units. Raises WeightsError for other modules."""
    for family in FAMILIES.names():
        described = FAMILIES.get(family)(module)
        if described is not None:
            return Network(module=module, name=name, **{**described, **known})
    raise WeightsError(f"{type(module).__name__} is of no family the lab knows ({', '.join(FAMILIES.names())}). Use Network.of(module, blocks=[…]).")

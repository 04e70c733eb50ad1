"""Sliced: units whose every weight is masked are gone, and the network is really smaller. Dense kernels, on every device."""

from __future__ import annotations

from starfish_lab.errors import Refused
from starfish_lab.execution import slicing
from starfish_lab.execution.precision import cast
from starfish_lab.models.network import Network
from starfish_lab.pruning.masks import Masks

NEEDS = "cpu"
PRECISIONS = ("float32", "tf32", "fp16", "bf16", "autocast")


def refuses(network: Network, masks: Masks, *, device: str, precision: str) -> str | None:
    if slicing.is_sliceable(masks, network, wholly=False):
        return None
    return (
        f"{network.name} has no unit whose every weight is masked, so nothing can be cut out of it: "
        "prune with the pattern 'structured', which takes whole units."
    )


def note(network: Network, masks: Masks, *, precision: str) -> str:
    if slicing.is_sliceable(masks, network):
        return ""
    return "zeros between the units that went stay as zeros"


def build(network: Network, masks: Masks, *, device: str, precision: str) -> Network:
    """A smaller copy on the device, in the precision's format. Raises Refused where no unit is masked as a whole."""
    if reason := refuses(network, masks, device=device, precision=precision):
        raise Refused(reason)
    return cast(slicing.slice_network(network, masks), precision, device)

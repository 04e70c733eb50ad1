"""Masked: the dense network with zeros in it. Every kernel multiplies them, so it is no faster; all others must answer as it does."""

from __future__ import annotations

from starfish_lab.execution.precision import cast
from starfish_lab.models.network import Network
from starfish_lab.pruning import masks as masking
from starfish_lab.pruning.masks import Masks

NEEDS = "cpu"
PRECISIONS = ("float32", "tf32", "fp16", "bf16", "autocast")


def refuses(network: Network, masks: Masks, *, device: str, precision: str) -> str | None:
    """It always runs."""
    return None


def note(network: Network, masks: Masks, *, precision: str) -> str:
    return "mask only: no speed-up expected"


def build(network: Network, masks: Masks, *, device: str, precision: str) -> Network:
    """A masked copy on the device, in the precision's format."""
    masked = cast(network, precision, device)
    masking.apply(masked.module, masks)
    return masked

"""Kept: what is zero in the network that pruning starts from stays zero, and nothing else goes."""

from __future__ import annotations

from torch import Tensor

from starfish_lab.models.network import Network
from starfish_lab.pruning import rules
from starfish_lab.pruning.patterns import MaskResult
from starfish_lab.recipe import PruningChoice


def masks(
    network: Network, scores: dict[str, Tensor], choice: PruningChoice, counts: dict[str, int], units: dict[str, Tensor] | None = None
) -> MaskResult:
    """Nonzeros of the weights of the layers in `scores`; the scores themselves and `counts` play no part. A layer without zeros stays whole."""
    found = {layer: network.module.get_submodule(layer).weight.detach().cpu() != 0 for layer in scores}
    whole = all(bool(mask.all()) for mask in found.values())
    return MaskResult(found, notes=(rules.NO_ZEROS,) if whole else ())

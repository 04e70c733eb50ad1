"""Semi-structured: 2:4 weights of Linear layers, compressed, through the sparse tensor cores of a GPU (cuSPARSELt or CUTLASS)."""

from __future__ import annotations

from starfish_lab.errors import Refused
from starfish_lab.execution import semi_structured as two_four
from starfish_lab.execution.backends import masked
from starfish_lab.models.network import Network
from starfish_lab.pruning.masks import Masks

NEEDS = "cuda 8.0"
PRECISIONS = ("fp16", "bf16")
KERNELS = ("cusparselt", "cutlass")


def refuses(network: Network, masks: Masks, *, device: str, precision: str, kernel: str = "cusparselt") -> str | None:
    if reason := two_four.refuses(precision, kernel, device=device):
        return reason
    return two_four.refusal_of(lambda: two_four.select(network, masks, kernel=kernel, precision=precision), network.name)


def note(network: Network, masks: Masks, *, precision: str, kernel: str = "cusparselt") -> str:
    """How many layers run so, and which stay dense for which reason."""
    return two_four.sentence(*two_four.select(network, masks, kernel=kernel, precision=precision), f"2:4 ({kernel})")


def build(network: Network, masks: Masks, *, device: str, precision: str, kernel: str = "cusparselt") -> Network:
    """A copy on the device whose 2:4 layers hold compressed weights. Raises Refused where a layer is not 2:4, or none fits."""
    if reason := refuses(network, masks, device=device, precision=precision, kernel=kernel):
        raise Refused(reason)
    sparse = masked.build(network, masks, device=device, precision=precision)
    fitting, _ = two_four.select(sparse, masks, kernel=kernel, precision=precision)
    for layer in fitting.values():
        two_four.convert(layer, kernel)
    return sparse

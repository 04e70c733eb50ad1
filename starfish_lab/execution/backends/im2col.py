"""im2col: convolutions as matrix products of unfolded images, dense or with 2:4 weights; against cuDNN the unfolding must pay for itself."""

from __future__ import annotations

from torch import nn

from starfish_lab.errors import Refused
from starfish_lab.execution import semi_structured as two_four
from starfish_lab.execution import unfolding
from starfish_lab.execution.backends import masked
from starfish_lab.models.network import Network
from starfish_lab.pruning.masks import Masks

NEEDS = "cpu"  # the sparse kernels: cuda 8.0
PRECISIONS = ("float32", "tf32", "fp16", "bf16", "autocast")  # the sparse kernels: fp16 and bf16
KERNELS = ("dense", "cusparselt", "cutlass")


def refuses(network: Network, masks: Masks, *, device: str, precision: str, kernel: str = "dense") -> str | None:
    if not any(unfolding.can_unfold(network.module.get_submodule(name)) for name in masks):
        return f"im2col is for convolutions, and {network.name} has no plain ones among its pruned layers: choose 'semi_structured' or 'sliced'."
    if kernel == "dense":
        return None
    if reason := two_four.refuses(precision, kernel, device=device):
        return reason
    return two_four.refusal_of(lambda: _select(network, masks, kernel, precision), network.name)


def note(network: Network, masks: Masks, *, precision: str, kernel: str = "dense") -> str:
    """How many layers run so, and which stay as they were for which reason."""
    fitting, dense = _select(network, masks, kernel, precision)
    return two_four.sentence(fitting, dense, "as products of unfolded images" if kernel == "dense" else f"2:4 ({kernel})")


def build(network: Network, masks: Masks, *, device: str, precision: str, kernel: str = "dense") -> Network:
    """A copy on the device whose pruned convolutions are products. With a sparse kernel only those that it takes are, and Linear
    layers that it takes are compressed too. Raises Refused where there are none.
    """
    if reason := refuses(network, masks, device=device, precision=precision, kernel=kernel):
        raise Refused(reason)
    lowered = masked.build(network, masks, device=device, precision=precision)
    fitting, _ = _select(lowered, masks, kernel, precision)
    for name, layer in fitting.items():
        linear = unfolding.unfold(lowered.module, name).linear if isinstance(layer, nn.Conv2d) else layer
        if kernel != "dense":
            two_four.convert(linear, kernel)
    return lowered


def _select(network: Network, masks: Masks, kernel: str, precision: str) -> tuple[two_four.Fitting, two_four.Dense]:
    """Layers that are converted, and why others are not."""
    convolutions = {name: layer for name in masks if isinstance(layer := network.module.get_submodule(name), nn.Conv2d)}
    odd = {name: "a convolution that cannot be unfolded" for name, layer in convolutions.items() if not unfolding.can_unfold(layer)}
    if kernel == "dense":
        return {name: layer for name, layer in convolutions.items() if name not in odd}, odd
    plain = {name: mask for name, mask in masks.items() if name not in odd}
    fitting, dense = two_four.select(network, plain, kernel=kernel, precision=precision, kinds=two_four.LAYERS)
    return fitting, dense | odd

"""What the weights of a dense network see: the norm of each input feature over calibration images."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from starfish_lab.errors import LabError
from starfish_lab.models.network import Network


def input_norms(network: Network, layers: dict[str, nn.Module], images: Tensor, *, device: str = "cpu", batch_size: int = 32) -> dict[str, Tensor]:
    """L2 norm of every input feature of `layers` over `images` (n, C, H, W), from one pass of the dense network in eval mode.

    Returns {layer: norms} on the CPU, broadcastable to the unfolded weight (out, in): (in,) for a Linear, (out, in) for a
    convolution, where a feature is one input channel at one kernel position, C_in-major.
    """
    module = copy.deepcopy(network.module).eval().to(device)
    squares: dict[str, Tensor] = {}

    def watch(layer: str, conv: bool):
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].float().square()
            seen = x.sum(0, keepdim=True) if conv else x.flatten(0, -2).sum(0)  # (1, C, H, W) or (in,)
            squares[layer] = squares[layer] + seen if layer in squares else seen

        return hook

    for layer, original in layers.items():
        module.get_submodule(layer).register_forward_pre_hook(watch(layer, isinstance(original, nn.Conv2d)))
    with torch.no_grad():
        for batch in images.split(batch_size):
            module(batch.to(device))
    unseen = [layer for layer in layers if layer not in squares]
    if unseen:
        raise LabError(
            f"The layer {unseen[0]} sees no input when the network runs, so it has no activations. Exclude it, or choose the score 'magnitude'."
        )
    return {layer: _columns(module.get_submodule(layer), squares[layer]).sqrt().cpu() for layer in layers}


def _columns(layer: nn.Module, squares: Tensor) -> Tensor:
    """Sums of squares for each column of the unfolded weight, from those of each input feature or position."""
    if isinstance(layer, nn.Linear):
        return squares
    # The summed output grows by what a weight sees: its gradient is the sum over positions, for any stride, padding and groups.
    weight = torch.zeros_like(layer.weight, dtype=squares.dtype, requires_grad=True)
    with torch.enable_grad():
        output = F.conv2d(squares, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups).sum()
    return torch.autograd.grad(output, weight)[0].flatten(1).clamp(min=0)

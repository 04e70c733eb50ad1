"""What the weights of a network see of calibration images: the norm of each input feature, and second moments of the inputs."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from starfish_lab.errors import LabError
from starfish_lab.models.gather import met
from starfish_lab.models.network import Network


def input_norms(network: Network, layers: dict[str, nn.Module], images: Tensor, *, device: str = "cpu", batch_size: int = 32) -> dict[str, Tensor]:
    """L2 norm of every input feature of `layers` over `images` (n, C, H, W), from one pass of the network in eval mode.

    Returns {layer: norms} on the CPU, broadcastable to the unfolded weight (out, in): (in,) for a Linear, (out, in) for a
    convolution, where a feature is one input channel at one kernel position, C_in-major.
    """
    sums = _sums(network, layers, images, Tensor.square, device, batch_size)
    return {name: found.sqrt() for name, found in sums.items()}


def input_magnitudes(
    network: Network, layers: dict[str, nn.Module], images: Tensor, *, device: str = "cpu", batch_size: int = 32
) -> dict[str, Tensor]:
    """As `input_norms`, but the sum of absolute values of every input feature: up to a factor of the layer, mean |h|."""
    return _sums(network, layers, images, Tensor.abs, device, batch_size)


def _sums(
    network: Network, layers: dict[str, nn.Module], images: Tensor, of: Callable[[Tensor], Tensor], device: str, batch_size: int
) -> dict[str, Tensor]:
    """The sum of `of` every value that a column of a layer's unfolded weight meets."""
    sums: dict[str, Tensor] = {}

    def see(name: str, layer: nn.Module, x: Tensor) -> None:
        x = of(x.float())
        seen = x.sum(0, keepdim=True) if isinstance(layer, nn.Conv2d) else x.flatten(0, -2).sum(0)  # (1, C, H, W) or (in,)
        sums[name] = sums[name] + seen if name in sums else seen

    _watch(network, layers, images, see, device, batch_size)
    return {name: _columns(layer, sums[name].cpu()) for name, layer in layers.items()}


def second_moments(
    network: Network, layers: dict[str, nn.Module], images: Tensor, *, group: int | None = None, device: str = "cpu",
    rows: int = 4096, seed: int = 0, batch_size: int = 32,
) -> dict[str, Tensor]:  # fmt: skip
    """Uncentred second moments E[x xᵀ] of the inputs of `layers` over `images` (n, C, H, W), from one pass of the network in eval mode.

    x is what a row of the unfolded weight (out, cols) meets: a token of a Linear, a patch of an ungrouped convolution
    (C_in-major, zeros where it is padded). Returns {layer: moments} on the CPU in float32: (cols, cols), or (cols / group, group,
    group) for each `group` consecutive columns. Of each batch at most `rows` random rows a layer count, drawn by `seed` and the
    layer's name, so that a layer's rows do not depend on which other layers are asked for. The network runs as it is given,
    merged tokens and all; one batch of activations is held at a time.
    """
    sums: dict[str, Tensor] = {}
    counts = dict.fromkeys(layers, 0)
    draws = {name: torch.Generator().manual_seed(seed + zlib.crc32(name.encode())) for name in layers}

    def see(name: str, layer: nn.Module, x: Tensor) -> None:
        x, _ = rows_met(layer, x.float(), rows, draws[name])  # (rows, cols)
        if group is None:
            found = x.T @ x
        else:
            x = x.view(len(x), -1, group).transpose(0, 1)  # (groups, rows, group)
            found = x.transpose(1, 2) @ x
        sums[name] = sums[name] + found if name in sums else found
        counts[name] += x.shape[-2]

    _watch(network, layers, images, see, device, batch_size)
    return {name: (sums[name] / counts[name]).cpu() for name in layers}


@torch.no_grad()
def _watch(
    network: Network, layers: dict[str, nn.Module], images: Tensor, see: Callable[[str, nn.Module, Tensor], None], device: str, batch_size: int
) -> None:
    """Run a copy of the network over the images; `see(name, layer, input)` whenever one of the layers gets its input."""
    module = copy.deepcopy(network.module).eval().to(device)
    seen = set()

    def hook(name: str):
        def before(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen.add(name)
            see(name, layer, met(layer, inputs[0]))

        return before

    for name in layers:
        module.get_submodule(name).register_forward_pre_hook(hook(name))
    for batch in images.split(batch_size):
        module(batch.to(device))
    unseen = [name for name in layers if name not in seen]
    if unseen:
        raise LabError(
            f"The layer {unseen[0]} sees no input when the network runs, so it has no activations. Exclude it, or choose the score 'magnitude'."
        )


def _columns(layer: nn.Module, sums: Tensor) -> Tensor:
    """Sums for each column of the unfolded weight, from those of each input feature or position."""
    if isinstance(layer, nn.Linear):
        return sums
    # The summed output grows by what a weight sees: its gradient is the sum over positions, for any stride, padding and groups.
    weight = torch.zeros(layer.weight.shape, requires_grad=True)
    with torch.enable_grad():
        output = F.conv2d(sums, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups).sum()
    return torch.autograd.grad(output, weight)[0].flatten(1).clamp(min=0)


def draw(total: int, rows: int, generator: torch.Generator, device: torch.device, *, always: int = 0) -> Tensor:
    """At most `rows` of `total` indices, each at most once; 0, `always`, 2 · `always`, … are among them in any case, where `always` is not 0."""
    if total <= rows:
        return torch.arange(total, device=device)
    drawn = torch.randperm(total, generator=generator)
    if always:
        certain = torch.arange(0, total, always)
        drawn, rows = torch.cat([certain, drawn[drawn % always != 0]]), max(rows, len(certain))
    return drawn[:rows].to(device)


def rows_met(layer: nn.Module, x: Tensor, rows: int, generator: torch.Generator, *, always: int = 0) -> tuple[Tensor, Tensor]:
    """At most `rows` of what the unfolded weight of a Linear or an ungrouped convolution meets: (rows, cols), and which they are: (rows,).

    The n-th is the n-th token of the flattened batch, or patch n mod (H' · W') of image n // (H' · W'): where the n-th output stands.
    Of tokens every `always`-th, from the first on, is among them.
    """
    if isinstance(layer, nn.Conv2d):
        return _patches(layer, x, rows, generator)
    x = x.flatten(0, -2)
    chosen = draw(len(x), rows, generator, x.device, always=always)
    return (x[chosen] if len(x) > rows else x), chosen


def _patches(layer: nn.Conv2d, x: Tensor, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The patches of an input (B, C, H, W), (rows, C · kh · kw), cut out one by one."""
    x = F.pad(x, layer._reversed_padding_repeated_twice, mode="constant" if layer.padding_mode == "zeros" else layer.padding_mode)
    (kh, kw), (dh, dw), (sh, sw) = layer.kernel_size, layer.dilation, layer.stride
    high, wide = ((x.shape[2] - dh * (kh - 1) - 1) // sh + 1, (x.shape[3] - dw * (kw - 1) - 1) // sw + 1)
    chosen = draw(len(x) * high * wide, rows, generator, x.device)
    image, place = chosen // (high * wide), chosen % (high * wide)
    down = (place // wide * sh).view(-1, 1, 1) + dh * torch.arange(kh, device=x.device).view(1, -1, 1)  # (rows, kh, 1)
    across = (place % wide * sw).view(-1, 1, 1) + dw * torch.arange(kw, device=x.device).view(1, 1, -1)  # (rows, 1, kw)
    return x.movedim(1, -1)[image.view(-1, 1, 1), down, across].permute(0, 3, 1, 2).flatten(1), chosen  # from (rows, kh, kw, C)

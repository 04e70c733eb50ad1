"""First-order terms: what the loss says of each weight, batch by batch, from a network in eval mode."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from starfish_lab.errors import ImagesError, LabError
from starfish_lab.models.gather import met
from starfish_lab.models.network import Network

BATCH_SIZE = 16


def weight_gradients(
    network: Network, layers: Iterable[str], images: Tensor, labels: Tensor | None = None, *, device: str = "cpu", batch_size: int = BATCH_SIZE
) -> dict[str, Tensor]:
    """How strongly the loss pulls at every weight: {layer: √(mean over batches of (∂L/∂w)²)}, shaped like the weights, on the CPU.

    `images` (n, C, H, W) and `labels` (n,), class indices of the network's outputs; L is the mean cross-entropy of a batch.
    Without labels the network's own predictions stand in for them (pseudo labels): then L is small where it is sure of
    itself, and a gradient says how easily a weight changes an answer rather than how much it helps a right one.
    |w| times this, squared, is the mean over batches of (w · ∂L/∂w)², the first-order term of Molchanov et al. (arXiv
    1906.10771, eq. 8) for single weights. The network stays as it is. Raises LabError for a layer the loss does not reach,
    ImagesError for labels that do not fit.
    """
    squares: dict[str, Tensor] = {}
    batches = 0
    for _, gradients in batch_gradients(network, layers, images, labels, device=device, batch_size=batch_size):
        batches += 1
        for layer, gradient in gradients.items():
            squares[layer] = squares[layer] + gradient.square() if layer in squares else gradient.square()
    return {layer: (total / batches).sqrt().cpu() for layer, total in squares.items()}


def batch_gradients(
    network: Network, layers: Iterable[str], images: Tensor, labels: Tensor | None = None, *, device: str = "cpu", batch_size: int = BATCH_SIZE
) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """For each batch, weights and ∂L/∂w of the layers, float32 on `device`: ({layer: weight}, {layer: gradient})."""
    _check(network, images, labels)
    module = copy.deepcopy(network.module).eval().to(device).requires_grad_(False)
    names = list(layers)
    weights = [module.get_submodule(layer).weight.requires_grad_(True) for layer in names]
    targets = [None] * -(-len(images) // batch_size) if labels is None else labels.split(batch_size)
    for batch, target in zip(images.split(batch_size), targets, strict=True):
        with torch.enable_grad():
            logits = module(batch.to(device)).float()
            wanted = logits.detach().argmax(1) if target is None else target.to(device)
            found = torch.autograd.grad(F.cross_entropy(logits, wanted), weights, allow_unused=True)
        unreached = [name for name, gradient in zip(names, found) if gradient is None]
        if unreached:
            raise LabError(f"The loss does not depend on {unreached[0]}, so it has no gradient. Exclude it, or choose the score 'magnitude'.")
        yield {n: w.detach().float() for n, w in zip(names, weights)}, {n: g.float() for n, g in zip(names, found)}


def _check(network: Network, images: Tensor, labels: Tensor | None) -> None:
    if len(images) == 0:
        raise ImagesError("There is no calibration image to take gradients on. Give at least one.")
    if labels is None:
        return
    if len(labels) != len(images):
        raise ImagesError(f"{len(labels)} labels for {len(images)} calibration images. Give one for each image, in the same order.")
    lowest, highest, classes = int(labels.min()), int(labels.max()), network.num_classes
    if lowest < 0 or (classes and highest >= classes):
        raise ImagesError(
            f"Labels run from {lowest} to {highest}; {network.name} knows classes 0 to {classes - 1}. Give the class order of the network."
        )


def input_of(module: nn.Module, layer: str, keep) -> torch.utils.hooks.RemovableHandle:
    """Call `keep(x)` with the input of a layer, float32, whenever the module runs."""
    return module.get_submodule(layer).register_forward_pre_hook(lambda found, inputs: keep(met(found, inputs[0]).float()))

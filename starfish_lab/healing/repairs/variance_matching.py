"""Variance matching: each output channel of a pruned layer scaled towards the dense layer's variance (ASR, arXiv 2605.21426).

    g_c = 1 + ρ_c (σ_c / s_c − 1)        ρ_c = s_c² / (s_c² + shrinkage · median over the layer's channels of s²)
    row c of the weight ← g_c · row c,   and batch norms are recalibrated

σ_c² is the variance of channel c of the dense layer's output over images and places, s_c² that of the pruned layer's, fed by
the pruned network. A channel with hardly any signal left would be scaled up with all its noise: ρ_c keeps its g_c near 1.

From the paper's abstract: one variance-matching correction an output channel, shrunk by a data-driven rule where the pruned
signal is weak, before batch norms are recalibrated; forward passes alone. Ours, because no more of it was at hand: the formula of ρ;
that the weight is scaled and the bias is not; that layers are scaled one after another, inputs of the next seeing the repair
of the last; and what is recalibrated. A variance estimated anew cancels the scale in front of its norm, all but for the norm's
eps, so `recalibrate` 'means' (the default) estimates the norms' means alone, in the same pass; 'all' is `batch_norm` after the
scaling, and 'none' leaves the norms as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from starfish_lab import checks
from starfish_lab.healing.repairs import batch_norm
from starfish_lab.healing.session import Session
from starfish_lab.models.norms import batch_norms

DEFAULTS = {}

IMAGES = 256  # that the variances are taken over: one pass, and every position of an image is a sample


@torch.no_grad()
def repair(session: Session, *, shrinkage: float = 0.3, recalibrate: str = "means") -> None:
    """Scale the rows of all masked layers. `shrinkage` 0 matches variances exactly."""
    checks.number("healing.repair_options.shrinkage", shrinkage, 0)
    checks.one_of("healing.repair_options.recalibrate", recalibrate, ("means", "all", "none"))
    images = session.calibration[:IMAGES].to(session.device, torch.float32)
    wanted: dict[str, Tensor] = {}

    def remember(name: str, layer: nn.Module, output: Tensor) -> None:
        wanted[name] = _variance(layer, output)

    def match(name: str, layer: nn.Module, output: Tensor) -> Tensor:
        """Scales the weight and corrects what the layer gave, so that the rest of this very pass sees the repaired layer."""
        scale = _scale(wanted[name], _variance(layer, output), shrinkage)  # (out,)
        layer.weight.mul_(scale.view(-1, *[1] * (layer.weight.ndim - 1)))
        scale = _along(layer, scale, output)
        return output * scale if layer.bias is None else output * scale + _along(layer, layer.bias, output) * (1 - scale)

    def centre(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        norm.running_mean.copy_(inputs[0].float().transpose(0, 1).flatten(1).mean(1))  # (C,)

    norms = batch_norms(session.student.module)
    for network, hear in ((session.dense, remember), (session.student, match)):
        session.reporter.check()
        handles = [_hook(network.module.get_submodule(name), name, hear) for name in session.masks]
        if hear is match and recalibrate == "means":
            handles += [norm.register_forward_pre_hook(centre) for norm in norms]
        try:
            network.module(images)
        finally:
            for handle in handles:
                handle.remove()
    if norms and recalibrate == "all":
        batch_norm.recalibrate(session)


def _hook(layer: nn.Module, name: str, hear):
    return layer.register_forward_hook(lambda module, inputs, output: hear(name, module, output))


def _channel(layer: nn.Module) -> int:
    """The dimension of a layer's output that its rows make."""
    return 1 if isinstance(layer, nn.Conv2d) else -1


def _variance(layer: nn.Module, output: Tensor) -> Tensor:
    """(out,): over all but the channels; (B, …, out) of a Linear, (B, out, H, W) of a convolution."""
    return output.float().movedim(_channel(layer), -1).flatten(0, -2).var(0, unbiased=False)


def _along(layer: nn.Module, values: Tensor, output: Tensor) -> Tensor:
    """(out,) → broadcastable to the layer's output."""
    return values.view(-1, 1, 1) if isinstance(layer, nn.Conv2d) else values


def _scale(wanted: Tensor, found: Tensor, shrinkage: float) -> Tensor:
    """g of the formula, (out,); 1 where a channel gives nothing at all."""
    trust = found / (found + shrinkage * found.median())
    return torch.where(found > 0, 1 + trust * ((wanted / found).sqrt() - 1), 1.0)

"""Batch norms that keep running statistics, and those among them that only look like norms."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def batch_norms(module: nn.Module) -> list[nn.Module]:
    """The module's batch norms whose running statistics are estimates of what they see: all but `hands_on`."""
    found = [norm for norm in module.modules() if isinstance(norm, _BatchNorm) and norm.running_mean is not None]
    return [norm for norm in found if not hands_on(norm)]


def hands_on(norm: nn.Module) -> bool:
    """True for a batch norm that returns its input as it is: mean 0, variance 1 (or 1 − eps), weight 1, bias 0.

    Converted networks have such where timm's code asks for a norm and their own had none, as on the shortcuts of CIFAR's ResNets;
    statistics of a batch would make a norm of it.
    """
    affine = norm.weight is None or (bool((norm.weight == 1).all()) and not norm.bias.any())
    return affine and not norm.running_mean.any() and bool(((norm.running_var - 1).abs() <= 2 * norm.eps).all())

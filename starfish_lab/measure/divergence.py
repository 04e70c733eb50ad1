"""How far a network's answers are from the dense network's, without labels: the mean KL divergence of class probabilities."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from starfish_lab.measure.running import evaluating
from starfish_lab.models.network import Network


def log_answers(network: Network, images: Tensor, *, device: str = "cpu", batch_size: int = 64) -> Tensor:
    """Log probabilities (n, classes) of images (n, C, H, W), float32 on the CPU. The network is left as it was."""
    with evaluating(network.module, device) as module:
        return torch.cat([F.log_softmax(module(batch.to(device)).float(), dim=-1).cpu() for batch in images.split(batch_size)])


def kl(expected: Tensor, found: Tensor) -> float:
    """Mean over images of KL( expected ‖ found ) in nats, of log probabilities (n, classes) each.

    >>> a = torch.tensor([[0.5, 0.5]]).log()
    >>> round(kl(a, torch.tensor([[0.25, 0.75]]).log()), 4)  # ½ ln 2 + ½ ln ⅔
    0.1438
    """
    return F.kl_div(found.double(), expected.double(), reduction="batchmean", log_target=True).item()

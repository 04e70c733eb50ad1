"""In which order a layer meets its inputs, chosen so that an n:m pattern keeps more. One rule a file.

Every rule sees the importance (out, cols) ≥ 0 of a weight unfolded channel by channel: cols = channels · taps, where a
convolution's channel has kh · kw taps and a Linear's input one. It returns the new order of the channels: order[i] is the
channel that comes to place i. With `segments` > 1 a channel moves only inside its own of that many equal segments.
"""

from __future__ import annotations

import torch
from torch import LongTensor, Tensor


def kept(importance: Tensor, order: Tensor, *, keep: int, group: int, taps: int = 1) -> float:
    """The importance that a keep:group mask leaves when the channels come in this order.

    The mask keeps the `keep` most important of every `group` consecutive columns in each row; columns must be divisible by
    `group`. Summed in float64.
    """
    columns = channels_first(importance, taps)[order.to(importance.device)].flatten(0, 1)
    return group_sums(columns.unflatten(0, (-1, group)), keep).sum().item()


def channels_first(importance: Tensor, taps: int) -> Tensor:
    """(out, channels · taps) → (channels, taps, out), contiguous."""
    return importance.T.contiguous().unflatten(0, (-1, taps))


def group_sums(groups: Tensor, keep: int) -> Tensor:
    """(…, n, out) → (…,) float64: over all rows, the sum of the `keep` largest of the n."""
    return torch.stack(descending(groups, keep)[:keep]).sum(0).sum(-1, dtype=torch.float64)


def descending(groups: Tensor, count: int) -> list[Tensor]:
    """The entries along the second last axis, the `count` largest first; those behind them in no order.

    A few passes of a bubble sort over whole planes: for groups this small ten times as fast as a sort of every row.
    """
    planes = list(groups.unbind(-2))
    for done in range(count):
        for place in range(len(planes) - 1, done, -1):
            first, second = planes[place - 1], planes[place]
            planes[place - 1], planes[place] = torch.maximum(first, second), torch.minimum(first, second)
    return planes


def ranked(importance: Tensor, *, segments: int, taps: int) -> LongTensor:
    """(segments, channels / segments): the channels of each segment, the most important first; the first wins a tie."""
    total = importance.sum(0, dtype=torch.float64).view(segments, -1, taps).sum(-1)
    return total.argsort(dim=1, descending=True, stable=True) + torch.arange(total.numel(), device=total.device).view_as(total)[:, :1]

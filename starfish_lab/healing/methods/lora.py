"""LoRA: the surviving weights stay, and a low-rank update of every masked layer heals it (Hu et al., arXiv 2106.09685).

    W' = W + M ⊙ ( alpha / rank · B A )        A (rank, in), B (out, rank)

W is the pruned weight, M its mask, ⊙ the product of entries; a convolution's kernel counts as (out, C_in · kh · kw). A starts
at random, B at zero, so the first step sees the pruned network. Afterwards W' is the weight, and the network is as sparse as
before.

    target   what is matched: 'states', STARFISH's loss, or 'logits', logit distillation's
    masked   true: the mask is inside, so training sees what will be left. false: the update is dense in training, W + B A, and the
             mask falls on it in eval mode and at the end, which loses what training put on removed entries (the naive way)
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from starfish_lab import checks
from starfish_lab.healing.methods import logit_distillation, starfish
from starfish_lab.healing.session import Batch, Loss, Session

NEEDS_LABELS = False
DEFAULTS = {}

TARGETS = {"states": starfish.objective, "logits": logit_distillation.objective}


def objective(session: Session, *, target: str = "states", rank: int = 8, alpha: float = 16.0, masked: bool = True) -> Callable[[Batch], Loss]:
    """The loss of a batch. `reparametrise` puts the low-rank updates in."""
    checks.one_of("healing.options.target", target, tuple(TARGETS))
    return TARGETS[target](session)


@contextmanager
def reparametrise(
    session: Session, *, rank: int = 8, alpha: float = 16.0, masked: bool = True, **others: object
) -> Iterator[dict[str, nn.Parameter]]:
    """Inside, masked layers of the student carry low-rank updates: yields {parameter's name: parameter}, what trains.

    Afterwards the updates are in the weights, whose masked entries are zero. A rank above a layer's own is the layer's.
    """
    checks.whole("healing.options.rank", rank)
    checks.number("healing.options.alpha", alpha, 1e-6)
    checks.flag("healing.options.masked", masked)
    module = session.student.module
    updates: dict[str, LowRank] = {}
    for name, mask in session.masks.items():
        layer = module.get_submodule(name)
        seed = session.seed * 1_000_003 + zlib.crc32(name.encode())
        updates[name] = LowRank(mask.to(layer.weight), dense=not masked, rank=rank, scale=alpha / rank, seed=seed).train(layer.training)
        parametrize.register_parametrization(layer, "weight", updates[name])
    try:
        yield {f"{name}.parametrizations.weight.0.{part}": p for name, update in updates.items() for part, p in update.named_parameters()}
    finally:
        for name, update in updates.items():
            layer = module.get_submodule(name)
            update.eval()
            parametrize.remove_parametrizations(layer, "weight")
            layer.register_parameter("bias", layer._parameters.pop("bias"))  # behind the weight again, as in every other layer


class LowRank(nn.Module):
    """weight → weight + scale · M ⊙ B A; in training without M where `dense`.

    `mask` has the weight's shape, dtype and device, 1 and 0; `seed` is of A, uniform as a Linear layer's weight.
    """

    def __init__(self, mask: Tensor, *, dense: bool, rank: int, scale: float, seed: int):
        super().__init__()
        rows, columns = mask.flatten(1).shape
        rank = min(rank, rows, columns)
        start = columns**-0.5 * (2 * torch.rand(rank, columns, generator=torch.Generator().manual_seed(seed)) - 1)
        self.mask, self.dense, self.scale = mask, dense, scale  # no buffer: the mask is neither saved nor restored
        self.a = nn.Parameter(start.to(mask))  # (rank, in)
        self.b = nn.Parameter(mask.new_zeros(rows, rank))  # (out, rank)

    def forward(self, weight: Tensor) -> Tensor:
        update = self.scale * (self.b @ self.a).view_as(weight)
        return weight + (update if self.dense and self.training else update * self.mask)

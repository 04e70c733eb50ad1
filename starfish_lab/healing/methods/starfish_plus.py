"""STARFISH+: STARFISH's loss, the class token's part weighed, from a better start and at half the cost of a step. Ours; no paper has it.

Blocks are aligned end to end and all at once, as in STARFISH (`starfish`). What differs, each with its own reason:

    repair 'aligned'       a closed-form start that has already brought the residual stream near to the dense network's
    trains 'affine'        biases and norms too: scales and shifts are what a mask shifts most, and cost nothing to train
    augmentation 'flip'    from a few hundred images both networks can still learn the images instead of the alignment
    fewer tokens           `keep` of the patch tokens, drawn anew at every step, enter both networks (as in PatchDropout, Liu et
                           al., arXiv 2208.07220, there for fine-tuning): a step costs about that share, and no two steps see
                           the same; class tokens always enter
    class_weight 0.3       the head reads the class token alone, and among 197 tokens its part of the loss is lost
    a higher rate          3e-3, reached in ten steps: Adam's second moments are still noise in the first ones

Networks without a place where tokens may be left out (`Network.token_gate`) train on whole images, and on `keep_images` of each
batch: the dense network's answers to flipped images are computed anew, and the repair has its price too. The dense network runs on
the very tokens that the pruned one sees, so that states pair one to one; its answers cannot be kept then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from starfish_lab import checks
from starfish_lab.healing.methods import starfish
from starfish_lab.healing.session import Batch, Loss, Session

NEEDS_LABELS = False
DEFAULTS = {"repair": "aligned", "learning_rate": 3e-3, "warmup": 10, "trains": "affine", "order": "shuffled", "augmentation": "flip"}


def objective(session: Session, *, keep: float = 0.5, keep_images: float = 0.4, class_weight: float = 0.3) -> Callable[[Batch], Loss]:
    """The loss of a batch, with a part for each block.

    keep : share of the patch tokens that enter; 1 for all
    keep_images : share of the images of a batch that take part where tokens cannot be left out; 1 for all
    class_weight : as STARFISH's option; without effect in networks that have no class token
    """
    checks.number("healing.options.keep", keep, 0.05, 1)
    checks.number("healing.options.keep_images", keep_images, 0.05, 1)
    weight = class_weight if session.student.has_class_token else 0.0
    aligned = starfish.objective(session, class_weight=weight)
    gates = [network.module.get_submodule(network.token_gate) for network in (session.dense, session.student) if network.token_gate]
    if len(gates) < 2:
        return aligned if keep_images == 1 else lambda batch: aligned(fewer_images(batch, keep_images))
    if keep == 1:
        return aligned

    def loss(batch: Batch) -> Loss:
        with fewer_tokens(gates, keep, session.student.prefix_tokens):
            return aligned(batch._replace(index=None, rows=None))

    return loss


def fewer_images(batch: Batch, share: float) -> Batch:
    """A random share of a batch, but no fewer than two images where there are two: batch norms need them."""
    drawn = torch.randperm(len(batch.images))[: max(2, round(share * len(batch.images)))].sort().values
    rows = None if batch.rows is None else batch.rows[drawn]
    return batch._replace(images=batch.images[drawn.to(batch.images.device)], rows=rows, index=None)


@contextmanager
def fewer_tokens(gates: list[nn.Module], keep: float, prefix: int) -> Iterator[None]:
    """Inside, the same random share of the patch tokens passes each gate, (B, N, D) → (B, prefix + kept, D); drawn when the first one passes."""
    chosen: list[Tensor] = []

    def let_through(_: nn.Module, inputs: tuple[Tensor, ...], tokens: Tensor) -> Tensor:
        if not chosen:
            patches = tokens.shape[1] - prefix
            drawn = torch.randperm(patches, device=tokens.device)[: max(1, round(keep * patches))].sort().values
            chosen.append(torch.cat([torch.arange(prefix, device=tokens.device), prefix + drawn]))
        return tokens[:, chosen[0]]

    handles = [gate.register_forward_hook(let_through) for gate in gates]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

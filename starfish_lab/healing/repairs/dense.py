"""The dense network's weights under the masks: undoes the new values that a solver, a start or a compensation gave the survivors."""

from __future__ import annotations

import torch

from starfish_lab.healing.session import Session

DEFAULTS = {}


@torch.no_grad()
def repair(session: Session) -> None:
    """Weights of masked layers ← dense weights × mask; their biases ← the dense ones."""
    for name, mask in session.masks.items():
        dense, pruned = (network.module.get_submodule(name) for network in (session.dense, session.student))
        pruned.weight.copy_(dense.weight * mask.to(dense.weight.device))
        if pruned.bias is not None and dense.bias is not None:
            pruned.bias.copy_(dense.bias)

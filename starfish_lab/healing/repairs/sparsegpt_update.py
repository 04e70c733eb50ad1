"""SparseGPT's weight update under a given mask: removed weights go one input after another, those not yet reached make up for them.

Frantar and Alistarh, 'SparseGPT' (arXiv 2301.00774), without its choice of what to remove: with H = E[x xᵀ] of a layer's inputs,
damped, and the upper Cholesky factor U of H⁻¹, a removed weight's error w_j / U_jj is spread over the row's later weights along U_j.
All rows share one factor, so the sweep costs far less than least squares, and is less exact: earlier inputs make up for nothing.
As in the source it begins at the dense weights, block after block: a block is seen dense behind blocks that are pruned.
"""

from __future__ import annotations

import torch

from starfish_lab import checks
from starfish_lab.calibration.moments import double, repairable, walk
from starfish_lab.errors import RecipeError
from starfish_lab.healing.session import Session
from starfish_lab.pruning.solvers.sparsegpt import inverse_factor, sweep

DEFAULTS = {}


@torch.no_grad()
def repair(session: Session, *, inputs: str = "pruned", damping: float = 0.01, block: int = 128, rows: int = 8192) -> None:
    """Sweep over every masked layer; its surviving values are found anew from the dense ones, biases stay.

    inputs : 'pruned', what a layer meets behind blocks already repaired; 'dense', in the dense network
    damping : of the mean diagonal, added to H's
    block : columns whose errors are spread over the later ones at once; decides speed alone
    rows : tokens or patches that count of every 32 images
    """
    checks.whole("healing.repair_options.block", block)
    checks.number("healing.repair_options.damping", damping, 0)
    if damping == 0:
        raise RecipeError("healing.repair_options.damping is 0: give a number above 0, such as 0.01.")
    layers = repairable(session, session.masks)
    for name in layers:
        pruned, dense = (network.module.get_submodule(name) for network in (session.student, session.dense))
        pruned.weight.copy_(dense.weight)
    for found in walk(session, layers, inputs=inputs, together="block", targets=None, rows=rows):
        for name, moments in found.items():
            weight = session.student.module.get_submodule(name).weight
            stays = session.masks[name].flatten(1).to(weight.device)
            values = double(weight).flatten(1)
            factor = inverse_factor(moments.second, damping).to(values)
            weight.copy_(sweep(values, factor, stays.to(values.device), width=block).view_as(weight))

"""Mean shift: what the removed weights added on average goes into the bias (VBP, arXiv 2507.12988).

    b ← b + (W_dense − W) E[x]

which for removed hidden units P of an MLP is b₂ + W₂[:, P] μ_P, the source's case; the formula holds for any mask. Afterwards the
layer's mean output over the calibration images is the dense one's. One pass of the dense network, and no weight changes.
"""

from __future__ import annotations

import torch

from starfish_lab import checks
from starfish_lab.calibration.moments import repairable, unfolded, walk
from starfish_lab.healing.session import Session

DEFAULTS = {}
LAYERS = ("mlp", "all")


@torch.no_grad()
def repair(session: Session, *, layers: str = "mlp", inputs: str = "dense", rows: int = 8192) -> None:
    """Fold means into the biases of masked layers; a layer without bias is left and named.

    layers : 'mlp', layers that hidden units feed (the source's: the MLP's second one); 'all', every masked layer
    inputs : where E[x] is taken: 'dense', in the dense network, as the source does; 'pruned', in the pruned one with the layers
        before already shifted, so that each layer's mean output there is the dense network's
    rows : tokens or patches that count of every 32 images
    """
    checks.one_of("healing.repair_options.layers", layers, LAYERS)
    module = session.student.module
    chosen = repairable(session, session.masks)
    if layers == "mlp":
        fed = {group.consumer for group in session.student.unit_groups}
        chosen = [name for name in chosen if name in fed]
    bare = [name for name in chosen if module.get_submodule(name).bias is None]
    if bare:
        session.reporter.note(f"Layers without a bias take no mean shift: {', '.join(bare)}.")
        chosen = [name for name in chosen if name not in bare]
    if not chosen:
        session.reporter.note(f"Mean shift with layers '{layers}' found no masked layer with a bias and changed nothing.")
        return
    for found in walk(session, chosen, inputs=inputs, second=False, rows=rows):
        for name, moments in found.items():
            layer = module.get_submodule(name)
            weight, _ = unfolded(layer)
            layer.bias.copy_(moments.target - weight @ moments.mean)  # b_dense + (W_dense − W) E[x] where x is the dense network's

"""Fixed-mask least squares: every layer's surviving weights answer as the dense layer does, as nearly as they can, in closed form.

The formula is that of `calibration.fit`, started from the values that survived: a network with nothing pruned stays as it is, and no
layer's error on these inputs grows.
With inputs 'dense', x is what the layer meets in the dense network; with 'pruned' what it meets in the pruned one, repaired up
to there, so that later layers make up for earlier ones (the asymmetric form: y stays the dense network's output).
"""

from __future__ import annotations

import torch

from starfish_lab import checks
from starfish_lab.calibration.fit import fit
from starfish_lab.calibration.moments import repairable, unfolded, walk
from starfish_lab.healing.session import Session

DEFAULTS = {}


@torch.no_grad()
def repair(
    session: Session, *, inputs: str = "pruned", together: str = "layer", bias: bool = True, ridge: float = 0.01, rows: int = 8192
) -> None:  # fmt: skip
    """Solve every masked layer in depth order.

    inputs : 'dense' or 'pruned', as above
    together : with pruned inputs, 'layer' looks at each layer's inputs once all before it are repaired, 'block' at those of a
        block's layers in one pass (faster, and its later layers do not see what its earlier ones became)
    bias : the layer's bias, where it has one, is fitted along
    ridge : λ over the mean diagonal
    rows : tokens or patches that count of every 32 images
    """
    checks.flag("healing.repair_options.bias", bias)
    checks.number("healing.repair_options.ridge", ridge, 0)
    for found in walk(session, repairable(session, session.masks), inputs=inputs, together=together, rows=rows):
        for name, moments in found.items():
            layer = session.student.module.get_submodule(name)
            intercept = bias and layer.bias is not None
            weight, offset = unfolded(layer)
            weight, offset = fit(weight, offset, session.masks[name].flatten(1), moments, intercept=intercept, ridge=ridge)
            layer.weight.copy_(weight.view_as(layer.weight))
            if intercept:
                layer.bias.copy_(offset)

"""Aligned least squares: in closed form, every layer brings the residual stream as near to the dense network's as its mask allows.

Least squares under the mask (`calibration.fit`), layer after layer in depth order, on what the layer meets in the pruned network
aligned up to there, with another target where the layer's output is added to the residual stream r (`Network.residuals`):

    y = dense output + (r_dense − r_pruned) / layer scale,    so that r_pruned + y meets r_dense

Errors of all earlier layers, which least squares on the layer's own output leaves in the stream, are made up for: it is STARFISH's
aim, the aligned internal state, without a gradient. Elsewhere (Q, K and V, the first MLP layer, networks whose residuals are not
declared) y is the dense layer's output. Class tokens are weighed (`class_weight`): the head reads them alone, and among hundreds of
tokens least squares would give them up. Ours; no paper has it.
"""

from __future__ import annotations

import torch

from starfish_lab import checks
from starfish_lab.calibration.fit import fit
from starfish_lab.calibration.moments import repairable, unfolded, walk
from starfish_lab.healing.session import Session

DEFAULTS = {}


@torch.no_grad()
def repair(session: Session, *, ridge: float = 0.1, mirrored: bool = False, most: int = 1024, rows: int = 2048, class_weight: float = 0.3) -> None:
    """Solve every masked layer and its bias, where it has one, in depth order, from the values that survived.

    ridge : λ over the mean diagonal of the inputs' second moments
    mirrored : every image counts a second time with left and right exchanged, where that makes no more than `most`
    most : images that count, the first ones
    rows : tokens or patches that count of every 32 images
    class_weight : what class tokens count as beside all of those together; the head reads them alone. Without effect where there are none
    """
    checks.number("healing.repair_options.ridge", ridge, 0)
    checks.whole("healing.repair_options.most", most)
    checks.flag("healing.repair_options.mirrored", mirrored)
    pair, mirrored = session.within(most, mirrored=mirrored)
    layers = repairable(pair, session.masks)
    for found in walk(pair, layers, inputs="pruned", targets="state", rows=rows, mirrored=mirrored, class_weight=class_weight):
        for name, moments in found.items():
            layer = session.student.module.get_submodule(name)
            weight, bias = unfolded(layer)
            weight, bias = fit(weight, bias, session.masks[name].flatten(1), moments, intercept=layer.bias is not None, ridge=ridge)
            layer.weight.copy_(weight.view_as(layer.weight))
            if layer.bias is not None:
                layer.bias.copy_(bias)

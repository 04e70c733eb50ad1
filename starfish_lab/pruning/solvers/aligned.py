"""Aligned masks: what each layer may lose is chosen where it hurts the residual stream least, and what stays makes up for it.

Layer after layer in depth order, on what the layer meets in the network pruned up to there: least squares without a mask gives the
weights that would bring the residual stream nearest to the dense network's (targets as in `healing.repairs.aligned`); what of those
goes is chosen by ALPS (`alps`, arXiv 2406.07831) or by SparseGPT's sweep (`sparsegpt`, arXiv 2301.00774), on centred moments, because
biases follow; least squares on the mask gives the rest its values, and the bias its own. Class tokens are weighed in all of it: the
head reads them alone. Ours; no paper has it.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from starfish_lab import checks
from starfish_lab.calibration.fit import fit
from starfish_lab.calibration.moments import InputMoments, repairable, unfolded, walk
from starfish_lab.calibration.pair import Pair
from starfish_lab.pruning.patterns import MaskResult
from starfish_lab.pruning.solvers import alps, sparsegpt
from starfish_lab.recipe import PruningChoice

MOMENTS = "paired"  # it walks through both networks itself
PATTERNS = ("unstructured", "n_m")


@torch.no_grad()
def solve(
    pair: Pair, layers: list[str], *, choice: PruningChoice, counts: dict[str, int], left: dict[str, str], by: str = "alps", damping: float = 0.01,
    ridge: float = 0.1, mirrored: bool = False, most: int = 1024, rows: int = 2048, class_weight: float = 0.3,
    precision: str = "float32",
) -> MaskResult:  # fmt: skip
    """Masks, weights and biases of `layers`; `pair.student` ends with them.

    counts : {layer: weights to remove} where the pattern is unstructured
    left : {layer: reason} of layers that stay dense
    by : what chooses the masks, 'alps' or 'sparsegpt'
    damping : of the mean diagonal, added to the moments for the costs; `ridge` for least squares, see `calibration.fit`
    mirrored : every image counts a second time with left and right exchanged, where that makes no more than `most`
    most : images that count, the first ones
    rows, class_weight : see `calibration.moments.walk`
    precision : of forward passes, 'float32' or 'bf16'

    Rows of the result: layer and the facts of `sparsegpt`, beside the weights that no mask bound.
    """
    checks.one_of("pruning.score_options.precision", precision, ("float32", "bf16"))
    checks.whole("pruning.score_options.most", most)
    checks.one_of("pruning.score_options.by", by, ("alps", "sparsegpt"))
    pair, mirrored = replace(pair, precision=precision).within(most, mirrored=mirrored)
    modules = {name: pair.student.module.get_submodule(name) for name in [*layers, *left]}
    found = MaskResult({name: torch.ones(module.weight.shape, dtype=torch.bool) for name, module in modules.items()}, left)
    for stage in walk(pair, repairable(pair, layers), inputs="pruned", targets="state", rows=rows, mirrored=mirrored, class_weight=class_weight):
        for name, moments in stage.items():
            layer = modules[name]
            mask, weight, bias, facts = _layer(layer, moments, choice, counts.get(name), by, damping, ridge)
            layer.weight.copy_(weight.view_as(layer.weight))
            found.masks[name] = mask.view_as(layer.weight).cpu()
            found.weights[name] = layer.weight.detach().cpu().clone()
            if layer.bias is not None:
                layer.bias.copy_(bias)
                found.biases[name] = layer.bias.detach().cpu().clone()
            found.rows.append({"layer": name, **facts})
    return found


def _layer(
    layer: nn.Module, moments: InputMoments, choice: PruningChoice, count: int | None, by: str, damping: float, ridge: float
) -> tuple[Tensor, Tensor, Tensor, dict[str, object]]:
    """Mask and weight (out, cols), bias (out,), and what the mask costs."""
    weight, bias = unfolded(layer)
    intercept = layer.bias is not None
    start = weight != 0  # what the start lacks stays away
    whole, _ = fit(weight, bias, start, moments, intercept=intercept, ridge=ridge)
    about = moments.second - torch.outer(moments.mean, moments.mean) if intercept else moments.second
    if by == "alps":
        mask = alps.choose(whole, about, choice=choice, count=count, may=start, damping=damping)
    else:
        mask, _, _ = sparsegpt.solve(whole, about, choice=choice, count=count, dense=weight, mask=start, damping=damping)
    weight, bias = fit(weight, bias, mask & start, moments, intercept=intercept, ridge=ridge)
    return mask, weight, bias, sparsegpt.against_magnitude(whole, weight, about, choice=choice, count=count)

"""From a network and a PruningChoice to masks: scores → budget → pattern."""

from __future__ import annotations

import pandas as pd
import torch
from torch import Tensor, nn

from starfish_lab.errors import LabError, RecipeError
from starfish_lab.models.network import Network, layer_kind, prunable
from starfish_lab.pruning import BUDGETS, PATTERNS, SCORES, rules
from starfish_lab.pruning import masks as masking
from starfish_lab.pruning.activations import input_norms
from starfish_lab.pruning.patterns import MaskResult
from starfish_lab.recipe import PruningChoice
from starfish_lab.spectra.layers import spectra_table

__all__ = ["MaskResult", "make_masks", "pruned"]


def make_masks(network: Network, choice: PruningChoice, *, calibration: Tensor | None = None, device: str = "cpu") -> MaskResult:
    """Masks over all prunable layers, on the CPU; the network stays as it is.

    `calibration` (n, C, H, W) is for scores that look at activations; `device` runs the forward pass and the spectra.
    Equal choices give equal masks. Raises RecipeError where score, budget, pattern and network do not go together.
    """
    rules.check(choice)
    layers = prunable(network, choice.include, choice.exclude)
    scores = _scores(network, layers, choice, calibration, device)
    budget = BUDGETS.module(choice.budget)
    edges = edge_table(network, list(layers), device) if budget.NEEDS_EDGES else None
    sizes = {layer: score.numel() for layer, score in scores.items()}
    counts = budget.allocate({layer: score.numpy() for layer, score in scores.items()}, sizes, choice.sparsity, edges, **choice.options)
    return PATTERNS.get(choice.pattern)(network, scores, choice, counts)


def pruned(network: Network, masks: masking.Masks) -> Network:
    """A copy of the network with the removed weights zero."""
    student = network.copy()
    masking.apply(student.module, masks)
    return student


def edge_table(network: Network, layers: list[str], device: str) -> pd.DataFrame:
    """What a budget may know of the layers' spectra: index layer, columns kind, sigma_plus, hill_alpha."""
    table = spectra_table(network, layers=layers, split_qkv=False, device=device).set_index("layer")
    return table.assign(kind=[layer_kind(layer) for layer in table.index])[["kind", "sigma_plus", "hill_alpha"]]


@torch.no_grad()
def _scores(network: Network, layers: dict[str, nn.Module], choice: PruningChoice, calibration: Tensor | None, device: str) -> dict[str, Tensor]:
    """Scores ≥ 0 of every weight, float32 on the CPU, shaped like the weights."""
    entry = SCORES.module(choice.score)
    if entry.NEEDS_ACTIVATIONS and calibration is None:
        raise RecipeError(
            f"The score '{choice.score}' looks at activations and needs calibration images. Give images, or choose the score 'magnitude'."
        )
    norms = input_norms(network, layers, calibration, device=device) if entry.NEEDS_ACTIVATIONS else {}
    generator = torch.Generator().manual_seed(choice.seed)
    scores = {}
    for layer, module in layers.items():
        weight = module.weight.detach().cpu().float()
        scores[layer] = entry.score(weight, activations=norms.get(layer), generator=generator).contiguous()
        if not torch.isfinite(scores[layer].max()):  # the largest is nan where any is
            raise LabError(f"The layer {layer} has weights or inputs that are not finite, so they cannot be ranked. Check the weights' file.")
    return scores

"""What is pruned alone: single layers, or under the pattern 'structured' groups of units with the layers that hold them. No torch.

A group goes by its producer's name and the Q/K dimensions of an attention by its qkv layer's, as in `PruningChoice.layers`.
"""

from __future__ import annotations

from collections.abc import Iterable

from starfish_lab.pruning import rules
from starfish_lab.recipe import PruningChoice

QK = 2 / 3  # of a fused qkv layer make Q and K


def parts(choice: PruningChoice, groups: Iterable, attentions: Iterable, layers: Iterable[str], refusal: str) -> dict[str, dict[str, float]]:
    """{part: {layer it takes from: how much of that layer goes with all its units}}, in the order of the network's layers.

    Arguments as for `rules.plan_structured`, which raises RecipeError where no units can go.
    """
    layers = list(layers)
    if choice.pattern != "structured":
        return {layer: {layer: 1.0} for layer in layers}
    plan = rules.plan_structured(choice, groups, attentions, layers, refusal)
    found = {group.producer: {group.producer: 1.0, group.consumer: 1.0} for group in plan.groups}
    found |= {attention.qkv: {attention.qkv: QK} for attention in plan.attentions}
    return {layer: found[layer] for layer in layers if layer in found}


def shares(choice: PruningChoice, alone: dict[str, dict[str, float]]) -> dict[str, float]:
    """What a structured choice takes of each part: {part: share of its units}."""
    return dict.fromkeys(alone, choice.sparsity) | rules.by_layer("pruning.layers", choice.layers, alone)

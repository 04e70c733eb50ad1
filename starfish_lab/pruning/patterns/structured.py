"""Structured: whole hidden units of MLPs (or inner channels of residual blocks) and Q/K dimensions of heads go.

In every group round(s · n) of n units, one at least stays (more where the score says so); s is the recipe's sparsity, or a share of
the group's own (`choice.layers`). With `choice.multiple` as many stay as are a multiple of it, which matrix units like:

    MLP unit or inner channel j      row j of the producer and input j of the consumer      ‖S_producer[j, :]‖₂ · ‖S_consumer[:, j]‖₂
    dimension d of a head            row d of its Q and row d of its K, V stays whole       ‖S_Q[d, :]‖₂ · ‖S_K[d, :]‖₂

with the scores S; the lowest products go. A score that ranks whole units itself (`unit_scores`) takes the place of the products.
What is left computes the same as a network that never had these units, so `execution.slicing` can really remove them (MLP units
and Q/K dimensions as in CORP, arXiv 2602.05243).
"""

from __future__ import annotations

import torch
from torch import Tensor

from starfish_lab.models.network import AttentionLayer, Network, UnitGroup
from starfish_lab.pruning import rules
from starfish_lab.pruning.patterns import MaskResult
from starfish_lab.recipe import PruningChoice


def masks(
    network: Network, scores: dict[str, Tensor], choice: PruningChoice, counts: dict[str, int], units: dict[str, Tensor] | None = None
) -> MaskResult:
    """`counts` plays no part. Raises RecipeError where no units can go.

    `units` are importances of whole units, in place of the products of norms: {producer: (units,), qkv layer: (heads, head_dim)}.
    """
    plan = rules.plan_structured(choice, network.unit_groups, network.attentions, scores, network.structured_refusal)
    found = {layer: torch.ones(score.shape, dtype=torch.bool) for layer, score in scores.items()}
    for group in plan.groups:
        importance = units[group.producer] if units else _unit_products(scores, group)
        gone = _lowest(importance, rules.units_going(choice, "mlp", len(importance), plan.shares.get(group.producer)))
        found[group.producer][gone] = False
        found[group.consumer][:, gone] = False
    for attention in plan.attentions:
        importance = units[attention.qkv] if units else _dimension_products(scores, attention)
        gone = rules.units_going(choice, "qk", attention.head_dim, plan.shares.get(attention.qkv))
        found[attention.qkv][_lowest_dimensions(importance, attention, gone)] = False
    return MaskResult(found, plan.left_dense, plan.notes)


def _unit_products(scores: dict[str, Tensor], group: UnitGroup) -> Tensor:
    """(units,): norm of a unit's row of the producer times that of its column of the consumer."""
    return _norms(scores[group.producer]) * _norms(scores[group.consumer].transpose(0, 1))


def _dimension_products(scores: dict[str, Tensor], attention: AttentionLayer) -> Tensor:
    """(heads, head_dim), from the fused qkv score (3 · heads · head_dim, D): norm of a dimension's row of Q times that of its row of K."""
    q, k, _ = _norms(scores[attention.qkv]).view(3, attention.heads, attention.head_dim)
    return q * k


def _lowest_dimensions(importance: Tensor, attention: AttentionLayer, count: int) -> Tensor:
    """Rows of the fused qkv layer to remove: in each head the same `count` dimensions of Q and K."""
    width = attention.heads * attention.head_dim
    in_q = torch.cat([head * attention.head_dim + _lowest(of_head, count) for head, of_head in enumerate(importance)])
    return torch.cat([in_q, width + in_q])


def _norms(score: Tensor) -> Tensor:
    """L2 norm of each row of (units, …)."""
    return score.flatten(1).norm(dim=1)


def _lowest(importance: Tensor, count: int) -> Tensor:
    """Indices of the `count` units that go; the first goes in a tie."""
    return importance.argsort(stable=True)[:count]

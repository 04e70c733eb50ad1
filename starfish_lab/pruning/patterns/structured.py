"""Structured: whole hidden units of MLPs (or inner channels of residual blocks) and Q/K dimensions of heads go.

In every group round(s · n) of n units, one at least stays:

    MLP unit or inner channel j      row j of the producer and input j of the consumer      ‖S_producer[j, :]‖₂ · ‖S_consumer[:, j]‖₂
    dimension d of a head            row d of its Q and row d of its K, V stays whole       ‖S_Q[d, :]‖₂ · ‖S_K[d, :]‖₂

with the scores S; the lowest products go. What is left computes the same as a network that never had these units, so
`execution.slicing` can really remove them (MLP units and Q/K dimensions as in CORP, arXiv 2602.05243).
"""

from __future__ import annotations

import torch
from torch import Tensor

from starfish_lab.models.network import AttentionLayer, Network
from starfish_lab.pruning import rules
from starfish_lab.pruning.patterns import MaskResult
from starfish_lab.recipe import PruningChoice


def masks(network: Network, scores: dict[str, Tensor], choice: PruningChoice, counts: dict[str, int]) -> MaskResult:
    """`choice.sparsity` is the fraction of units; `counts` plays no part. Raises RecipeError where no units can go."""
    plan = rules.plan_structured(choice, network.unit_groups, network.attentions, scores, network.structured_refusal)
    found = {layer: torch.ones(score.shape, dtype=torch.bool) for layer, score in scores.items()}
    for group in plan.groups:
        outgoing, incoming = scores[group.producer], scores[group.consumer].transpose(0, 1)  # (units, …) both
        gone = _lowest(_norms(outgoing) * _norms(incoming), choice.sparsity)
        found[group.producer][gone] = False
        found[group.consumer][:, gone] = False
    for attention in plan.attentions:
        found[attention.qkv][_lowest_dimensions(scores[attention.qkv], attention, choice.sparsity)] = False
    return MaskResult(found, plan.left_dense, plan.notes)


def _lowest_dimensions(score: Tensor, attention: AttentionLayer, sparsity: float) -> Tensor:
    """Rows of the fused qkv score (3 · heads · head_dim, D) to remove: in each head the same dimensions of Q and K."""
    width = attention.heads * attention.head_dim
    q, k, _ = _norms(score).view(3, attention.heads, attention.head_dim)
    rows = [head * attention.head_dim + _lowest(importance, sparsity) for head, importance in enumerate(q * k)]
    in_q = torch.cat(rows)
    return torch.cat([in_q, width + in_q])


def _norms(score: Tensor) -> Tensor:
    """L2 norm of each row of (units, …)."""
    return score.flatten(1).norm(dim=1)


def _lowest(importance: Tensor, sparsity: float) -> Tensor:
    """Indices of the units that go; the first goes in a tie."""
    return importance.argsort(stable=True)[: rules.units_removed(len(importance), sparsity)]

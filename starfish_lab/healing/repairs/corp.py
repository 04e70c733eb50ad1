"""CORP: what removed MLP units and Q/K dimensions did is predicted from those that stay and folded into their weights.

Zhang and Yang, 'CORP: closed-form one-shot representation-preserving structured pruning' (arXiv 2602.05243), and the authors'
code; formulas in `healing.compensation`. Part by part, in the order in which the network runs:

* attention, head by head: W_Q ← Uᵀ W_Q,S and W_K ← Vᵀ W_K,S, biases likewise, so that q · k stays as it was; V stays;
* MLP: hidden units x_P ≈ B x_S + c, so fc2's weight becomes W_S + W_P B and its bias b + W_P c.

Statistics of a part are taken from the network as it then is: earlier parts pruned and compensated, later ones still whole.

Beside the authors' code: their attention layers use the statistics taken before the MLP in front of them was pruned. The softmax
keeps the dense network's scale 1 / √head_dim, the one at which q · k stays as it was; theirs is by default 1 / √(dimensions
left), which sharpens attention (`keep_scale` False folds that into Q and K). λ of Q and K is relative, see `compensation.logits`.
Inner channels of residual blocks, of which CORP does not speak, are predicted at every place without a constant: a padded
zero has none, nor has a consumer without a bias.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from starfish_lab import checks
from starfish_lab.calibration.replay import Replay
from starfish_lab.errors import RecipeError
from starfish_lab.execution.slicing import is_sliceable
from starfish_lab.healing import compensation
from starfish_lab.healing.compensation import Moments
from starfish_lab.healing.session import Session
from starfish_lab.models.network import AttentionLayer, Network, UnitGroup
from starfish_lab.pruning.masks import Masks
from starfish_lab.pruning.units import queries_and_keys

DEFAULTS = {}

Part = UnitGroup | AttentionLayer


@torch.no_grad()
def repair(
    session: Session,
    *,
    mlp: bool = True,
    qk: bool = True,
    ridge: float = 1e-3,
    shrinkage: bool = True,
    symmetric: bool = True,
    keep_scale: bool = True,
) -> None:
    """Fold what the removed units did into what stays; zeros stay zero, and a sliced network still answers as the masked one.

    mlp, qk : which of the two is compensated; the other stays just masked
    ridge, shrinkage : λ = max(ridge, ρ · mean eigenvalue), ρ by oracle approximating shrinkage; or `ridge` alone
    symmetric : of the change of Q and K only the symmetric part is folded in, as the authors do
    keep_scale : the softmax scale stays that of the dense network; False makes it 1 / √(dimensions left)

    Raises RecipeError for masks that remove anything but whole units, or no unit that is to be compensated.
    """
    checks.number("healing.repair_options.ridge", ridge, least=1e-12)
    student, masks = session.student, session.masks
    if not is_sliceable(masks, student):
        raise RecipeError(
            "CORP compensates whole MLP units and Q/K dimensions, and these masks remove single weights or no unit at all. "
            "Choose pruning.pattern 'structured', or the repair 'least_squares', which takes any mask."
        )
    parts = _parts(student, masks, mlp, qk)
    if not parts:
        raise RecipeError("CORP finds no removed units to compensate. Switch on repair_options.mlp or qk, whichever pruning.units removes.")
    _restore(session, parts)
    replay, fit = Replay(session, student), {"ridge": ridge, "shrinkage": shrinkage}
    for done, part in enumerate(parts, start=1):
        if isinstance(part, UnitGroup):
            _fold_units(student.module, part, _gone_units(masks, part), replay, **fit)
        else:
            _fold_dimensions(student.module, part, _gone_dimensions(masks, part), replay, keep_scale, symmetric=symmetric, **fit)
        session.reporter.progress(done, len(parts))


def _parts(network: Network, masks: Masks, mlp: bool, qk: bool) -> list[Part]:
    """The unit groups and attention layers that lose units and are to be compensated, in the order of the network."""
    groups = [g for g in network.unit_groups if g.producer in masks and _gone_units(masks, g).any()] if mlp else []
    attentions = [a for a in network.attentions if a.qkv in masks and _gone_dimensions(masks, a).any()] if qk else []
    place = {name: i for i, (name, _) in enumerate(network.module.named_modules())}
    return sorted([*groups, *attentions], key=lambda part: place[_layers(part)[0]])


def _layers(part: Part) -> tuple[str, ...]:
    return (part.producer, part.consumer) if isinstance(part, UnitGroup) else (part.qkv,)


def _gone_units(masks: Masks, group: UnitGroup) -> Tensor:
    """(units,) bool."""
    return ~masks[group.producer].flatten(1).any(1)


def _gone_dimensions(masks: Masks, attention: AttentionLayer) -> Tensor:
    """(heads, head_dim) bool: rows of Q, and so of K, that the mask removes."""
    q, _, _ = masks[attention.qkv].any(1).view(3, attention.heads, attention.head_dim)
    return ~q


def _restore(session: Session, parts: list[Part]) -> None:
    """Removed units are there again, as in the dense network, until their turn comes: their activations are what is predicted."""
    for name in dict.fromkeys(name for part in parts for name in _layers(part)):
        dense, pruned = (network.module.get_submodule(name).weight for network in (session.dense, session.student))
        pruned.copy_(torch.where(session.masks[name].to(pruned.device), pruned, dense))


def _fold_units(module: nn.Module, group: UnitGroup, gone: Tensor, replay: Replay, **fit: object) -> None:
    """The consumer's kept inputs, and its bias, take over from the units that go."""
    producer, consumer = (module.get_submodule(name) for name in _layers(group))
    conv, x = isinstance(consumer, nn.Conv2d), Moments()
    for seen in replay.passes([group.consumer]):
        met = seen[group.consumer].x
        x.add(met.movedim(1, -1) if conv else met)
    constant = consumer.bias is not None and not conv
    b, c = (found.to(consumer.weight) for found in compensation.affine(x, gone, constant=constant, **fit))
    gone = gone.to(consumer.weight.device)
    lost = consumer.weight[:, gone]  # (out, gone, …)
    consumer.weight[:, ~gone] += torch.einsum("op...,ps->os...", lost, b)
    if constant:
        consumer.bias += lost @ c
    producer.weight[gone] = 0
    consumer.weight[:, gone] = 0


def _fold_dimensions(module: nn.Module, attention: AttentionLayer, gone: Tensor, replay: Replay, keep_scale: bool, **fit: object) -> None:
    """In each head the kept rows of Q and K become Uᵀ and Vᵀ times themselves, biases too; the others go."""
    layer = module.get_submodule(attention.qkv)
    heads = [(Moments(), Moments()) for _ in gone]
    for seen in replay.passes([attention.qkv]):
        for x, of_head in zip(queries_and_keys(seen[attention.qkv].y, attention), zip(*heads)):
            for head, moments in enumerate(of_head):
                moments.add(x[..., head, :])
    width = attention.heads * attention.head_dim
    for head, (moments, lost) in enumerate(zip(heads, gone)):
        if not lost.any():
            continue
        rows = torch.arange(head * attention.head_dim, (head + 1) * attention.head_dim)
        for first, change in zip((0, width), compensation.logits(*moments, lost, **fit)):  # of Q, then of K
            if not keep_scale:
                change = change * (attention.head_dim / len(change)) ** 0.25  # in Q and in K: the root of the ratio in q · k
            kept = (first + rows[~lost]).to(layer.weight.device)
            for values in (layer.weight, layer.bias) if layer.bias is not None else (layer.weight,):
                values[kept] = change.T.to(values) @ values[kept]
            layer.weight[(first + rows[lost]).to(layer.weight.device)] = 0

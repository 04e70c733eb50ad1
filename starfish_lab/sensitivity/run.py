"""run(plan) → Report: every prunable layer alone at every level, each cell measured once and kept.

Under the pattern 'structured' a group of units stands in a layer's place, by its producer's name, and the Q/K dimensions of an
attention by its qkv layer's (see `sensitivity.parts`). Table `sensitivity`, a row a layer and level, levels rising, layers in depth order:

    layer, block, depth, kind
    weights, macs_g      of the layer; of a group what goes with all its units, the smaller QKᵀ included
    level                what was asked for; sparsity: what really went of the layer, or of the units
    cosine_distance      of the last block's states, dense against pruned (mean over tokens or images, see `measure.drift`)
    kl                   mean KL divergence of the answers, dense ‖ pruned, in nats
    agreement            share of the images whose most probable class stayed
    images
    top1, low, high, top1_dense   where the images are evaluation images with labels: accuracy, its 95 % Wilson interval, and dense
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from starfish_lab import data
from starfish_lab.bakeoff.book import Book
from starfish_lab.errors import ImagesError
from starfish_lab.measure import hardware
from starfish_lab.measure.accuracy import wilson
from starfish_lab.measure.macs import layer_macs
from starfish_lab.models.loading import load
from starfish_lab.models.network import Network, layer_kind, prunable
from starfish_lab.progress import Reporter
from starfish_lab.pruning.patterns import MaskResult
from starfish_lab.pruning.prune import make_masks
from starfish_lab.report import Report
from starfish_lab.sensitivity.parts import QK, parts
from starfish_lab.sensitivity.plan import Sensitivity
from starfish_lab.sensitivity.tail import Answers, Tail
from starfish_lab.stages import note, provenance, staged


def run(
    plan: Sensitivity, *, dense: Network | None = None, splits: data.Splits | None = None, reporter: Reporter | None = None,
    folder: Path | None = None, device: str = "auto",
) -> Report:  # fmt: skip
    """Measure what of the plan is not in the book of `folder` yet.

    dense, splits : the network and its images, where they are none that `plan.recipe` can open

    Raises LabError for what the person can mend, and Cancelled when asked to stop; cells that were finished by then stay in the book.
    """
    reporter, report, recipe = reporter or Reporter(), Report(), plan.recipe
    device, book = hardware.choose_device(device), Book(folder)
    with staged(report, reporter, "load"):
        dense = load(recipe.model) if dense is None else dense
        splits = data.open_images(recipe.images, dense) if splits is None else splits
        note(report, reporter, splits.notes)
        images, labels = _images(plan, splits)
    with staged(report, reporter, "sensitivity"), torch.inference_mode():
        _measure(plan, dense, splits, images, labels, book, report, reporter, device)
    provenance(report, recipe, dense, device)
    return report


def _measure(
    plan: Sensitivity, dense: Network, splits: data.Splits, images: Tensor, labels: Tensor | None, book: Book,
    report: Report, reporter: Reporter, device: str,
) -> None:  # fmt: skip
    pruning = plan.recipe.pruning
    layers = prunable(dense, pruning.include, pruning.exclude)
    alone = parts(pruning, dense.unit_groups, dense.attentions, layers, dense.structured_refusal)
    keys = {(level, part): f"{plan.cells()}:{dense.weights_sha256}:{part}:{level:.6g}" for level in plan.steps() for part in alone}
    missing = [cell for cell, key in keys.items() if book.get(key) is None]
    facts, tail, notes = _facts(dense, alone), None, []
    for done, (level, part) in enumerate(missing):
        if tail is None:
            student = dense.copy()
            tail, found, at = Tail(student, images, device=device), None, None
        if at != level:
            found, at = _masks(plan, level, dense, splits, device, reporter), level
            notes += [*found.notes, *(f"{name} stays dense at every level: {reason}." for name, reason in found.left_dense.items())]
        reporter.check()
        masks = {part: found.masks[part]} if pruning.pattern != "structured" else _of_group(list(alone[part]), found)
        gone = 1 - int(masks[part].sum()) / masks[part].numel()
        row = facts[part] | {"level": level, "sparsity": gone / alone[part][part]} | _alone(tail, student, masks, found, labels)
        book.keep(keys[level, part], part, {"sensitivity": [row]}, None)
        reporter.progress(done + 1, len(missing))
    for key in keys.values():
        report.add("sensitivity", book.get(key)["tables"]["sensitivity"])
    note(report, reporter, dict.fromkeys(notes))


def _masks(plan: Sensitivity, level: float, dense: Network, splits: data.Splits, device: str, reporter: Reporter) -> MaskResult:
    """Masks of all layers at a level, of which each is then used alone."""
    calibration = splits.calibration
    with torch.inference_mode(False):  # gradients and solvers need what inference mode takes away
        return make_masks(dense, plan.choice(level), calibration=calibration.tensor(), labels=calibration.labels, device=device, reporter=reporter)


def _of_group(layers: list[str], found: MaskResult) -> dict[str, Tensor]:
    """The masks of one group alone: rows of its producer and inputs of its consumer, either of which may stand in another group too."""
    first = found.masks[layers[0]]
    rows = first.flatten(1).any(1)
    masks = {layers[0]: rows.view(-1, *(1,) * (first.dim() - 1)).expand_as(first)}
    for consumer in layers[1:]:
        mask = found.masks[consumer]
        inputs = mask.transpose(0, 1).flatten(1).any(1)
        masks[consumer] = inputs.view(1, -1, *(1,) * (mask.dim() - 2)).expand_as(mask)
    return masks


def _alone(tail: Tail, student: Network, masks: dict[str, Tensor], found: MaskResult, labels: Tensor | None) -> dict[str, object]:
    """What happens at the end while these layers alone are pruned; afterwards they are whole again."""
    modules = {layer: student.module.get_submodule(layer) for layer in masks}
    values = {layer: {name: value for name, value in (("weight", m.weight), ("bias", m.bias)) if value is not None} for layer, m in modules.items()}
    whole = {layer: {name: value.detach().clone() for name, value in given.items()} for layer, given in values.items()}
    try:
        for layer, module in modules.items():
            module.weight.copy_(found.weights[layer].to(module.weight) if layer in found.weights else module.weight)
            module.weight.mul_(masks[layer].to(module.weight.device))
            if layer in found.biases:
                module.bias.copy_(found.biases[layer].to(module.bias))
        answers = tail.answers(max(0, min(map(student.depth_of, masks))))
    finally:
        for layer, given in whole.items():
            for name, value in given.items():
                values[layer][name].copy_(value)
    return _damage(tail.dense, answers, labels)


def _damage(dense: Answers, answers: Answers, labels: Tensor | None) -> dict[str, object]:
    before, after = dense.log.argmax(1), answers.log.argmax(1)
    row: dict[str, object] = {
        "cosine_distance": answers.cosine_distance, "kl": answers.kl(dense),
        "agreement": (before == after).float().mean().item(), "images": len(after),
    }  # fmt: skip
    if labels is not None:
        correct = int((after == labels).sum())
        low, high = wilson(correct, len(after))
        row |= {"top1": correct / len(after), "low": low, "high": high, "top1_dense": (before == labels).float().mean().item()}
    return row


def _images(plan: Sensitivity, splits: data.Splits) -> tuple[Tensor, Tensor | None]:
    """What shows the damage: images (n, C, H, W), and labels (n,) where they have some and were asked for."""
    if plan.on == "drift":
        return splits.drift.tensor(), None
    chosen = splits.evaluation
    if chosen.labels is None:
        raise ImagesError("These evaluation images have no labels, so they show no accuracy. Measure on the drift images, or give labels.")
    places, images = [], []
    for indices, batch in chosen.batches(min(64, plan.images)):
        places.append(indices), images.append(batch)
        if sum(map(len, places)) >= plan.images:
            break
    if not images:
        raise ImagesError("No image could be read, so there is nothing to measure on. Check that the files are images and not empty.")
    return torch.cat(images)[: plan.images], chosen.labels[torch.cat(places)[: plan.images]]


def _facts(dense: Network, alone: dict[str, dict[str, float]]) -> dict[str, dict[str, object]]:
    cost = layer_macs(dense).set_index("layer")["macs"]
    products = {attention.qkv: cost.get(f"{attention.name}.matmul", 0) / 2 for attention in dense.attentions}  # QKᵀ, as dear as AV
    facts = {}
    for part, layers in alone.items():
        macs = sum(share * cost.get(layer, 0) for layer, share in layers.items()) + (products.get(part, 0) if layers == {part: QK} else 0)
        facts[part] = {
            "layer": part, "block": dense.block_of(part), "depth": dense.depth_of(part), "kind": layer_kind(part),
            "weights": round(sum(share * dense.module.get_submodule(layer).weight.numel() for layer, share in layers.items())),
            "macs_g": float(macs) / 1e9,
        }  # fmt: skip
    return facts

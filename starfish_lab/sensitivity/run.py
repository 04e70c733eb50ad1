"""run(plan) → Report: every prunable layer alone at every level, each cell measured once and kept.

Table `sensitivity`, a row a layer and level, levels rising, layers in depth order:

    layer, block, depth, kind, weights, macs_g
    level                what was asked for; sparsity: what really went of the layer
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
    layers = list(prunable(dense, plan.recipe.pruning.include, plan.recipe.pruning.exclude))
    keys = {(level, layer): f"{plan.cells()}:{dense.weights_sha256}:{layer}:{level:.6g}" for level in plan.steps() for layer in layers}
    missing = [cell for cell, key in keys.items() if book.get(key) is None]
    facts, tail, notes = _facts(dense, layers), None, []
    for done, (level, layer) in enumerate(missing):
        if tail is None:
            student = dense.copy()
            tail, found, at = Tail(student, images, device=device), None, None
        if at != level:
            found, at = _masks(plan, level, dense, splits, device, reporter), level
            notes += [*found.notes, *(f"{name} stays dense at every level: {reason}." for name, reason in found.left_dense.items())]
        reporter.check()
        row = facts[layer] | {"level": level} | _alone(tail, student, layer, found, labels)
        book.keep(keys[level, layer], layer, {"sensitivity": [row]}, None)
        reporter.progress(done + 1, len(missing))
    for key in keys.values():
        report.add("sensitivity", book.get(key)["tables"]["sensitivity"])
    note(report, reporter, dict.fromkeys(notes))


def _masks(plan: Sensitivity, level: float, dense: Network, splits: data.Splits, device: str, reporter: Reporter) -> MaskResult:
    """Masks of all layers at a level, of which each is then used alone."""
    calibration = splits.calibration
    with torch.inference_mode(False):  # gradients and solvers need what inference mode takes away
        return make_masks(dense, plan.choice(level), calibration=calibration.tensor(), labels=calibration.labels, device=device, reporter=reporter)


def _alone(tail: Tail, student: Network, layer: str, found: MaskResult, labels: Tensor | None) -> dict[str, object]:
    """What happens at the end while this layer alone is pruned; afterwards it is whole again."""
    module, mask = student.module.get_submodule(layer), found.masks[layer]
    whole = {name: value.detach().clone() for name, value in (("weight", module.weight), ("bias", module.bias)) if value is not None}
    try:
        module.weight.copy_(found.weights[layer].to(module.weight) if layer in found.weights else module.weight)
        module.weight.mul_(mask.to(module.weight.device))
        if layer in found.biases:
            module.bias.copy_(found.biases[layer].to(module.bias))
        answers = tail.answers(max(0, student.depth_of(layer)))
    finally:
        for name, value in whole.items():
            getattr(module, name).copy_(value)
    return {"sparsity": 1 - int(mask.sum()) / mask.numel(), **_damage(tail.dense, answers, labels)}


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


def _facts(dense: Network, layers: list[str]) -> dict[str, dict[str, object]]:
    cost = layer_macs(dense).set_index("layer")["macs"]
    return {
        layer: {
            "layer": layer, "block": dense.block_of(layer), "depth": dense.depth_of(layer), "kind": layer_kind(layer),
            "weights": dense.module.get_submodule(layer).weight.numel(), "macs_g": float(cost.get(layer, 0)) / 1e9,
        }
        for layer in layers
    }  # fmt: skip

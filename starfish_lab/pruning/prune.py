"""From a network and a PruningChoice to masks: scores → budget → pattern, or a solver, which finds new values of the weights too."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import pandas as pd
import torch
from torch import Tensor, nn

from starfish_lab import settings
from starfish_lab.calibration.activations import input_norms, second_moments
from starfish_lab.calibration.pair import Pair
from starfish_lab.errors import LabError, RecipeError
from starfish_lab.models.network import Network, layer_kind, prunable
from starfish_lab.progress import Reporter
from starfish_lab.pruning import BUDGETS, PATTERNS, SCORES, SOLVERS, by_hand, rules
from starfish_lab.pruning import masks as masking
from starfish_lab.pruning.gradients import weight_gradients
from starfish_lab.pruning.patterns import MaskResult
from starfish_lab.pruning.patterns.n_m import misfits
from starfish_lab.recipe import PruningChoice
from starfish_lab.spectra.layers import spectra_table

__all__ = ["MaskResult", "make_masks", "pruned"]


def make_masks(
    network: Network, choice: PruningChoice, *, dense: Network | None = None, calibration: Tensor | None = None, labels: Tensor | None = None,
    device: str = "cpu", reporter: Reporter | None = None,
) -> MaskResult:  # fmt: skip
    """Masks over all prunable layers, on the CPU, and from a solver new weights; the network stays as it is.

    `network` is what pruning starts from, in the form in which it runs (token merging, order of the inputs); `dense` the dense
    network it comes from, with its inputs in the same order (None: `network` is dense itself). `calibration` (n, C, H, W) is for
    what looks at activations or gradients, `labels` (n,) for gradients, which else take the network's own answers. `device` runs
    forward passes, solvers and spectra. Equal choices give equal masks. Raises RecipeError where score, budget, pattern and network do
    not go together.
    """
    rules.check(choice)
    layers = prunable(network, choice.include, choice.exclude)
    if choice.pattern == "kept":
        return PATTERNS.get("kept")(network, {layer: module.weight for layer, module in layers.items()}, choice, {})
    if rules.is_solver(choice):
        return _solve(network, dense or network, layers, choice, calibration, device, reporter or Reporter())
    scores, units = _scores(network, layers, choice, calibration, labels, device)
    return PATTERNS.get(choice.pattern)(network, scores, choice, _counts(network, scores, choice, device), units)


def pruned(network: Network, masks: masking.Masks, weights: dict[str, Tensor] | None = None, biases: dict[str, Tensor] | None = None) -> Network:
    """A copy of the network with the removed weights zero, and the others, and biases, at their new values where there are any."""
    student = network.copy()
    for layer, values in (weights or {}).items():
        student.module.get_submodule(layer).weight.data.copy_(values)
    for layer, values in (biases or {}).items():
        student.module.get_submodule(layer).bias.data.copy_(values)
    masking.apply(student.module, masks)
    return student


def edge_table(network: Network, layers: list[str], device: str) -> pd.DataFrame:
    """What a budget may know of the layers' spectra: index layer, columns kind, sigma_plus, hill_alpha."""
    table = spectra_table(network, layers=layers, split_qkv=False, device=device).set_index("layer")
    return table.assign(kind=[layer_kind(layer) for layer in table.index])[["kind", "sigma_plus", "hill_alpha"]]


def _counts(network: Network, scores: dict[str, Tensor], choice: PruningChoice, device: str) -> dict[str, int]:
    """How many weights go from each layer: set by hand, or what the budget takes; {} where the pattern counts units."""
    if choice.pattern == "structured":
        return {}
    signals = edge_table(network, list(scores), device) if BUDGETS.module(choice.budget).NEEDS_EDGES else None
    sizes = {layer: score.numel() for layer, score in scores.items()}
    return by_hand.counts(choice, {layer: score.numpy() for layer, score in scores.items()}, sizes, signals)


@torch.no_grad()
def _scores(
    network: Network, layers: dict[str, nn.Module], choice: PruningChoice, calibration: Tensor | None, labels: Tensor | None, device: str
) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
    """Scores ≥ 0 of every weight, float32 on the CPU, shaped like the weights; and those of whole units, where the score has its own."""
    entry = SCORES.module(choice.score)
    wants_gradients, of_units = getattr(entry, "NEEDS_GRADIENTS", False), choice.pattern == "structured" and hasattr(entry, "unit_scores")
    if calibration is None and (entry.NEEDS_ACTIVATIONS or wants_gradients or of_units):
        what = "gradients" if wants_gradients else "activations"
        raise RecipeError(f"The score '{choice.score}' looks at {what} and needs calibration images. Give images, or choose the score 'magnitude'.")
    if of_units:
        rules.plan_structured(choice, network.unit_groups, network.attentions, layers, network.structured_refusal)  # refuses before the work
        units = entry.unit_scores(network, choice, calibration, labels, device)
        for layer, found in units.items():
            _check_finite(layer, found)
        return {layer: module.weight.detach().cpu().float().abs() for layer, module in layers.items()}, units
    norms = input_norms(network, layers, calibration, device=device) if entry.NEEDS_ACTIVATIONS else {}
    gradients = weight_gradients(network, layers, calibration, labels, device=device) if wants_gradients else {}
    generator = torch.Generator().manual_seed(choice.seed)
    scores = {}
    for layer, module in layers.items():
        weight = module.weight.detach().cpu().float()
        given = {"gradients": gradients[layer]} if wants_gradients else {}
        found = entry.score(weight, activations=norms.get(layer), generator=generator, **given, **choice.score_options)
        scores[layer] = torch.where(weight == 0, 0.0, found).contiguous()  # what the start took counts towards the sparsity, under every score
        _check_finite(layer, scores[layer])
    return scores, None


def _check_finite(layer: str, scores: Tensor) -> None:
    if not torch.isfinite(scores.max()):  # the largest is nan where any is
        raise LabError(f"The layer {layer} has weights or inputs that are not finite, so they cannot be ranked. Check the weights' file.")


@torch.no_grad()
def _solve(
    network: Network, dense: Network, layers: dict[str, nn.Module], choice: PruningChoice, calibration: Tensor | None, device: str, reporter: Reporter
) -> MaskResult:
    """A solver's masks and weights, layer by layer.

    Unstructured, a layer loses what the budget says by the magnitudes of the network's weights. With the option `sequential` the
    network runs again for each block, its earlier blocks already solved; else all layers see it as it was.
    """
    if calibration is None:
        raise RecipeError(
            f"The solver '{choice.score}' looks at activations and needs calibration images. Give images, or choose the score 'magnitude'."
        )
    entry = SOLVERS.module(choice.score)
    paired = entry.MOMENTS == "paired"
    options = choice.score_options if paired else rules.DRIVER_OPTIONS | choice.score_options
    group = choice.group if entry.MOMENTS == "group" else None
    left = misfits(layers, choice) if choice.pattern == "n_m" else _ungrouped(layers, choice)
    magnitudes = {layer: module.weight.detach().cpu().float().abs().contiguous() for layer, module in layers.items() if layer not in left}
    for layer, magnitude in magnitudes.items():
        _check_finite(layer, magnitude)
    counts = _counts(network, magnitudes, choice, device) if choice.pattern == "unstructured" else {}
    if paired:
        both = (one.copy() for one in (dense, network))
        dense, student = (replace(one, module=one.module.to(device).eval()) for one in both)
        pair = Pair(
            dense=dense, student=student, calibration=calibration, device=torch.device(device), reporter=reporter,
            teacher_memory=1e9 * settings.number(settings.TEACHER_MEMORY_GB, float), seed=choice.seed,
        )  # fmt: skip
        return entry.solve(pair, list(magnitudes), choice=choice, counts=counts, left=left, **options)

    driver = {name: options.pop(name) for name in rules.DRIVER_OPTIONS}
    found = MaskResult({layer: torch.ones(module.weight.shape, dtype=torch.bool) for layer, module in layers.items()}, left)
    student = network.copy() if driver["sequential"] else network
    for together in _together(network, list(magnitudes), driver["sequential"]):
        reporter.check()
        modules = {layer: layers[layer] for layer in together}
        moments = second_moments(student, modules, calibration, group=group, device=device, rows=driver["rows"], seed=choice.seed)
        for layer, module in modules.items():
            reporter.check()
            _check_finite(layer, moments[layer])
            u, original = (m.weight.detach().to(device).float().flatten(1) for m in (module, dense.module.get_submodule(layer)))
            mask, weight, facts = entry.solve(
                u, moments.pop(layer).to(device), choice=choice, count=counts.get(layer), dense=original, mask=u != 0, **options
            )
            found.masks[layer] = mask.view_as(module.weight).cpu()
            found.weights[layer] = weight.view_as(module.weight).to(module.weight.dtype).cpu()
            found.rows.append({"layer": layer, **facts})
            if driver["sequential"]:
                student.module.get_submodule(layer).weight.data.copy_(found.weights[layer])
            reporter.progress(len(found.rows), len(magnitudes))
    return found


def _ungrouped(layers: dict[str, nn.Module], choice: PruningChoice) -> dict[str, str]:
    """Solvers see one row of inputs for all outputs, which a grouped convolution does not have: such a layer cannot be solved."""
    grouped = [layer for layer, module in layers.items() if getattr(module, "groups", 1) != 1]
    if grouped:
        raise RecipeError(
            f"The solver '{choice.score}' cannot prune the grouped convolution {grouped[0]}: its outputs see different inputs. Exclude it."
        )
    return {}


def _together(network: Network, layers: list[str], sequential: bool) -> Iterator[list[str]]:
    """Layers whose inputs are looked at in one pass: all, or one block after another (a layer outside every block stands alone)."""
    if not sequential:
        yield layers
        return
    for _, block in itertools.groupby(layers, lambda layer: network.block_of(layer) or layer):
        yield list(block)

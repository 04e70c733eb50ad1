"""Reordering the inputs of layers so that an n:m pattern keeps more, without changing what the network computes.

The columns of a layer's weight move, and its input channels with them. Where an earlier layer makes these channels and nothing
ties them to their places, its rows move too and the network runs as before (`Network.foldable`): hidden units of an MLP,
dimensions of V inside a head, channels inside a residual block. Elsewhere the layer gathers its inputs when the network runs
(`models.gather`), as in arXiv 2606.02608, Online Resource 2; outputs keep their order, so nothing is undone behind the layer.

What makes a weight important has three forms there, chosen by the option `importance`:

name        a weight counts       so a channel counts       from
activation  W² · E h²             ‖W[:, c]‖² · E h_c²       the authors' 2:4 code
absolute    |W| · mean |h|        Σ |W[:, c]| · mean |h_c|  the text
energy      W²                    ‖W[:, c]‖²                the authors' k:n code: no images
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import LongTensor, Tensor, nn

from starfish_lab.calibration.activations import input_magnitudes, input_norms
from starfish_lab.errors import LabError, RecipeError
from starfish_lab.measure.macs import on_meta
from starfish_lab.models.gather import can_gather, described, gather, gathered, is_permutation
from starfish_lab.models.network import Fold, Network, prunable
from starfish_lab.progress import Reporter
from starfish_lab.pruning import PERMUTATIONS, permutations, rules
from starfish_lab.pruning.patterns.n_m import misfits
from starfish_lab.recipe import PruningChoice

IMPORTANCES = ("activation", "absolute", "energy")


@dataclass(frozen=True)
class PermutationResult:
    """What `find` found.

    orders : {layer: (channels,) the input channel that comes to each place}, only of layers whose order changes
    rows   : one a layer that the pattern fits and that was looked at, in depth order: layer, method, importance (what was kept of:
             see above), place ('hidden units', 'head', 'channels': an earlier layer's rows move; 'gather'; 'unchanged': the order
             stays), kept_before and kept_after (share of the importance that an n:m mask of the most important weights leaves),
             values_moved (values gathered for one image whenever the network runs, 0 where nothing is), elements (weights)
    notes  : remarks for the person
    """

    orders: dict[str, LongTensor] = field(default_factory=dict)
    rows: list[dict[str, object]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@torch.no_grad()
def find(
    network: Network, choice: PruningChoice, calibration: Tensor | None = None, *, device: str = "cpu", reporter: Reporter | None = None
) -> PermutationResult:
    """A new order of the inputs for every prunable layer that the n:m pattern fits; the network stays as it is.

    `calibration` (n, C, H, W) is for the importances that look at activations; `device` runs the forward pass, and the search if
    it is a CUDA device. Equal arguments give equal orders. Nothing is found for the permutation 'none'. Raises RecipeError where
    permutation, pattern and options do not go together, or where calibration images are missing.
    """
    rules.check(choice)
    if choice.permutation == "none":
        return PermutationResult()
    reporter = reporter or Reporter()
    options = rules.REORDERING_OPTIONS | choice.permutation_options
    kind, may_gather = options.pop("importance"), options.pop("gather")
    if kind not in IMPORTANCES:
        raise RecipeError(f"pruning.permutation_options.importance is {kind!r}. Choose one of: {', '.join(IMPORTANCES)}.")
    layers = prunable(network, choice.include, choice.exclude)
    left_dense = misfits(layers, choice)
    layers = {name: layer for name, layer in layers.items() if name not in left_dense}
    folds = folds_of(network)
    settled = [name for name, layer in layers.items() if name not in folds and not (may_gather and can_gather(layer))]
    layers = {name: layer for name, layer in layers.items() if name not in settled}
    seen = _seen(network, layers, kind, calibration, device) if layers else {}
    sizes = input_sizes(network, layers)
    rule, found = PERMUTATIONS.get(choice.permutation), PermutationResult()
    for done, (name, layer) in enumerate(layers.items()):
        reporter.check()
        importance = importance_of(layer.weight, kind, seen.pop(name, None)).to(device if str(device).startswith("cuda") else "cpu")
        fold = folds.get(name)
        pattern = {"keep": choice.keep, "group": choice.group, "taps": layer.weight[0, 0].numel()}
        order = rule(importance, segments=fold.segments if fold else 1, **pattern, **options)
        given = torch.arange(len(order), device=order.device)
        moved = not torch.equal(order, given)
        if moved:
            found.orders[name] = order.cpu()
        place = (fold.place if fold else "gather") if moved else "unchanged"
        total = importance.sum(dtype=torch.float64).item() or 1.0
        found.rows.append({
            "layer": name, "method": choice.permutation, "importance": kind, "place": place,
            "kept_before": permutations.kept(importance, given, **pattern) / total,
            "kept_after": permutations.kept(importance, order, **pattern) / total,
            "values_moved": sizes[name] if place == "gather" else 0, "elements": layer.weight.numel(),
        })  # fmt: skip
        reporter.progress(done + 1, len(layers))
    found.notes.extend(_notes(found.rows, settled, choice))
    return found


@torch.no_grad()
def permuted(network: Network, orders: dict[str, Tensor]) -> Network:
    """A copy that computes the same, to rounding, with the inputs of the layers in `orders` reordered.

    Columns move in every layer named; rows of an earlier layer and entries of norms with them where that can be, else the layer
    becomes one that gathers. The orders of `find` for one network fit every network of that architecture. Raises LabError for an
    order that is not a permutation of the layer's input channels.
    """
    if not orders:
        return network.copy()
    made = network.copy()
    folds = folds_of(made)
    for name, order in orders.items():
        layer, order = made.module.get_submodule(name), order.cpu()
        channels = layer.weight.shape[1]
        if getattr(layer, "groups", 1) != 1 or not is_permutation(order, channels):
            raise LabError(f"The order of {name} is not one of its {channels} input channels, each named once. Find the orders for this network.")
        layer.weight.copy_(layer.weight[:, order.to(layer.weight.device)])
        fold = folds.get(name)
        if fold and _inside_segments(order, fold.segments):
            _supply(made.module, fold, order)
        else:
            gather(layer, order)
    return described(made)


def folds_of(network: Network) -> dict[str, Fold]:
    """{consumer: fold} of what this network can fold: a producer that makes the consumer's channels as they come in."""
    gathers = gathered(network.module)
    found = {}
    for fold in network.foldable:
        producer, consumer = (network.module.get_submodule(name) for name in (fold.producer, fold.consumer))
        channels = consumer.weight.shape[1]
        whole = channels % fold.segments == 0 and producer.weight.shape[0] >= channels
        ungrouped = all(getattr(layer, "groups", 1) == 1 for layer in (producer, consumer))
        if whole and ungrouped and fold.consumer not in gathers:
            found[fold.consumer] = fold
    return found


def importance_of(weight: Tensor, kind: str, seen: Tensor | None = None) -> Tensor:
    """(out, cols) float32 on the CPU: how much each weight counts, up to a factor of the layer.

    seen : what `input_norms` ('activation') or `input_magnitudes` ('absolute') tell of the layer; nothing for 'energy'
    """
    weight = weight.detach().cpu().float().flatten(1)
    seen = weight.new_ones(()) if seen is None else seen
    importance = weight.abs() * seen if kind == "absolute" else (weight * (seen / (seen.max() or 1))).square()
    if not torch.isfinite(importance.sum(dtype=torch.float64)):
        raise LabError("A layer has weights or inputs that are not finite, so its inputs cannot be ranked. Check the weights' file.")
    return importance


def input_sizes(network: Network, layers: Iterable[str]) -> dict[str, int]:
    """Values that come into each layer for one image: tokens · features, or C · H · W. Nothing is computed."""
    module, sizes = on_meta(network).module.eval(), dict.fromkeys(layers, 0)

    def hook(name: str):
        def before(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            sizes[name] += inputs[0].numel()

        return before

    for name in sizes:
        module.get_submodule(name).register_forward_pre_hook(hook(name))
    if sizes:
        module(torch.empty(1, *network.preprocessing.input_size, device="meta"))
    return sizes


def _seen(network: Network, layers: dict[str, nn.Module], kind: str, calibration: Tensor | None, device: str) -> dict[str, Tensor]:
    if kind == "energy":
        return {}
    if calibration is None:
        raise RecipeError(
            f"The permutation's importance '{kind}' looks at activations and needs calibration images. Give images, or choose importance 'energy'."
        )
    return (input_norms if kind == "activation" else input_magnitudes)(network, layers, calibration, device=device)


def _supply(module: nn.Module, fold: Fold, order: LongTensor) -> None:
    """Let the producer's last rows, and the norms behind them, come in this order."""
    producer, channels = module.get_submodule(fold.producer), len(order)
    order = order.to(producer.weight.device)
    for made in (producer.weight, producer.bias):
        if made is not None:
            made[-channels:] = made[-channels:][order]
    for name in fold.companions:
        companion = module.get_submodule(name)
        for entries in (*companion.parameters(), *companion.buffers()):
            if entries.shape == (channels,):
                entries.copy_(entries[order])


def _inside_segments(order: LongTensor, segments: int) -> bool:
    length = len(order) // segments
    return bool((order // length == torch.arange(len(order)) // length).all())


def _notes(rows: list[dict[str, object]], settled: list[str], choice: PruningChoice) -> Iterable[str]:
    if settled:
        yield (
            f"{len(settled)} layers keep the order of their inputs, {settled[0]} the first: no earlier layer can supply another one, "
            "and gathering is off or not possible."
        )
    gathers = [row for row in rows if row["place"] == "gather"]
    if gathers:
        moved = sum(row["values_moved"] for row in gathers)
        yield f"{len(gathers)} layers gather their inputs when the network runs: {moved:,} values an image, which takes time."
    worse = [row["layer"] for row in rows if row["kept_after"] < row["kept_before"]]
    if worse:
        yield f"The permutation '{choice.permutation}' keeps less than the given order in {len(worse)} of {len(rows)} layers, {worse[0]} the first."

"""From the dense network to the pruned one: start → token merging → permutation → masks."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import nn

from starfish_lab import tokens
from starfish_lab.data import Splits
from starfish_lab.errors import RecipeError
from starfish_lab.models.network import Network
from starfish_lab.progress import Reporter
from starfish_lab.pruning import STARTS, cycles, permutation
from starfish_lab.pruning.prune import MaskResult, make_masks, pruned
from starfish_lab.recipe import Recipe


@dataclass(frozen=True)
class Prepared:
    """The pruned network and how it came about.

    reference : the dense network in the pruned one's order of inputs, all its tokens kept
    network : the pruned network, before healing
    result : its masks, in depth order: from a start that is not dense, every zero of the network is in them; `result.weights` are
        already in the network
    tables : {table of the report: rows}
    notes : what a person should know
    """

    reference: Network
    network: Network
    result: MaskResult
    tables: dict[str, list[dict[str, object]]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def begin(
    dense: Network, recipe: Recipe, splits: Splits | None, *, device: str = "cpu", reporter: Reporter | None = None, folder: Path | None = None
) -> cycles.StartResult:
    """The network that pruning starts from; `folder` holds what interrupted cycles go on from.

    Without `splits` a start that trains is refused by a RecipeError.
    """
    method = recipe.start.method
    if splits is None and STARTS.constant(method, "TRAINS"):
        raise RecipeError(
            f"The start '{method}' trains between its cycles and needs labelled images. "
            "Run the whole experiment, or time the network with start.method 'dense' or 'file'."
        )
    return cycles.begin(dense, recipe.start, splits, device=device, reporter=reporter, folder=folder)


def prepare(
    dense: Network, begun: cycles.StartResult, recipe: Recipe, splits: Splits | None, *, device: str = "cpu", reporter: Reporter | None = None
) -> Prepared:
    """Merge tokens, reorder inputs and prune as the recipe says, from `begun` on. The networks given are left as they are.

    Without `splits` only what needs no images can be done; anything else raises RecipeError.
    """
    reporter = reporter or Reporter()
    choice, calibration, labels = recipe.pruning, None, None
    if splits is not None:
        calibration, labels = splits.calibration.tensor(), splits.calibration.labels
    student = begun.network.copy()
    tokens.merge(student, recipe.tokens)
    found = permutation.find(student, choice, calibration, device=device, reporter=reporter)
    student, reference = (permutation.permuted(network, found.orders) for network in (student, dense))
    result = make_masks(student, choice, dense=reference, calibration=calibration, labels=labels, device=device, reporter=reporter)
    student = pruned(student, result.masks, result.weights, result.biases)
    if recipe.start.method != "dense":
        result = _with_every_zero(student, result)
    return Prepared(
        reference=reference, network=student, result=result,
        tables={"cycles": begun.cycles, "permutation": found.rows, "solver": result.rows},
        notes=(*begun.notes, *tokens.remarks(student, recipe.tokens), *found.notes, *result.notes),
    )  # fmt: skip


def _with_every_zero(network: Network, result: MaskResult) -> MaskResult:
    """The masks, with every zero of the pruned network in them: healing must not bring back what the start took and pruning left out.

    A pattern that keeps a weight which the start has at zero keeps nothing there, so a start sparser than the pattern stays as
    sparse as it is. Layers outside pruning that have zeros, such as a head the start pruned, get a mask too.
    """
    layers = {name: module.weight.detach() for name, module in network.module.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    nonzero = {name: (weight != 0).cpu() for name, weight in layers.items()}
    masks = {name: kept for name, kept in nonzero.items() if name in result.masks or not kept.all()}
    elsewhere = [name for name, kept in masks.items() if not kept.all() and (name not in result.masks or name in result.left_dense)]
    more = sum(int((mask & ~nonzero[name]).sum()) for name, mask in result.masks.items() if name not in result.left_dense)
    notes = [*result.notes]
    if more:
        notes.append(f"{more} weights that the pattern would keep are zero in the network it starts from, and stay zero.")
    if elsewhere:
        notes.append(f"Outside the pruned layers the zeros of the start stay: {', '.join(elsewhere)}.")
    return replace(result, masks=masks, notes=tuple(notes))

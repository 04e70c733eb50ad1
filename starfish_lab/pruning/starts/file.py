"""A network that was pruned before: its weights in a file.

The file holds weights of the dense network's own architecture, zeros included, as `StartChoice.path` names it: .safetensors,
or .pt, .pth or .bin with tensors only. What is zero in it counts as pruned: the pattern 'kept' leaves exactly those entries out.
Exports of the lab are such files (network.safetensors; their folder or address stands for them), unless their inputs were reordered or
units were cut out: then entry (i, j) is no longer that of the dense network, whose values solvers bring back and certificates subtract.
"""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor

from starfish_lab import artefacts
from starfish_lab.data import Splits
from starfish_lab.errors import WeightsError
from starfish_lab.export import DESCRIPTION
from starfish_lab.models.checkpoints import fit, sha256_of, state_dict_from
from starfish_lab.models.network import Network
from starfish_lab.progress import Reporter
from starfish_lab.pruning.cycles import StartResult, layers_of, row
from starfish_lab.recipe import StartChoice

TRAINS = False


def start(
    dense: Network, choice: StartChoice, splits: Splits | None, *, device: str, reporter: Reporter, folder: Path | None,
    include_all: bool = False, exclude: tuple[str, ...] = (),
) -> StartResult:  # fmt: skip
    """The dense network with the file's weights. Raises WeightsError for a file that cannot be read or does not fit.

    `include_all` counts zeros in every Linear and Conv2d, not in the prunable layers alone; `exclude` leaves layers out of the count.
    """
    path = artefacts.weights(choice.path)
    network, tensors = dense.copy(), state_dict_from(path)
    if _reordered(path, tensors):
        raise WeightsError(
            f"{path.name} was saved with the inputs of its layers in another order (pruning.permutation), so its weights stand in other places "
            "than those of the dense network. Start from a network that was pruned without a permutation, and permute in this run."
        )
    fit(network.module, tensors, source=path.name, name=dense.name)
    layers = layers_of(network, include_all, exclude)
    zeros = sum(int((layer.weight == 0).sum()) for layer in layers.values())
    sparsity = zeros / sum(layer.weight.numel() for layer in layers.values())
    note = f"Pruning starts from {path.name} (SHA-256 {sha256_of(path)[:12]}): {sparsity:.2%} of the prunable weights are zero."
    return StartResult(network, [row(0, sparsity, "prune", "file", weights_removed=zeros)], [note])


def _reordered(path: Path, tensors: dict[str, Tensor]) -> bool:
    """Whether layers gather their inputs, or the recipe beside an export says that orders were folded into the weights."""
    if any(name.endswith(".order") for name in tensors):
        return True
    try:
        recipe = json.loads((path.parent / DESCRIPTION).read_text(encoding="utf-8"))["recipe"]
        return recipe["pruning"]["permutation"] != "none"
    except (OSError, ValueError, KeyError, TypeError):  # weights of elsewhere, or an export from before there were permutations
        return False

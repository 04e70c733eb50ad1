"""What a pruned network costs: rows of the report's tables on layers, totals and the MAC ledger."""

from __future__ import annotations

from torch import Tensor

from starfish_lab import ledger
from starfish_lab.measure import ledger_rows as of_network
from starfish_lab.measure import macs
from starfish_lab.models.network import Network, layer_kind
from starfish_lab.pruning import masks as masking
from starfish_lab.pruning.prune import MaskResult
from starfish_lab.recipe import PruningChoice, Recipe


def layer_rows(dense: Network, network: Network, result: MaskResult) -> list[dict[str, object]]:
    """What each prunable layer loses: one row a layer, in depth order. Effective MACs count merged tokens as merged."""
    before, after = (macs.layer_macs(one).set_index("layer")["macs"] for one in (dense, network))
    rows = []
    for layer, mask in result.masks.items():
        removed = int((~mask).sum())
        share = removed / mask.numel()
        rows.append({
            "layer": layer, "block": dense.block_of(layer), "depth": dense.depth_of(layer), "kind": layer_kind(layer),
            "weights": mask.numel(), "removed": removed, "sparsity": share, "macs_g": float(before[layer]) / 1e9,
            "macs_g_effective": float(after[layer]) / 1e9 * (1 - share), "note": result.left_dense.get(layer, ""),
        })  # fmt: skip
    return rows


def totals_row(stage: str, network: Network, result: MaskResult, small: Network | None) -> dict[str, object]:
    """Size and cost of a stage; `small` is its sliced form where it has one."""
    parameters, cost = _parameters(network), macs.total_macs(network)
    left, effective = parameters, cost
    gone = masking.sparsity(network.module, result.masks if stage != "dense" else {})
    if small is not None:  # zeros of the start may be left in it
        inside = {layer: small.module.get_submodule(layer).weight != 0 for layer in result.masks}
        parameters, cost = _parameters(small), macs.total_macs(small)
        left, effective = parameters - masking.sparsity(small.module, inside).removed, macs.effective_macs(small, inside)
    elif stage != "dense":
        left, effective = parameters - gone.removed, macs.effective_macs(network, result.masks)
    return {
        "stage": stage, "parameters_m": parameters / 1e6, "nonzero_parameters_m": left / 1e6,
        "sparsity_prunable": gone.of_prunable, "sparsity_all": gone.of_all, "macs_g": cost / 1e9, "macs_g_effective": effective / 1e9,
    }  # fmt: skip


def ledger_rows(dense: Network, result: MaskResult, recipe: Recipe) -> list[dict[str, object]]:
    """The MAC ledger of the pruned network: every way of counting, a row a layer. See `ledger`."""
    pruning, zeros_of_the_start = recipe.pruning, []
    removed = {layer: (_cut if pruning.pattern == "structured" else _zeros)(mask) for layer, mask in result.masks.items()}
    if pruning.pattern == "n_m":
        zeros_of_the_start = [layer for layer, mask in result.masks.items() if not _obeys(mask, pruning)]
    return ledger.table(of_network.work(dense), pruning, recipe.tokens, removed, irregular=zeros_of_the_start).to_dict("records")


def _zeros(mask: Tensor) -> float:
    return 1 - mask.float().mean().item()


def _cut(mask: Tensor) -> float:
    """Share of a weight that goes with its whole rows and columns: zeros between those make nothing smaller."""
    rows, inputs = mask.flatten(1).any(1), mask.transpose(0, 1).flatten(1).any(1)
    return 1 - rows.float().mean().item() * inputs.float().mean().item()


def _obeys(mask: Tensor, pruning: PruningChoice) -> bool:
    """Whether no group of consecutive inputs keeps more than the n:m pattern allows; a layer left dense may have zeros without it."""
    columns = mask.flatten(1)
    return columns.shape[1] % pruning.group == 0 and int(columns.unflatten(1, (-1, pruning.group)).sum(-1).max()) <= pruning.keep


def _parameters(network: Network) -> int:
    return sum(p.numel() for p in network.module.parameters())

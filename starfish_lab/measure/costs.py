"""What a pruned network costs: rows of the report's tables on layers, totals and the MAC ledger."""

from __future__ import annotations

from starfish_lab import ledger
from starfish_lab.measure import ledger_rows as of_network
from starfish_lab.measure import macs
from starfish_lab.models.network import Network, layer_kind
from starfish_lab.pruning import masks as masking
from starfish_lab.pruning.prune import MaskResult
from starfish_lab.recipe import Recipe


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
    if small is not None:
        parameters = left = _parameters(small)
        cost = effective = macs.total_macs(small)
    elif stage != "dense":
        left, effective = parameters - gone.removed, macs.effective_macs(network, result.masks)
    return {
        "stage": stage, "parameters_m": parameters / 1e6, "nonzero_parameters_m": left / 1e6,
        "sparsity_prunable": gone.of_prunable, "sparsity_all": gone.of_all, "macs_g": cost / 1e9, "macs_g_effective": effective / 1e9,
    }  # fmt: skip


def ledger_rows(dense: Network, result: MaskResult, recipe: Recipe) -> list[dict[str, object]]:
    """The MAC ledger of the pruned network: every way of counting, a row a layer. See `ledger`."""
    removed = {layer: 1 - mask.float().mean().item() for layer, mask in result.masks.items()}
    return ledger.table(of_network.work(dense), recipe.pruning, recipe.tokens, removed).to_dict("records")


def _parameters(network: Network) -> int:
    return sum(p.numel() for p in network.module.parameters())

"""A network's profile: what the pages need to answer 'what if' and to draw its spectra. Made once, by a worker."""

from __future__ import annotations

import numpy as np
import pandas as pd
from torch import nn

from starfish_lab.measure import ledger_rows
from starfish_lab.models.network import Network, layer_kind, prunable
from starfish_lab.prediction import recording
from starfish_lab.spectra.layers import spectra_table
from starfish_lab.whatif import Profile

QUANTILES = 257


def compute(network: Network, *, device: str | None = None) -> Profile:
    """The profile of a network; `device` computes the eigenvalues, by default the GPU where there is one. See `Profile` for its parts."""
    layers = prunable(network, include=("*",))
    work = ledger_rows.work(network)
    cost = work.layers.set_index("layer")["macs"]
    spectra = spectra_table(network, layers=list(layers), randomised=True, device=device)
    facts = {
        "name": network.name, "parameters": sum(p.numel() for p in network.module.parameters()),
        "input_size": list(network.preprocessing.input_size), "num_classes": network.num_classes, "macs_g": float(cost.sum()) / 1e9,
        "origin": network.origin, "weights_sha256": network.weights_sha256,
        "blocks": list(network.blocks), "states": network.states, "structured_refusal": network.structured_refusal,
        "tokens": work.tokens, "prefix_tokens": work.prefix,
        "matmuls": {row.layer: int(row.macs) for row in work.layers.itertuples() if row.type == "matmul"},
    }  # fmt: skip
    pieces = pd.DataFrame(recording.on_meta(network))
    return Profile(facts, _layers(network, layers, cost, spectra), _groups(network), _attentions(network, cost), spectra, pieces)


def _layers(network: Network, layers: dict[str, nn.Module], cost: pd.Series, spectra: pd.DataFrame) -> pd.DataFrame:
    whole = spectra[spectra["part"].isin(["", "qkv"])].set_index("layer")
    default = prunable(network)
    rows = []
    for layer, module in layers.items():
        shape = tuple(module.weight.shape)
        rows.append({
            "layer": layer, "block": network.block_of(layer), "depth": network.depth_of(layer), "kind": layer_kind(layer),
            "rows": shape[0], "cols": module.weight[0].numel(), "shape": list(shape), "weights": module.weight.numel(),
            "macs_g": float(cost.get(layer, 0)) / 1e9, "default": layer in default,
            "in_features": shape[1], "conv_groups": getattr(module, "groups", 1), "magnitudes": _quantiles(module.weight),
            "sigma_plus": float(whole["sigma_plus"].get(layer, np.nan)), "hill_alpha": float(whole["hill_alpha"].get(layer, np.nan)),
        })  # fmt: skip
    return pd.DataFrame(rows)


def _quantiles(weight: nn.Parameter) -> list[float]:
    """Quantiles of the absolute weights at 0, 1/256 … 1."""
    ordered = np.sort(weight.detach().abs().float().cpu().numpy(), axis=None)
    return np.interp(np.linspace(0, len(ordered) - 1, QUANTILES), np.arange(len(ordered)), ordered).tolist()


def _groups(network: Network) -> pd.DataFrame:
    rows = []
    for group in network.unit_groups:
        producer = network.module.get_submodule(group.producer)
        companions = [network.module.get_submodule(name) for name in group.companions]
        beside = (producer.bias is not None) + sum(len(list(companion.parameters())) for companion in companions)
        rows.append({"producer": group.producer, "consumer": group.consumer, "units": producer.weight.shape[0], "beside": beside})
    return pd.DataFrame(rows, columns=["producer", "consumer", "units", "beside"])


def _attentions(network: Network, cost: pd.Series) -> pd.DataFrame:
    rows = [
        {
            "name": attention.name, "qkv": attention.qkv, "heads": attention.heads, "head_dim": attention.head_dim,
            "beside": 2 if network.module.get_submodule(attention.qkv).bias is not None else 0,
            "macs_g": float(cost[f"{attention.name}.matmul"]) / 1e9,
        }
        for attention in network.attentions
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["name", "qkv", "heads", "head_dim", "beside", "macs_g"])

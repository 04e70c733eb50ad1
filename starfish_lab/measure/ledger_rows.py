"""What the MAC ledger needs of a real network: shapes and multiply-adds of everything that multiplies, on the meta device."""

from __future__ import annotations

import numpy as np
import pandas as pd
from torch import nn

from starfish_lab.ledger import WORK_COLUMNS, Work
from starfish_lab.measure.macs import layer_macs
from starfish_lab.models.network import Network

MATMUL = ".matmul"


def rows(network: Network) -> pd.DataFrame:
    """One row a layer, columns `ledger.WORK_COLUMNS`; products of two activations have no shape. Count before tokens are merged."""
    found = []
    for row in layer_macs(network).itertuples():
        name = row.layer
        module = None if name == "matmul" or name.endswith(MATMUL) else network.module.get_submodule(name)
        if module is None:
            found.append((name, row.kind, network.depth_of(name), "matmul", 0, 0, 0, 1, row.macs, np.nan))
            continue
        weight, columns = module.weight, module.weight[0].numel()
        kind, groups = ("conv", module.groups) if isinstance(module, nn.Conv2d) else ("linear", 1)
        positions = row.macs / weight.numel()
        found.append((name, row.kind, network.depth_of(name), kind, weight.shape[0], columns, weight.shape[1], groups, row.macs, positions))
    return pd.DataFrame(found, columns=list(WORK_COLUMNS))


def work(network: Network) -> Work:
    """Everything a network multiplies, as `ledger.table` takes it."""
    layers = rows(network)
    return Work(layers, tokens(network, layers), network.prefix_tokens, len(network.blocks))


def tokens(network: Network, layers: pd.DataFrame) -> int:
    """Tokens that enter every block, prefix tokens among them; 0 where blocks see different numbers of them, or no tokens at all."""
    if network.states != "tokens":
        return 0
    inside = layers[(layers["depth"] >= 0) & (layers["type"] == "linear")]
    counts = inside["positions"].unique()
    return int(counts[0]) if len(counts) == 1 and float(counts[0]).is_integer() else 0

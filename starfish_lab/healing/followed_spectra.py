"""Spectra of a few layers followed while a network heals: at every look the same bins, so that one can be laid over another.

A row is a weight matrix of the dense network, of the pruned one, or at a step: stage ('dense', 'pruned', 'healing'), step (None but
while it heals), layer, block, depth, kind, rows, cols; low and high, the ends of BINS bins even in log λ, λ = s²/n, where what lies
outside counts in the first or last; counts; and of the fitted bulk sigma, sigma_plus, lower_edge, spikes, applies, as in `spectra.layers`.
"""

from __future__ import annotations

from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from starfish_lab.models.network import Network, layer_kind
from starfish_lab.spectra.fit import MarchenkoPastur
from starfish_lab.spectra.layers import singular_values

BINS = 32
WORK = 1e10  # Σ p³ over the layers of a look, p the smaller side: all 48 of DeiT-S, 20 of DeiT-B's 48, which take one core some 2 s


def followed(network: Network, layers: list[str], *, work: float = WORK) -> list[str]:
    """The layers to follow: all where a look at all is cheap, else those of whole blocks, evenly over depth."""
    blocks = [list(names) for _, names in groupby(layers, key=network.depth_of)]
    cost = sum(min(_shape(network, layer)) ** 3 for layer in layers)
    if cost <= work:
        return layers
    count = max(1, int(len(blocks) * work / cost))
    return [layer for place in sorted(set(np.linspace(0, len(blocks) - 1, count).round().astype(int))) for layer in blocks[place]]


class FollowedSpectra:
    """What looks at the spectra of some layers; `rows` begins with those of the dense and of the pruned network."""

    def __init__(self, dense: Network, pruned: Network, layers: list[str], *, device: str = "cpu"):
        self.layers, self._device = layers, device
        self._ends: dict[str, tuple[float, float]] = {}
        self.rows = [row for stage, network in (("dense", dense), ("pruned", pruned)) for row in self.look(network, stage=stage, step=None)]

    def look(self, network: Network, *, step: int | None, stage: str = "healing") -> list[dict[str, object]]:
        """A row a layer."""
        return [{"stage": stage, "step": step, "layer": layer, **self._row(network, layer)} for layer in self.layers]

    def _row(self, network: Network, layer: str) -> dict[str, object]:
        rows, cols = _shape(network, layer)
        values = singular_values(network.module.get_submodule(layer).weight, device=self._device) ** 2 / max(rows, cols)
        low, high = self._ends.setdefault(layer, _ends(values))  # the dense network's, which comes first
        fit = MarchenkoPastur().fit(values, shape=(rows, cols))
        edges = np.geomspace(low, high, BINS + 1)
        counts = np.histogram(np.clip(values, low, high), edges)[0].tolist() if np.isfinite(values).all() else []
        return {
            "block": network.block_of(layer), "depth": network.depth_of(layer), "kind": layer_kind(layer), "rows": rows, "cols": cols,
            "low": low, "high": high, "counts": counts, "sigma": fit.sigma_, "sigma_plus": fit.edge_, "lower_edge": fit.lower_edge_,
            "spikes": len(fit.spikes_), "applies": fit.applies_,
        }  # fmt: skip


def _shape(network: Network, layer: str) -> tuple[int, int]:
    return tuple(network.module.get_submodule(layer).weight.flatten(1).shape)


def _ends(values: NDArray) -> tuple[float, float]:
    """Room for the dense spectrum, for what pruning takes off it and for what healing may add."""
    positive = values[values > 0]  # nan is not
    if len(positive) == 0:
        return 1e-4, 1.0
    middle = float(np.median(positive))
    return max(float(positive.min()) / 10, 1e-3 * middle), 2 * float(positive.max())

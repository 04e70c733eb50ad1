"""Without the singular components under the Marchenko–Pastur edge: a control that is expected to fail.

If all that lies inside the bulk were noise, it could go. In trained transformers it is not: the authors of arXiv 2606.02608
report that removing it crashes accuracy, and keep it as a negative control. Nothing becomes zero; each layer keeps its
shape and loses rank. The bulk's σ and edge σ₊ are those of `spectra.fit.MarchenkoPastur` (convolutions unfolded, fused qkv
as one matrix); with γ = p/n and y = s / (σ√n), `rule` says what becomes of a singular value s:

    edge             s ≤ σ₊ goes, the others stay as they are
    gavish_donoho    s ≤ λ*(γ) σ√n goes (arXiv 1305.5870, known noise): 4/√3 for a square matrix, about 16 % above the edge
    shrinkage        s becomes σ√n · √((y² − γ − 1)² − 4γ) / y, 0 up to the edge (arXiv 1405.7511, optimal for the Frobenius norm)

`StartChoice.sparsity` plays no part: the edges decide. A layer whose bulk cannot be fitted stays as it is.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from starfish_lab.data import Splits
from starfish_lab.models.network import Network
from starfish_lab.progress import Reporter
from starfish_lab.pruning.cycles import StartResult, layers_of, one_of, row
from starfish_lab.recipe import StartChoice
from starfish_lab.spectra.fit import MarchenkoPastur

TRAINS = False
RULES = ("edge", "gavish_donoho", "shrinkage")


def start(
    dense: Network, choice: StartChoice, splits: Splits | None, *, device: str, reporter: Reporter, folder: Path | None,
    rule: str = "edge", include_all: bool = False, exclude: tuple[str, ...] = (),
) -> StartResult:  # fmt: skip
    """The network with every layer's spectrum cut by `rule`. Rows say for each `layer` its `rank` and the `rank_kept`."""
    one_of("rule", rule, RULES)
    network, notes, rows = dense.copy(), [], []
    layers = layers_of(network, include_all, exclude)
    reporter.stage("start: singular components")
    for done, (name, layer) in enumerate(layers.items(), start=1):
        reporter.check()
        weight, rank, kept = cut(layer.weight.detach(), rule, device=device)
        if weight is None:
            notes.append(f"{name} stays as it is: no bulk can be fitted to it.")
        else:
            with torch.no_grad():
                layer.weight.copy_(weight)
        rows.append(row(1, 0.0, "prune", "sub_edge", weights_removed=0) | {"layer": name, "rank": rank, "rank_kept": kept})
        reporter.progress(done, len(layers))
    total, left = sum(r["rank"] for r in rows), sum(r["rank_kept"] for r in rows)
    found = f"Of {total} singular components {left} stay (rule '{rule}')"
    notes.insert(0, f"{found}. No weight is zero: this network is dense in shape and lower in rank.")
    return StartResult(network, rows, notes)


def cut(weight: Tensor, rule: str, *, device: str = "cpu") -> tuple[Tensor | None, int, int]:
    """The weight with its singular values cut by `rule`, its rank p, and how many stay; None for the weight where nothing can be fitted."""
    matrix = weight.flatten(1).to("cpu" if torch.device(device).type == "mps" else device, torch.float64)  # mps has no float64
    p, n = min(matrix.shape), max(matrix.shape)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    singular = s.cpu().numpy()
    fit = MarchenkoPastur().fit(singular**2 / n, shape=tuple(matrix.shape))
    if not np.isfinite(fit.fit_error_) or fit.sigma_ == 0:
        return None, p, p
    new = kept_values(singular, rule, p / n, fit.sigma_ * np.sqrt(n), fit.edge_)
    return ((u * torch.from_numpy(new).to(s)) @ vh).view(weight.shape).to(weight), p, int((new > 0).sum())


def kept_values(singular: np.ndarray, rule: str, gamma: float, scale: float, edge: float) -> np.ndarray:
    """What the singular values become; `scale` is σ√n, `edge` σ₊."""
    if rule == "edge":
        return np.where(singular > edge, singular, 0.0)
    if rule == "gavish_donoho":
        return np.where(singular > scale * gavish_donoho(gamma), singular, 0.0)
    y = np.maximum(singular / scale, 1 + np.sqrt(gamma))
    shrunk = scale * np.sqrt(((y**2 - gamma - 1) ** 2 - 4 * gamma).clip(min=0)) / y
    return np.where(singular > scale * (1 + np.sqrt(gamma)), shrunk, 0.0)  # rounding leaves a trace at the edge itself


def gavish_donoho(gamma: float) -> float:
    """λ*(γ): the optimal hard threshold in units of σ√n, γ = p/n ≤ 1.

    >>> round(gavish_donoho(1.0), 4)
    2.3094
    """
    return float(np.sqrt(2 * (gamma + 1) + 8 * gamma / (gamma + 1 + np.sqrt(gamma**2 + 14 * gamma + 1))))

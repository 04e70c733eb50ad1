"""The spectrum of every layer of a network, one row a weight matrix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from starfish_lab.errors import LabError
from starfish_lab.models.network import Network, layer_kind, prunable
from starfish_lab.spectra.fit import MarchenkoPastur

MOST_BINS = 60
MOST_SPIKE_VALUES = 50
HILL_TAIL = 20  # eigenvalues in the tail of the Hill estimate, as in the code of arXiv 2606.02608


def singular_values(weight: Tensor, *, device: str | torch.device | None = None) -> NDArray[np.float64]:
    """The min(rows, cols) singular values of a weight (rows, cols…), largest first; nan where a weight is not finite.

    They are roots of the eigenvalues of the smaller Gram matrix in float64, exact to about 1e-8 of the largest.
    `device` defaults to the GPU where there is one, else to where the weight is.
    """
    with _one_thread():
        matrix = _matrix(weight).to(_float64_device(weight, device), torch.float64)
        gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
        if not torch.isfinite(gram).all():
            return np.full(len(gram), np.nan)
        eigenvalues = torch.linalg.eigvalsh(gram)
        return eigenvalues.clamp_(min=0).sqrt_().flip(0).cpu().numpy()


def stable_rank(singular: NDArray) -> float:
    """‖W‖_F² / s_max², between 1 and the rank; 0 for a matrix of zeros."""
    return float((singular**2).sum() / singular[0] ** 2) if singular[0] != 0 else 0.0


def hill_alpha(singular: NDArray) -> float:
    """Exponent of a power law in the tail of l = s²: 1 + 1/mean_{i≤k} ln(l_i / l_{k+1}), k = 20 or all but the last.

    nan where the tail has no spread: fewer than two positive values, or all equal.
    """
    positive = singular[singular > 0]
    tail = min(HILL_TAIL, len(positive) - 1)
    if tail < 1 or positive[0] == positive[tail]:
        return np.nan
    return float(1 + 1 / (2 * np.log(positive[:tail] / positive[tail]).mean()))


def layer_spectrum(
    weight: Tensor, *, model: MarchenkoPastur | None = None, randomised: bool = False, seed: int = 0, device: str | torch.device | None = None
) -> dict[str, object]:
    """What the spectrum of one weight (rows, cols…) says: the columns of `spectra_table` from `rows` on."""
    model = model or MarchenkoPastur()
    rows, cols = _matrix(weight).shape
    n = max(rows, cols)
    singular = singular_values(weight, device=device)
    fit = model.fit(singular**2 / n, shape=(rows, cols))
    row = {
        "rows": rows,
        "cols": cols,
        "gamma": min(rows, cols) / n,
        "sigma": fit.sigma_,
        "sigma_plus": fit.edge_,
        "lower_edge": fit.lower_edge_,
        "fit_error": fit.fit_error_,
        "bulk_fraction": fit.bulk_fraction_,
        "spikes": len(fit.spikes_),
        "spike_energy": fit.spike_energy_,
        "stable_rank": stable_rank(singular),
        "hill_alpha": hill_alpha(singular),
        "top": float(singular[0]),
        "applies": fit.applies_,
        "verdict": fit.verdict_,
        "spike_values": (fit.spikes_[:MOST_SPIKE_VALUES] ** 2 / n).tolist(),
    }
    control = singular_values(_permuted(weight, seed), device=device) if randomised else singular[:0]
    edges = _bin_edges(np.concatenate([singular, control]) ** 2 / n, bins=min(MOST_BINS, 8 + 2 * int(np.sqrt(len(singular)))))
    row |= {"bin_edges": edges.tolist(), "counts": _counts(singular**2 / n, edges)}
    if randomised:
        fit = model.fit(control**2 / n, shape=(rows, cols))
        row |= {
            "control_sigma_plus": fit.edge_,
            "control_top": float(control[0]),
            "control_counts": _counts(control**2 / n, edges),
            "control_spikes": len(fit.spikes_),
        }
    return row


@torch.no_grad()
def spectra_table(
    network: Network,
    *,
    layers: Sequence[str] | None = None,
    split_qkv: bool = True,
    randomised: bool = False,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> pd.DataFrame:
    """One row a weight matrix, in depth order; `layers` defaults to the prunable ones.

    | column | meaning |
    |---|---|
    | layer, part | part is '' for a whole layer, 'qkv' for a whole fused layer, 'q', 'k' or 'v' for a third of its rows |
    | block, depth, kind | where the layer stands; depth −1 outside every block |
    | rows, cols, gamma | the matrix, convolutions unfolded to (C_out, C_in·kh·kw); γ = p/n, p = min, n = max |
    | sigma, sigma_plus, lower_edge, fit_error, bulk_fraction, spikes, spike_energy, applies, verdict | as in `MarchenkoPastur` |
    | stable_rank, hill_alpha, top | of the singular values; top is the largest |
    | bin_edges, counts | histogram of λ = s²/n, bins even in log λ; values under the first edge count in the first bin |
    | spike_values | λ of the spikes, the 50 largest |
    | control_sigma_plus, control_top, control_counts, control_spikes | with `randomised`: the same entries in an order drawn by `seed` |
    """
    names = list(prunable(network) if layers is None else layers)
    weights = {name: module.weight for name, module in network.module.named_modules() if isinstance(getattr(module, "weight", None), Tensor)}
    unknown = [name for name in names if name not in weights]
    if unknown:
        raise LabError(f"{network.name} has no layer with weights named '{unknown[0]}'. Its prunable layers: {', '.join(prunable(network))}.")
    model = MarchenkoPastur()
    table = []
    for name in names:
        place = {"block": network.block_of(name), "depth": network.depth_of(name), "kind": layer_kind(name)}
        for part, weight in _parts(name, weights[name], split_qkv):
            spectrum = layer_spectrum(weight, model=model, randomised=randomised, seed=seed, device=device)
            table.append({"layer": name, "part": part, **place, **spectrum})
    return pd.DataFrame(table)


def _matrix(weight: Tensor) -> Tensor:
    """(rows, cols…) → (rows, cols)."""
    if weight.ndim < 2 or weight.numel() == 0:
        raise LabError(f"A spectrum needs a weight of two or more dimensions, none of them empty; got the shape {tuple(weight.shape)}.")
    return weight.detach().flatten(1)


def _parts(name: str, weight: Tensor, split_qkv: bool) -> list[tuple[str, Tensor]]:
    """The matrices in a weight: timm stacks the rows of q, k and v, equal in number, in a layer named qkv."""
    if not split_qkv or name.rpartition(".")[2] != "qkv" or len(weight) % 3:
        return [("", weight)]
    return [("qkv", weight), *zip("qkv", weight.chunk(3))]


def _permuted(weight: Tensor, seed: int) -> Tensor:
    """The same entries in random order, drawn on the CPU, so that every device sees the same control."""
    entries = weight.detach().double().cpu().numpy().ravel()
    return torch.from_numpy(np.random.default_rng(seed).permutation(entries)).view(weight.shape)


@contextmanager
def _one_thread() -> Iterator[None]:
    """At a layer's size LAPACK gains little from threads and waits long for them where cores are busy: 384 × 384 took
    6 ms with one thread, 35 to 900 ms with two on two shared cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _float64_device(weight: Tensor, device: str | torch.device | None) -> torch.device:
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else weight.device))
    return torch.device("cpu") if chosen.type == "mps" else chosen  # mps has no float64


def _bin_edges(values: NDArray, *, bins: int) -> NDArray:
    """Edges even in log λ, from 1e-4 of the median up: a square matrix has a few far smaller ones, which would take half the axis."""
    positive = values[values > 0]  # nan is not
    if len(positive) == 0:
        return np.zeros(0)
    lowest = max(positive.min(), 1e-4 * np.median(positive))
    return np.geomspace(lowest * 0.999, positive.max() * 1.001, bins + 1)


def _counts(values: NDArray, edges: NDArray) -> list[int]:
    if len(edges) == 0 or np.isnan(values).any():
        return []
    return np.histogram(np.maximum(values, edges[0]), edges)[0].tolist()

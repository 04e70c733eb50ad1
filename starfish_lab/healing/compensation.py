"""What the units that stay can say of those that go, in closed form: the two solutions of CORP (arXiv 2602.05243).

Both start from means and covariances over all tokens of the calibration images and are solved in float64 on the CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Moments:
    """Mean and covariance of rows seen batch by batch, merged exactly (Chan et al. 1979), so that a large mean costs no digits.

    Sums are float64 on the rows' device (float32 where it has no float64), products of a batch float32.
    """

    def __init__(self) -> None:
        self.count, self._mean, self._scatter = 0, 0.0, 0.0

    def add(self, rows: Tensor) -> None:
        """`rows` (…, d), of any float type."""
        rows = rows.flatten(0, -2).float()
        wide = torch.float32 if rows.device.type == "mps" else torch.float64
        count, mean = len(rows), rows.mean(0)
        centred = rows - mean
        step = mean.to(wide) - self._mean
        self._scatter = self._scatter + (centred.T @ centred).to(wide) + torch.outer(step, step) * (self.count * count / (self.count + count))
        self._mean = self._mean + step * (count / (self.count + count))
        self.count += count

    @property
    def mean(self) -> Tensor:
        """(d,) float64 on the CPU."""
        return self._mean.cpu().double()

    @property
    def covariance(self) -> Tensor:
        """(d, d) float64 on the CPU, divided by the number of rows."""
        return self._scatter.cpu().double() / self.count

    @property
    def second(self) -> Tensor:
        """(d, d) E[x xᵀ], not centred."""
        return self.covariance + torch.outer(self.mean, self.mean)


def oas(covariance: Tensor, count: int) -> float:
    """How far a sample covariance (p, p) of `count` rows should shrink towards a multiple of the identity, 0…1.

    Oracle approximating shrinkage (Chen et al. 2010, eq. 23): ρ = ((1 − 2/p) tr S² + tr² S) / ((n + 1 − 2/p)(tr S² − tr² S / p)).
    """
    p, trace, squares = len(covariance), covariance.trace().item(), covariance.square().sum().item()
    spread = squares - trace**2 / p
    if spread <= 1e-12 * squares:  # already a multiple of the identity
        return 1.0
    return min(1.0, ((1 - 2 / p) * squares + trace**2) / ((count + 1 - 2 / p) * spread))


def affine(x: Moments, gone: Tensor, *, constant: bool = True, ridge: float = 1e-3, shrinkage: bool = True) -> tuple[Tensor, Tensor]:
    """B (gone, kept) and c (gone,), float64, with x_gone ≈ B x_kept + c: ridge regression on the moments of all units.

    B = Σ_PS (Σ_SS + λI)⁻¹, c = μ_P − B μ_S; λ = max(ridge, ρ · tr Σ_SS / p), ρ by `oas`, or `ridge` alone without `shrinkage`.
    `gone` (units,) bool. Without `constant` c is zero and second moments stand for Σ.
    """
    about = x.covariance if constant else x.second
    inside = about[~gone][:, ~gone]
    strength = max(ridge, oas(inside, x.count) * inside.trace().item() / len(inside)) if shrinkage else ridge
    root = torch.linalg.cholesky(inside + strength * torch.eye(len(inside), dtype=inside.dtype))
    b = torch.cholesky_solve(about[~gone][:, gone], root).T
    c = x.mean[gone] - b @ x.mean[~gone] if constant else torch.zeros(int(gone.sum()), dtype=b.dtype)
    return b, c


def logits(q: Moments, k: Moments, gone: Tensor, *, ridge: float = 1e-3, shrinkage: bool = True, symmetric: bool = True) -> tuple[Tensor, Tensor]:
    """U and V (kept, kept), float64, of one head with (Uᵀ q_kept) · (Vᵀ k_kept) ≈ q · k for all pairs of a query and a key.

    I + M = U Vᵀ, where M minimises E[(q_Sᵀ M k_S − q_Pᵀ k_P)²] + λ‖M‖², queries and keys paired in every way:

        G_Q M G_K + λM = C_Q C_K,    G = E[x_S x_Sᵀ],  C_Q = E[q_S q_Pᵀ],  C_K = E[k_P k_Sᵀ],

    and U = R S^½, V = T S^½ from the singular values of I + M, no smaller than 1e-6 (of its symmetric part where `symmetric`, as
    the authors do). The Kronecker system is solved in the eigenvectors of its two factors, where it is diagonal. The
    authors' Grams are sums over tokens, so that their λ vanishes beside them; these are means, and λ = max(ridge, ρ · tr G_Q ·
    tr G_K / d²), the mean eigenvalue of the system, ρ by `oas` on the queries. `gone` (head_dim,) bool.
    """
    of_q, of_k = q.second, k.second
    left, right = of_q[~gone][:, ~gone], of_k[~gone][:, ~gone]
    wanted = of_q[~gone][:, gone] @ of_k[gone][:, ~gone]
    mean = left.trace().item() * right.trace().item() / len(left) ** 2
    strength = max(ridge, oas(q.covariance[~gone][:, ~gone], q.count) * mean) if shrinkage else ridge
    (a, e), (b, f) = torch.linalg.eigh(left), torch.linalg.eigh(right)
    m = e @ (e.T @ wanted @ f / (torch.outer(a, b) + strength)) @ f.T
    whole = torch.eye(len(m), dtype=m.dtype) + m
    r, s, t = torch.linalg.svd((whole + whole.T) / 2 if symmetric else whole)
    s = s.clamp(min=1e-6).sqrt()
    return r * s, t.T * s

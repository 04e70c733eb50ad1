"""Many small linear systems cut out of one large symmetric matrix: every row of a masked weight has its own support."""

from __future__ import annotations

import torch
from torch import Tensor

from starfish_lab.errors import LabError

AT_ONCE, AT_ONCE_CPU = 1 << 28, 1 << 22  # numbers in the systems solved together; few enough for a processor's cache


def solve(matrix: Tensor, right: Tensor, support: Tensor) -> Tensor:
    """X (out, cols) with matrix[Sᵢ, Sᵢ] X[i, Sᵢ] = right[i, Sᵢ] in every row i, and zero outside its support Sᵢ.

    `matrix` (cols, cols) is symmetric and positive definite, `support` (out, cols) bool. Rows of equal support share one Cholesky
    factor, the others are factored in batches of about equal size; all in the matrix's own precision, float64 for choice.
    Raises LabError where a system is singular.
    """
    found = torch.zeros_like(right)
    patterns, which, counts = torch.unique(support, dim=0, return_inverse=True, return_counts=True)
    for pattern in (counts > 1).nonzero().flatten().tolist():
        rows, columns = (which == pattern).nonzero(), patterns[pattern].nonzero().flatten()
        if len(columns):
            root = _cholesky(matrix[columns][:, columns])
            found[rows, columns] = torch.cholesky_solve(right[rows, columns].T, root).T
    alone = (counts[which] == 1).nonzero().flatten()
    sizes = support[alone].sum(1)
    order = sizes.argsort(descending=True)
    alone, sizes = alone[order], sizes[order].tolist()
    room = AT_ONCE_CPU if matrix.device.type == "cpu" else AT_ONCE
    start = 0
    while start < len(alone) and sizes[start]:
        end = start + max(1, room // sizes[start] ** 2)
        rows = alone[start:end]
        found[rows] = _solve_padded(matrix, right[rows], support[rows], sizes[start])
        start = end
    return found


def _solve_padded(matrix: Tensor, right: Tensor, support: Tensor, size: int) -> Tensor:
    """As `solve`, for rows of up to `size` columns each: smaller systems are filled up with the identity."""
    columns = support.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :size]  # (b, size), the support first
    inside = support.gather(1, columns)
    systems = matrix[columns.unsqueeze(2), columns.unsqueeze(1)]  # (b, size, size)
    systems *= inside.unsqueeze(2) & inside.unsqueeze(1)
    systems.diagonal(dim1=1, dim2=2).masked_fill_(~inside, 1.0)
    answers = torch.cholesky_solve((right.gather(1, columns) * inside).unsqueeze(2), _cholesky(systems)).squeeze(2)
    return torch.zeros_like(right).scatter_(1, columns, answers)  # padding answers 0


def _cholesky(systems: Tensor) -> Tensor:
    roots, failed = torch.linalg.cholesky_ex(systems)
    if failed.any():
        raise LabError(
            "The moments of a layer's inputs are singular on the weights that stay. Give more calibration images, or raise the option ridge."
        )
    return roots

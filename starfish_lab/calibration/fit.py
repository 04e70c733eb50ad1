"""Least squares for a layer whose mask is given, in closed form.

For a row of the weight with support S, inputs x and targets y (the standard exact solution under a fixed mask),

    w_S ← argmin E[(y − w_Sᵀ x_S − b)²] + λ ‖w_S − w⁰_S‖² = w⁰_S + (H_SS + λI)⁻¹ (E[x_S y] − b E[x_S] − H_S: w⁰),    H = E[x xᵀ]

w⁰ are the values the fit starts from, so that the ridge draws nothing towards zero. λ is `ridge` times the mean diagonal of H, as
in SparseGPT (arXiv 2301.00774). With an intercept b is fitted along: the same formula for centred moments, b = E[y] − wᵀ E[x].
"""

from __future__ import annotations

import torch
from torch import Tensor

from starfish_lab.calibration import supports
from starfish_lab.calibration.moments import InputMoments


def fit(weight: Tensor, bias: Tensor, mask: Tensor, moments: InputMoments, *, intercept: bool, ridge: float) -> tuple[Tensor, Tensor]:
    """Weight (out, cols), zero where `mask` (out, cols) is False, and bias (out,), float64; `weight` and `bias` are w⁰ and b above.

    With `intercept` the bias is free too; else it comes back as it was.
    """
    mask = mask.to(weight.device)
    weight = weight * mask
    offset = moments.target if intercept else bias
    about = torch.outer(moments.mean, moments.mean) if intercept else 0.0
    matrix = moments.second - about
    missing = (moments.cross - torch.outer(moments.mean, offset)).T - weight @ matrix  # (out, cols)
    scale = matrix.diagonal().mean().clamp(min=0)
    weight = weight + supports.solve(matrix + ridge * torch.eye(len(matrix)).to(matrix) * torch.where(scale > 0, scale, 1.0), missing, mask)
    return weight, moments.target - weight @ moments.mean if intercept else bias

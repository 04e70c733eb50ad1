"""Stochastic Newton steps without a Hessian: conjugate gradients on Hessian-vector products (SNOWS, arXiv 2411.18376, Algorithm 1).

For the surviving weights w of a layer and the loss f of a minibatch a step solves

    (∇²f(w) + λ I) d = −∇f(w)

by conjugate gradients; ∇²f(w) v is the gradient of ⟨∇f(w), v⟩ (Pearlmutter, 1994), so the graph of the gradient is built once a minibatch
and only walked back through in every iteration. Armijo backtracking on a held-out batch then says how much of d is taken.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from starfish_lab.healing.snows_layers import Problem

SHRINK, SUFFICIENT, BACKTRACKS, LEAST_STEP = 0.9, 1e-5, 50, 0.1  # of the authors' code


def newton(problem: Problem, *, passes: int, max_cg: int, damping: float, tolerance: float, check: Callable[[], None]) -> None:
    """Minimise over the surviving weights, one step a minibatch; no further pass once the last step had to shrink below a tenth."""
    for _ in range(passes):
        for batch in range(problem.batches):
            gradient, curvature = second_order(problem, batch)
            step = conjugate_gradient(curvature, -gradient, damping=damping, tolerance=tolerance, iterations=max_cg, check=check)
            alpha = armijo(problem, step, slope=float((gradient * step).sum()))
        if alpha < LEAST_STEP:
            return


def second_order(problem: Problem, batch: int) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Gradient of a minibatch's loss, and v ↦ Hessian · v, both of the weight's shape and zero where the mask is."""
    (gradient,) = torch.autograd.grad(problem.loss(batch), problem.weight, create_graph=True)

    def curvature(v: Tensor) -> Tensor:
        return torch.autograd.grad(gradient, problem.weight, grad_outputs=v * problem.mask, retain_graph=True)[0] * problem.mask

    return gradient.detach() * problem.mask, curvature


def conjugate_gradient(
    product: Callable[[Tensor], Tensor], b: Tensor, *, damping: float, tolerance: float, iterations: int, check: Callable[[], None] = lambda: None
) -> Tensor:
    """d of (A + damping · I) d = b, where `product` gives A d; started from 0, of the shape of b.

    Ends when the norm of the residual, as it is, falls below `tolerance`, and where a direction has no positive curvature (the authors
    have no such guard): what was found so far is a direction of descent, b itself if nothing was. `check` runs before every iteration.
    """
    d, residual, direction = torch.zeros_like(b), b.clone(), b.clone()
    squared = (residual * residual).sum()
    for iteration in range(iterations):
        check()
        if squared == 0:
            break
        image = product(direction) + damping * direction
        curvature = (direction * image).sum()
        if not curvature > 0:
            return b.clone() if iteration == 0 else d
        length = squared / curvature
        d += length * direction
        residual -= length * image
        before, squared = squared, (residual * residual).sum()
        if squared.sqrt() < tolerance:
            break
        direction = residual + (squared / before) * direction
    return d


@torch.no_grad()
def armijo(problem: Problem, step: Tensor, slope: float) -> float:
    """Move the weight by α · step, and return α: 1, or the first 0.9^i that lowers the held-out loss enough; 0 and no move where none does.

    `slope` is that of the minibatch's loss along the step: where it does not fall, there is no move.
    """
    if not slope < 0:
        return 0.0
    start, before, alpha = problem.weight.clone(), problem.held_out(), 1.0
    for _ in range(BACKTRACKS):
        problem.weight.copy_(start + alpha * step)
        if problem.held_out() <= before + SUFFICIENT * alpha * slope:
            return alpha
        alpha *= SHRINK
    problem.weight.copy_(start)
    return 0.0

"""SNOWS's objective by Adam: every layer in turn is fitted to the next K operations at a fraction of the cost of Newton steps.

Not the method of the paper (arXiv 2411.18376): layers, objective, minibatches and held-out images are those of 'snows', and only the
minimiser is another, Adam with a rate that falls on a cosine. Named apart so that nobody takes one for the other.
"""

from __future__ import annotations

import torch

from starfish_lab import checks
from starfish_lab.healing.session import Session
from starfish_lab.healing.snows_layers import Problem, reconstruct

DEFAULTS = {}


def repair(session: Session, *, k: int | None = None, batch_size: int = 128, steps: int = 50, learning_rate: float = 1e-3) -> None:
    """Fit the masked weights.

    k : operations after a layer's own; None takes 3 for networks with tokens and 20 for others
    batch_size : images of a minibatch, and of those held out; at most half of all
    steps, learning_rate : of Adam, for every layer; a layer whose held-out loss has risen in the end keeps the weights it came with
    """
    if k is not None:
        checks.whole("healing.repair_options.k", k, 0)
    checks.whole("healing.repair_options.batch_size", batch_size)
    checks.whole("healing.repair_options.steps", steps)
    checks.number("healing.repair_options.learning_rate", learning_rate, 1e-9, 10)

    def minimise(problem: Problem) -> None:
        start, before = problem.weight.detach().clone(), problem.held_out()
        adam = torch.optim.Adam([problem.weight], lr=learning_rate)
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
        for step in range(steps):
            session.reporter.check()
            (gradient,) = torch.autograd.grad(problem.loss(step % problem.batches), problem.weight)
            problem.weight.grad = gradient * problem.mask
            adam.step()
            falling.step()
        problem.weight.grad = None
        with torch.no_grad():
            if not problem.held_out() <= before:
                problem.weight.copy_(start)

    reconstruct(session, "snows_adam", k=k, batch_size=batch_size, minimise=minimise)

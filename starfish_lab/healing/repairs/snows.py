"""SNOWS: every layer in turn is fitted by Newton steps to what the dense network makes of the next K operations.

Lucas and Mazumder, 'Preserving deep representations in one-shot pruning: a Hessian-free second-order optimization framework' (arXiv
2411.18376). The objective is that of `snows_layers`, the minimiser that of `snows_newton`: one pass of stochastic Newton steps over
minibatches of 128, conjugate gradients damped by 1e-4 until the residual is below 5e-4 or for 500 iterations, Armijo backtracking on
held-out images. The authors take 3,000 images, K = 3 for vision transformers, 20 to 40 for CNNs. No labels.
"""

from __future__ import annotations

from functools import partial

from starfish_lab import checks
from starfish_lab.healing.session import Session
from starfish_lab.healing.snows_layers import reconstruct
from starfish_lab.healing.snows_newton import newton

DEFAULTS = {}


def repair(
    session: Session, *, k: int | None = None, batch_size: int = 128, max_cg: int = 500, damping: float = 1e-4, tolerance: float = 5e-4,
    passes: int = 1,
) -> None:  # fmt: skip
    """Fit the masked weights.

    k : operations after a layer's own; None takes 3 for networks with tokens and 20 for others
    batch_size : images of a minibatch, and of those held out; at most half of all
    max_cg : most conjugate-gradient iterations of a step, each as dear as two gradients
    damping, tolerance : added to the Hessian's diagonal; norm of the residual at which iterations end
    passes : over the minibatches, for every layer
    """
    if k is not None:
        checks.whole("healing.repair_options.k", k, 0)
    checks.whole("healing.repair_options.batch_size", batch_size)
    checks.whole("healing.repair_options.max_cg", max_cg)
    checks.number("healing.repair_options.damping", damping, 0)
    checks.number("healing.repair_options.tolerance", tolerance, 0)
    checks.whole("healing.repair_options.passes", passes)
    minimise = partial(newton, passes=passes, max_cg=max_cg, damping=damping, tolerance=tolerance, check=session.reporter.check)
    reconstruct(session, "snows", k=k, batch_size=batch_size, minimise=minimise)

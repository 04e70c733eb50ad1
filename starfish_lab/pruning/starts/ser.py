"""Spectral Edge Reallocation: prune further than asked, let training say which weights come back, tune.

A cycle to sparsity s (arXiv 2606.02608, Online Resource 2, algorithm SER):

1. Over-prune to s + `over` of all prunable weights: the smallest |W| / w_l(s) go. w_l is the layer's factor of Spectral Edge
   Budgeting (`budgets.mp_edge`), from the spectra of the dense weights; the spectra are never fitted again.
2. Select: what went in this cycle is the reservoir, and it alone trains; kept weights are frozen. AdamW at 8 · 5e-5, falling on a
   cosine to a quarter of that, on batches twice as large. |Δ| is how far an entry moved.
3. Restore: the entries with the largest |Δ| · ρ_l come back until exactly s is gone.
4. Tune with the zeros frozen: rate 5e-5 times a factor that grows on a line from 1 at s = 5 % to 2 at s = 70 % (the ends of
   the authors' grid), so that a run to 35 % is the first half of a run to 70 %. The other settings in `pruning.cycles`.

The authors' selection script is not published, and their texts contradict each other or leave open. What is taken here:

ρ_l
    The algorithm says w_l, so layers that lose more come back first; the prose says that protected layers come back first.
    `rho` '1/w' follows the prose, 'w' the algorithm, '1' compares |Δ| as it is.
Where reservoir entries start
    Not said. `enters` 'zero' lets the loss ask which entries the pruned network misses; 'removed' starts at the values they had.
Selection loss
    A term 'logit-L2' of weight 1; whether there are others is not said. Taken: the mean square of the logits' distance to the
    network before over-pruning, plus `task` times the cross-entropy, 0 by default.
Value that comes back
    Not said. `restores` 'removed' is the value it had before the cycle, 'moved' the one it has after the selection.
Length of the selection
    Batches of an epoch times a 'trainable fraction', at least 128. Taken: reservoir / prunable weights, and no more than an
    epoch; `StartChoice.steps` where given.
Weight decay of the selection, schedule inside a tuning phase
    Not said. Taken: none; that of the magnitude cycles, so that both compare.

With `enters` 'removed' and `task` 0 the network is the one whose logits it is compared with: nothing would move, so that
pair is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from starfish_lab.data import Splits
from starfish_lab.errors import RecipeError
from starfish_lab.models.network import Network
from starfish_lab.progress import Reporter
from starfish_lab.pruning import masks as masking
from starfish_lab.pruning import ranking
from starfish_lab.pruning.budgets import mp_edge
from starfish_lab.pruning.cycles import Course, StartResult, one_of, row, training_images, within
from starfish_lab.pruning.prune import edge_table
from starfish_lab.recipe import StartChoice
from starfish_lab.training.batches import Batch
from starfish_lab.training.loop import Loss, TrainingChoice

TRAINS = True
LEARNING_RATE = 5e-5
GRID = (0.05, 0.70)  # the authors' first and last sparsity: the rate's factor is 1 at the one and 2 at the other
SELECTION_FACTOR, SELECTION_FINAL_SHARE, SELECTION_BATCH, SELECTION_STEPS = 8, 0.25, 2, 128
RHO: dict[str, Callable[[float], float]] = {"1/w": lambda w: 1 / w, "w": lambda w: w, "1": lambda w: 1.0}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of `start`, without those that every course has."""

    over: float
    rho: str
    enters: str
    restores: str
    task: float
    beta: float | None
    learning_rate: float

    def check(self, choice: StartChoice) -> None:
        """Raise RecipeError for options that make no cycle."""
        within("over", self.over, 1e-6, 0.999)
        one_of("rho", self.rho, tuple(RHO))
        one_of("enters", self.enters, ("zero", "removed"))
        one_of("restores", self.restores, ("removed", "moved"))
        within("task", self.task, 0, 1e6)
        if self.beta is not None:
            within("beta", self.beta, 0, 1e6)
        within("learning_rate", self.learning_rate, 1e-12, 10)
        if choice.sparsity + self.over >= 1:
            raise RecipeError(
                f"start.sparsity {choice.sparsity:g} and start.options.over {self.over:g} together remove everything. "
                "Lower one of them so that they stay under 1."
            )
        if self.enters == "removed" and self.task == 0:
            raise RecipeError(
                "With start.options.enters 'removed' and start.options.task 0 nothing would move in the selection: the network equals the one "
                "its logits are compared with. Choose enters 'zero', or a task above 0, such as 1."
            )


def start(
    dense: Network, choice: StartChoice, splits: Splits | None, *, device: str, reporter: Reporter, folder: Path | None,
    over: float = 0.03, rho: str = "1/w", enters: str = "zero", restores: str = "removed", task: float = 0.0, beta: float | None = None,
    learning_rate: float = 5e-5, include_all: bool = False, exclude: tuple[str, ...] = (), augmentation: str = "none",
) -> StartResult:  # fmt: skip
    """The network pruned to `choice.sparsity` by prune–restore cycles.

    `over`, `rho`, `enters`, `restores` and `task` as above; `beta` replaces β of the layers' factors (0: all factors are 1,
    so the spectra play no part). `learning_rate` is that of tuning at 5 %, and the selection's is eight times as high.
    `include_all`, `exclude` and `augmentation` as in 'magnitude'.
    """
    options = Options(over=over, rho=rho, enters=enters, restores=restores, task=task, beta=beta, learning_rate=learning_rate)
    options.check(choice)
    images = training_images(splits, "ser")
    course = Course(
        dense, choice, images, device=device, reporter=reporter, folder=folder,
        include_all=include_all, exclude=exclude, augmentation=augmentation,
    )  # fmt: skip
    reallocate = reallocation(course, options)
    for number, sparsity in enumerate(choice.grid(), start=1):
        if number > course.done:
            reallocate(number, sparsity)
            course.finish(number)
    return course.result()


def reallocation(course: Course, options: Options) -> Callable[[int, float], None]:
    """A function (cycle, sparsity) → None that does one cycle of `course`. The spectra are fitted here, once."""
    edges = edge_table(course.dense, list(course.layers), course.device)

    def cycle(number: int, sparsity: float) -> None:
        factors = mp_edge.weights(edges, sparsity, beta=options.beta)
        before = {name: value.clone() for name, value in course.network.module.state_dict().items()}
        teacher = course.network.copy().module.eval()
        older = course.remove(number, sparsity + options.over, "ser", factors)
        reservoir = {name: older[name] & ~mask for name, mask in course.masks.items()}
        moved = _select(course, number, teacher, before, reservoir, options)
        _restore(course, number, sparsity, before, reservoir, moved, {name: RHO[options.rho](w) for name, w in factors.items()}, options)
        course.tune(number, "ser", learning_rate=options.learning_rate * factor(sparsity))

    return cycle


def factor(sparsity: float) -> float:
    """What the tuning rate is multiplied by.

    >>> [round(factor(s), 2) for s in (0.05, 0.35, 0.70, 0.90)]
    [1.0, 1.46, 2.0, 2.0]
    """
    first, last = GRID
    return 1 + min(1.0, max(0.0, (sparsity - first) / (last - first)))


def _select(
    course: Course, number: int, teacher: nn.Module, before: dict[str, Tensor], reservoir: masking.Masks, options: Options
) -> dict[str, Tensor]:
    """Train the reservoir alone; how far each weight moved, on the CPU. The network is left as training left it."""
    if options.enters == "removed":
        course.network.module.load_state_dict(before)
    entered = {name: value.cpu().clone() for name, value in course.values().items()}

    def loss(batch: Batch) -> Loss:
        with torch.no_grad():
            wanted = teacher(batch.images).float()
        logits = course.network.module(batch.images).float()
        distance = F.mse_loss(logits, wanted)
        return Loss(distance + options.task * F.cross_entropy(logits, batch.labels) if options.task else distance)

    batches = course.batches(number, SELECTION_BATCH * course.choice.batch_size)
    share = sum(int(mask.sum()) for mask in reservoir.values()) / course.weights
    rate = SELECTION_FACTOR * options.learning_rate
    training = TrainingChoice(
        steps=course.choice.steps or min(batches.per_epoch, max(SELECTION_STEPS, math.ceil(share * batches.per_epoch))),
        learning_rate=rate, final_learning_rate=rate * SELECTION_FINAL_SHARE, optimiser="adamw", precision=course.precision, seed=course.choice.seed,
    )  # fmt: skip
    course.phase(number, "select", "ser", loss, batches, training, reservoir)
    return {name: value.cpu() - entered[name] for name, value in course.values().items()}


@torch.no_grad()
def _restore(
    course: Course, number: int, sparsity: float, before: dict[str, Tensor], reservoir: masking.Masks, moved: dict[str, Tensor],
    rho: dict[str, float], options: Options,
) -> None:  # fmt: skip
    """Bring back the entries that moved most until exactly `sparsity` is gone; all else is as before the selection."""
    count = course.removed - round(sparsity * course.weights)
    scores = {name: moved[name][entries].abs() for name, entries in reservoir.items()}
    chosen = ranking.largest(scores, count, {name: 1 / value for name, value in rho.items()})
    course.network.module.load_state_dict(before)  # with the running statistics the selection changed
    for name, layer in course.layers.items():
        back = torch.zeros_like(reservoir[name])
        back[reservoir[name]] = chosen[name]
        course.masks[name] = course.masks[name] | back
        if options.restores == "moved":
            old = before[f"{name}.weight"].cpu() if options.enters == "removed" else torch.zeros_like(moved[name])
            layer.weight.copy_(torch.where(back, old + moved[name], layer.weight.cpu()))
    masking.apply(course.network.module, course.masks)
    course.rows.append(row(number, course.sparsity, "restore", "ser", restored=count))

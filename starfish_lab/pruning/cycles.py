"""Pruning in cycles with training between them: what every start of that kind shares.

A cycle removes weights up to its sparsity, may give some back, and trains the network with its zeros frozen. `Course` holds
the network on that way; a start calls its steps in order. After each cycle the course saves itself under `folder`/cycles,
and each phase of training saves itself too, so a run that was cut off repeats only what lies after its last checkpoint and
ends with the same network, bit for bit on a CPU.

How a network is tuned after each cycle (arXiv 2606.02608, Online Resource 2, and the options of the authors' scripts): every
parameter trains, the zeros stay; SGD with momentum 0.9, weight decay 1e-6, gradients clipped to norm 1, cross-entropy with
label smoothing 0.1; the rate rises over 500 steps (a tenth of the phase where that is less) and falls on a cosine to 1 % of
its peak; bfloat16 autocast on CUDA, float32 elsewhere. The authors do not say whether images were augmented: not, here,
unless the option `augmentation` says so.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from starfish_lab.data import ImageSet, Splits
from starfish_lab.errors import RecipeError
from starfish_lab.models.network import Network, prunable
from starfish_lab.progress import Reporter
from starfish_lab.pruning import STARTS, ranking
from starfish_lab.pruning import masks as masking
from starfish_lab.recipe import AUGMENTATIONS, StartChoice
from starfish_lab.training.batches import Batch, Batches
from starfish_lab.training.checkpoint import Checkpoint, fingerprint
from starfish_lab.training.loop import Loss, TrainingChoice, TrainingResult, train

FOLDER = "cycles"
SAVE_SECONDS = 30.0  # between checkpoints inside a phase
LABEL_SMOOTHING = 0.1
TUNING = {"optimiser": "sgd", "momentum": 0.9, "weight_decay": 1e-6, "gradient_clip": 1.0}
WARMUP, WARMUP_SHARE, FINAL_SHARE = 500, 10, 100  # steps; a tenth of a short phase; a hundredth of the peak at the end


@dataclass
class StartResult:
    """What pruning starts from: the network on the CPU, rows of the report table 'cycles', and remarks for the person."""

    network: Network
    cycles: list[dict[str, object]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def begin(
    dense: Network, choice: StartChoice, splits: Splits | None, *, device: str = "cpu", reporter: Reporter | None = None, folder: Path | None = None
) -> StartResult:
    """The network that `choice` starts from; `dense` stays as it is.

    `splits` gives images to train on, where the method trains. With `folder` the run leaves checkpoints in folder/cycles and
    goes on from them; whoever owns the folder removes them. Raises RecipeError for unknown options and missing labels,
    Cancelled when the reporter is asked to stop.
    """
    known = STARTS.options(choice.method)
    for name in choice.options:
        if name not in known:
            raise RecipeError(f"start.options.{name} is no option of '{choice.method}'. Its options: {', '.join(known) or 'none'}.")
    return STARTS.get(choice.method)(dense, choice, splits, device=device, reporter=reporter or Reporter(), folder=folder, **choice.options)


def row(
    cycle: int, sparsity: float, phase: str, method: str, *, weights_removed: int = 0, restored: int = 0,
    result: TrainingResult | None = None, learning_rate: float | None = None, seconds: float = 0.0,
) -> dict[str, object]:  # fmt: skip
    """A row of the table 'cycles'. `sparsity` is that of the prunable weights when the phase ends; the rate is its peak."""
    losses = result.losses if result else []
    return {
        "cycle": cycle, "sparsity": sparsity, "phase": phase, "method": method, "weights_removed": weights_removed, "restored": restored,
        "steps": result.steps if result else 0, "loss_first": losses[0][1] if losses else None, "loss_last": losses[-1][1] if losses else None,
        "seconds": result.seconds if result else seconds, "learning_rate": learning_rate,
    }  # fmt: skip


def training_images(splits: Splits | None, method: str) -> ImageSet:
    """The images that cycles train on: the training images, or the calibration images where there are none. All have labels."""
    images = None if splits is None else splits.training or splits.calibration
    if images is None or images.labels is None:
        raise RecipeError(
            f"The start '{method}' trains between its cycles and needs labelled images; these have no labels. "
            "Choose labelled images and set images.training, or start from 'dense' or from a 'file'."
        )
    return images


def layers_of(network: Network, include_all: bool, exclude: tuple[str, ...] | list[str]) -> dict[str, nn.Module]:
    """The layers a start works on: the prunable ones, or every Linear and Conv2d; without those that match a glob pattern."""
    one_of("include_all", include_all, (False, True))
    if not isinstance(exclude, list | tuple) or not all(isinstance(pattern, str) for pattern in exclude):
        raise RecipeError(f"start.options.exclude is {exclude!r}: give a list of patterns over layer names, such as ['*downsample*'].")
    return prunable(network, include=("*",) if include_all else (), exclude=tuple(exclude))


def one_of(name: str, value: object, allowed: tuple) -> None:
    """Raise RecipeError unless an option of a start has one of the allowed values."""
    if type(value) not in {type(each) for each in allowed} or value not in allowed:
        raise RecipeError(f"start.options.{name} is {value!r}. Choose one of: {', '.join(map(str, allowed))}.")


def within(name: str, value: object, low: float, high: float) -> None:
    """Raise RecipeError unless an option of a start is a number from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise RecipeError(f"start.options.{name} is {value!r}: give a number from {low:g} to {high:g}.")


class Course:
    """A network on its way from dense to sparse.

    network : the network as it is now, on `device`
    masks : {layer: bool tensor on the CPU}, False at weights that are gone
    done : cycles that are finished
    facts : plain data a start wants to find again after a crash
    """

    def __init__(
        self, dense: Network, choice: StartChoice, images: ImageSet, *, device: str, reporter: Reporter, folder: Path | None,
        include_all: bool = False, exclude: tuple[str, ...] = (), augmentation: str = "none",
    ):  # fmt: skip
        one_of("augmentation", augmentation, AUGMENTATIONS)
        self.dense, self.choice, self.images, self.device, self.reporter = dense, choice, images, device, reporter
        self.augmentation = augmentation
        self.network = dense.copy()
        self.network.module.to(device).eval()
        self.layers = layers_of(self.network, include_all, exclude)
        self.masks: masking.Masks = {name: torch.ones(layer.weight.shape, dtype=torch.bool) for name, layer in self.layers.items()}
        self.weights = sum(mask.numel() for mask in self.masks.values())
        self.done, self.rows, self.notes, self.facts = 0, [], [], {}
        self._steps = 0  # of all phases so far, for the loss curve
        self._folder = None if folder is None else Path(folder) / FOLDER
        self._key = fingerprint(dataclasses.asdict(choice), dense.module.state_dict(), Batches(images, batch_size=1).fingerprint())
        self._keeper = Checkpoint(self._file("state"), key=self._key, seconds=0, reporter=reporter, what="the course of cycles")
        self._load()

    @property
    def removed(self) -> int:
        """Prunable weights that are gone."""
        return sum(int((~mask).sum()) for mask in self.masks.values())

    @property
    def sparsity(self) -> float:
        return self.removed / self.weights

    def values(self) -> dict[str, Tensor]:
        """The prunable weights as they are now, detached."""
        return {name: layer.weight.detach() for name, layer in self.layers.items()}

    def stage(self, cycle: int, sparsity: float, what: str) -> None:
        """Tell whoever watches, and stop here if asked to."""
        self.reporter.check()
        self.reporter.stage(f"start: cycle {cycle}, {what} at {sparsity:.0%}")

    def remove(self, cycle: int, sparsity: float, method: str, divisors: dict[str, float] | None = None) -> masking.Masks:
        """Remove the smallest |weight| / divisor of all layers together, until exactly this share is gone. Returns the masks before."""
        self.stage(cycle, sparsity, "prune")
        began, before, gone = time.monotonic(), self.masks, self.removed
        self.masks = ranking.without_smallest(self.values(), self.masks, max(gone, round(sparsity * self.weights)), divisors)
        masking.apply(self.network.module, self.masks)
        self.rows.append(row(cycle, self.sparsity, "prune", method, weights_removed=self.removed - gone, seconds=time.monotonic() - began))
        return before

    def tune(self, cycle: int, method: str, *, learning_rate: float, epochs: int = 1) -> None:
        """Train the whole network with its zeros frozen, for `choice.steps` or `epochs`."""
        batches = self.batches(cycle, self.choice.batch_size)
        steps = self.choice.steps or epochs * batches.per_epoch
        training = TrainingChoice(
            steps=steps, learning_rate=learning_rate, final_learning_rate=learning_rate / FINAL_SHARE,
            warmup=min(WARMUP, steps // WARMUP_SHARE), trains="all", precision=self.precision, seed=self.choice.seed, **TUNING,
        )  # fmt: skip
        self.phase(cycle, "tune", method, self.cross_entropy, batches, training, self.masks)

    def batches(self, cycle: int, size: int) -> Batches:
        """Shuffled batches of the training images, in another order in every cycle."""
        return Batches(
            self.images, batch_size=size, shuffle=True, augmentation=self.augmentation,
            preprocessing=self.dense.preprocessing, seed=self.choice.seed + 7919 * cycle,
        )  # fmt: skip

    @property
    def precision(self) -> str:
        return "bf16" if torch.device(self.device).type == "cuda" else "float32"

    def cross_entropy(self, batch: Batch) -> Loss:
        return Loss(F.cross_entropy(self.network.module(batch.images).float(), batch.labels, label_smoothing=LABEL_SMOOTHING))

    def phase(
        self, cycle: int, phase: str, method: str, loss: Callable[[Batch], Loss], batches: Callable[[int], Batch], training: TrainingChoice,
        moves: masking.Masks,
    ) -> TrainingResult:  # fmt: skip
        """One phase of training, continued from its checkpoint where there is one; adds its row."""
        self.stage(cycle, self.sparsity, phase)
        reporter = _Phase(self.reporter, self._steps)
        what = f"cycle {cycle} ({phase})"
        file = self._file(f"{cycle:03d}-{phase}")
        key = "" if file is None else fingerprint(self._key, phase, cycle, dataclasses.asdict(training), moves, self.network.module.state_dict())
        keeper = Checkpoint(file, key=key, seconds=SAVE_SECONDS, reporter=reporter, what=what)
        result = train(self.network, loss, batches, training, moves=moves, device=self.device, reporter=reporter, keeper=keeper, what=what)
        self._steps += training.steps
        self.rows.append(row(cycle, self.sparsity, phase, method, result=result, learning_rate=training.learning_rate))
        return result

    def finish(self, cycle: int) -> None:
        """The cycle is done: save everything, and drop the checkpoints of its phases."""
        self.done = cycle
        self._keeper.save({
            "done": cycle, "network": self.network.module.state_dict(), "masks": self.masks,
            "rows": self.rows, "notes": self.notes, "facts": self.facts, "steps": self._steps,
        })  # fmt: skip
        self._tidy()

    def result(self) -> StartResult:
        """The end of the course, on the CPU and in eval mode."""
        self.network.module.to("cpu").eval()
        rounds = len({entry["cycle"] for entry in self.rows if entry["phase"] == "prune"})
        removed = f"{self.removed} of {self.weights} prunable weights ({self.sparsity:.2%}) in {rounds} cycle{'s' * (rounds > 1)}"
        return StartResult(self.network, self.rows, [f"The start '{self.choice.method}' removed {removed}.", *self.notes])

    def _load(self) -> None:
        saved = self._keeper.load()
        if saved is None:
            return
        try:
            masks = {name: saved["masks"][name].reshape(mask.shape) for name, mask in self.masks.items()}
            found = (saved["done"], list(saved["rows"]), list(saved["notes"]), dict(saved["facts"]), saved["steps"])
            self.network.module.load_state_dict(saved["network"])
        except (KeyError, TypeError, AttributeError, RuntimeError, ValueError) as error:
            self._keeper.useless(type(error).__name__)
            self.network.module.load_state_dict(self.dense.module.state_dict())
            return
        self.masks = masks
        self.done, self.rows, self.notes, self.facts, self._steps = found
        self.reporter.note(f"Pruning in cycles continues after cycle {self.done}, at {self.sparsity:.2%}.")
        self._tidy()

    def _file(self, name: str) -> Path | None:
        return None if self._folder is None else self._folder / f"{name}.ckpt"

    def _tidy(self) -> None:
        """Phases up to the last finished cycle need no checkpoint any more."""
        for file in sorted(self._folder.glob("[0-9]*-*.ckpt")) if self._folder else ():
            if int(file.name.partition("-")[0]) <= self.done:
                file.unlink(missing_ok=True)


class _Phase(Reporter):
    """Passes on what a phase of training reports, its losses as one curve over all phases, named 'cycle.loss'."""

    def __init__(self, inner: Reporter, before: int):
        self._inner, self._before = inner, before

    def progress(self, step: int, steps: int) -> None:
        self._inner.progress(step, steps)

    def metric(self, name: str, step: int, value: float) -> None:
        self._inner.metric(f"cycle.{name}", self._before + step, value)

    def note(self, text: str) -> None:
        self._inner.note(text)

    def cancel_requested(self) -> bool:
        return self._inner.cancel_requested()

    def check(self) -> None:
        self._inner.check()

"""Moments of what the masked layers meet of the calibration images, in the dense or in the pruned network, layer after layer."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from starfish_lab import checks
from starfish_lab.calibration.activations import draw, rows_met
from starfish_lab.calibration.pair import Pair
from starfish_lab.calibration.replay import CHUNK, Replay, Seen
from starfish_lab.models.network import Residual

INPUTS = ("dense", "pruned")
TOGETHER = ("layer", "block")
TARGETS = ("layer", "state")
ROWS = 8192


@dataclass(frozen=True)
class InputMoments:
    """Means over all tokens or patches of the images, in float64 on the pair's device (on the CPU where it has no float64).

    x (cols,) is what a row of the layer's unfolded weight (out, cols) meets, y (out,) what the layer is to return there.
    """

    mean: Tensor  # E[x], (cols,)
    second: Tensor | None  # E[x xᵀ], (cols, cols); None where it was not asked for
    target: Tensor | None  # E[y], (out,); None where targets were not asked for
    cross: Tensor | None  # E[x yᵀ], (cols, out); None where either was not
    rows: int  # tokens or patches that counted


def repairable(pair: Pair, masked: Iterable[str]) -> list[str]:
    """The masked layers in the module's order. A grouped convolution, whose outputs meet different inputs, is left out, and the reporter told."""
    masked = set(masked)
    layers = [name for name, _ in pair.student.module.named_modules() if name in masked]
    grouped = [name for name in layers if getattr(pair.student.module.get_submodule(name), "groups", 1) != 1]
    if grouped:
        pair.reporter.note(f"Grouped convolutions are left as they are, because their outputs see different inputs: {', '.join(grouped)}.")
    return [name for name in layers if name not in grouped]


def walk(
    pair: Pair, layers: list[str], *, inputs: str, together: str = "layer", second: bool = True, targets: str | None = "layer",
    rows: int = ROWS, mirrored: bool = False, class_weight: float = 0.0,
) -> Iterator[dict[str, InputMoments]]:  # fmt: skip
    """Moments of `layers` (from `repairable`) in depth order: {layer: InputMoments}, so that each may be changed before the next is looked at.

    inputs : 'dense', x is what the layer meets in the dense network; 'pruned', in the student as it stands when the layer's turn comes
    together : 'layer', one by one; 'block', the layers of a block at once
    second : whether second moments are needed
    targets : what y is. 'layer', the dense layer's output; 'state', that and what the residual stream lacks where the output is
        added to it (`Network.residuals`), so that stream + output meets the dense network's; None, nothing
    rows : of every 32 images at most so many random tokens or patches of a layer count, drawn by the pair's seed and its name; of
        paired layers fewer where a block's targets would fill more than a quarter of the teacher's memory
    mirrored : every image counts a second time with left and right exchanged
    class_weight : with paired layers, what class tokens count as beside all rows together, their own single counts aside: they are one
        of many tokens, and the head reads them alone. They are among the rows that count, then. Without effect where there are none

    With inputs 'pruned' and `targets` the two networks are paired token by token: raises RecipeError where the student merges tokens.
    """
    checks.one_of("healing.repair_options.inputs", inputs, INPUTS)
    checks.one_of("healing.repair_options.together", together, TOGETHER)
    checks.whole("healing.repair_options.rows", rows)
    checks.flag("healing.repair_options.mirrored", mirrored)
    checks.number("healing.repair_options.class_weight", class_weight, 0)
    if targets is not None:
        checks.one_of("healing.repair_options.targets", targets, TARGETS)
    paired = inputs == "pruned" and targets is not None
    if paired:
        pair.check_same_tokens("Fitting layer by layer")
    network = pair.dense if inputs == "dense" else pair.student
    replay = Replay(pair, network, mirrored=mirrored)
    answers = Replay(pair, pair.dense, mirrored=mirrored)
    streams = {one.layer: one for one in network.residuals} if paired and targets == "state" else {}
    class_weight = class_weight if paired and network.has_class_token else 0.0
    done = 0
    for block in _stages(network.block_of, layers, "block"):
        wanted = _Wanted(pair, block, streams, rows, class_weight > 0).collect(answers) if paired else None
        for stage in _stages(network.block_of, block, together if inputs == "pruned" else "block"):
            sums = {
                name: _Sums(pair, name, network.module.get_submodule(name), second, wanted.rows if paired else rows, class_weight) for name in stage
            }
            for index, seen in enumerate(replay.passes(stage, {name: streams[name].stream for name in stage if name in streams})):
                for name in stage:
                    sums[name].add(seen[name].x, partial(wanted, name, index, seen[name]) if paired else None)
            found = {name: total.moments() for name, total in sums.items()}
            if targets is not None and not paired:
                found = {name: _answered(network.module.get_submodule(name), moments) for name, moments in found.items()}
            yield found
            done += len(stage)
            pair.reporter.progress(done, len(layers))


def double(tensor: Tensor) -> Tensor:
    """In float64, on the CPU where the device has none."""
    return (tensor if tensor.device.type in ("cuda", "cpu") else tensor.cpu()).double()


def unfolded(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """A layer's weight (out, cols) and bias (out,), zeros where it has none, in float64."""
    weight = double(layer.weight.detach()).flatten(1)
    return weight, weight.new_zeros(len(weight)) if layer.bias is None else double(layer.bias.detach())


def _stages(block_of: Callable[[str], str], layers: list[str], together: str) -> Iterator[list[str]]:
    """Layers looked at in one pass; a layer outside every block stands alone."""
    for _, stage in itertools.groupby(layers, lambda name: (block_of(name) or name) if together == "block" else name):
        yield list(stage)


def _answered(layer: nn.Module, moments: InputMoments) -> InputMoments:
    """With the outputs of the dense layer, y = W x + b, which follow from its inputs."""
    weight, bias = unfolded(layer)
    cross = None if moments.second is None else moments.second @ weight.T + torch.outer(moments.mean, bias)
    return InputMoments(moments.mean, moments.second, weight @ moments.mean + bias, cross, moments.rows)


class _Wanted:
    """What the dense layers of one block return, at the rows that count; of layers added to the residual stream, with that stream."""

    def __init__(self, pair: Pair, layers: list[str], streams: dict[str, Residual], rows: int, class_tokens: bool):
        self._pair, self._layers, self._class_tokens = pair, layers, class_tokens
        self._streams = {name: streams[name] for name in layers if name in streams}
        self._kept: dict[str, list[Tensor]] = {name: [] for name in layers}
        self._most = self.rows = rows

    def collect(self, answers: Replay) -> _Wanted:
        draws = {name: _generator(self._pair, name) for name in self._layers}
        for index, seen in enumerate(answers.passes(self._layers, {name: one.stream for name, one in self._streams.items()}, onward=True)):
            if index == 0:
                self.rows = self._room(seen)
            for name in self._layers:
                y = self._whole(name, seen[name], 1.0)
                always = _tokens(seen[name].x) if self._class_tokens else 0
                self._kept[name].append(y[draw(len(y), self.rows, draws[name], y.device, always=always)])
        return self

    def __call__(self, name: str, index: int, seen: Seen, chosen: Tensor) -> Tensor:
        """(rows, out) of a chunk; where the output is added to a stream, less the student's stream."""
        if name not in self._streams:
            return self._kept[name][index]
        lacking = self._whole(name, Seen(seen.x, torch.zeros_like(seen.y), seen.stream), -1.0)
        return self._kept[name][index] + lacking[chosen]

    def _whole(self, name: str, seen: Seen, sign: float) -> Tensor:
        """Output plus or minus stream, (tokens or patches of the chunk, out); a layer scale behind the output scales neither side of the fit."""
        layer = self._pair.dense.module.get_submodule(name)
        y = _flat(layer, seen.y)
        if seen.stream is None:
            return y
        gain = self._pair.dense.module.get_submodule(self._streams[name].gain).gamma if self._streams[name].gain else torch.ones(1).to(y)
        return y + sign * _flat(layer, seen.stream) / gain.where(gain != 0, torch.inf)  # a channel that is scaled to nothing makes up for nothing

    def _room(self, seen: dict[str, Seen]) -> int:
        """Rows of a chunk that can be kept for all chunks."""
        chunks = -(-len(self._pair.calibration) // CHUNK) * 2  # mirrored or not
        width = 4 * sum(_flat(self._pair.dense.module.get_submodule(name), one.y).shape[1] for name, one in seen.items())
        return max(1, min(self._most, int(self._pair.teacher_memory / 4 / chunks / width)))


class _Sums:
    """Running sums of one layer, about the mean of its first rows: so inputs that hardly vary about a large mean cost no digits."""

    def __init__(self, pair: Pair, name: str, layer: nn.Module, second: bool, rows: int, class_weight: float):
        self._layer, self._second, self._most, self._class_weight = layer, second, rows, class_weight
        self._draw = _generator(pair, name)
        self._sums: dict[str, Tensor] = {}
        self._pivot: Tensor | None = None
        self._rows, self._weight = 0, 0.0

    def add(self, met: Tensor, wanted: Callable[[Tensor], Tensor] | None) -> None:
        """What the layer meets in a chunk; `wanted` gives its targets at the rows that count."""
        tokens = _tokens(met) if self._class_weight else 0
        x, chosen = rows_met(self._layer, met.float(), self._most, self._draw, always=tokens)  # (rows, cols)
        self._pivot = x.mean(0) if self._pivot is None else self._pivot
        x = x - self._pivot
        weights = self._weights(chosen, tokens)
        weighed = x if weights is None else weights * x
        found = {"mean": weighed.sum(0)}
        if self._second:
            found["second"] = weighed.T @ x
        if wanted is not None:
            y = wanted(chosen)  # (rows, out)
            found["target"] = (y if weights is None else weights * y).sum(0)
            if self._second:
                found["cross"] = weighed.T @ y
        for name, value in found.items():
            self._sums[name] = self._sums[name] + double(value) if name in self._sums else double(value)
        self._rows += len(x)
        self._weight += len(x) if weights is None else weights.sum().item()

    def _weights(self, chosen: Tensor, tokens: int) -> Tensor | None:
        """(rows, 1), or None where all rows count alike."""
        if not tokens:
            return None
        first = (chosen % tokens == 0).float()
        return (1 + first * self._class_weight * len(chosen) / first.sum()).unsqueeze(1)

    def moments(self) -> InputMoments:
        about = {name: self._sums[name] / self._weight if name in self._sums else None for name in ("mean", "second", "target", "cross")}
        shift, pivot = about["mean"], double(self._pivot)
        mean = shift + pivot
        if self._second:
            about["second"] += torch.outer(mean, mean) - torch.outer(shift, shift)
            if about["cross"] is not None:
                about["cross"] += torch.outer(pivot, about["target"])
        return InputMoments(**about | {"mean": mean}, rows=self._rows)


def _generator(pair: Pair, name: str) -> torch.Generator:
    """Draws the rows of a layer; equal for both networks."""
    return torch.Generator().manual_seed(pair.seed + zlib.crc32(name.encode()))


def _tokens(x: Tensor) -> int:
    """How many tokens of an image a layer meets, the class token first: (B, tokens, …); 0 where it meets no tokens."""
    return x.shape[1] if x.dim() == 3 else 0


def _flat(layer: nn.Module, y: Tensor) -> Tensor:
    """(B, …, out) or (B, out, H, W) → (rows, out), float32, in the order of `rows_met`."""
    return (y.movedim(1, -1) if isinstance(layer, nn.Conv2d) else y).flatten(0, -2).float()

"""The pieces that a network really runs through, in their order, and what each takes."""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor, nn

from starfish_lab.measure import macs
from starfish_lab.measure.own_time import own_times
from starfish_lab.models.network import Network
from starfish_lab.prediction.pieces import Piece

NOTHING = ("Identity", "Dropout", "DropPath", "PatchDropout", "Flatten", "SlicedKeys")  # classes that do nothing while a network answers
SPARSE = {"SparseSemiStructuredTensorCUTLASS": "cutlass", "SparseSemiStructuredTensorCUSPARSELT": "cusparselt"}


def on_meta(network: Network) -> list[Piece]:
    """The pieces of a network by its shapes alone: nothing is computed."""
    shapes = macs.on_meta(network)
    shapes.module.eval()
    with torch.inference_mode():
        return pieces(shapes, lambda: shapes.module(torch.empty(1, *network.preprocessing.input_size, device="meta")))


def pieces(network: Network, call: Callable[[], object]) -> list[Piece]:
    """The pieces of the one forward pass that `call` makes, for one image, in the order in which they end."""
    found: list[Piece] = []
    shapes = _Shapes(network)
    handles = []
    try:
        for name, kind in places(network).items():

            def note(module: nn.Module, inputs: tuple, options: dict, output: object, name: str = name, kind: str = kind) -> None:
                given = inputs[0] if inputs else next(iter(options.values()))
                found.append(shapes.piece(name, module, kind, _tensor(given), _tensor(output), options))

            handles.append(network.module.get_submodule(name).register_forward_hook(note, with_kwargs=True))
        handles.append(network.module.register_forward_pre_hook(shapes.begin))
        call()
    finally:
        for handle in handles:
            handle.remove()
    return found


def timed(network: Network, call: Callable[[], object], *, device: str) -> list[float]:
    """Seconds that each of `pieces(network, call)` takes by itself in one forward pass, in the same order."""
    return [seconds for _, seconds in own_times(network.module, places(network), call, device=device)]


def places(network: Network) -> dict[str, str]:
    """{module: kind} of everything that counts as a piece; what else runs is work of the piece it stands in."""
    found: dict[str, str] = {}
    inside = ""
    for name, module in network.module.named_modules():
        if inside and name.startswith(inside):
            continue
        kind = _kind(name, module, network)
        if kind:
            found[name] = kind
            inside = f"{name}." if kind == "norm" else ""  # a norm may hold its activation: one piece
    return found


def _kind(name: str, module: nn.Module, network: Network) -> str:
    title = type(module).__name__
    if name == "":
        return "rest"
    if name in network.blocks:
        return "merging" if title == "MergingBlock" else "block"
    for kind, classes in (("linear", nn.Linear), ("conv", nn.Conv2d)):
        if isinstance(module, classes):
            return kind
    if title == "UnfoldedConv2d":
        return "unfolding"
    if "Attention" in title:
        return "attention"
    if re.search(r"Norm(Act)?(\dd)?$", title):
        return "norm"
    leaf = next(module.children(), None) is None
    return "elementwise" if leaf and not title.startswith(NOTHING) else ""


class _Shapes:
    """Pieces from what modules take and give in one pass. `last` is how many features a position had where the last layer ended."""

    def __init__(self, network: Network):
        self.network, self.batch, self.last = network, 1, 0
        self.merges = any(type(network.module.get_submodule(block)).__name__ == "MergingBlock" for block in network.blocks)

    def begin(self, _: nn.Module, inputs: tuple) -> None:
        self.batch = len(inputs[0])

    def piece(self, name: str, module: nn.Module, kind: str, x: Tensor, output: Tensor, options: dict[str, object]) -> Piece:
        variant, shape, kernel = getattr(self, f"_{kind}")(module, x, output, options)
        if kind in ("linear", "conv", "norm"):
            self.last = shape[1]
        return Piece(name, self.network.depth_of(name), kind, variant, *shape, kernel=kernel)

    def _linear(self, module, x, output, options):
        outputs, inputs = module.weight.shape
        return "", (x.numel() // inputs // self.batch, outputs, inputs), SPARSE.get(type(module.weight).__name__, "")

    def _conv(self, module, x, output, options):
        rows, channels = output.shape[-1] * output.shape[-2], module.in_channels // module.groups
        grouped = "" if module.groups == 1 else " depthwise" if channels == 1 else f" in {module.groups} groups"
        area = module.kernel_size[0] * module.kernel_size[1]
        return f"{_geometry(module.kernel_size, module.stride)}{grouped}", (rows, module.out_channels, channels * area), ""

    def _unfolding(self, module, x, output, options):
        return _geometry(module.kernel_size, module.stride), (output.shape[-1] * output.shape[-2], module.linear.in_features, 0), ""

    def _attention(self, module, x, output, options):
        heads = getattr(module, "num_heads", None) or getattr(module, "heads", 1)
        width = getattr(module, "head_dim", None) or getattr(module, "v_dim", None) or x.shape[-1] // heads
        words = [str(width)] + ["sliced"] * hasattr(module, "qk_dim") + ["merging"] * self.merges
        words += ["with bias"] * (options.get("attn_mask") is not None)
        return " ".join(words), (x.shape[0] // self.batch * heads, x.shape[-2], getattr(module, "qk_dim", width)), ""

    def _norm(self, module, x, output, options):
        weight = getattr(module, "weight", None)
        width = weight.numel() if isinstance(weight, Tensor) and weight.numel() > 1 else self.last
        return type(module).__name__, self._spread(x, width), ""

    def _elementwise(self, module, x, output, options):
        return type(module).__name__, self._spread(x, self.last), ""

    def _block(self, module, x, output, options):
        return type(module).__name__, self._spread(output, self.last), ""

    def _merging(self, module, x, output, options):
        return type(module).__name__, (x.shape[1], x.shape[2], output.shape[1]), ""

    def _rest(self, module, x, output, options):
        return type(module).__name__ + " that merges" * self.merges, (1, x.numel() // self.batch, 0), ""

    def _spread(self, x: Tensor, width: int) -> tuple[int, int, int]:
        """Positions and width of one image's share of x."""
        size = x.numel() // self.batch
        return (size // width, width, 0) if width and size % width == 0 else (1, size, 0)


def _geometry(kernel: tuple[int, int], stride: tuple[int, int]) -> str:
    return f"{kernel[0]}×{kernel[1]} stride {stride[0]}"


def _tensor(value: object) -> Tensor:
    """The tensor in what a module takes or gives: token merging hands on a tuple whose first is one."""
    return value if isinstance(value, Tensor) else value[0]

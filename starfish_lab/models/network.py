"""A network with what the lab needs to know about it: its blocks, its prunable layers, its preprocessing."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from torch import nn

from starfish_lab.errors import LabError


@dataclass(frozen=True)
class Preprocessing:
    """From an image file to the network's input, in timm's terms. `input_size` is (C, H, W)."""

    input_size: tuple[int, int, int] = (3, 224, 224)
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bicubic"
    crop_pct: float = 0.9


@dataclass(frozen=True)
class UnitGroup:
    """Hidden units that can be removed without a trace.

    Unit j is row j of `producer`, entry j of every layer in `companions` (batch norms), and column j
    (input channel j) of `consumer`.
    """

    producer: str
    consumer: str
    companions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fold:
    """Input channels of a layer that earlier layers can supply in any order, at no cost when the network runs.

    Channel j of `consumer` (of C) is made by the j-th of the last C rows of `producer`, and passes entry j of every layer in
    `companions` (norms) on its way. With `segments` > 1 a channel may move only inside its own of that many equal segments.
    `place` says in words what the channels are: 'hidden units', 'head' or 'channels'.
    """

    producer: str
    consumer: str
    companions: tuple[str, ...] = ()
    segments: int = 1
    place: str = "hidden units"


@dataclass(frozen=True)
class Residual:
    """A layer whose output is added to the residual stream.

    `stream` names a module of the same block that runs earlier and meets that stream: the norm in front of the layer's branch.
    `gain` is the layer scale that the output passes, '' for none.
    """

    layer: str
    stream: str
    gain: str = ""


@dataclass(frozen=True)
class AttentionLayer:
    """A timm Attention module: its name, and that of its fused qkv layer with (3 · heads · head_dim) rows."""

    name: str
    qkv: str
    heads: int
    head_dim: int


@dataclass(frozen=True)
class Network:
    """A module and what is known about it. `blocks` are names of submodules, in depth order.

    The internal state of a block is the output of its submodule. `states` says what it looks like:
    'tokens' (B, N, D), one cosine a token, or 'image' (B, C, H, W), one cosine an image (STARFISH §1).

    >>> net = Network.of(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), blocks=["0", "1"], input_size=(4,))
    >>> list(prunable(net))
    ['0', '1']
    """

    module: nn.Module
    name: str
    blocks: tuple[str, ...]
    states: str = "tokens"
    prefix_tokens: int = 0  # class (and distillation) tokens in front of the patch tokens
    unit_groups: tuple[UnitGroup, ...] = ()
    attentions: tuple[AttentionLayer, ...] = ()
    foldable: tuple[Fold, ...] = ()
    residuals: tuple[Residual, ...] = ()
    token_gate: str = ""  # a module that all tokens pass, once, after their positions are added; it may let fewer through
    structured_refusal: str = ""  # why units cannot be removed, where they cannot
    preprocessing: Preprocessing = Preprocessing()
    num_classes: int = 0
    class_names: tuple[str, ...] = ()
    origin: str = ""  # where the weights come from, in words
    weights_sha256: str = ""
    facts: dict[str, object] = field(default_factory=dict)

    @classmethod
    def of(cls, module: nn.Module, *, blocks: list[str], input_size: tuple[int, ...] = (3, 224, 224), states: str = "tokens", **known) -> Network:
        """Any module with named blocks."""
        for name in blocks:
            try:
                module.get_submodule(name)
            except AttributeError:
                raise LabError(f"The module has no block '{name}'. Its submodules: {', '.join(n for n, _ in module.named_children())}.") from None
        usual = {"name": type(module).__name__, "preprocessing": Preprocessing(input_size=tuple(input_size))}
        return cls(module=module, blocks=tuple(blocks), states=states, **{**usual, **known})

    def copy(self) -> Network:
        """The same network with weights of its own."""
        return replace(self, module=copy.deepcopy(self.module))

    @property
    def has_class_token(self) -> bool:
        """Whether the first token of every block's state stands for the whole image."""
        return self.states == "tokens" and self.prefix_tokens > 0

    def block_of(self, layer: str) -> str:
        """Name of the block a layer stands in, '' outside every block."""
        return next((b for b in self.blocks if layer == b or layer.startswith(b + ".")), "")

    def depth_of(self, layer: str) -> int:
        """Index of the layer's block, -1 outside every block."""
        block = self.block_of(layer)
        return self.blocks.index(block) if block else -1


def prunable(network: Network, include: tuple[str, ...] = (), exclude: tuple[str, ...] = ()) -> dict[str, nn.Module]:
    """The prunable layers, in depth order: {layer name: Linear or Conv2d}.

    By default every Linear and every ungrouped Conv2d inside the blocks; patch embedding, stem, head,
    norms and depthwise convolutions stay out. `include` and `exclude` are glob patterns over layer names;
    `include` reaches any Linear or Conv2d, `exclude` wins.
    """
    layers = {}
    for name, module in network.module.named_modules():
        if not isinstance(module, nn.Linear | nn.Conv2d):
            continue
        default = network.block_of(name) != "" and getattr(module, "groups", 1) == 1
        included = default or any(fnmatchcase(name, pattern) for pattern in include)
        if included and not any(fnmatchcase(name, pattern) for pattern in exclude):
            layers[name] = module
    if not layers:
        raise LabError(f"No prunable layer is left in {network.name}: it has none in its blocks, or the excluded patterns {exclude} take them all.")
    return layers


def layer_kind(name: str) -> str:
    """'attention', 'mlp' or 'other' by the layer's name (arXiv 2606.02608, Online Resource 2)."""
    if "attn" in name:
        return "attention"
    return "mlp" if "mlp" in name or ".fc" in name else "other"

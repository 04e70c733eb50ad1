"""Token merging: similar tokens become one, so that later layers have fewer to work on (Bolya et al., ToMe, arXiv 2210.09461).

Written from the description in the paper. Between attention and MLP of a block:

    split     the tokens that may merge into a and b, every other one; prefix tokens (class, distillation, registers) may not
    compare   cos(k_i, k_j) of i in a and j in b; k is the attention's keys, mean over heads
    choose    every a has its best b; of these pairs the r most similar merge, so a token of b may take in several
    merge     their mean, weighted by how many original tokens each stands for: its size

Attention thereafter adds log(size) to a token's logits ('proportional'), so that a token of size s draws as much attention as s
equal ones: merging tokens that are exactly equal then changes no answer. Which pairs merge is a choice without a gradient;
through the mean the gradient flows.

The upper half of this file knows tensors alone, the lower half is the adapter to timm's VisionTransformer. What merging itself
computes, (N / 2)² · head_dim MACs a block for the cosines, is work like any other and is counted (as '<block>.matmul').
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import LongTensor, Tensor, nn
from torch.nn import functional as F

from starfish_lab.errors import LabError, RecipeError, WeightsError
from starfish_lab.execution.sliced_keys import SlicedKeys
from starfish_lab.execution.slicing import SlicedAttention
from starfish_lab.models.network import Network
from starfish_lab.recipe import TokensChoice
from starfish_lab.token_schedule import clamped, per_block, schedule

__all__ = ["MergingBlock", "MergingBlocks", "Tokens", "combine", "facts", "match", "merge", "merge_like", "remarks", "schedule"]


class Tokens(NamedTuple):
    """Tokens, and what became of the N original ones.

    values : (B, n, D)
    sizes : (B, n) float, how many original tokens each stands for, N in sum; None while nothing has merged
    source : (B, N) long, which of the n tokens each original one is in now; None while nothing has merged
    """

    values: Tensor
    sizes: Tensor | None = None
    source: LongTensor | None = None

    def expanded(self) -> Tensor:
        """(B, N, D): every original token reads the token it went into."""
        if self.source is None:
            return self.values
        return self.values.gather(1, self.source.unsqueeze(-1).expand(-1, -1, self.values.shape[-1]))


@torch.no_grad()
def match(keys: Tensor, r: int, prefix: int) -> LongTensor:
    """Where each of N tokens goes when r of them merge: its place (B, N) among the N − r that are left, which keep their order.

    keys : (B, N, d), the features that are compared; r ≤ (N − prefix) // 2
    """
    a, b = prefix + prefix % 2, prefix + 1 - prefix % 2  # the first of each: even places are a, odd ones b
    with _full_precision(keys.device):
        unit = F.normalize(keys.float(), dim=-1)
        similarity = unit[:, a::2] @ unit[:, b::2].mT  # (B, tokens in a, tokens in b)
    best, partner = similarity.max(dim=-1)  # (B, tokens in a)
    going = best.argsort(dim=1, descending=True, stable=True)[:, :r]  # stable: ties, as between blank patches, fall the same way everywhere
    gone, into = a + 2 * going, b + 2 * partner.gather(1, going)  # (B, r), places among all N
    stays = torch.ones(keys.shape[:2], dtype=torch.bool, device=keys.device).scatter(1, gone, False)
    target = stays.cumsum(1) - 1  # (B, N)
    return target.scatter(1, gone, target.gather(1, into))


def combine(tokens: Tokens, target: LongTensor, left: int) -> Tokens:
    """The `left` tokens after merging as `target` (B, n) of `match` says: means weighted by size, at least in float32."""
    values, sizes = tokens.values, tokens.sizes
    if sizes is None:
        sizes = torch.ones(target.shape, device=values.device)
    weighted = values * sizes.unsqueeze(-1)  # (B, n, D)
    total = sizes.new_zeros(len(sizes), left).scatter_add(1, target, sizes)  # (B, left)
    summed = weighted.new_zeros(len(values), left, values.shape[-1]).scatter_add(1, target.unsqueeze(-1).expand_as(weighted), weighted)
    source = target if tokens.source is None else target.gather(1, tokens.source)
    return Tokens((summed / total.unsqueeze(-1)).to(values.dtype), total, source)


def _full_precision(device: torch.device):
    """No autocast: in bf16 most cosines of similar tokens are equal, and chance would choose between them."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


# -- timm's vision transformers -------------------------------------------------------------------------------------------


class MergingBlock(nn.Module):
    """timm's Block with merging between attention and MLP. It holds the block's own children under their own names.

    Takes a tensor (B, N, D), in the first block, or Tokens, and returns Tokens. Nothing is kept between forward passes.

    r : tokens to merge, clamped to what there is
    prefix : tokens in front that never merge
    proportional : add log(size) to the attention logits
    """

    def __init__(self, block: nn.Module, *, r: int, prefix: int, proportional: bool):
        super().__init__()
        for name, child in block.named_children():
            self.add_module(name, child)
        self.training = block.training
        self.r, self.prefix, self.proportional = r, prefix, proportional
        self._keys = _Keys()
        self.attn.k_norm.register_forward_hook(self._keys)

    def forward(self, x: Tensor | Tokens) -> Tokens:
        tokens = x if isinstance(x, Tokens) else Tokens(x)
        values = tokens.values
        values = values + self.drop_path1(self.ls1(self.attn(self.norm1(values), attn_mask=self._bias(tokens))))
        keys = self._keys.take()  # (B, heads, n, head_dim)
        tokens = tokens._replace(values=values)
        r = clamped(values.shape[1], self.prefix, self.r)
        if r:
            tokens = combine(tokens, match(keys.mean(1), r, self.prefix), values.shape[1] - r)
        values = tokens.values
        return tokens._replace(values=values + self.drop_path2(self.ls2(self.mlp(self.norm2(values)))))

    def extra_repr(self) -> str:
        return f"r={self.r}, prefix={self.prefix}, proportional={self.proportional}"

    def _bias(self, tokens: Tokens) -> Tensor | None:
        """(B, 1, 1, n), added to the logits of all heads and queries; None where every size is 1."""
        if tokens.sizes is None or not self.proportional:
            return None
        return tokens.sizes.log()[:, None, None, :].to(tokens.values.dtype)


class MergingBlocks(nn.Sequential):
    """The blocks of a transformer, of which the norm and the head after them get a tensor again.

    expand : give them all original tokens (B, N, D). A pooling head then weighs each token by its size.
    """

    def __init__(self, *blocks: nn.Module, expand: bool):
        super().__init__(*blocks)
        self.expand = expand

    def forward(self, x: Tensor) -> Tensor:
        tokens = super().forward(x)
        return tokens.expanded() if self.expand else tokens.values


class _Keys:
    """Hears the keys as attention uses them: a forward hook of `k_norm`. Holds them between attention and merging, no longer."""

    def __init__(self) -> None:
        self.heard: Tensor | None = None

    def __call__(self, module: nn.Module, inputs: object, output: Tensor) -> None:
        self.heard = module.whole(output) if isinstance(module, SlicedKeys) else output

    def __deepcopy__(self, memo: dict) -> _Keys:
        return _Keys()  # a copied block hears its own attention; copy.deepcopy keeps block and hook on one object

    def take(self) -> Tensor:
        heard, self.heard = self.heard, None
        if heard is None:
            raise LabError("A block that merges tokens did not hear its attention's keys. Merge tokens after the attention was replaced, not before.")
        return heard


def merge(network: Network, choice: TokensChoice) -> None:
    """Make the network's blocks merge tokens, in place; names of layers and parameters stay. Without merging (r = 0) nothing changes.

    Raises RecipeError for a network whose tokens cannot merge, and where r does not fit the number of blocks.
    """
    if not any(choice.r):
        return
    check(network, choice)
    module, blocks = network.module, network.module.blocks
    counts = per_block(choice.r, len(blocks))
    merging = [MergingBlock(block, r=r, prefix=module.num_prefix_tokens, proportional=choice.proportional) for block, r in zip(blocks, counts)]
    module.blocks = MergingBlocks(*merging, expand=module.global_pool != "token").train(blocks.training)


def check(network: Network, choice: TokensChoice) -> None:
    """Raise RecipeError unless the network's tokens can merge so."""
    module, blocks = _blocks(network)
    schedule(module.patch_embed.num_patches + module.num_prefix_tokens, module.num_prefix_tokens, len(blocks), choice.r)


def unmerged(network: Network) -> Network:
    """A copy that keeps all its tokens; names of layers and parameters stay."""
    network = network.copy()
    if isinstance(getattr(network.module, "blocks", None), MergingBlocks):
        network.module.blocks = nn.Sequential(*map(_plain, network.module.blocks)).train(network.module.blocks.training)
    return network


def _plain(merging: MergingBlock) -> Block:
    """timm's block again, of the same children: it is nothing beside them."""
    block = Block.__new__(Block)
    nn.Module.__init__(block)
    for name, child in merging.named_children():
        block.add_module(name, child)
    hooks = block.attn.k_norm._forward_hooks
    for key in [key for key, hook in hooks.items() if isinstance(hook, _Keys)]:
        del hooks[key]
    return block.train(merging.training)


def remarks(network: Network, choice: TokensChoice) -> list[str]:
    """What a person should know about merging so many tokens in this network."""
    if not any(choice.r):
        return []
    module = network.module
    wanted = per_block(choice.r, len(module.blocks))
    tokens = module.patch_embed.num_patches + module.num_prefix_tokens
    entering = schedule(tokens, module.num_prefix_tokens, len(wanted), choice.r)
    short = [i for i, r in enumerate(wanted) if entering[i] - entering[i + 1] < r]
    if not short:
        return []
    i = short[0]
    return [
        f"Tokens run out: block {i} is asked to merge {wanted[i]} of its {entering[i]} tokens and merges {entering[i] - entering[i + 1]}, "
        f"at most every second one. {len(short)} of {len(wanted)} blocks merge fewer than asked for; {entering[-1]} tokens leave the last."
    ]


def facts(network: Network) -> dict[str, object] | None:
    """How the network merges, as plain data: {'r': one number a block, 'proportional'}; None where it does not."""
    merging = [block for block in network.module.modules() if isinstance(block, MergingBlock)]
    return {"r": [block.r for block in merging], "proportional": merging[0].proportional} if merging else None


def merge_like(network: Network, facts: dict[str, object] | None) -> None:
    """Make a rebuilt network merge as `facts` told of the saved one, in place. Raises WeightsError if they do not fit it."""
    if facts is None:
        return
    r, proportional = facts.get("r"), facts.get("proportional")
    if not isinstance(r, list) or not all(type(count) is int and count >= 0 for count in r) or not isinstance(proportional, bool):
        raise WeightsError(f"The saved token merging is {facts!r:.200}, not a list of whole numbers and true or false. Export the network again.")
    try:
        merge(network, TokensChoice(r=tuple(r), proportional=proportional))
    except RecipeError as error:
        raise WeightsError(f"The saved token merging does not fit {network.name}: {error}") from None


def _blocks(network: Network) -> tuple[VisionTransformer, Sequence[nn.Module]]:
    """The module and its blocks, all of which can merge."""
    module = network.module
    if not isinstance(module, VisionTransformer):
        raise RecipeError(
            f"{network.name} cannot merge tokens: merging is for plain vision transformers (vit_*, deit_*), whose tokens stand in a row. "
            "Leave tokens.r empty for this network."
        )
    if isinstance(module.blocks, MergingBlocks):
        raise RecipeError(f"{network.name} merges tokens already. Start from the network without merging.")
    for i, block in enumerate(module.blocks):
        if type(block) is not Block or type(block.attn) not in (Attention, SlicedAttention):
            kind = f"{type(block).__name__} with {type(block.attn).__name__}" if hasattr(block, "attn") else type(block).__name__
            raise RecipeError(f"{network.name} cannot merge tokens: its block {i} is a {kind} and not the usual attention followed by an MLP.")
    return module, module.blocks

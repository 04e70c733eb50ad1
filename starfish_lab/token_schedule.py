"""How many tokens enter each block when blocks merge some of them (ToMe, arXiv 2210.09461). No torch here.

>>> schedule(197, 1, 12, (8,))
[197, 189, 181, 173, 165, 157, 149, 141, 133, 125, 117, 109, 101]
"""

from __future__ import annotations

from collections.abc import Sequence

from starfish_lab.errors import RecipeError


def schedule(tokens: int, prefix: int, blocks: int, r: Sequence[int]) -> list[int]:
    """Tokens entering each of `blocks` blocks, and those that leave the last: blocks + 1 numbers.

    tokens : entering the first block, of which the first `prefix` (class, distillation, registers) never merge
    r : empty for no merging, one number for every block, or one number a block

    A block merges at most half of what may merge, so r is clamped where tokens run out: ViT-L with r = 8 in 24
    blocks ends at 7 tokens. Raises RecipeError if there are neither one nor `blocks` numbers, and for a number that not even
    the first block, with all its tokens, could merge.
    """
    entering, counts = [tokens], per_block(r, blocks)
    most = max(0, (tokens - prefix) // 2)
    if max(counts, default=0) > most:
        raise RecipeError(
            f"tokens.r asks a block to merge {max(counts)} tokens, and of the network's {tokens} at most {most} can merge in one block "
            f"(every second one, {prefix} never). Give a number from 0 to {most}."
        )
    for wanted in counts:
        entering.append(entering[-1] - clamped(entering[-1], prefix, wanted))
    return entering


def per_block(r: Sequence[int], blocks: int) -> list[int]:
    """The tokens each block is asked to merge. Raises RecipeError if r does not fit the number of blocks."""
    if len(r) <= 1:
        return list(r or (0,)) * blocks
    if len(r) != blocks:
        raise RecipeError(f"tokens.r has {len(r)} numbers and the network {blocks} blocks: give one number for all blocks, or {blocks}.")
    return list(r)


def clamped(tokens: int, prefix: int, wanted: int) -> int:
    """How many of `wanted` tokens really merge: every second one at most, prefix tokens never."""
    return max(0, min(wanted, (tokens - prefix) // 2))

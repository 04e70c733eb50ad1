"""Why an execution will or will not be faster, in sentences. Rules, not measurements, but for the shares of time, which the table gives."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import pandas as pd

from starfish_lab.execution.choice import Execution
from starfish_lab.prediction import pieces as of_pieces
from starfish_lab.prediction.pieces import BYTES, MATRIX_KINDS, Piece
from starfish_lab.prediction.shapes import counted
from starfish_lab.prediction.times import Shape, Times

MASK_ONLY = "mask only: zeros are multiplied like any other weight, so no speed-up is to be expected"
MERGED_ONLY = "merged tokens may save time, zero weights do not"
COMPILED = "the table is of eager passes: torch.compile fuses norms, activations and sums, and the interval reaches from none to all of them gone"
LAYOUT = "the table is of the usual layout of images: channels last may change it"
ROWS = 1000  # fewer than these, and 2:4 products do not pay: 64 and 512 rows slower, 1,280 faster (pytorch/ao issue 1460)
MULTIPLE = 16  # what the matrix units of GPUs and the vectors of CPUs take at a time
MOVING, STARTING = 0.25, 0.5  # shares of the time from which on a reason is worth saying


def by_rule(dense: list[Piece], fast: list[Piece], execution: Execution, batch: int) -> Iterator[str]:
    """Reasons that shapes alone give."""
    if execution.backend == "masked":
        yield MERGED_ONLY if execution.merged else MASK_ONLY
    before, behind = (sum(map(of_pieces.multiply_adds, pieces)) for pieces in (dense, fast))
    if behind < before:
        yield f"{before / behind:.2f} times fewer multiply-adds: the most to hope for, were those all"
    sparse = [piece for piece in fast if piece.kernel]
    if sparse and (rows := batch * max(piece.m for piece in sparse)) < ROWS:
        yield f"too few rows: 2:4 products pay from about {ROWS:,} rows on (a rule of thumb), and batch {batch} has {rows:,}"
    if sparse:
        yield f"{len(sparse)} of {sum(piece.kind in MATRIX_KINDS for piece in fast)} layers run through 2:4 kernels, which at most halve their time"
    odd = list(_odd(dense, fast))
    if odd:
        where = f"which hardware takes in worse bites ({odd[0]}): pruning.multiple keeps them in steps"
        yield f"{len(odd)} layers are left with sizes that are no multiple of {MULTIPLE}, {where}"
    if execution.compile:
        yield COMPILED
    if execution.channels_last:
        yield LAYOUT


def by_times(fast: list[Piece], rows: pd.DataFrame, times: Times, batch: int, interpolated: float) -> Iterator[str]:
    """Reasons that the table gives: where the time goes that is left.

    rows : of the table, in the precision
    """
    counts = counted(fast, batch)
    whole = times.total(counts).ms
    moving = times.total({shape: count for shape, count in counts.items() if shape[0] not in (*MATRIX_KINDS, "attention")}).ms / whole
    if moving > MOVING:
        yield f"memory-bound: {moving:.0%} of the time that is left goes to norms, activations, sums and reordering, which multiply nothing"
    width = BYTES[rows["precision"].iloc[0]]
    ridge = _ridge(rows, width)
    slow = times.total({shape: count for shape, count in counts.items() if _intensity(shape, width) < ridge}).ms / whole
    if slow > MOVING:
        yield f"memory-bound: {slow:.0%} of it goes to matrix products too small for the bytes they move, by this device's roofline"
    starting = times.to_start(counts) / whole
    if starting > STARTING:
        yield f"launch-bound: about {min(starting, 1):.0%} of it is what operations take to start, however small they are; larger batches gain more"
    if interpolated > 0.01:
        yield f"{interpolated:.0%} of the time is of shapes between those that were timed"


def _odd(dense: list[Piece], fast: list[Piece]) -> Iterator[str]:
    """Layers whose rows or columns were multiples and are none any more."""
    sizes = {piece.name: (piece.n, piece.k) for piece in dense if piece.kind in MATRIX_KINDS}
    for piece in fast:
        for before, now in zip(sizes.get(piece.name, ()), (piece.n, piece.k)):
            if now != before and before % MULTIPLE == 0 and now % MULTIPLE:
                yield f"{piece.name}: {now:,} of {before:,}"
                break


def _intensity(shape: Shape, width: int) -> float:
    """Multiply-adds a byte of a matrix product; ∞ of all else, which no roof of products stands over."""
    kind, *_, m, n, k = shape
    return m * n * k / (width * (m * k + n * k + m * n)) if kind in MATRIX_KINDS else math.inf


def _ridge(rows: pd.DataFrame, width: int) -> float:
    """Multiply-adds a byte at which the fastest product and the fastest traffic that were timed meet; 0 where one was not."""
    products, traffic = rows[rows["kind"].isin(MATRIX_KINDS)], rows[rows["kind"].isin(("norm", "elementwise", "block"))]
    if products.empty or traffic.empty:
        return 0.0
    fastest = (products["m"] * products["n"] * products["k"] / products["ms"]).max()
    return float(fastest / (2 * width * traffic["m"] * traffic["n"] / traffic["ms"]).max())


def listed(reasons: Iterable[str]) -> list[str]:
    """Each once, in order."""
    return list(dict.fromkeys(reasons))

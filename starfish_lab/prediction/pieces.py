"""A piece of a network: what runs at one place, with the shape that decides how long it takes. Plain data, no torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BYTES = {"float32": 4, "tf32": 4, "fp16": 2, "bf16": 2, "autocast": 4}  # of a number between two pieces
MATRIX_KINDS = ("linear", "conv")


@dataclass(frozen=True)
class Piece:
    """One place of a forward pass, for one image.

    | kind        | what                                                   | m                    | n           | k                             |
    |-------------|--------------------------------------------------------|----------------------|-------------|-------------------------------|
    | linear      | a matrix product, bias added                           | rows (tokens)        | out         | in                            |
    | conv        | as the matrix product that im2col would make of it     | positions of output  | channels    | channels in a group · area    |
    | unfolding   | what im2col does around its matrix product             | positions of output  | columns     | 0                             |
    | attention   | between qkv and proj: QKᵀ, softmax, AV                 | heads (· windows)    | tokens      | dimensions of Q and K a head  |
    | norm        | a norm                                                 | positions            | width       | 0                             |
    | elementwise | an activation, a scale, a pooling                      | positions            | width       | 0                             |
    | merging     | a block's own work where it merges tokens              | tokens entering      | width       | tokens that go on             |
    | block       | a block's own work: its residual sums                  | positions            | width       | 0                             |
    | rest        | the network's own work: tokens put together, flattened | 1                    | input size  | 0                             |

    variant : what else decides, in words: class of the module, geometry of a convolution, width of a head and whether its keys
        are compared for merging and its logits get a bias
    kernel : that multiplies, '' for the usual one
    """

    name: str
    depth: int
    kind: str
    variant: str
    m: int
    n: int
    k: int = 0
    kernel: str = ""

    @property
    def shape(self) -> tuple[str, str, str, int, int, int]:
        """What decides its time: pieces of one shape are one row of the table."""
        return self.kind, self.variant, self.kernel, self.m, self.n, self.k

    @property
    def family(self) -> tuple[str, str, str]:
        """Pieces of one family differ in shape alone."""
        return self.kind, self.variant, self.kernel


def terms(kind: str, m: np.ndarray, n: np.ndarray, k: np.ndarray, width: int) -> np.ndarray:
    """(shapes, terms): what the time of a piece is a sum of, each to be paid at some rate. The first is 1, what it takes to start at all.

    Matrix products: multiply-adds, bytes of weights, bytes of rows in and out. Attention: multiply-adds, logits, bytes of Q, K, V and
    of what comes out. Merging: positions, bytes, cosines. All others: positions, bytes. `width` is the bytes of a number.
    """
    one = np.ones_like(m)
    if kind in MATRIX_KINDS:
        parts = one, m * n * k, width * n * k, width * (m * k + m * n)
    elif kind == "attention":
        parts = one, 2 * m * n**2 * k, m * n**2, 4 * width * m * n * k, m * n
    elif kind == "merging":
        parts = one, m, 2 * width * m * n, m * k
    else:
        parts = one, m, 2 * width * m * n
    return np.stack(parts, axis=-1)


def multiply_adds(piece: Piece) -> int:
    """Of one image; 0 where nothing multiplies."""
    if piece.kind in MATRIX_KINDS:
        return piece.m * piece.n * piece.k
    return 2 * piece.m * piece.n**2 * piece.k if piece.kind == "attention" else 0

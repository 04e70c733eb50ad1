"""Figures others have published, with their sources. Shown beside measured ones and never mixed with them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import pandas as pd

from starfish_lab import settings

FOLDER = settings.ASSETS / "literature"

# Executions as the authors' released timings name them.
AUTOCAST, MATCHED, SPARSE = "dense, float32 weights under bf16 autocast", "dense, pure bf16", "native 2:4 (CUTLASS), pure bf16"
CUDNN, IM2COL, SPARSE_CONV = "dense cuDNN convolution, bf16 autocast", "dense im2col, bf16", "im2col + native 2:4, bf16"


@dataclass(frozen=True, kw_only=True)
class Headline:
    """A speed-up that a paper puts in front: what it divides, and which dense execution of the same data is its equal.

    `fast` ÷ `slow` are the executions behind `claim`; `fair` is the dense one to compare with. Where the released timings lack
    the two, `images_per_s` holds them as stated, (fast, slow).
    """

    claim: float
    gpu: str
    model: str
    batch: int
    fast: str
    slow: str
    fair: str
    setting: str
    compares: str
    source: str
    images_per_s: tuple[float, float] | None = None


RELEASED = "arXiv 2606.02608 and its authors' released timings"
HEADLINES = (
    Headline(
        claim=1.388, gpu="A40", model="ViT-B/16", batch=64, fast=SPARSE, slow=AUTOCAST, fair=MATCHED, setting="2:4, 8 tokens merged a block",
        compares="mixed precision: dense keeps float32 weights under bf16 autocast, the 2:4 network is wholly in bf16", source=RELEASED,
    ),
    Headline(
        claim=2.705, gpu="A100", model="ViT-B/16", batch=128, fast=SPARSE, slow="dense, float32 without TF32", fair=MATCHED,
        setting="2:4, no tokens merged",
        compares="float32 without TF32: dense runs without tensor cores, the sparse kernel with them, in a float32 format that keeps 1 of 2 "
        "weights and not 2 of 4 (pytorch/pytorch issue 115662)",
        source="arXiv 2606.02608, abstract and its authors' released scripts", images_per_s=(1254.1, 463.6),
    ),
    Headline(
        claim=1.62, gpu="A40", model="ResNet152d", batch=128, fast=SPARSE_CONV, slow=IM2COL, fair=CUDNN, setting="2:4 convolutions, reordered inputs",
        compares="im2col against im2col: the dense convolution is unfolded too, though nobody would run it so", source=RELEASED,
    ),
)  # fmt: skip


def latencies() -> pd.DataFrame:
    """Published throughput: gpu, model, variant, batch, execution, images_per_s, source."""
    return _table("published_latency").copy()


def accuracies() -> pd.DataFrame:
    """Published accuracy: model, method, pattern, sparsity, mac_reduction_pct, top1 and dense_top1 (%), of_dense, images_or_epochs, source.

    `of_dense` is top1 / dense_top1; two rows are published as such a fraction alone and have no top1.
    The sparsity of a k:n pattern is 1 − k/n, which its source leaves to the reader.
    """
    table = _table("published_accuracy").copy()
    published = table["top1"].astype(str)
    fraction = pd.to_numeric(published.str.extract(r"^([\d.]+) % of dense$")[0]) / 100
    table["top1"] = pd.to_numeric(published, errors="coerce")
    table["of_dense"] = fraction.fillna(table["top1"] / table["dense_top1"])
    kept = table["pattern"].str.extract(r"^(\d+):(\d+)$").astype(float)
    table["sparsity"] = table["sparsity"].fillna(1 - kept[0] / kept[1])
    return table


@cache
def _table(name: str) -> pd.DataFrame:
    return pd.read_csv(FOLDER / f"{name}.csv")

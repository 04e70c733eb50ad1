"""Published figures beside the lab's own: which networks they speak of, where they stand on an axis, what their ratios compare."""

from __future__ import annotations

import re
from collections.abc import Iterable

import pandas as pd

from starfish_lab import literature

# What papers call the networks that timm names so; the first pattern that fits counts.
NAMES = (
    (r"vit_base_patch16_224", ("ViT-B/16",)), (r"vit_base_patch16_384", ("ViT-B/16 384",)), (r"vit_large_patch16_224", ("ViT-L/16",)),
    (r"deit_tiny", ("DeiT-T",)), (r"deit_small", ("DeiT-S",)), (r"deit_base", ("DeiT-B",)),
    (r"deit3_large", ("DeiT3-L",)), (r"deit3_huge", ("DeiT3-H",)),
    (r"swin_tiny_patch4_window7_224", ("Swin-T",)), (r"hiera_base_plus", ("Hiera-B+",)), (r"convnext_base", ("ConvNeXt-B",)),
    (r"convnextv2_base", ("ConvNeXtV2-B", "ConvNeXtV2-Base")),
    (r"resnet18\b", ("ResNet18",)), (r"resnet34\b", ("ResNet34",)), (r"resnet50\b", ("ResNet50",)), (r"resnet50d", ("ResNet50d",)),
    (r"resnet101d", ("ResNet101d",)), (r"resnet152d", ("ResNet152d",)),
)  # fmt: skip
AUTOCAST = "dense, float32 weights under bf16 autocast"
MATCHED = "dense, pure bf16"


def names(model: str) -> tuple[str, ...]:
    """What papers call a timm network; empty where none speaks of it.

    >>> names("deit_base_patch16_224.fb_in1k"), names("starter")
    (('DeiT-B',), ())
    """
    return next((known for form, known in NAMES if re.match(form, model)), ())


def cards(device: str) -> tuple[str, ...]:
    """The literature's names that a device's own name contains.

    >>> cards("NVIDIA A100-SXM4-80GB"), cards("A40"), cards("NVIDIA A4000")
    (('A100',), ('A40',), ())
    """
    return tuple(word for word in re.split(r"[\s-]+", device) if word in ("A40", "A100"))


def accuracies(models: Iterable[str], runs: pd.DataFrame, *, cost: str) -> pd.DataFrame:
    """Published accuracies of the runs' networks that have a value on a cost axis: label, cost, top1 (fraction), method, source.

    On MACs they stand where their stated reduction puts them, on parameters at (1 - sparsity) of the dense ones.
    """
    table, found = literature.accuracies(), []
    for model in models:
        rows = table[table["model"].isin(names(model))]
        dense = runs[runs["model"] == model].iloc[0]
        left = {
            "macs_g": dense["macs_g_dense"] * (1 - pd.to_numeric(rows["mac_reduction_pct"], errors="coerce") / 100),
            "parameters_m": dense["parameters_m_dense"] * (1 - pd.to_numeric(rows["sparsity"], errors="coerce")),
        }
        if cost in left:
            found.append(rows.assign(label=rows["model"], cost=left[cost], top1=pd.to_numeric(rows["top1"], errors="coerce") / 100))
    columns = ["label", "cost", "top1", "method", "source"]
    return pd.concat(found)[columns].dropna(subset=["cost", "top1"]) if found else pd.DataFrame(columns=columns)


def recoveries(model: str | None = None) -> pd.DataFrame:
    """Published shares of the dense accuracy of which no accuracy is published: model, label, sparsity, share (fraction), source.

    With `model` only those of this timm network.

    >>> recoveries("deit_base_patch16_224")["share"].tolist(), len(recoveries("starter"))
    ([0.82, 0.4], 0)
    """
    table = literature.accuracies()
    rows = table[table["top1"].isna() & table["of_dense"].notna()]
    rows = rows if model is None else rows[rows["model"].isin(names(model))]
    return rows.assign(label=rows["method"] + ", published", share=rows["of_dense"])[["model", "label", "sparsity", "share", "source"]]


def ratios(latencies: pd.DataFrame) -> pd.DataFrame:
    """Published throughputs of one card and network, a row a batch size, and what the 2:4 kernel gains over either dense baseline.

    Columns: batch, the executions in images/s, and, where all three were timed, `headline` (over mixed precision) and `matched`
    (over dense in the same pure bf16).
    """
    if latencies.empty:
        return latencies
    wide = latencies.pivot_table(index="batch", columns="execution", values="images_per_s").reset_index().rename_axis(columns=None)
    sparse = [name for name in wide if str(name).startswith("native 2:4")]
    if sparse and {AUTOCAST, MATCHED} <= set(wide):
        wide["headline"] = wide[sparse[0]] / wide[AUTOCAST]
        wide["matched"] = wide[sparse[0]] / wide[MATCHED]
    return wide


def statement(card: str, model: str, table: pd.DataFrame) -> str:
    """What the published ratios of a card and network compare, in words; empty where there is nothing to warn of."""
    parts = []
    if "headline" in table:
        best = table.loc[table["headline"].idxmax()]
        parts.append(
            f"Published for {model} on an {card}, batch {int(best['batch'])}: **{best['headline']:.3f}×**. It compares dense float32 weights "
            "in mixed precision (bf16 autocast) with a 2:4 network wholly in bf16. "
            f"Against dense in the same bf16 the same data give **{best['matched']:.3f}×**."
        )
    if card == "A100" and model == "ViT-B/16":
        parts.append(
            "The published **2.705×** (A100, batch 128, no token merging) compares dense in float32 without TF32 "
            "with a 2:4 kernel that uses tensor cores; a figure at matched precision was not published with it."
        )
    return "\n\n".join(parts)

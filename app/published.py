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
# What 2:4 was timed against: (fast, the baseline its authors chose, the dense one to compare with).
FAMILIES = (
    (literature.SPARSE, literature.AUTOCAST, literature.MATCHED), (literature.SPARSE_CONV, literature.IM2COL, literature.CUDNN),
)  # fmt: skip
# The published accuracy of a network that was timed: how the method is called beside each timed variant.
TIMED_METHODS = {"2:4 + ToMe r=8": r"^CAST 2:4 ?\+ ?ToMe$", "2:4 conv + permutation": r"^CAST-conv\+perm$", "2:4": r"^CAST 2:4 \+ free restore$"}


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
    """Published accuracies of the runs' networks that have a value on a cost axis: label, cost, top1 (fraction), method, source, pattern, trained.

    On MACs they stand where their stated reduction puts them, on parameters at (1 - sparsity) of the dense ones. The index is that of
    `literature.accuracies`; `trained` says on what, in its source's words.
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
            top1 = pd.to_numeric(rows["top1"], errors="coerce") / 100
            found.append(rows.assign(label=rows["model"], cost=left[cost], top1=top1, trained=rows["images_or_epochs"].fillna("")))
    columns = ["label", "cost", "top1", "method", "source", "pattern", "trained"]
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


def timed_accuracies(rows: pd.DataFrame, batch: int) -> pd.DataFrame:
    """Published timings of sparse networks at a batch size whose accuracy was published too.

    Columns: label, execution, cost (ms a batch), top1 (fraction), source. The two were published apart: which checkpoint was timed is not said.
    """
    table, found = literature.accuracies(), []
    for row in rows[(rows["batch"] == batch) & ~rows["execution"].str.startswith("dense")].itertuples() if len(rows) else ():
        same = table[table["model"].eq(row.model) & table["method"].str.contains(TIMED_METHODS.get(row.variant, "^$"))].dropna(subset=["top1"])
        for known in same.itertuples():
            label = f"{row.model}, {known.method}, {row.gpu}"
            cost = 1e3 * batch / row.images_per_s
            found.append(dict(label=label, execution=row.execution, cost=cost, top1=known.top1 / 100, source=row.source))
    return pd.DataFrame(found, columns=["label", "execution", "cost", "top1", "source"])


def ratios(latencies: pd.DataFrame) -> pd.DataFrame:
    """Published throughputs of one card and network, a row a batch size, and what 2:4 gains over either dense baseline.

    Columns: batch, the executions in images/s, and, where all three were timed, `headline` (over the baseline its authors chose) and
    `matched` (over dense in the same pure bf16; of a convolution over cuDNN's own).
    """
    if latencies.empty:
        return latencies
    wide = latencies.pivot_table(index="batch", columns="execution", values="images_per_s").reset_index().rename_axis(columns=None)
    for fast, slow, fair in FAMILIES:
        if {fast, slow, fair} <= set(wide):
            wide["headline"], wide["matched"] = wide[fast] / wide[slow], wide[fast] / wide[fair]
    return wide


def statement(card: str, model: str, table: pd.DataFrame) -> str:
    """What the published ratios of a card and network compare, in words; empty where there is nothing to warn of."""
    parts = []
    if "headline" in table:
        best = table.loc[table["headline"].idxmax()]
        conv = literature.CUDNN in table
        chose = "im2col + 2:4 with a dense convolution that is unfolded too" if conv else (
            "dense float32 weights in mixed precision (bf16 autocast) with a 2:4 network wholly in bf16"
        )  # fmt: skip
        fair = "cuDNN's own convolution" if conv else "dense in the same bf16"
        parts.append(
            f"Published for {model} on an {card}, batch {int(best['batch'])}: **{best['headline']:.3f}×**. It compares {chose}. "
            f"Against {fair} the same data give **{best['matched']:.3f}×**."
        )
    parts += [f"Published as **{h['claim']}** ({h['setting']}): {h['compares']}. {h['says']}" for h in headlines(card, model) if h["stated"]]
    return "\n\n".join(parts)


def headlines(card: str = "", model: str = "") -> list[dict[str, object]]:
    """The papers' headline speed-ups, by default all: claim, where, setting, compares, ratio, matched, says, source, stated.

    `ratio` and `matched` come from the released timings wherever these hold the rows; else `stated` is True, `ratio` is of the
    figures as stated, and `matched` is None.
    """
    table, found = literature.latencies(), []
    for h in literature.HEADLINES:
        if card not in ("", h.gpu) or model not in ("", h.model):
            continue
        timed = table[(table["gpu"] == h.gpu) & (table["model"] == h.model) & (table["batch"] == h.batch)].set_index("execution")["images_per_s"]
        stated = h.images_per_s is not None
        fast, slow = h.images_per_s if stated else (timed[h.fast], timed[h.slow])
        there = timed[h.fast] / timed[h.fair]
        fair = "cuDNN's own convolution" if h.fair == literature.CUDNN else "dense in the same bf16"
        says = f"Against {fair} the same data give {there:.3f}×."
        if stated:
            says = f"No figure at matched precision was published with it; with 8 tokens merged a block, 2:4 reaches {there:.3f}× of {fair} there."
        digits = len(str(h.claim).partition(".")[2])
        found.append(dict(
            claim=f"{fast / slow:.{digits}f}×", where=f"{h.model} on an {h.gpu}, batch {h.batch}", setting=h.setting, compares=h.compares,
            ratio=fast / slow, matched=None if stated else there, says=says, source=h.source, stated=stated,
        ))  # fmt: skip
    return found

"""The MAC ledger: what each layer costs, counted in every way people count, so that two figures are compared only where they mean the same.

A MAC is one multiply-add of a Linear, a Conv2d or a product of two activations, for one image. Columns of the table, a layer a row:

    layer, kind, depth, type   'linear', 'conv' or 'matmul' (QKᵀ and AV of one attention); kind and depth as in `models.network`
    tokens_paper, tokens_true  positions the layer works on when tokens are merged: counted at the block's input, and as run;
                               0 for products in attention whose tokens differ from block to block
    dense_macs                 of the dense network with all its tokens
    paper_macs, true_macs      with tokens merged and every weight in place, under either count of tokens
    removed, cuts              share of the layer's work that zeros would save; True where the layer is smaller, not only masked
    paper_effective, effective the two counts when zeros cost nothing: the published way, and the lab's own
    sparse_execution           what real kernels do: a 2:4 tensor-core kernel halves the layers it can take; all other zeros cost as much as weights
    others_count               what fvcore and thop say: no products of two activations (attention is one function to them), zeros as work
    why_dense                  why no sparse kernel takes a layer that has zeros, '' elsewhere

**Tokens.** arXiv 2606.02608 counts all of block l at the tokens that enter it. Token merging drops r of them between attention and MLP, so the
MLP really works on r fewer: ViT-B with r = 8 costs 13.10 G and not 13.56 G. The similarities that merging itself computes, below 0.1 % of that, are
left out of both.

**Kernels.** A 2:4 kernel of the CUTLASS backend in bf16 takes a matrix whose rows are a multiple of 32 and whose columns one of 64; convolutions
take part as the matrix product that im2col makes of them, which the paper does for ungrouped ones of at least 4 input channels. A pattern
such as 6:12 leaves some four consecutive weights with three of them, so no kernel of today gains from it.

**Other counters.** fvcore has no rule for `scaled_dot_product_attention` (said in MzeroMiko/VMamba issue 296), thop hooks modules and this is a
function (ultralytics/thop pull request 166), and `FlopCounterMode` of torch counted it as 0 on a CPU (pytorch issue 195460; on the meta
device, where the lab counts, it is right). None of them looks at values, so a zero weight costs as much as any other.
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from starfish_lab import literature
from starfish_lab.recipe import PruningChoice, TokensChoice
from starfish_lab.token_schedule import schedule
from starfish_lab.whatif import Profile

KERNEL_ROWS, KERNEL_COLS = 32, 64  # multiples that the CUTLASS 2:4 kernel takes in bf16 and fp16
IRREGULAR = "zeros in no pattern a kernel knows"
IM2COL_CHANNELS = 4  # fewest input channels of a convolution that is lowered to a matrix product
WORK_COLUMNS = ("layer", "kind", "depth", "type", "rows", "cols", "in_features", "conv_groups", "macs", "positions")


@dataclass(frozen=True)
class Work:
    """Everything a network multiplies. `layers` has WORK_COLUMNS, a row a layer; positions are tokens or pixels, NaN for a matmul.

    tokens : that enter the first block, prefix tokens among them; 0 where merging makes no sense
    """

    layers: pd.DataFrame
    tokens: int = 0
    prefix: int = 0
    blocks: int = 0


def work_of(profile: Profile) -> Work:
    """The work in a profile. One made before profiles held tokens and matmuls is read as far as it goes."""
    rows = []
    for row in profile.layers.itertuples():
        size = row.rows * row.cols
        positions = round(row.macs_g * 1e9 / size)  # exact again: a profile keeps six digits
        linear = len(row.shape) == 2
        rows.append((row.layer, row.kind, row.depth, "linear" if linear else "conv", row.rows, row.cols, row.in_features, row.conv_groups,
                     positions * size, float(positions)))  # fmt: skip
    blocks = list(profile.facts["blocks"])
    tokens = profile.facts.get("tokens")
    if tokens is None:
        tokens = _tokens(rows) if len(profile.attentions) else 0
    matmuls = profile.facts.get("matmuls")
    if matmuls is None:
        matmuls = {f"{row.name}.matmul": 2 * tokens**2 * row.heads * row.head_dim for row in profile.attentions.itertuples(index=False)}
    for name, macs in matmuls.items():
        depth = next((i for i, block in enumerate(blocks) if name.startswith(block + ".")), -1)
        rows.append((name, "attention" if "attn" in name else "other", depth, "matmul", 0, 0, 0, 1, macs, np.nan))
    prefix = profile.facts.get("prefix_tokens", 1 if tokens else 0)
    return Work(pd.DataFrame(rows, columns=list(WORK_COLUMNS)), int(tokens), int(prefix), len(blocks))


def _tokens(rows: list[tuple]) -> int:
    """Tokens of a plain transformer: the positions of the first Linear inside its blocks."""
    return next((int(row[-1]) for row in rows if row[2] >= 0 and row[3] == "linear"), 0)


def of_profile(
    profile: Profile, pruning: PruningChoice | None = None, tokens: TokensChoice | None = None, removed: Mapping[str, float] | None = None
) -> pd.DataFrame:
    """The ledger of a profiled network. Arguments as for `table`; columns as at the top of this file."""
    return table(work_of(profile), pruning, tokens, removed)


def table(
    work: Work, pruning: PruningChoice | None = None, tokens: TokensChoice | None = None, removed: Mapping[str, float] | None = None, *,
    irregular: Collection[str] = (),
) -> pd.DataFrame:  # fmt: skip
    """The ledger, a row a layer that multiplies, in the order of the network.

    removed : {layer: share of its weights that are zero, 0 to 1}; layers without an entry are dense
    pruning : says which pattern the zeros have, without which no kernel gains anything
    irregular : layers whose zeros do not stand in that pattern, such as those a pruned start brings along
    """
    pruning = pruning or PruningChoice()
    rows = work.layers.copy()
    rows["macs"] = rows["macs"].astype(float)
    entering = _entering(work, tokens)
    share = dict(removed or {})
    structured = pruning.pattern == "structured"
    if structured:  # of QKᵀ and AV the first shrinks with the Q/K dimensions, which are two thirds of a qkv layer's rows
        share |= {f"{name[: -len('.qkv')]}.matmul": 0.75 * gone for name, gone in share.items() if name.endswith(".attn.qkv")}
    rows["removed"] = [float(share.get(layer, 0.0)) for layer in rows["layer"]]
    rows["cuts"] = structured & rows["removed"].gt(0)

    merged = [_merged(row, entering, work.tokens) for row in rows.itertuples()]
    rows["tokens_paper"], rows["tokens_true"] = [m[0] for m in merged], [m[1] for m in merged]
    rows["paper_macs"], rows["true_macs"] = [m[2] for m in merged], [m[3] for m in merged]
    rows["why_dense"] = [
        "" if structured or not row.removed else IRREGULAR if row.layer in irregular else _why_dense(row, pruning) for row in rows.itertuples()
    ]
    halves = rows["removed"].gt(0) & rows["why_dense"].eq("") & ~rows["cuts"]
    left = 1 - rows["removed"]
    rows["dense_macs"] = rows["macs"]
    rows["paper_effective"], rows["effective"] = rows["paper_macs"] * left, rows["true_macs"] * left
    rows["sparse_execution"] = np.where(halves, rows["true_macs"] / 2, np.where(rows["cuts"], rows["effective"], rows["true_macs"]))
    rows["others_count"] = np.where(rows["type"] == "matmul", 0.0, np.where(rows["cuts"], rows["effective"], rows["true_macs"]))
    return rows[[
        "layer", "kind", "depth", "type", "tokens_paper", "tokens_true", "dense_macs", "paper_macs", "true_macs", "removed", "cuts",
        "paper_effective", "effective", "sparse_execution", "others_count", "why_dense",
    ]]  # fmt: skip


def _entering(work: Work, tokens: TokensChoice | None) -> list[int]:
    """Tokens entering every block, and one more entry: those leaving the last. Empty where nothing merges."""
    r = tuple(tokens.r) if tokens else ()
    if not any(r) or not work.tokens or not work.blocks:
        return []
    return schedule(work.tokens, work.prefix, work.blocks, r)


def _merged(row, entering: list[int], tokens: int) -> tuple[float, float, float, float]:
    """Positions and MACs of one layer under merging: (paper's, true) positions, then MACs."""
    inside = entering and 0 <= row.depth < len(entering) - 1 and (row.type == "matmul" or row.positions == tokens)
    if not inside:
        positions = row.positions if row.type != "matmul" else float(tokens if row.depth >= 0 else 0)
        return positions, positions, row.macs, row.macs
    paper = entering[row.depth]
    true = paper if row.kind == "attention" else entering[row.depth + 1]  # merging stands between the two halves of a block
    power = 2 if row.type == "matmul" else 1
    return float(paper), float(true), row.macs * (paper / tokens) ** power, row.macs * (true / tokens) ** power


def runs_natively(pruning: PruningChoice) -> bool:
    """Whether every four consecutive inputs keep two at most, which is what a 2:4 kernel needs.

    >>> [runs_natively(PruningChoice(pattern="n_m", keep=k, group=n)) for k, n in ((2, 4), (1, 4), (1, 2), (6, 12), (3, 4))]
    [True, True, True, False, False]
    """
    return pruning.pattern == "n_m" and 4 % pruning.group == 0 and pruning.keep * (4 // pruning.group) <= 2


def _why_dense(row, pruning: PruningChoice) -> str:
    """Why a layer with zeros gains nothing from a 2:4 kernel; '' where it does."""
    if not runs_natively(pruning):
        return f"no kernel for {pruning.keep}:{pruning.group}" if pruning.pattern == "n_m" else IRREGULAR
    if row.type == "matmul":
        return "no weights"
    if row.type == "conv" and row.conv_groups != 1:
        return "grouped convolution"
    if row.type == "conv" and row.in_features < IM2COL_CHANNELS:
        return f"fewer than {IM2COL_CHANNELS} input channels"
    if row.rows % KERNEL_ROWS:
        return f"{row.rows} rows are no multiple of {KERNEL_ROWS}"
    return f"{row.cols} columns are no multiple of {KERNEL_COLS}" if row.cols % KERNEL_COLS else ""


def totals(found: pd.DataFrame, pruning: PruningChoice | None = None) -> pd.DataFrame:
    """The whole network by every way of counting: convention, dense_g, after_g, reduction_pct, note.

    The first row appears for an n:m pattern without merged tokens: the figure such results are published with, as if every
    multiply-add of the network were in the pattern.
    """
    dense = found["dense_macs"].sum()
    merges = bool((found["true_macs"] < found["dense_macs"] * (1 - 1e-12)).any())
    rows = []
    if pruning is not None and pruning.pattern == "n_m" and not merges:
        nominal = dense * pruning.keep / pruning.group
        rows.append(("as printed", dense, nominal, f"nominal {pruning.keep}:{pruning.group}: as if every layer had the pattern"))
    counted = found["type"] != "matmul"
    unfused = found.loc[counted, "dense_macs"].sum()
    took = found["removed"].gt(0) & found["why_dense"].eq("") & ~found["cuts"]
    masked = found["removed"].gt(0) & found["why_dense"].ne("")
    kernels = f"{int(took.sum())} layers halved by a 2:4 kernel, {int(masked.sum())} with zeros run dense"
    rows += [
        ("block input", dense, found["paper_effective"].sum(), "as arXiv 2606.02608 counts: all of a block at the tokens that enter it, zeros free"),
        ("true", dense, found["effective"].sum(), "every layer at the tokens it works on, zeros free: what a perfect kernel would do"),
        ("kernels of today", dense, found["sparse_execution"].sum(), kernels),
        ("no sparse kernel", dense, np.where(found["cuts"], found["effective"], found["true_macs"]).sum(),
         "zeros cost as much as weights; merged tokens and cut shapes count"),
        ("fvcore, thop", unfused, found["others_count"].sum(), "no attention products, zeros as work"),
    ]  # fmt: skip
    out = pd.DataFrame(rows, columns=["convention", "dense_g", "after_g", "note"])
    out["dense_g"], out["after_g"] = out["dense_g"] / 1e9, out["after_g"] / 1e9
    out.insert(3, "reduction_pct", 100 * (1 - out["after_g"] / out["dense_g"]))
    return out


def published_zeros(work: Work, keep: int, group: int) -> dict[str, float]:
    """{layer: share of zeros} where arXiv 2606.02608 puts a keep:group pattern.

    Networks with Linear layers in their blocks: those and the head, where the group divides the inputs. Others: ungrouped
    convolutions of at least 4 input channels; their head stays dense.
    """
    rows = work.layers
    linear = bool(((rows["type"] == "linear") & (rows["depth"] >= 0)).any())
    if linear:
        chosen = rows[(rows["type"] == "linear") & (rows["in_features"] % group == 0) & (rows["rows"] >= group)]
    else:
        convolutions = (rows["type"] == "conv") & (rows["conv_groups"] == 1) & (rows["in_features"] >= IM2COL_CHANNELS)
        chosen = rows[convolutions & (rows["in_features"] % group == 0)]
    return dict.fromkeys(chosen["layer"], 1 - keep / group)


def paper_table(works: Mapping[str, Work]) -> pd.DataFrame:
    """Every published reduction of MACs of a k:n pattern beside the lab's: one row a published result.

    `works` by the literature's name of a network ('ViT-B/16'). Columns: model, method, pattern, dense_g, published_pct,
    nominal_pct (1 - k/n), paper_pct (published way of counting), true_pct, kernels_pct (kernels of today), pointwise_pct
    (where only 1×1 convolutions take the pattern; None for networks of Linear layers).
    """
    known = literature.accuracies()
    known = known[known["source"].eq("arXiv 2606.02608") & known["pattern"].str.fullmatch(r"\d+:\d+") & known["model"].isin(list(works))]
    rows = []
    for row in known.itertuples():
        keep, group = map(int, row.pattern.split(":"))
        work, pruning = works[row.model], PruningChoice(pattern="n_m", keep=keep, group=group)
        zeros = published_zeros(work, keep, group)
        merging = TokensChoice(r=(8,)) if "ToMe" in row.method and "no ToMe" not in row.method else None
        by = totals(table(work, pruning, merging, zeros), pruning).set_index("convention")["reduction_pct"]
        layers = work.layers.set_index("layer")
        convolutional = (layers.loc[list(zeros), "type"] == "conv").all()
        pointwise = {layer: gone for layer, gone in zeros.items() if layers.loc[layer, "in_features"] == layers.loc[layer, "cols"]}
        one = totals(table(work, pruning, merging, pointwise), pruning).set_index("convention")["reduction_pct"]["true"]
        rows.append({
            "model": row.model, "method": row.method, "pattern": row.pattern, "dense_g": work.layers["macs"].sum() / 1e9,
            "published_pct": float(row.mac_reduction_pct), "nominal_pct": 100 * (1 - keep / group), "paper_pct": by["block input"],
            "true_pct": by["true"], "kernels_pct": by["kernels of today"], "pointwise_pct": one if convolutional else None,
        })  # fmt: skip
    return pd.DataFrame(rows)

"""2:4 products: which layers' weights have the format, which fit a kernel, and the one place that compresses them.

At most 2 of every 4 consecutive inputs of a row may be nonzero. PyTorch's packers do not ask: of a group that has more they keep
two and drop the others silently (torch/sparse/_semi_structured_conversions.py), so every group is looked at here. Rows and
columns must be multiples of what the kernel says (SparseSemiStructuredTensor*._DTYPE_SHAPE_CONSTRAINTS), 16 × 16 for cuSPARSELt and
32 × 64 for CUTLASS in 16 bits. A float32 weight would be packed 1:2, another pattern (pytorch#115550).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from starfish_lab.errors import LabError
from starfish_lab.execution import precision as arithmetic
from starfish_lab.models.gather import can_gather
from starfish_lab.models.network import Network
from starfish_lab.pruning.masks import Masks

KEEP, GROUP = 2, 4
LAYERS = (nn.Linear, nn.Conv2d)

Fitting = dict[str, nn.Module]  # {layer name: layer} to convert
Dense = dict[str, str]  # {layer name: why it stays dense}


def subclass(kernel: str) -> type:
    """PyTorch's tensor class of a kernel."""
    name = {"cusparselt": "SparseSemiStructuredTensorCUSPARSELT", "cutlass": "SparseSemiStructuredTensorCUTLASS"}[kernel]
    return getattr(torch.sparse, name)


def compress(weight: Tensor, kernel: str) -> Tensor:
    """A 2:4 weight (rows, columns) on a CUDA device, compressed: `F.linear` with it runs the sparse kernel."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # 'prototype stage', once a process
        return subclass(kernel).from_dense(weight.contiguous())


def refuses(precision: str, kernel: str, *, device: str) -> str | None:
    """Why 2:4 kernels do not run in this precision or on this device, in one sentence; None where they do, or nobody is here to ask."""
    if not device.startswith("cuda"):
        return f"2:4 kernels need a CUDA GPU of compute capability ≥ 8.0, and this is '{device}': choose such a device."
    if precision not in arithmetic.DTYPES:
        return f"'{precision}' keeps weights in float32, whose semi-structured format is 1:2 and not 2:4: choose fp16 or bf16."
    found = arithmetic.capability(device)
    if found is None:
        return None
    if found < arithmetic.AMPERE:
        return f"2:4 kernels need a CUDA GPU of compute capability ≥ 8.0, and {device} has {found[0]}.{found[1]}: choose another device."
    said = trial(kernel, device, arithmetic.dtype_of(precision))
    if not said:
        return None
    other = "cutlass" if kernel == "cusparselt" else "cusparselt"
    return (
        f"The kernel '{kernel}' of torch {torch.__version__} does not run on {device}, compute capability {found[0]}.{found[1]} ({said}): "
        f"try the kernel '{other}', or another torch."
    )


@cache
def trial(kernel: str, device: str, dtype: torch.dtype) -> str:
    """What a small product through the kernel complains of, '' where it is right. Versions and GPUs differ, so it is tried:
    CUTLASS on Hopper, say, is 'supported only on GPUs with compute capability 8.x' (pytorch#132928).
    """
    weight = torch.tensor([0.0, 1.0, 0.0, 2.0], device=device, dtype=dtype).repeat(128, 32)  # (128, 128)
    rows = torch.eye(128, device=device, dtype=dtype)
    try:
        with torch.inference_mode():
            found = F.linear(rows, compress(weight, kernel))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # the kernels raise RuntimeError, NotImplementedError, ValueError
        return str(error).strip().partition("\n")[0][:200] or type(error).__name__
    return "" if torch.equal(found, weight.t()) else "its product is wrong"


def first_bad_group(weight: Tensor) -> tuple[int, int] | None:
    """(row, group) of the first group of 4 inputs that has more than 2 nonzeros; None where every group is 2:4.

    weight : (rows, columns), columns a multiple of 4
    """
    counts = (weight != 0).unflatten(1, (-1, GROUP)).sum(-1)  # (rows, groups)
    bad = (counts > KEEP).nonzero()
    return (int(bad[0, 0]), int(bad[0, 1])) if len(bad) else None


def check_legal(name: str, weight: Tensor) -> None:
    """Raise LabError naming the layer and its first bad group unless the weight, flattened to (rows, inputs), is 2:4."""
    rows = weight.detach().flatten(1)
    if rows.shape[1] % GROUP:
        raise LabError(f"{name} has {rows.shape[1]} inputs, no multiple of {GROUP}, so it is not 2:4: leave it out.")
    bad = first_bad_group(rows)
    if bad is not None:
        row, group = bad
        values = int((rows[row, GROUP * group : GROUP * (group + 1)] != 0).sum())
        raise LabError(
            f"{name} is not 2:4: row {row}, inputs {GROUP * group} to {GROUP * group + GROUP - 1} hold {values} nonzeros "
            f"where {KEEP} may be: prune with the pattern 'n_m', 2 of 4."
        )


def select(network: Network, masks: Masks, *, kernel: str, precision: str, kinds: tuple[type, ...] = (nn.Linear,)) -> tuple[Fitting, Dense]:
    """Which of the masked layers run through the kernel, and why the others stay dense.

    A layer that was not pruned, is of another kind or has a shape that the kernel does not take stays dense. Raises LabError for a
    pruned one that is not 2:4.
    """
    fitting, dense = {}, {}
    for name, mask in masks.items():
        layer = network.module.get_submodule(name)
        if mask.all():
            dense[name] = "not pruned"
        elif not isinstance(layer, kinds) or not can_gather(layer):
            dense[name] = "a convolution" if isinstance(layer, nn.Conv2d) else f"a {type(layer).__name__}"
        elif reason := misfit(layer.weight, kernel, precision):
            dense[name] = reason
        else:
            check_legal(name, layer.weight.detach() * mask.to(layer.weight.device))
            fitting[name] = layer
    return fitting, dense


def misfit(weight: Tensor, kernel: str, precision: str) -> str:
    """Why a weight, flattened to (rows, columns), has no shape for the kernel; '' where it has."""
    limits = subclass(kernel)._DTYPE_SHAPE_CONSTRAINTS[arithmetic.dtype_of(precision)]
    rows, columns = weight.flatten(1).shape
    if rows % limits.sparse_min_rows:
        return f"its {rows} rows are no multiple of {limits.sparse_min_rows}"
    if columns % limits.sparse_min_cols:
        return f"its {columns} inputs are no multiple of {limits.sparse_min_cols}"
    return ""


class SemiStructuredLinear(nn.Linear):
    """A Linear with a compressed weight, which asks for contiguous rows. Made by `convert`."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input.contiguous(), self.weight, self.bias)


def convert(layer: nn.Linear, kernel: str) -> None:
    """Compress the layer's weight, in place. Layers with a forward of their own, which gather or unfold, make contiguous rows there."""
    layer.weight = nn.Parameter(compress(layer.weight.detach(), kernel), requires_grad=False)
    if type(layer) is nn.Linear:
        layer.__class__ = SemiStructuredLinear


def sentence(fitting: Iterable[str], dense: Dense, how: str) -> str:
    """'47 of 48 layers run 2:4 (cutlass); dense stays head (its 1000 rows are no multiple of 32)', each reason once with its layers."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in dense.items():
        by_reason.setdefault(reason, []).append(name)
    count = len(list(fitting))
    said = f"{count} of {count + len(dense)} layers run {how}"
    return said + "".join(f"; dense stays {', '.join(names)} ({reason})" for reason, names in by_reason.items())


def refusal_of(find: Callable[[], tuple[Fitting, Dense]], name: str) -> str | None:
    """Why no layer can be converted, in one sentence; None where one can."""
    try:
        fitting, dense = find()
    except LabError as error:
        return str(error)
    if fitting:
        return None
    reasons = "; ".join(f"{layer}: {reason}" for layer, reason in list(dense.items())[:2])
    return f"{name} has no pruned layer that 2:4 kernels take ({reasons or 'nothing is masked'}): prune with the pattern 'n_m', 2 of 4."

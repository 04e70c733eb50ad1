"""From the choices of the form to a latency plan, and what can be told beforehand that will not run. Plain data; no Streamlit."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product

from app.latency_rows import spoken
from starfish_lab.execution import BACKENDS
from starfish_lab.execution.choice import Execution, choices
from starfish_lab.recipe import Recipe

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
USUAL_BATCHES = (1, 8, 32)
MODES = ("eager", "compiled")
MERGING = ("none", "also", "only")
CUDA_PRECISIONS = ("tf32",)  # a mode of CUDA's tensor cores


def ways() -> list[str]:
    """Labels of every backend with every kernel that it may use, in float32 and eager."""
    found = []
    for backend in BACKENDS.names():
        options = list(BACKENDS.options(backend))
        for values in product(*(choices(backend, option) for option in options)):
            found.append(Execution(backend=backend, options=dict(zip(options, values))).label)
    return found


def executions(labels: Iterable[str], precisions: Iterable[str], modes: Iterable[str], merging: str = "none") -> list[Execution]:
    """Every way in every precision and mode, with tokens merged or not or both.

    >>> [execution.label for execution in executions(["sliced"], ["bf16"], ["eager", "compiled"], "only")]
    ['merged+sliced, bf16', 'merged+sliced, bf16, compiled']
    """
    merged = {"none": (False,), "only": (True,)}.get(merging, (False, True))
    return [
        Execution(backend=way.backend, options=way.options, merged=merges, precision=precision, compile=mode == "compiled")
        for way in map(Execution.of, labels) for merges, precision, mode in product(merged, precisions, modes)
    ]  # fmt: skip


def sorted_out(wanted: list[Execution], recipe: Recipe, kind: str) -> tuple[list[Execution], dict[str, list[str]]]:
    """What may run on a device of the kind ('cpu', 'mps', 'cuda', '' for not known), and {reason: executions} of what surely will not."""
    fit, refused = [], {}
    for execution in wanted:
        if reason := refusal(execution, recipe, kind):
            refused.setdefault(reason, []).append(spoken(execution.label))
        else:
            fit.append(execution)
    return fit, refused


def refusal(execution: Execution, recipe: Recipe, kind: str = "") -> str:
    """Why an execution surely will not run, in a sentence; '' where only trying tells."""
    needs = str(BACKENDS.constant(execution.backend, "NEEDS", "cpu"))
    sparse = execution.backend == "semi_structured" or (execution.backend == "im2col" and execution.options.get("kernel") != "dense")
    pruning = recipe.pruning
    if needs.startswith("cuda") and kind in ("cpu", "mps"):
        return f"it needs a CUDA GPU of compute capability {needs.removeprefix('cuda').strip() or '8.0'} or more, and runs are sent to {_said(kind)}"
    if execution.precision in CUDA_PRECISIONS and kind in ("cpu", "mps"):
        return f"TF32 is a mode of CUDA's tensor cores, and runs are sent to {_said(kind)}"
    if sparse and execution.precision in ("float32", "tf32"):
        return "in float32 the hardware's format keeps 1 of 2 weights and not 2 of 4: choose fp16 or bf16"
    if execution.precision not in BACKENDS.constant(execution.backend, "PRECISIONS", (execution.precision,)):
        return f"it does not run in {execution.precision}"
    if execution.backend == "sliced" and pruning.pattern not in ("structured", "kept"):
        return "only a structured pattern removes whole units that can be cut out: choose it on Explore"
    if sparse and pruning.pattern == "structured":
        return "a structured pattern leaves no 2:4 weights: choose the pattern 2:4 on Explore"
    if sparse and pruning.pattern == "n_m" and not _halves(pruning.keep, pruning.group):
        return f"{pruning.keep}:{pruning.group} weights are not 2:4: some four neighbours keep more than two"
    if sparse and pruning.pattern == "unstructured":
        return "zeros anywhere are not 2:4: choose the pattern 2:4 on Explore"
    return ""


def _halves(keep: int, group: int) -> bool:
    """True where every four neighbours surely keep at most two."""
    return keep <= 2 and group % 4 == 0


def _said(kind: str) -> str:
    return "a CPU" if kind == "cpu" else "an Apple GPU"

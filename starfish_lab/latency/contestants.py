"""Who races: every execution of a plan, built and proven once, with what it weighs and what it computes."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch

from starfish_lab import tokens as merging
from starfish_lab.errors import Refused
from starfish_lab.execution.build import Ready, ready
from starfish_lab.execution.choice import DENSE, Execution, merging_of
from starfish_lab.execution.proof import Proof
from starfish_lab.latency.plan import LatencyPlan
from starfish_lab.measure import latency, macs
from starfish_lab.measure.memory import Peak
from starfish_lab.models.network import Network
from starfish_lab.progress import Reporter
from starfish_lab.pruning.masks import Masks

PROVEN_ON = 8  # images


class Networks(NamedTuple):
    """What executions are made of."""

    dense: Network
    pruned: Network
    masks: Masks


@dataclass
class Contestant:
    """An execution that is ready to run, or the reason why it is not. Plain data but for `ready`.

    note, proof : of `ready`
    macs : multiply-adds of an image that it computes: of a 2:4 kernel half of its layer's, of a mask all
    weight_bytes : of its weights on the device
    tokens : how many it merges, '' for none
    """

    execution: Execution
    ready: Ready | None = None
    refusal: str = ""
    note: str = ""
    proof: Proof | None = None
    macs: int = 0
    weight_bytes: int = 0
    tokens: str = ""

    @property
    def label(self) -> str:
        return self.execution.label

    @property
    def is_baseline(self) -> bool:
        """The dense network with all its tokens."""
        return self.execution.backend == DENSE and not self.execution.merged

    def call(self, batch: int) -> Callable[[], object]:
        """Runs it once on `batch` images of noise that already lie on the device."""
        run = self.ready.module
        images = latency.noise(batch, self.ready.network.preprocessing.input_size, "cpu")
        return partial(run, run.inputs(images))


def build(
    plan: LatencyPlan, executions: Sequence[Execution], networks: Networks, *, device: str, reporter: Reporter
) -> list[Contestant]:  # fmt: skip
    """Every execution as a contestant, all on the device at once: one race then pairs any two of them."""
    found = []
    for done, execution in enumerate(executions):
        reporter.check()
        found.append(_contestant(plan, execution, networks, device))
        if found[-1].refusal:
            reporter.note(f"{execution.label} is not timed: {found[-1].refusal}")
        reporter.progress(done + 1, len(executions))
    return found


def trial(contestant: Contestant, call: Callable[[], object], *, device: str) -> int | None:
    """Run it once at a new batch size. Returns the bytes of weights and of the most that lay beside them; None where nobody counts."""
    call()  # kernels are chosen, and compiled, with buffers of their own
    with Peak(device) as peak:
        call()
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
    return None if peak.bytes is None else contestant.weight_bytes + peak.bytes - peak.before


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: of kernels, of compilers, which wrap it, and of the host torch says so without a class of its own."""
    said = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "out of memory" in said or "can't allocate memory" in said


def first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "")[:200] or type(error).__name__


def _contestant(plan: LatencyPlan, execution: Execution, networks: Networks, device: str) -> Contestant:
    before, (dense, pruned, masks) = _allocated(device), networks
    try:
        found = ready(
            dense, pruned, masks, execution, device=device, tokens=plan.recipe.tokens, images=_proof_images(plan, execution, dense)
        )  # fmt: skip
    except Refused as error:
        return Contestant(execution, refusal=str(error))
    except Exception as error:
        if not out_of_memory(error):
            raise
        empty(device)
        return Contestant(execution, refusal=f"memory of {device} ran out while it was built: name fewer executions")
    network = found.network
    merged = merging.facts(network)
    counts = [] if merged is None else merged["r"]
    return Contestant(
        execution, ready=found, note=found.note, proof=found.proof,
        macs=_macs(network, dense if execution.backend == DENSE else pruned, plan, execution),
        weight_bytes=_allocated(device) - before if device.startswith("cuda") else _bytes(network),
        tokens=",".join(map(str, counts if len(set(counts)) > 1 else counts[:1])),
    )  # fmt: skip


def _proof_images(plan: LatencyPlan, execution: Execution, dense: Network) -> torch.Tensor:
    """Eight; where that would be compiled for nothing, a batch that is timed."""
    batch = PROVEN_ON
    if execution.compile:
        batch = next((batch for batch in plan.batches if batch >= PROVEN_ON), plan.batches[-1])
    return latency.noise(batch, dense.preprocessing.input_size, "cpu")


def _macs(network: Network, source: Network, plan: LatencyPlan, execution: Execution) -> int:
    """Counted on what runs. Compressed weights tell no shape of a product, so their network is counted as it was before, at half."""
    halved = [name for name, module in network.module.named_modules() if _compressed(getattr(module, "weight", None))]
    if halved:
        network = merging.unmerged(source)
        if execution.merged:
            merging.merge(network, merging_of(plan.recipe.tokens))
    shapes = macs.on_meta(network)
    shapes.module.float()
    table = macs.layer_macs(shapes)
    share = table["layer"].map(lambda layer: 0.5 if any(name == layer or name.startswith(f"{layer}.") for name in halved) else 1.0)
    return round((table["macs"] * share).sum())


def _compressed(weight: object) -> bool:
    kind = getattr(torch.sparse, "SparseSemiStructuredTensor", ())
    return isinstance(weight, kind) or isinstance(getattr(weight, "data", None), kind)


def _bytes(network: Network) -> int:
    return sum(tensor.nbytes for tensor in (*network.module.parameters(), *network.module.buffers()))


def _allocated(device: str) -> int:
    if not device.startswith("cuda"):
        return 0
    gc.collect()  # networks that are done with, hooks in circles, hold their memory until then
    return torch.cuda.memory_allocated(device)


def empty(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.empty_cache()

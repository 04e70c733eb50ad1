"""An execution made ready: the network built, compiled if asked, and proven to answer as the masked one does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from starfish_lab import tokens as merging
from starfish_lab.errors import LabError, Refused
from starfish_lab.execution import BACKENDS, proof
from starfish_lab.execution import precision as arithmetic
from starfish_lab.execution.choice import DENSE, USUAL, Execution, merging_of
from starfish_lab.execution.proof import Proof
from starfish_lab.execution.running import Run
from starfish_lab.models.network import Network
from starfish_lab.pruning.masks import Masks
from starfish_lab.recipe import TokensChoice

IMAGES = 8  # of noise, to prove on


@dataclass(frozen=True)
class Ready:
    """A network that can be timed.

    network : as built, on the device, in evaluation mode; not compiled. Its module must not be moved: compressed weights cannot be
    module : what to call, on what `module.inputs(images)` returns: a `Run`, compiled if the execution says so
    note : what a person should know of it, '' for nothing
    proof : that it answers as the masked network, or as the dense one where it is that
    """

    network: Network
    module: Run
    note: str
    proof: Proof


def refusal(dense: Network, pruned: Network, masks: Masks, execution: Execution, *, device: str, tokens: TokensChoice = USUAL) -> str | None:
    """Why the network cannot be run so on this device, in one sentence; None where it can. Builds nothing and needs no GPU here."""
    if reason := arithmetic.refuses(execution.precision, device=device):
        return reason
    if execution.merged:
        try:
            merging.check(dense, merging_of(tokens))
        except LabError as error:
            return str(error)
    if execution.backend == DENSE:
        return None
    answer = BACKENDS.module(execution.backend).refuses
    return answer(pruned, masks, device=device, precision=execution.precision, **execution.options)


def ready(
    dense: Network, pruned: Network, masks: Masks, execution: Execution, *, device: str = "cpu", tokens: TokensChoice = USUAL,
    images: Tensor | None = None,
) -> Ready:  # fmt: skip
    """The execution of a pruned network, proven. Both networks are left as they are.

    pruned : with its masks, whether it merges tokens or not
    tokens : how tokens merge where the execution merges them; where it says nothing, 8 a block
    images : (n, C, H, W) to prove on; noise where none are given

    Raises Refused, with the reason, where the execution cannot be built, compiled, or proven equal.
    """
    if reason := refusal(dense, pruned, masks, execution, device=device, tokens=tokens):
        raise Refused(reason)
    source = merging.unmerged(dense if execution.backend == DENSE else pruned)
    if execution.merged:
        merging.merge(source, merging_of(tokens))
    if images is None:
        images = torch.randn(IMAGES, *source.preprocessing.input_size, generator=torch.Generator().manual_seed(0))
    expected, exact = _expected(source, masks, execution, images, device)
    with _explained(f"'{execution.label}' does not run here", "choose another execution"):
        network, note = _build(source, masks, execution, device)
        if execution.channels_last:
            _lay_out(network.module)
        run = Run(network.module, precision=execution.precision, device=device, channels_last=execution.channels_last)
        logits = run(run.inputs(images))
    if execution.compile:
        with _explained("torch.compile does not work here", "run it eagerly, or install a C++ compiler"):
            run.forward = _compiled(network.module)
            logits = run(run.inputs(images))
    found = proof.compare(logits, expected, exact)
    if not logits.isfinite().all():
        raise Refused(f"'{execution.label}' gives logits that are not finite: choose a precision with a wider range, such as bf16 or float32.")
    if not expected.any():
        raise Refused(f"{source.name} answers 0 to every image, so nothing can be proven of '{execution.label}': give it weights of its own.")
    if not found.equal:
        raise Refused(
            f"'{execution.label}' and the network it must equal {found}, more than {found.tolerance:.1e}, so it is not used: "
            "choose another precision or kernel."
        )
    return Ready(network, run, note, found)


def _build(source: Network, masks: Masks, execution: Execution, device: str) -> tuple[Network, str]:
    if execution.backend == DENSE:
        return arithmetic.cast(source, execution.precision, device), ""
    backend, options = BACKENDS.module(execution.backend), {"precision": execution.precision, **execution.options}
    network = backend.build(source, masks, device=device, **options)
    note = backend.note(source, masks, **options)
    return network, note


def _expected(source: Network, masks: Masks, execution: Execution, images: Tensor, device: str) -> tuple[Tensor, Tensor | None]:
    """Logits of the network to equal, eager: in the execution's precision, and in float32 where that is another."""
    reference = Execution(backend=DENSE if execution.backend == DENSE else "masked")
    answers = []
    for precision in dict.fromkeys((execution.precision, "float32")):
        network, _ = _build(source, masks, replace(reference, precision=precision), device)
        run = Run(network.module, precision=precision, device=device)
        answers.append(run(run.inputs(images)))
    return answers[0], answers[1] if len(answers) > 1 else None


def _compiled(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """The module through torch.compile, which happens when it first meets images of a size.

    As many compilations are allowed as there are executions and batch sizes: past the limit, 8, torch would run eagerly and say
    nothing. Each batch size is compiled for itself, as eager kernels are chosen.
    """
    for limit in ("recompile_limit", "accumulated_recompile_limit"):
        setattr(torch._dynamo.config, limit, max(4096, getattr(torch._dynamo.config, limit)))
    return torch.compile(module, dynamic=False)


@contextmanager
def _explained(what: str, instead: str) -> Iterator[None]:
    """Errors of kernels and compilers, which may be of any kind, as a refusal; a lack of memory and what the lab says itself pass."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, LabError):
        raise
    except Exception as error:
        first = next(iter(str(error).strip().splitlines()), "")[:160]
        raise Refused(f"{what} ({type(error).__name__}: {first}): {instead}.") from error


def _lay_out(module: nn.Module) -> None:
    """Weights of convolutions channels last, in place; `module.to` would touch compressed weights too."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last)

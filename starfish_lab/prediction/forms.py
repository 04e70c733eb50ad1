"""The forms of a network that are timed for a table of layer times, and how long that takes. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from starfish_lab.execution.choice import DENSE, PRECISIONS, Execution
from starfish_lab.recipe import PruningChoice, Recipe, TokensChoice

SHARES = (0.25, 0.5, 0.75)  # of units cut, between which others are interpolated
MERGED = 8  # tokens that merge in a block where the recipe merges none
KERNELS = ("cusparselt", "cutlass")
SECONDS = 2.0  # of timed passes for each form, batch and precision
ROUNDS = (7, 200)  # at least, where passes are long, and at most
BESIDE = 1.25  # of that time: what loading, proving and warming up add
SPEED = {"cpu": 50.0, "cuda": 5000.0}  # GMACs a second to reckon with where nothing was timed yet


@dataclass(frozen=True)
class Form:
    """A way to run the network, pruned so (None: not at all)."""

    name: str
    execution: Execution
    pruning: PruningChoice | None = None
    tokens: TokensChoice = TokensChoice()


def forms(recipe: Recipe, precision: str, *, cuda: bool = False, most: int = 0) -> Iterator[Form]:
    """Dense; units and Q/K dimensions cut by each of SHARES; tokens merged as the recipe says and half as many, each also with units cut;
    on a CUDA device 2:4 and unfolded convolutions by every kernel. Not all of them exist of every network.

    most : tokens that a block can merge at most, 0 where none can
    """
    dense = Execution(backend=DENSE, precision=precision)
    sliced = replace(dense, backend="sliced")
    yield Form("dense", dense)
    for share in SHARES:
        yield Form(f"sliced {share:.0%}", sliced, _cut(share))
    if most:
        whole = recipe.tokens if any(recipe.tokens.r) else TokensChoice(r=(min(MERGED, most),))
        half = replace(whole, r=tuple((r + 1) // 2 for r in whole.r))
        for tokens, share in ((whole, 0.5), (half, 0.25)):
            name = f"merged r={','.join(map(str, tokens.r))}"
            yield Form(name, replace(dense, merged=True), None, tokens)
            yield Form(f"{name}, sliced {share:.0%}", replace(sliced, merged=True), _cut(share), tokens)
    if not cuda:
        return
    if precision in ("fp16", "bf16"):
        for kernel in KERNELS:
            yield Form(f"2:4 ({kernel})", Execution(backend="semi_structured", options={"kernel": kernel}, precision=precision), _HALVED)
            yield Form(f"im2col ({kernel})", Execution(backend="im2col", options={"kernel": kernel}, precision=precision), _HALVED)
    yield Form("im2col (dense)", Execution(backend="im2col", precision=precision), _HALVED)


def _cut(share: float) -> PruningChoice:
    return PruningChoice(pattern="structured", sparsity=share)


_HALVED = PruningChoice(pattern="n_m", keep=2, group=4)


def precisions(device: str) -> tuple[str, ...]:
    """Those that a table of a device is of: on a CPU float32 alone, since others may be far slower there."""
    return PRECISIONS if device.startswith(("cuda", "gpu:")) else ("float32",)


def seconds(recipe: Recipe, macs_g: float, *, device: str, merges: bool = True) -> float:
    """About how long the table of a recipe's network takes on a device, e.g. 'cpu' or 'gpu:A40', where nothing is known of its speed."""
    cuda = len(precisions(device)) > 1
    count = sum(len(list(forms(recipe, precision, cuda=cuda, most=int(merges)))) for precision in precisions(device))
    least = [3 * ROUNDS[0] * batch * macs_g / SPEED["cuda" if cuda else "cpu"] for batch in set(recipe.measure.batch_sizes)]
    return BESIDE * count * sum(max(SECONDS, floor) for floor in least)

"""What an execution leaves of every piece of a network, told from its profile. No torch.

The rules are those of `execution` and `tokens`, in arithmetic: `tests/test_prediction_shapes.py` builds the networks and compares.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import pandas as pd

from starfish_lab import whatif
from starfish_lab.errors import LabError, RecipeError
from starfish_lab.execution.choice import DENSE, Execution, merging_of
from starfish_lab.ledger import runs_natively
from starfish_lab.prediction.pieces import Piece
from starfish_lab.recipe import PruningChoice, Recipe, TokensChoice
from starfish_lab.token_schedule import schedule
from starfish_lab.whatif import Profile

MULTIPLES = {"cusparselt": (16, 16), "cutlass": (32, 64)}  # rows and columns that a 2:4 kernel takes in 16 bits, as torch.sparse says


class Unpredictable(LabError):
    """Nothing can be said before a run, for the reason given."""


def dense(profile: Profile) -> list[Piece]:
    """The pieces of the unpruned network. Raises Unpredictable for a profile from before profiles held them."""
    if profile.pieces.empty:
        raise Unpredictable(f"The profile of {profile.facts['name']} is from before profiles held every layer's shape: profile the network again.")
    return [Piece(**row) for row in profile.pieces.to_dict("records")]


def after(profile: Profile, recipe: Recipe, execution: Execution) -> list[Piece]:
    """The pieces that are left when the network, pruned by the recipe, runs so. Raises Unpredictable with what the execution refuses."""
    pieces = dense(profile)
    backend = execution.backend
    rule = {DENSE: _as_they_are, "masked": _as_they_are, "sliced": _sliced, "semi_structured": _semi_structured, "im2col": _im2col}.get(backend)
    if rule is None:
        raise Unpredictable(f"What the execution '{backend}' makes of a network's shapes shows only in a run.")
    try:
        pieces = rule(pieces, profile, recipe.pruning, execution)
        return merged(pieces, profile, merging_of(recipe.tokens)) if execution.merged else pieces
    except RecipeError as error:
        raise Unpredictable(str(error)) from None


def counted(pieces: Iterable[Piece], batch: int) -> Counter:
    """{shape at this batch size: how many pieces have it}, shapes as the table of layer times has them."""
    return Counter((piece.kind, piece.variant, piece.kernel, piece.m * batch, piece.n, piece.k) for piece in pieces)


def _as_they_are(pieces: list[Piece], profile: Profile, choice: PruningChoice, execution: Execution) -> list[Piece]:
    return pieces


# -- units cut ----------------------------------------------------------------------------------------------------------------


def _sliced(pieces: list[Piece], profile: Profile, choice: PruningChoice, execution: Execution) -> list[Piece]:
    """Smaller producers and consumers, and everything between them narrower."""
    if choice.pattern != "structured":
        raise Unpredictable(f"The pattern '{choice.pattern}' leaves no whole unit masked that could be cut out: choose 'structured'.")
    sizes = whatif.structured_sizes(profile, choice)
    narrower = _between(pieces, profile.groups, sizes.outputs)
    layers = profile.layers.set_index("layer")
    inputs_of = layers["in_features"].to_dict()

    def cut(piece: Piece) -> Piece:
        if piece.kind == "attention" and sizes.dims.get(piece.name):
            width, _, rest = piece.variant.partition(" ")
            return replace(piece, variant=" ".join(filter(None, (width, "sliced", rest))), k=piece.k - sizes.dims[piece.name])
        if piece.name in sizes.outputs:
            area = piece.k // inputs_of[piece.name]
            return replace(piece, n=sizes.outputs[piece.name], k=area * sizes.inputs[piece.name])
        return replace(piece, n=narrower[piece.name]) if piece.name in narrower else piece

    return [cut(piece) for piece in pieces]


def _between(pieces: list[Piece], groups: pd.DataFrame, outputs: dict[str, int]) -> dict[str, int]:
    """{norm or activation: its new width} of those that run between a producer and its consumer and are as wide as the producer."""
    place = {piece.name: i for i, piece in enumerate(pieces)}
    found = {}
    for group in groups.itertuples():
        if group.producer not in outputs or group.producer not in place or group.consumer not in place:
            continue
        for piece in pieces[place[group.producer] + 1 : place[group.consumer]]:
            if piece.n == group.units and piece.kind in ("norm", "elementwise"):
                found[piece.name] = outputs[group.producer]
    return found


# -- 2:4 kernels and unfolded convolutions ------------------------------------------------------------------------------------


def _semi_structured(pieces: list[Piece], profile: Profile, choice: PruningChoice, execution: Execution) -> list[Piece]:
    fitting = _halved(pieces, profile, choice, execution, ("linear",))
    return [replace(piece, kernel=execution.options["kernel"]) if piece.name in fitting else piece for piece in pieces]


def _im2col(pieces: list[Piece], profile: Profile, choice: PruningChoice, execution: Execution) -> list[Piece]:
    """A convolution becomes a matrix product, and the unfolding around it; with a sparse kernel only where that takes it."""
    kernel = execution.options["kernel"]
    if kernel == "dense":
        fitting, kernel = _prunable(profile, choice), ""
    else:
        fitting = _halved(pieces, profile, choice, execution, ("linear", "conv"))
    found = []
    for piece in pieces:
        if piece.name in fitting and piece.kind == "conv" and "groups" not in piece.variant and "depthwise" not in piece.variant:
            found.append(replace(piece, name=f"{piece.name}.linear", kind="linear", variant="", kernel=kernel))
            found.append(replace(piece, kind="unfolding", n=piece.k, k=0))
        else:
            found.append(replace(piece, kernel=kernel) if piece.name in fitting and piece.kind == "linear" and kernel else piece)
    if not any(piece.kind == "unfolding" for piece in found):
        raise Unpredictable(f"im2col is for convolutions, and {profile.facts['name']} has none among its pruned layers that it could take.")
    return found


def _halved(pieces: list[Piece], profile: Profile, choice: PruningChoice, execution: Execution, kinds: tuple[str, ...]) -> set[str]:
    """Layers that a 2:4 kernel takes."""
    if not runs_natively(choice):
        raise Unpredictable("2:4 kernels take weights of which at most 2 of every 4 are kept: prune with the pattern 'n_m', 2 of 4.")
    if execution.precision not in ("fp16", "bf16"):
        raise Unpredictable(f"2:4 kernels run in fp16 and bf16, not in {execution.precision}: of float32 weights they keep 1 of 2.")
    pruned = whatif.predict(profile, choice).layers
    names = set(pruned.loc[pruned["removed"] > 0, "layer"])
    rows, columns = MULTIPLES[execution.options["kernel"]]
    found = {piece.name for piece in pieces if piece.name in names and piece.kind in kinds and piece.n % rows == 0 and piece.k % columns == 0}
    if not found:
        raise Unpredictable(f"No pruned layer of {profile.facts['name']} has rows in multiples of {rows} and columns in multiples of {columns}.")
    return found


def _prunable(profile: Profile, choice: PruningChoice) -> set[str]:
    outside = whatif.outside(profile, choice)["layer"]
    return set(profile.layers["layer"]) - set(outside)


# -- tokens merged ------------------------------------------------------------------------------------------------------------


def merged(pieces: list[Piece], profile: Profile, tokens: TokensChoice) -> list[Piece]:
    """The pieces at the tokens that they see when tokens merge between attention and MLP. Raises RecipeError where they cannot."""
    if reason := whatif.cannot_merge(profile):
        raise RecipeError(reason)
    whole, blocks = int(profile.facts["tokens"]), len(profile.facts["blocks"])
    entering = schedule(whole, int(profile.facts["prefix_tokens"]), blocks, tokens.r)
    pools_all = any(piece.name.startswith("attn_pool") for piece in pieces)  # a head that attends to all tokens gets them back
    first_end = next(i for i, piece in enumerate(pieces) if piece.kind == "block")

    def seen(place: int, piece: Piece) -> Piece:
        if piece.kind == "rest":
            return replace(piece, variant=f"{piece.variant} that merges")
        if piece.depth < 0:  # before the blocks all tokens, after them those that are left
            left = whole if place < first_end or pools_all else entering[-1]
            return replace(piece, m=left) if piece.m == whole else piece
        before, behind = entering[piece.depth], entering[piece.depth + 1]
        block = profile.facts["blocks"][piece.depth]
        if piece.kind == "block":
            return replace(piece, kind="merging", variant="MergingBlock", m=before, k=behind)
        if piece.kind == "attention":
            biased = tokens.proportional and before < whole
            return replace(piece, variant=f"{piece.variant} merging{' with bias' * biased}", n=before)
        late = piece.name.startswith((f"{block}.norm2", f"{block}.mlp", f"{block}.ls2"))
        return replace(piece, m=behind if late else before)

    return [seen(place, piece) for place, piece in enumerate(pieces)]

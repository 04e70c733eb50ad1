"""What an execution leaves of a network, told from its profile, against the networks themselves, built and run."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from starfish_lab import tokens
from starfish_lab.errors import LabError
from starfish_lab.execution import BACKENDS
from starfish_lab.execution.choice import Execution
from starfish_lab.prediction import recording, shapes
from starfish_lab.pruning.prune import make_masks
from starfish_lab.recipe import PruningChoice, Recipe, TokensChoice
from starfish_lab.whatif import Profile

CUT = [
    ("tiny_vit", 0.5, ("mlp", "qk")), ("tiny_vit", 0.3, ("qk",)), ("tiny_vit", 0.9, ("mlp",)), ("tiny_resnet", 0.5, ("mlp",)),
    ("tiny_convnext1", 0.25, ("mlp",)), ("tiny_swin", 0.5, ("mlp",)), ("tiny_hiera", 0.7, ("mlp",)),
]  # fmt: skip


def as_counts(pieces) -> Counter:
    """Where the pieces stand in a network does not count, but all that decides their time does."""
    return Counter((p.name, p.depth, *p.shape) for p in pieces)


def real(network, recipe: Recipe, execution: Execution) -> list:
    """The pieces of the network that the execution builds."""
    network = network.copy()
    masks = make_masks(network, recipe.pruning).masks
    if execution.merged:
        tokens.merge(network, recipe.tokens)
    built = BACKENDS.get(execution.backend)(network, masks, device="cpu", precision="float32", **execution.options)
    images = torch.randn(2, *network.preprocessing.input_size)
    with torch.no_grad():
        return recording.pieces(built, lambda: built.module.eval()(images))


@pytest.mark.parametrize(("name", "share", "units"), CUT)
def test_units_cut(profiled, name, share, units):
    network, profile = profiled(name)
    recipe = Recipe(pruning=PruningChoice(pattern="structured", sparsity=share, units=units))
    execution = Execution(backend="sliced")
    left = shapes.after(profile, recipe, execution)
    assert as_counts(left) == as_counts(real(network, recipe, execution))
    assert as_counts(left) != as_counts(shapes.dense(profile))


@pytest.mark.parametrize("name", ["tiny_vit", "tiny_resnet", "tiny_convnext", "tiny_swin", "tiny_hiera"])
def test_a_mask_leaves_every_shape(profiled, name):
    network, profile = profiled(name)
    recipe = Recipe(pruning=PruningChoice(sparsity=0.5))
    assert as_counts(shapes.after(profile, recipe, Execution())) == as_counts(real(network, recipe, Execution()))


@pytest.mark.parametrize("r", [(3,), (2, 0), (0, 5)])
@pytest.mark.parametrize("proportional", [True, False])
def test_merged_tokens(profiled, r, proportional):
    network, profile = profiled("tiny_vit")
    recipe = Recipe(tokens=TokensChoice(r=r, proportional=proportional))
    execution = Execution(merged=True)
    assert as_counts(shapes.after(profile, recipe, execution)) == as_counts(real(network, recipe, execution))


def test_merged_and_cut(profiled):
    network, profile = profiled("tiny_vit")
    recipe = Recipe(tokens=TokensChoice(r=(4,)), pruning=PruningChoice(pattern="structured", sparsity=0.5))
    execution = Execution(backend="sliced", merged=True)
    assert as_counts(shapes.after(profile, recipe, execution)) == as_counts(real(network, recipe, execution))


@pytest.mark.parametrize("name", ["tiny_resnet", "tiny_convnext1"])
def test_unfolded_convolutions(profiled, name):
    network, profile = profiled(name)
    recipe = Recipe(pruning=PruningChoice(sparsity=0.5, include=("*",)))
    execution = Execution(backend="im2col", options={"kernel": "dense"})
    left = shapes.after(profile, recipe, execution)
    assert as_counts(left) == as_counts(real(network, recipe, execution))
    assert any(piece.kind == "unfolding" for piece in left)


def test_kernels_take_the_layers_whose_shapes_they_take(profiled):
    _, profile = profiled("tiny_vit")  # 32 wide: qkv 96 × 32, fc1 128 × 32, fc2 32 × 128, head 10 × 32
    recipe = Recipe(pruning=PruningChoice(pattern="n_m", include=("head",)))

    def taken(kernel):
        left = shapes.after(profile, recipe, Execution(backend="semi_structured", options={"kernel": kernel}, precision="fp16"))
        return {piece.name for piece in left if piece.kernel == kernel}

    assert taken("cusparselt") == {f"blocks.{i}.{layer}" for i in (0, 1) for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}
    assert taken("cutlass") == {"blocks.0.mlp.fc2", "blocks.1.mlp.fc2"}


def test_the_kernels_multiples_are_those_of_torch():
    for kernel, name in (("cutlass", "SparseSemiStructuredTensorCUTLASS"), ("cusparselt", "SparseSemiStructuredTensorCUSPARSELT")):
        for dtype in (torch.float16, torch.bfloat16):
            limits = getattr(torch.sparse, name)._DTYPE_SHAPE_CONSTRAINTS[dtype]
            assert (limits.sparse_min_rows, limits.sparse_min_cols) == shapes.MULTIPLES[kernel]


@pytest.mark.parametrize(
    ("recipe", "label", "reason"),
    [
        (Recipe(), "sliced", "no whole unit"),
        (Recipe(pruning=PruningChoice(pattern="n_m")), "semi_structured(cutlass)", "fp16 and bf16"),
        (Recipe(), "semi_structured(cutlass), fp16", "2 of 4"),
        (Recipe(), "im2col(dense)", "im2col is for convolutions"),
        (Recipe(tokens=TokensChoice(r=(100,))), "merged", "at most 8 can merge"),
    ],
)
def test_what_cannot_run_so_is_refused_with_the_reason(profiled, recipe, label, reason):
    _, profile = profiled("tiny_vit")
    with pytest.raises(shapes.Unpredictable, match=reason):
        shapes.after(profile, recipe, Execution.of(label))


def test_convolutional_networks_merge_nothing(profiled):
    _, profile = profiled("tiny_resnet")
    with pytest.raises(LabError, match="cannot merge"):
        shapes.after(profile, Recipe(), Execution(merged=True))


def test_profiles_of_old_have_no_pieces(profiled):
    _, profile = profiled("tiny_vit")
    text = Profile.from_json(profile.to_json().replace('"pieces"', '"other"')).to_json()
    with pytest.raises(shapes.Unpredictable, match="profile the network again"):
        shapes.dense(Profile.from_json(text))

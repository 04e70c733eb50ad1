"""The contract of every backend: on every kind of network it builds and answers as the masked one, or refuses in one sentence."""

from __future__ import annotations

import itertools

import pytest
import torch
from test_slicing import masked, structured

from starfish_lab import tokens
from starfish_lab.errors import Refused
from starfish_lab.execution import BACKENDS
from starfish_lab.execution.build import ready, refusal
from starfish_lab.execution.choice import PRECISIONS, Execution, choices
from starfish_lab.pruning.prune import make_masks, pruned
from starfish_lab.recipe import PruningChoice, TokensChoice

NETWORKS = ("tiny_vit", "tiny_resnet", "tiny_convnext", "tiny_convnext1", "tiny_swin", "tiny_hiera")
KINDS = [
    (backend, dict(zip(BACKENDS.options(backend), values)))
    for backend in BACKENDS.names()
    for values in itertools.product(*(choices(backend, option) for option in BACKENDS.options(backend)))
]
CUDA = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)


def pruned_by(network, pattern):
    masks = make_masks(network, PruningChoice(pattern=pattern, sparsity=0.5)).masks
    return pruned(network, masks), masks


@pytest.fixture(params=NETWORKS)
def network(request):
    return answering(request.getfixturevalue(request.param))


def answering(network):
    """With a head that is not zero, as timm begins some."""
    with torch.no_grad():
        for name, weight in network.module.named_parameters():
            if "head" in name and not weight.any():
                weight.normal_()
    return network


@pytest.mark.parametrize("backend, options", KINDS, ids=lambda value: str(value))
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda:0", marks=pytest.mark.skipif(not CUDA, reason="needs a CUDA GPU, ≥ 8.0"))])
def test_it_builds_and_equals_the_masked_network_or_refuses_in_one_sentence(network, backend, options, device):
    patterns = ("unstructured", "n_m") if network.structured_refusal else ("unstructured", "n_m", "structured")
    for pattern, precision in itertools.product(patterns, PRECISIONS):
        student, masks = pruned_by(network, pattern)
        before = {name: tensor.clone() for name, tensor in student.module.state_dict().items()}
        execution = Execution(backend=backend, options=options, precision=precision)
        reason = refusal(network, student, masks, execution, device=device)
        if reason is not None:
            assert reason[0] not in " ." and reason.endswith(".") and "\n" not in reason and len(reason) < 400
            with pytest.raises(Refused):
                ready(network, student, masks, execution, device=device)
            continue
        found = ready(network, student, masks, execution, device=device)
        assert precision in BACKENDS.constant(backend, "PRECISIONS")
        assert found.proof.equal and found.proof.tolerance < 0.2 and found.proof.top1_agreement > 0.5
        if precision == "float32":
            assert found.proof.tolerance == 1e-5
        assert all(torch.equal(before[name], tensor) for name, tensor in student.module.state_dict().items())  # left as it was


@pytest.mark.parametrize("backend", BACKENDS.names())
def test_every_backend_says_what_it_needs(backend):
    assert BACKENDS.constant(backend, "NEEDS") in ("cpu", "cuda 8.0")
    assert set(BACKENDS.constant(backend, "PRECISIONS")) <= set(PRECISIONS)
    module = BACKENDS.module(backend)
    assert callable(module.refuses) and callable(module.note) and BACKENDS.describe(backend).endswith(".")
    for option, default in BACKENDS.options(backend).items():
        assert default in choices(backend, option)


@pytest.mark.parametrize("name, expected", [
    ("tiny_vit", True), ("tiny_resnet", True), ("tiny_convnext", False), ("tiny_convnext1", True), ("tiny_swin", True), ("tiny_hiera", True),
])  # fmt: skip
def test_sliced_runs_on_every_family_whose_units_can_go(request, name, expected):
    network = answering(request.getfixturevalue(name))
    student, masks = pruned_by(network, "structured" if expected else "unstructured")
    reason = refusal(network, student, masks, Execution(backend="sliced"), device="cpu")
    assert (reason is None) == expected
    if expected:
        found = ready(network, student, masks, Execution(backend="sliced"))
        small, whole = (sum(p.numel() for p in one.module.parameters()) for one in (found.network, network))
        assert small < whole and found.proof.largest_difference < 1e-5


def test_a_network_that_answers_nothing_proves_nothing(tiny_hiera):
    student, masks = pruned_by(tiny_hiera, "structured")  # timm begins its head with zeros
    with pytest.raises(Refused, match="answers 0 to every image, so nothing can be proven of 'sliced'"):
        ready(tiny_hiera, student, masks, Execution(backend="sliced"))


def test_the_mask_alone_promises_nothing(tiny_vit):
    student, masks = pruned_by(tiny_vit, "unstructured")
    assert "no speed-up" in ready(tiny_vit, student, masks, Execution()).note
    masks = structured(tiny_vit)
    assert ready(tiny_vit, masked(tiny_vit, masks), masks, Execution(backend="sliced")).note == ""
    masks["blocks.0.mlp.fc1"][masks["blocks.0.mlp.fc1"].any(1).nonzero()[0], 0] = False  # one zero that no unit explains
    assert "zeros" in ready(tiny_vit, masked(tiny_vit, masks), masks, Execution(backend="sliced")).note


@pytest.mark.parametrize("label", ["merged", "merged+sliced", "merged+dense"])
@pytest.mark.parametrize("r", [(), (3,), (1, 2)])
def test_merged_executions_merge_by_the_recipe_or_by_eight(tiny_vit, label, r):
    masks = structured(tiny_vit)
    student = masked(tiny_vit, masks)
    found = ready(tiny_vit, student, masks, Execution.of(label), tokens=TokensChoice(r=r))
    assert tokens.facts(found.network)["r"] == list({(): (8, 8), (3,): (3, 3), (1, 2): (1, 2)}[r])
    assert found.proof.equal and tokens.facts(student) is None


@pytest.mark.parametrize("label", ["masked", "sliced", "merged+sliced"])
def test_a_recipe_that_merges_runs_without_merging_too(tiny_vit, label):
    """What prune and heal hand on merges already where the recipe says so."""
    masks = structured(tiny_vit)
    student = masked(tiny_vit, masks)
    merging = student.copy()
    tokens.merge(merging, TokensChoice(r=(4,)))
    images = torch.randn(4, 3, 32, 32)
    found = ready(tiny_vit, merging, masks, Execution.of(label), tokens=TokensChoice(r=(4,)), images=images)
    merges = "merged" in label
    assert (tokens.facts(found.network) is not None) == merges
    with torch.no_grad():
        expected = (merging if merges else student).module(images)
    assert torch.allclose(found.module(found.module.inputs(images)), expected, atol=1e-5)
    assert tokens.facts(merging)["r"] == [4, 4]  # left as it was


def test_unmerged_blocks_are_timms_own_and_hear_nothing(tiny_vit):
    merging = tiny_vit.copy()
    tokens.merge(merging, TokensChoice(r=(4,)))
    plain = tokens.unmerged(merging).module
    assert [type(block) for block in plain.blocks] == [type(block) for block in tiny_vit.module.blocks]
    assert vars(plain.blocks[0]).keys() == vars(tiny_vit.module.blocks[0]).keys()  # nothing of timm's block is missing
    assert not plain.blocks[0].attn.k_norm._forward_hooks and not plain.blocks[0].training
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(plain(images), tiny_vit.module(images))


def test_merging_is_refused_where_tokens_cannot_merge(tiny_vit, tiny_resnet):
    student, masks = pruned_by(tiny_resnet, "unstructured")
    assert "cannot merge" in refusal(tiny_resnet, student, masks, Execution(merged=True), device="cpu")
    student, masks = pruned_by(tiny_vit, "unstructured")
    assert "at most 8" in refusal(tiny_vit, student, masks, Execution(merged=True), device="cpu", tokens=TokensChoice(r=(9,)))

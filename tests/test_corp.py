"""CORP against oracles: ranking by hand, its two closed forms by brute force, and what it folds where."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from starfish_lab import tokens
from starfish_lab.errors import RecipeError
from starfish_lab.execution import proof, slicing
from starfish_lab.healing import compensation
from starfish_lab.healing.compensation import Moments
from starfish_lab.healing.repairs import corp
from starfish_lab.healing.session import Session
from starfish_lab.models.network import Network, UnitGroup, prunable
from starfish_lab.progress import Reporter
from starfish_lab.pruning.prune import make_masks, pruned
from starfish_lab.pruning.rules import units_going
from starfish_lab.pruning.scores import corp as ranking
from starfish_lab.recipe import PruningChoice, TokensChoice

HALF = PruningChoice(pattern="structured", score="corp", sparsity=0.5)
TIGHT = {"ridge": 1e-10, "shrinkage": False}  # as good as no ridge at all


def images_for(network: Network, count: int = 40) -> torch.Tensor:
    return torch.randn(count, *network.preprocessing.input_size, generator=torch.Generator().manual_seed(1))


def lively(network: Network) -> Network:
    """Biases and norms that are not the trivial ones, and attention far from uniform."""
    torch.manual_seed(5)
    for name, tensor in network.module.state_dict().items():
        if "bias" in name or "running_mean" in name:
            tensor.copy_(0.3 * torch.randn_like(tensor))
        if "running_var" in name or name.endswith(("bn1.weight", "bn2.weight")):
            tensor.copy_(0.5 + torch.rand_like(tensor))
        if name.endswith(("qkv.weight", "fc1.weight", "fc2.weight")):
            tensor.mul_(8)
    return network


def repaired(dense: Network, masks, images, **options) -> Network:
    student = pruned(dense, masks)
    corp.repair(Session(
        dense=dense, student=student, masks=masks, batches=None, calibration=images, device=torch.device("cpu"), reporter=Reporter(),
        teacher_memory=0,
    ), **options)  # fmt: skip
    return student


def masks_of(network: Network, gone: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """Masks without these units: {producer: units, or qkv layer: dimensions of every head}."""
    masks = {name: torch.ones_like(layer.weight, dtype=torch.bool) for name, layer in prunable(network).items()}
    for group in network.unit_groups:
        masks[group.producer][gone.get(group.producer, [])] = False
        masks[group.consumer][:, gone.get(group.producer, [])] = False
    for a in network.attentions:
        for head in range(2 * a.heads):
            masks[a.qkv][[head * a.head_dim + d for d in gone.get(a.qkv, [])]] = False
    return masks


@torch.no_grad()
def inputs_of(network: Network, layer: str, images: torch.Tensor) -> torch.Tensor:
    """What reaches a layer, (rows, in) float64."""
    seen = []
    handle = network.module.get_submodule(layer).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network.module(images)
    handle.remove()
    return seen[0].flatten(0, -2).double()


@torch.no_grad()
def answers(network: Network, images: torch.Tensor) -> torch.Tensor:
    return network.module.eval()(images)


# -- ranking ----------------------------------------------------------------------------------------------------------


def test_units_are_ranked_by_energy_times_how_often_they_are_active(tiny_vit, tiny_resnet):
    for network in (tiny_vit, lively(tiny_resnet)):  # after a ReLU many are not active at all
        images, group = images_for(network, 30), network.unit_groups[1]
        seen = []
        handle = network.module.get_submodule(group.consumer).register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
        answers(network, images)
        handle.remove()
        x = seen[0].movedim(1, -1).flatten(0, -2) if network is tiny_resnet else seen[0].flatten(0, -2)
        expected = x.square().mean(0) * (x.abs() > 0.01 * x.square().mean().sqrt()).float().mean(0)
        found = ranking.unit_scores(network, HALF, images)[group.producer]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-9)


def test_dimensions_are_ranked_by_the_energy_of_their_product(tiny_vit):
    images, layer = images_for(tiny_vit, 40), tiny_vit.module.blocks[0].attn.qkv
    q, k, _ = layer(inputs_of(tiny_vit, "blocks.0.attn.qkv", images).float()).view(-1, 3, 2, 16).unbind(1)
    found = ranking.unit_scores(tiny_vit, HALF, images)["blocks.0.attn.qkv"]
    torch.testing.assert_close(found, (q.square() * k.square()).mean(0).detach(), rtol=1e-4, atol=1e-9)


def test_a_number_of_units_and_dimensions_stays_whatever_the_sparsity():
    def kept(kind: str, units: int, score: str = "corp") -> int:
        return units - units_going(PruningChoice(pattern="structured", score=score, sparsity=0.99), kind, units)

    assert [kept("mlp", n) for n in (3072, 768, 512, 128, 16, 4)] == [64, 64, 64, 16, 2, 1]
    assert [kept("qk", n) for n in (80, 64, 32, 4)] == [8, 8, 4, 1]
    assert kept("mlp", 3072, "magnitude") == 31
    assert units_going(HALF, "mlp", 768) == 384


def test_masks_by_corp_lose_the_lowest_units(tiny_vit):
    images = images_for(tiny_vit, 8)
    masks, scores = make_masks(tiny_vit, HALF, calibration=images).masks, ranking.unit_scores(tiny_vit, HALF, images)
    kept = masks["blocks.1.mlp.fc1"].any(1)
    assert kept.sum() == 64 and scores["blocks.1.mlp.fc1"][~kept].max() <= scores["blocks.1.mlp.fc1"][kept].min()
    with pytest.raises(RecipeError, match="structured"):
        make_masks(tiny_vit, PruningChoice(score="corp"), calibration=images)


# -- closed forms -----------------------------------------------------------------------------------------------------


def test_moments_batch_by_batch_are_those_of_all_rows():
    x = torch.randn(700, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) @ torch.randn(5, 5).double() + 50
    seen = Moments()
    for part in x.float().split(64):
        seen.add(part)
    torch.testing.assert_close(seen.covariance, x.T.cov(correction=0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(seen.mean, x.mean(0), rtol=1e-6, atol=0)
    torch.testing.assert_close(seen.second, x.T @ x / len(x), rtol=1e-6, atol=0)


def test_rows_in_bfloat16_are_summed_in_float32():
    x = (torch.randn(4000, 5, generator=torch.Generator().manual_seed(0)) @ torch.randn(5, 5)).bfloat16()
    seen = Moments()
    for part in x.split(500):
        seen.add(part)
    torch.testing.assert_close(seen.covariance, x.double().T.cov(correction=0), rtol=1e-4, atol=1e-4)


def test_shrinkage_by_hand():
    assert compensation.oas(torch.diag(torch.tensor([1.0, 3.0])), 10) == pytest.approx(16 / 20)  # ((1 − 1) 10 + 16) / ((10 + 1 − 1)(10 − 16 / 2))
    assert compensation.oas(torch.eye(3), 10) == 1.0
    assert compensation.oas(torch.diag(torch.tensor([1.0, 9.0, 0.1])), 10**6) < 1e-4


@pytest.mark.parametrize("constant", [True, False])
def test_affine_is_ridge_regression(constant):
    torch.manual_seed(0)
    x = torch.randn(300, 6, dtype=torch.float64) @ torch.randn(6, 6).double() + 1
    gone = torch.tensor([False, True, False, False, True, False])
    seen, ridge = Moments(), 0.3
    seen.add(x)
    b, c = compensation.affine(seen, gone, constant=constant, ridge=ridge, shrinkage=False)
    # the same regression from the rows themselves: the ridge as further rows, the constant free of it
    centre = x.mean(0) if constant else torch.zeros(6, dtype=torch.float64)
    rows = torch.cat([x - centre, (ridge * len(x)) ** 0.5 * torch.eye(6, dtype=torch.float64)])
    expected = torch.linalg.lstsq(rows[: 300 + 6][:, ~gone], torch.cat([(x - centre)[:, gone], torch.zeros(6, 2)])).solution.T
    torch.testing.assert_close(b, expected, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(c, centre[gone] - b @ centre[~gone], rtol=1e-6, atol=1e-8)
    shrunk, _ = compensation.affine(seen, gone, ridge=1e-3)
    assert shrunk.norm() < compensation.affine(seen, gone, **TIGHT)[0].norm()


def head(count: int = 40, width: int = 5) -> tuple[torch.Tensor, torch.Tensor, Moments, Moments]:
    """Queries and keys whose dimensions depend on each other, and their moments."""
    torch.manual_seed(3)
    mix = torch.eye(width) + 0.6 * torch.randn(width, width)
    q, k = (torch.randn(count, width) @ mix + torch.randn(width) for _ in range(2))
    of_q, of_k = Moments(), Moments()
    of_q.add(q), of_k.add(k)
    return q.double(), k.double(), of_q, of_k


GONE = torch.tensor([False, True, False, True, False])


def test_queries_and_keys_minimise_the_error_of_the_logits():
    """Least squares over all 40 × 40 pairs, entry by entry of M, says the same; and no step away does better."""
    q, k, of_q, of_k = head()
    u, v = compensation.logits(of_q, of_k, GONE, symmetric=False, **TIGHT)
    design = torch.einsum("ia,jb->ijab", q[:, ~GONE], k[:, ~GONE]).reshape(40 * 40, 9)
    expected = torch.linalg.lstsq(design, (q[:, GONE] @ k[:, GONE].T).reshape(-1, 1)).solution.view(3, 3)
    torch.testing.assert_close(u @ v.T - torch.eye(3, dtype=u.dtype), expected, rtol=1e-4, atol=1e-5)

    def error(whole: torch.Tensor) -> torch.Tensor:
        return (q @ k.T - q[:, ~GONE] @ whole @ k[:, ~GONE].T).square().mean()

    best = error(u @ v.T)
    assert best < 0.8 * error(torch.eye(3, dtype=u.dtype))  # of leaving the dimensions out
    assert all(error(u @ v.T + 1e-2 * torch.randn(3, 3).double()) > best for _ in range(20))


@pytest.mark.parametrize("ridge", [0.5, 20.0])
def test_queries_and_keys_solve_the_kronecker_system(ridge):
    """(G_K ⊗ G_Q + λI) vec M = vec(C_Q C_K), columns stacked; and the symmetric part of I + M is what is folded."""
    q, k, of_q, of_k = head()
    g_q, g_k = (x[:, ~GONE].T @ x[:, ~GONE] / 40 for x in (q, k))
    c = (q[:, ~GONE].T @ q[:, GONE] / 40) @ (k[:, GONE].T @ k[:, ~GONE] / 40)
    system = torch.kron(g_k, g_q) + ridge * torch.eye(9, dtype=q.dtype)
    whole = torch.eye(3, dtype=q.dtype) + torch.linalg.solve(system, c.T.reshape(-1)).view(3, 3).T
    for symmetric, expected in ((False, whole), (True, (whole + whole.T) / 2)):
        u, v = compensation.logits(of_q, of_k, GONE, ridge=ridge, shrinkage=False, symmetric=symmetric)
        torch.testing.assert_close(u @ v.T, expected, rtol=1e-4, atol=1e-5)


# -- folding ----------------------------------------------------------------------------------------------------------


def test_linearly_dependent_units_leave_no_trace():
    """Hidden units that are an affine function of others on every image."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 7), nn.Linear(7, 3))
    mix = torch.randn(3, 4)
    with torch.no_grad():
        module[0].weight[4:] = mix @ module[0].weight[:4]
        module[0].bias[4:] = mix @ module[0].bias[:4] + torch.tensor([0.5, -2.0, 3.0])
    network = Network.of(module, blocks=["0", "1"], input_size=(4,), unit_groups=(UnitGroup("0", "1"),))
    images = torch.randn(200, 4)
    masks = masks_of(network, {"0": [4, 5, 6]})
    student = repaired(network, masks, images, **TIGHT)
    torch.testing.assert_close(answers(student, images), answers(network, images), rtol=0, atol=1e-5)
    assert (answers(pruned(network, masks), images) - answers(network, images)).abs().max() > 0.1
    assert (student.module[1].weight[:, 4:] == 0).all() and (student.module[0].weight[4:] == 0).all()


def test_repeated_units_channels_and_dimensions_leave_no_trace(tiny_vit, tiny_resnet):
    for network in (lively(tiny_vit), lively(tiny_resnet)):
        with torch.no_grad():
            for group in network.unit_groups:
                for name in (group.producer, *group.companions):
                    layer = network.module.get_submodule(name)
                    for tensor in layer.state_dict().values():
                        if tensor.ndim:
                            half = len(tensor) // 2
                            tensor[half:] = tensor[:half]
            for a in network.attentions:  # dimension d + 8 of a head is dimension d turned round, in Q and in K
                layer = network.module.get_submodule(a.qkv)
                for tensor in (layer.weight, layer.bias):
                    rows = tensor[:64].view(4, 2, 8, *tensor.shape[1:])
                    rows[:, 1] = -rows[:, 0]
        units = {g.producer: len(network.module.get_submodule(g.producer).weight) for g in network.unit_groups}
        gone = {producer: list(range(count // 2)) for producer, count in units.items()}
        masks = masks_of(network, gone | {a.qkv: list(range(8)) for a in network.attentions})
        images = images_for(network)
        wanted = answers(network, images)
        found = answers(repaired(network, masks, images, **TIGHT), images)
        assert (found - wanted).abs().max() < 1e-3 * wanted.abs().max()
        assert (answers(pruned(network, masks), images) - wanted).abs().max() > 0.05 * wanted.abs().max()


def test_without_b_it_is_the_mean_shift(tiny_vit):
    """A ridge without end leaves B = 0: weights stay, and the bias gains W_P μ_P."""
    images = images_for(lively(tiny_vit))
    gone = list(range(5, 60))
    masks = masks_of(tiny_vit, {"blocks.0.mlp.fc1": gone})
    student = repaired(tiny_vit, masks, images, ridge=1e12)
    before, after = (network.module.blocks[0].mlp.fc2 for network in (tiny_vit, student))
    mean = inputs_of(tiny_vit, "blocks.0.mlp.fc2", images).mean(0).float()
    torch.testing.assert_close(after.weight, before.weight * masks["blocks.0.mlp.fc2"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(after.bias, before.bias + before.weight[:, gone] @ mean[gone], rtol=1e-4, atol=1e-4)


def test_later_layers_see_what_earlier_ones_have_become(tiny_vit):
    """The second MLP is fitted on a network whose first one is pruned and compensated, and whose second is still whole."""
    images = images_for(lively(tiny_vit))
    masks = make_masks(tiny_vit, PruningChoice(pattern="structured", score="corp", sparsity=0.75, units=("mlp",)), calibration=images).masks
    student = repaired(tiny_vit, masks, images, ridge=0.01, shrinkage=False)
    halfway = tiny_vit.copy()
    halfway.module.blocks[0].load_state_dict(student.module.blocks[0].state_dict())
    wanted = {}
    for name, network in (("halfway", halfway), ("dense", tiny_vit)):
        x = inputs_of(network, "blocks.1.mlp.fc2", images)
        kept = masks["blocks.1.mlp.fc1"].any(1)
        covariance = x.T.cov(correction=0)
        b = torch.linalg.solve(covariance[kept][:, kept] + 0.01 * torch.eye(int(kept.sum()), dtype=x.dtype), covariance[kept][:, ~kept]).T
        weight = tiny_vit.module.blocks[1].mlp.fc2.weight.double()
        wanted[name] = (weight[:, kept] + weight[:, ~kept] @ b).float().detach()
    found = student.module.blocks[1].mlp.fc2.weight[:, kept].detach()
    torch.testing.assert_close(found, wanted["halfway"], rtol=1e-3, atol=1e-4)
    assert (found - wanted["dense"]).abs().max() > 1e-2


@pytest.mark.parametrize("name", ["tiny_vit", "tiny_resnet", "tiny_swin", "tiny_convnext1"])
def test_masked_and_sliced_answer_alike_and_zeros_stay(name, request):
    network = lively(request.getfixturevalue(name))
    images = images_for(network, 24)
    before = {key: value.clone() for key, value in network.module.state_dict().items()}
    choice = PruningChoice(pattern="structured", score="corp", sparsity=0.5, units=("mlp", "qk"))
    masks = make_masks(network, choice, calibration=images).masks
    student, base = repaired(network, masks, images), pruned(network, masks)
    for layer, mask in masks.items():
        assert (student.module.get_submodule(layer).weight[~mask] == 0).all()
    assert proof.prove(student, slicing.slice_network(student, masks), images).largest_difference < 1e-5
    wanted = answers(network, images)
    assert (answers(student, images) - wanted).square().mean() < 0.8 * (answers(base, images) - wanted).square().mean()
    assert all(torch.equal(value, before[key]) for key, value in network.module.state_dict().items())


def test_only_what_is_asked_for_changes(tiny_vit):
    images = images_for(lively(tiny_vit))
    masks = make_masks(tiny_vit, HALF, calibration=images).masks
    base = dict(pruned(tiny_vit, masks).module.named_parameters())
    allowed = {"mlp": ("mlp.fc2.weight", "mlp.fc2.bias"), "qk": ("attn.qkv.weight", "attn.qkv.bias")}
    for on, off in (("mlp", "qk"), ("qk", "mlp")):
        student = dict(repaired(tiny_vit, masks, images, **{off: False}).module.named_parameters())
        changed = {name for name in student if not torch.equal(student[name], base[name])}
        assert changed == {f"blocks.{i}.{name}" for i in (0, 1) for name in allowed[on]}
        for i in (0, 1):  # V stays
            assert torch.equal(student[f"blocks.{i}.attn.qkv.weight"][64:], base[f"blocks.{i}.attn.qkv.weight"][64:])
            assert torch.equal(student[f"blocks.{i}.attn.qkv.bias"][64:], base[f"blocks.{i}.attn.qkv.bias"][64:])


def test_the_scale_of_the_authors_is_folded_into_queries_and_keys(tiny_vit):
    """With 16 dimensions cut to 8, logits over √8 are √2 times those over √16."""
    images = images_for(lively(tiny_vit))
    masks = masks_of(tiny_vit, {"blocks.0.attn.qkv": list(range(0, 16, 2))})
    kept, theirs = (repaired(tiny_vit, masks, images, keep_scale=scale).module.blocks[0].attn.qkv for scale in (True, False))
    torch.testing.assert_close(theirs.weight[:64], kept.weight[:64] * 2**0.25, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(theirs.bias[1:64:2], kept.bias[1:64:2] * 2**0.25, rtol=1e-5, atol=1e-7)


def test_a_network_that_merges_tokens_is_compensated_as_it_runs(tiny_vit):
    images = images_for(lively(tiny_vit))
    merging = tiny_vit.copy()
    tokens.merge(merging, TokensChoice(r=(3,)))
    masks = make_masks(merging, HALF, calibration=images).masks
    student = pruned(merging, masks)
    corp.repair(Session(
        dense=tiny_vit, student=student, masks=masks, batches=None, calibration=images, device=torch.device("cpu"), reporter=Reporter(),
        teacher_memory=0,
    ))  # fmt: skip
    assert proof.prove(student, slicing.slice_network(student, masks), images).largest_difference < 1e-5


def test_what_is_no_whole_unit_is_refused(tiny_vit):
    images = images_for(tiny_vit, 8)
    for choice in (PruningChoice(sparsity=0.5), PruningChoice(pattern="n_m")):
        with pytest.raises(RecipeError, match="whole MLP units.*least_squares"):
            repaired(tiny_vit, make_masks(tiny_vit, choice).masks, images)
    with pytest.raises(RecipeError, match="no unit at all"):
        repaired(tiny_vit, masks_of(tiny_vit, {}), images)
    with pytest.raises(RecipeError, match="repair_options.ridge is -1"):
        repaired(tiny_vit, masks_of(tiny_vit, {"blocks.0.mlp.fc1": [1]}), images, ridge=-1)
    with pytest.raises(RecipeError, match="repair_options.mlp or qk"):
        repaired(tiny_vit, masks_of(tiny_vit, {"blocks.0.mlp.fc1": [1]}), images, mlp=False)

"""Rivals of STARFISH against oracles: what each minimises, where its gradients go, and what LoRA leaves behind."""

from __future__ import annotations

import pytest
import torch
from test_healing import half, lively
from test_starfish import images_for, pruned, session_of
from torch import nn
from torch.nn import functional as F

from starfish_lab import tokens
from starfish_lab.errors import RecipeError
from starfish_lab.healing import METHODS
from starfish_lab.healing.heal import heal
from starfish_lab.healing.methods import block_local, feature_mimicking, lora, pseudo_labels
from starfish_lab.models.network import Network
from starfish_lab.models.states import BlockStates
from starfish_lab.recipe import HealingChoice, TokensChoice


def loss_of(method, dense: Network, student: Network, images: torch.Tensor, **options):
    session = session_of(dense, student, images)
    return method.objective(session, **options)(session.batches(1))


# -- block-local ----------------------------------------------------------------------------------------------------------


def by_hand(dense: nn.Module, student: nn.Module, images: torch.Tensor, inputs: str) -> torch.Tensor:
    """(blocks,): relative errors of attention and MLP of timm's blocks, each from its own input, averaged."""
    x = y = dense._pos_embed(dense.patch_embed(images)).detach()  # x runs through the student
    found = []
    for block, teacher in zip(student.blocks, dense.blocks):
        errors = []
        for norm, part in (("norm1", "attn"), ("norm2", "mlp")):
            target = getattr(teacher, part)(getattr(teacher, norm)(y)).detach()
            answer = getattr(block, part)((getattr(block, norm)(x) if inputs == "pruned" else getattr(teacher, norm)(y)).detach())
            errors.append((answer - target).square().sum() / target.square().sum())
            x, y = (x + answer).detach(), y + target
        found.append(sum(errors) / 2)
    return torch.stack(found)


@pytest.mark.parametrize("inputs", ["dense", "pruned"])
def test_block_local_by_hand(tiny_vit, inputs):
    images, student = images_for(tiny_vit, 5), pruned(tiny_vit, half(tiny_vit))
    twin = student.copy()
    loss, expected = loss_of(block_local, tiny_vit, student, images, inputs=inputs), by_hand(tiny_vit.module, twin.module, images, inputs)
    assert torch.allclose(loss.blocks, expected, rtol=1e-4) and loss.total.item() == pytest.approx(expected.mean().item(), rel=1e-4)
    loss.total.backward()
    expected.mean().backward()
    for name in half(tiny_vit):
        got, wanted = (n.module.get_submodule(name).weight.grad for n in (student, twin))
        assert torch.allclose(got, wanted, rtol=1e-3, atol=1e-6 * wanted.abs().max()), name
    assert loss_of(block_local, tiny_vit, tiny_vit.copy(), images, inputs=inputs).total <= 1e-10


def parts_of_last_block(network: Network, images: torch.Tensor, inputs: str):
    """Outputs of all parts, live, of a student that starts pruned; and all its parts' names."""
    student = pruned(network, half(network))
    names = [name for block in student.blocks for name in block_local.parts_of(student, block)]
    heard: dict[str, torch.Tensor] = {}
    for name in names:
        student.module.get_submodule(name).register_forward_hook(lambda m, i, o, name=name: heard.__setitem__(name, o))
    loss_of(block_local, network, student, images, inputs=inputs)
    return student, names, heard


@pytest.mark.parametrize("inputs", ["dense", "pruned"])
@pytest.mark.parametrize("family", ["tiny_vit", "tiny_resnet", "tiny_convnext", "tiny_swin", "tiny_hiera"])
def test_no_gradient_leaves_its_part(request, family, inputs):
    network = lively(request.getfixturevalue(family))
    student, names, heard = parts_of_last_block(network, images_for(network, 4), inputs)
    layers = half(network)
    covered = set()
    for part in names:
        student.module.zero_grad()
        heard[part].square().sum().backward()
        reached = {name for name in layers if student.module.get_submodule(name).weight.grad is not None}
        assert reached and reached <= {name for name in layers if name.startswith(part + ".")}, part
        covered |= reached
    assert covered == set(layers)  # every prunable layer belongs to a part


@pytest.mark.parametrize("order", ["fixed", "shuffled"])
def test_parts_that_see_windows_heal_in_any_order_of_images(tiny_swin, order):
    """Swin's attention gets more rows than there are images; what the teacher keeps is looked up by image."""
    images, losses = images_for(tiny_swin, 8), {}
    for memory in (1.0, 0.0):
        student = tiny_swin.copy()
        choice = HealingChoice(method="block_local", steps=6, batch_size=4, learning_rate=3e-3, order=order)
        losses[memory] = heal(tiny_swin, student, half(tiny_swin), images, choice, teacher_memory_gb=memory).losses
    assert [loss for _, loss in losses[1.0]] == pytest.approx([loss for _, loss in losses[0.0]], rel=1e-4)
    assert losses[1.0][-1][1] < 0.9 * losses[1.0][0][1]


def test_blocks_come_apart_only_where_nothing_is_lost(tiny_vit, tiny_resnet, tiny_convnext, tiny_hiera):
    assert block_local.parts_of(tiny_vit, "blocks.1") == ("blocks.1.attn", "blocks.1.mlp")
    for network in (tiny_resnet, tiny_convnext):
        assert all(block_local.parts_of(network, block) == (block,) for block in network.blocks)
    widening = [block for block in tiny_hiera.blocks if isinstance(tiny_hiera.module.get_submodule(block).proj, nn.Linear)]
    assert widening and block_local.parts_of(tiny_hiera, widening[0]) == (widening[0],)  # its projection lies between the two


def test_hooks_are_gone_after_a_loss_and_after_an_error(tiny_vit):
    images = images_for(tiny_vit, 3)
    student = tiny_vit.copy()
    loss_of(block_local, tiny_vit, student, images)
    with pytest.raises(RuntimeError):
        loss_of(block_local, tiny_vit, student, images[:, :1])
    for network in (tiny_vit, student):
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.module.modules())


# -- feature mimicking and pseudo-labels ----------------------------------------------------------------------------------


def test_feature_mimicking_is_the_error_of_what_pooling_gets(tiny_vit, tiny_resnet):
    for network in (tiny_vit, lively(tiny_resnet)):
        images, student = images_for(network, 4), pruned(network, half(network))
        head = "norm" if network is tiny_vit else network.blocks[-1]
        with BlockStates(network.module, [head]) as wanted, BlockStates(student.module, [head]) as found, torch.no_grad():
            network.module(images), student.module(images)
        expected = (found.values[0] - wanted.values[0]).square().mean()
        loss = loss_of(feature_mimicking, network, student, images)
        assert loss.total.item() == pytest.approx(expected.item(), rel=1e-5) and loss.blocks is None and expected > 1e-4
        loss.total.backward()
        reached = {name for name, p in student.module.named_parameters() if p.grad is not None}
        assert not any("head" in name or name.startswith("fc.") for name in reached)  # the classifier takes no part
        assert all(f"{name}.weight" in reached for name in half(network))


def test_feature_mimicking_of_any_module_takes_its_last_block():
    torch.manual_seed(0)
    network = Network.of(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)), blocks=["0", "2"], input_size=(6,))
    student, images = pruned(network, half(network)), torch.randn(5, 6)
    expected = (student.module(images) - network.module(images)).square().mean()
    assert loss_of(feature_mimicking, network, student, images).total.item() == pytest.approx(expected.item(), rel=1e-5)


def test_pseudo_labels_are_the_dense_network_s_answers(tiny_vit):
    images, student = images_for(tiny_vit, 9), pruned(tiny_vit, half(tiny_vit))
    answers = tiny_vit.module(images).argmax(1)
    expected = -F.log_softmax(student.module(images), dim=1)[torch.arange(9), answers].mean()
    assert loss_of(pseudo_labels, tiny_vit, student, images).total.item() == pytest.approx(expected.item(), rel=1e-5)


def test_merged_tokens_are_refused_where_tokens_must_pair(tiny_vit):
    student = pruned(tiny_vit, half(tiny_vit))
    tokens.merge(student, TokensChoice(r=(2,)))
    images = images_for(tiny_vit, 3)
    for method in (block_local, feature_mimicking):
        with pytest.raises(RecipeError, match="merges tokens"):
            loss_of(method, tiny_vit, student, images)
    assert torch.isfinite(loss_of(pseudo_labels, tiny_vit, student, images).total)


# -- LoRA -----------------------------------------------------------------------------------------------------------------


def stirred(session, **options) -> dict[str, torch.Tensor]:
    """{layer: W + M ⊙ alpha / rank · B A, written out} after the updates in the student were given random values, and merged."""
    rank, alpha = options.get("rank", 8), options.get("alpha", 16.0)
    expected = {}
    with lora.reparametrise(session, **options) as parameters:
        with torch.no_grad():
            for parameter in parameters.values():
                parameter.normal_(generator=torch.Generator().manual_seed(parameter.numel()))
        for name, mask in session.masks.items():
            layer = session.student.module.get_submodule(name)
            a, b = (parameters[f"{name}.parametrizations.weight.0.{part}"].detach() for part in "ab")
            assert a.shape == (min(rank, *mask.flatten(1).shape), mask[0].numel()) and b.shape == (len(mask), len(a))
            old = layer.parametrizations.weight.original.detach()
            expected[name] = old + mask * (alpha / rank * torch.einsum("or,ri->oi", b, a)).reshape(mask.shape)
    return expected


@pytest.mark.parametrize("family", ["tiny_vit", "tiny_resnet"])
@pytest.mark.parametrize("masked", [True, False])
def test_lora_merges_into_masked_weights(request, family, masked):
    network = lively(request.getfixturevalue(family))
    masks, images = half(network), images_for(network, 4)
    student = pruned(network, masks)
    before = {name: (type(module), list(module._parameters)) for name, module in student.module.named_modules()}
    keys = list(student.module.state_dict())
    expected = stirred(session_of(network, student, images, masks=masks), rank=3, alpha=5.0, masked=masked)
    for name, mask in masks.items():
        weight = student.module.get_submodule(name).weight
        assert torch.allclose(weight, expected[name], atol=1e-5) and not weight[~mask].any() and isinstance(weight, nn.Parameter)
    assert {name: (type(module), list(module._parameters)) for name, module in student.module.named_modules()} == before
    assert list(student.module.state_dict()) == keys


def test_under_the_mask_merging_changes_no_answer_and_the_naive_way_does(tiny_vit):
    images, masks = images_for(tiny_vit, 4), half(tiny_vit)
    for masked in (True, False):
        student = pruned(tiny_vit, masks)
        student.module.train()
        start = student.module(images)
        with lora.reparametrise(session_of(tiny_vit, student, images, masks=masks), rank=2, masked=masked) as parameters:
            assert torch.equal(student.module(images), start)  # B is 0
            with torch.no_grad():
                for parameter in parameters.values():
                    parameter.add_(0.05)
            inside = student.module(images)
            left = student.module.eval()(images)  # a look in the middle of training sees what merging would leave
        assert not torch.allclose(inside, start, atol=1e-3) and torch.allclose(student.module(images), left, atol=1e-5)
        assert torch.allclose(student.module(images), inside, atol=1e-5) == masked


def test_full_rank_reaches_any_weights_and_rank_one_does_not(tiny_vit):
    """With rank = width, B A under the mask can be any change of the survivors: here A gets the identity and B the change."""
    masks, images = half(tiny_vit), images_for(tiny_vit, 3)
    student, goal = pruned(tiny_vit, masks), pruned(tiny_vit, masks)
    with torch.no_grad():
        for name, mask in masks.items():
            goal.module.get_submodule(name).weight.add_(0.1 * torch.randn(mask.shape) * mask)
    wide = session_of(tiny_vit, student, images, masks=masks)
    with lora.reparametrise(wide, rank=1000, alpha=1000.0) as parameters, torch.no_grad():
        for name in masks:
            layer, wanted = (n.module.get_submodule(name) for n in (student, goal))
            a, b = (parameters[f"{name}.parametrizations.weight.0.{part}"] for part in "ab")
            change = wanted.weight - layer.parametrizations.weight.original  # (out, in)
            eye = torch.eye(min(change.shape))
            (a.copy_(eye), b.copy_(change)) if change.shape[1] <= change.shape[0] else (a.copy_(change), b.copy_(eye))
    assert torch.allclose(student.module(images), goal.module(images), atol=1e-5)


@pytest.mark.parametrize("masked", [True, False])
def test_lora_heals(tiny_vit, masked):
    masks, images, student = half(tiny_vit), images_for(tiny_vit, 16), tiny_vit.copy()
    choice = HealingChoice(method="lora", steps=60, batch_size=16, learning_rate=3e-3, options={"rank": 4, "masked": masked})
    result = heal(tiny_vit, student, masks, images, choice)
    assert result.losses[-1][1] < 0.3 * result.losses[0][1]
    left = loss_of(METHODS.module("starfish"), tiny_vit, student, images).total.item()
    assert (left < 1.1 * result.losses[-1][1]) == masked  # the naive way heals a network that is then masked again
    for name, mask in masks.items():
        assert not student.module.get_submodule(name).weight[~mask].any()


def test_lora_s_targets_are_the_losses_they_name(tiny_vit):
    images, student = images_for(tiny_vit, 4), pruned(tiny_vit, half(tiny_vit))
    for target, method in (("states", "starfish"), ("logits", "logit_distillation")):
        expected = loss_of(METHODS.module(method), tiny_vit, student, images).total
        assert torch.equal(loss_of(lora, tiny_vit, student, images, target=target).total, expected)


def test_unknown_options_are_refused_in_a_sentence(tiny_vit):
    for method, options, match in (
        (block_local, {"inputs": "both"}, "options.inputs is 'both'. Choose one of: dense, pruned"),
        (lora, {"target": "labels"}, "options.target is 'labels'. Choose one of: states, logits"),
    ):
        with pytest.raises(RecipeError, match=match):
            loss_of(method, tiny_vit, tiny_vit.copy(), images_for(tiny_vit, 2), **options)
    for options, match in (
        ({"rank": 0}, "options.rank is 0: give a whole number of at least 1"),
        ({"alpha": float("nan")}, "options.alpha is nan: give a number"),
        ({"masked": "yes"}, "options.masked is 'yes': give true or false"),
        ({"target": "labels"}, "options.target is 'labels'"),
    ):
        choice = HealingChoice(method="lora", steps=1, options=options)
        with pytest.raises(RecipeError, match=match):
            heal(tiny_vit, tiny_vit.copy(), half(tiny_vit), images_for(tiny_vit, 2), choice)


@pytest.mark.parametrize("method", METHODS.names())
def test_what_a_method_is_known_with_is_a_valid_choice(method):
    defaults = METHODS.constant(method, "DEFAULTS")
    assert isinstance(defaults, dict)
    choice = HealingChoice(method=method, **defaults)
    choice.validate()
    assert method != "starfish" or choice == HealingChoice()  # a recipe's own defaults are STARFISH's

"""Batch-norm recalibration and variance matching, against estimates written out."""

from __future__ import annotations

import pytest
import torch
from test_healing import half, lively
from test_starfish import images_for, pruned, session_of
from torch import nn

from starfish_lab.errors import ImagesError, RecipeError
from starfish_lab.healing.heal import heal
from starfish_lab.healing.repairs import batch_norm, variance_matching
from starfish_lab.models.network import Network
from starfish_lab.models.norms import batch_norms, hands_on
from starfish_lab.recipe import HealingChoice


def weights(network: Network) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in network.module.named_parameters()}


def chain() -> Network:
    """Convolution, batch norm, convolution, batch norm: each statistic can be written out."""
    torch.manual_seed(0)
    first, second = (nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU()) for a, b in ((3, 6), (6, 5)))
    for block in (first, second):
        nn.init.uniform_(block[1].weight, 0.5, 1.5)
    return Network.of(nn.Sequential(first, second).eval(), blocks=["0", "1"], input_size=(3, 8, 8), states="image")


def test_statistics_are_the_mean_over_batches_of_what_each_norm_now_sees():
    network = chain()
    student, images = pruned(network, half(network)), torch.randn(100, 3, 8, 8)
    before = weights(student)
    batch_norm.repair(session_of(network, student, images))
    batches, module = images.split(50), student.module  # 100 images are two batches of 50, not 64 and 36
    for i in (0, 1):
        conv, norm, _ = module[i]
        seen = [conv(batch).transpose(0, 1).flatten(1) for batch in batches]  # (C, B · H · W) each
        assert torch.allclose(norm.running_mean, torch.stack([x.mean(1) for x in seen]).mean(0), atol=1e-5)
        assert torch.allclose(norm.running_var, torch.stack([x.var(1) for x in seen]).mean(0), rtol=1e-4)
        normed = [(x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + norm.eps).sqrt() for x in seen]
        batches = [(x.view(-1, 50, 8, 8).transpose(0, 1) * norm.weight.view(-1, 1, 1)).relu() for x in normed]  # biases are 0
    assert all(torch.equal(p, before[name]) for name, p in student.module.named_parameters())
    assert not module.training and all(norm.momentum == 0.1 and not norm.training for norm in batch_norms(module))


def test_a_norm_that_hands_on_what_it_gets_is_left_alone():
    """Converted networks have such on shortcuts that had no norm: statistics of their own would change the network."""
    network = chain()
    norm = network.module[1][1]
    assert not hands_on(norm)
    nn.init.ones_(norm.weight)
    norm.running_var.fill_(1 - norm.eps)
    x = torch.randn(2, 5, 4, 4)
    assert hands_on(norm) and torch.allclose(norm(x), x, atol=1e-6)
    student = network.copy()
    batch_norm.repair(session_of(network, student, torch.randn(10, 3, 8, 8)))
    assert hands_on(student.module[1][1]) and not torch.equal(student.module[0][1].running_var, network.module[0][1].running_var)
    norm.running_mean[0] = 0.01
    assert not hands_on(norm)


def test_recalibration_leaves_the_dense_network_and_dropout_alone():
    network = chain()
    network.module[0].append(nn.Dropout(0.9))
    network.module.eval()
    student, images = network.copy(), torch.randn(10, 3, 8, 8)
    twin = student.copy()
    before = {name: tensor.clone() for name, tensor in network.module.state_dict().items()}
    batch_norm.repair(session_of(network, student, images))
    batch_norm.repair(session_of(network, twin, images))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.module.state_dict().items())
    assert all(torch.equal(a, b) for a, b in zip(student.module.state_dict().values(), twin.module.state_dict().values()))


def test_a_network_without_batch_norm_is_refused_in_a_sentence(tiny_vit):
    with pytest.raises(RecipeError, match="tiny_vit has no batch norm with running statistics"):
        batch_norm.repair(session_of(tiny_vit, tiny_vit.copy(), images_for(tiny_vit, 4)))


def test_one_image_that_ends_in_one_place_is_refused_in_a_sentence(tiny_resnet):
    masks = half(tiny_resnet)
    student = pruned(tiny_resnet, masks)
    with pytest.raises(ImagesError, match="batch norm needs two at this image size"):
        heal(tiny_resnet, student, masks, images_for(tiny_resnet, 1), HealingChoice(method="none", repair="batch_norm"))


def test_channels_get_the_dense_variance():
    """Without shrinkage every output channel of every layer has the dense layer's variance, each layer seeing the repaired ones before it."""
    network = chain()
    masks, images = half(network), torch.randn(20, 3, 8, 8)
    student = pruned(network, masks)
    variance_matching.repair(session_of(network, student, images, masks=masks), shrinkage=0, recalibrate="none")
    x = y = images
    for block, dense in zip(student.module, network.module):
        ours, theirs = block[0](x), dense[0](y)
        assert torch.allclose(ours.var((0, 2, 3)), theirs.var((0, 2, 3)), rtol=1e-3)
        assert torch.equal(block[0].bias, dense[0].bias)
        x, y = block(x), dense(y)
    for name, mask in masks.items():
        weight, dense = (n.module.get_submodule(name).weight for n in (student, network))
        assert not weight[~mask].any()
        scale = (weight / dense)[mask]  # one positive scale a row
        rows = torch.arange(len(mask)).view(-1, 1, 1, 1).expand_as(mask)[mask]
        for row in range(len(mask)):
            assert scale[rows == row].std() < 1e-4 and scale[rows == row].min() > 0


def test_shrinkage_by_hand_and_a_dead_channel_stays():
    torch.manual_seed(0)
    network = Network.of(nn.Sequential(nn.Linear(16, 4)), blocks=["0"], input_size=(16,))
    mask = torch.rand(4, 16) > 0.5
    mask[3] = False  # nothing left of the last channel
    student, images = pruned(network, {"0": mask}), torch.randn(50, 16)
    wanted, found = (n.module(images).var(0, unbiased=False) for n in (network, student))
    start = student.module[0].weight.clone()
    variance_matching.repair(session_of(network, student, images, masks={"0": mask}), shrinkage=2.0)
    median = found.sort().values[1]  # torch's median of four: the lower of the middle two
    for row in range(3):
        trust = found[row] / (found[row] + 2.0 * median)
        scale = 1 + trust * ((wanted[row] / found[row]).sqrt() - 1)
        assert torch.allclose(student.module[0].weight[row], start[row] * scale, rtol=1e-4), row
    assert torch.equal(student.module[0].weight[3], start[3])


@pytest.mark.parametrize("family", ["tiny_vit", "tiny_resnet", "tiny_convnext", "tiny_swin", "tiny_hiera"])
def test_every_family_keeps_masks_and_all_but_masked_weights(request, family):
    network = lively(request.getfixturevalue(family))
    masks, images, student = half(network), images_for(network, 12), network.copy()
    before = weights(network)
    result = heal(network, student, masks, images, HealingChoice(method="none", repair="variance_matching"))
    assert result.losses == [] and result.repair_seconds > 0
    for name, p in student.module.named_parameters():
        layer = name.removesuffix(".weight")
        if layer in masks:
            assert not p[~masks[layer]].any() and not torch.equal(p, before[name] * masks[layer]), name
        else:
            assert torch.equal(p, before[name]), name
    assert not any(module._forward_hooks for n in (network, student) for module in n.module.modules())
    assert all(torch.isfinite(tensor).all() for tensor in student.module.state_dict().values())


def test_batch_norms_are_recalibrated_afterwards():
    network = chain()
    masks, images = half(network), torch.randn(20, 3, 8, 8)
    both, alone = (pruned(network, masks) for _ in range(2))
    variance_matching.repair(session_of(network, both, images, masks=masks), recalibrate="all")
    batch_norm.repair(session_of(network, alone, images, masks=masks))
    assert not torch.allclose(both.module[0][1].running_var, alone.module[0][1].running_var, rtol=0.01)
    assert torch.allclose(both.module(images), alone.module(images), atol=1e-3)  # a norm right behind cancels the scale, but for its eps


def test_means_alone_are_estimated_so_that_the_scale_stays():
    network = chain()
    masks, x = half(network), torch.randn(20, 3, 8, 8)
    student = pruned(network, masks)
    variance_matching.repair(session_of(network, student, x, masks=masks))
    for block, dense in zip(student.module, network.module):
        assert torch.allclose(block[1].running_mean, block[0](x).mean((0, 2, 3)), atol=1e-5)
        assert torch.equal(block[1].running_var, dense[1].running_var)
        x = block(x)


def test_wrong_options_are_refused_in_a_sentence(tiny_vit):
    session = session_of(tiny_vit, tiny_vit.copy(), images_for(tiny_vit, 4))
    with pytest.raises(RecipeError, match="shrinkage is -1: give a number of at least 0"):
        variance_matching.repair(session, shrinkage=-1)
    with pytest.raises(RecipeError, match="recalibrate is 'variances'. Choose one of: means, all, none"):
        variance_matching.repair(session, recalibrate="variances")

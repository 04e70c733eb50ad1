"""Scores from gradients and of whole units, each against the plain formula."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from starfish_lab.errors import ImagesError, LabError, RecipeError
from starfish_lab.models.network import Network, UnitGroup, prunable
from starfish_lab.pruning import SCORES, SOLVERS, STARTS
from starfish_lab.pruning.gradients import weight_gradients
from starfish_lab.pruning.scores import taylor, variance
from starfish_lab.recipe import PruningChoice

UNITS = PruningChoice(pattern="structured", sparsity=0.5)


def images_for(network: Network, count: int = 6) -> torch.Tensor:
    return torch.randn(count, *network.preprocessing.input_size, generator=torch.Generator().manual_seed(1))


def gradients_of(network: Network, layer: str, images, labels) -> torch.Tensor:
    """∂L/∂w of one layer, the plain way."""
    network.module.zero_grad()
    F.cross_entropy(network.module(images), labels).backward()
    found = network.module.get_submodule(layer).weight.grad.clone()
    network.module.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("name", ["tiny_vit", "tiny_resnet"])
def test_gradients_are_those_of_the_loss_batch_by_batch(name, request):
    network = request.getfixturevalue(name)
    images, labels = images_for(network), torch.tensor([0, 1, 2, 3, 4, 5])
    layers = list(prunable(network))
    found = weight_gradients(network, layers, images, labels, batch_size=2)
    assert list(found) == layers
    for layer in layers[:3]:
        squares = [gradients_of(network, layer, i, t).square() for i, t in zip(images.split(2), labels.split(2))]
        torch.testing.assert_close(found[layer], torch.stack(squares).mean(0).sqrt(), rtol=1e-4, atol=1e-7)
    assert all(p.grad is None and p.requires_grad for p in network.module.parameters()), "the network stays as it is"


def test_without_labels_the_networks_own_predictions_stand_in(tiny_vit):
    images = images_for(tiny_vit)
    with torch.no_grad():
        own = tiny_vit.module(images).argmax(1)
    layer = "blocks.1.mlp.fc1"
    torch.testing.assert_close(weight_gradients(tiny_vit, [layer], images)[layer], weight_gradients(tiny_vit, [layer], images, own)[layer])
    other = weight_gradients(tiny_vit, [layer], images, (own + 1) % 10)[layer]
    assert not torch.allclose(other, weight_gradients(tiny_vit, [layer], images)[layer])


def test_what_does_not_fit_is_said_in_words(tiny_vit):
    images = images_for(tiny_vit)
    with pytest.raises(ImagesError, match="5 labels for 6"):
        weight_gradients(tiny_vit, ["blocks.0.mlp.fc1"], images, torch.zeros(5, dtype=torch.long))
    with pytest.raises(ImagesError, match="0 to 9"):
        weight_gradients(tiny_vit, ["blocks.0.mlp.fc1"], images, torch.full((6,), 10))
    unused = Network.of(Branch(), blocks=["used"], input_size=(4,), num_classes=2)
    with pytest.raises(LabError, match="unused"):
        weight_gradients(unused, ["used", "unused"], torch.randn(2, 4))
    with pytest.raises(RecipeError, match="structured"):
        variance.score(torch.ones(2, 2))


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x):
        return self.used(x)


def test_taylor_is_the_change_of_the_loss_to_first_order(tiny_vit):
    """(w · g)² of a tiny weight change: the loss with the weight nearly scaled away, in closed form by finite differences."""
    images, labels, layer = images_for(tiny_vit), torch.arange(6), "blocks.0.mlp.fc2"
    weight = tiny_vit.module.get_submodule(layer).weight
    gradients = weight_gradients(tiny_vit, [layer], images, labels, batch_size=6)[layer]
    score = taylor.score(weight.detach(), gradients=gradients)
    place = divmod(int(score.argmax()), weight.shape[1])
    with torch.no_grad():
        module = tiny_vit.copy().module.double()
        changed = module.get_submodule(layer).weight
        losses = []
        for scale in (1 + 1e-4, 1 - 1e-4):
            kept = changed[place].item()
            changed[place] = kept * scale
            losses.append(F.cross_entropy(module(images.double()), labels).item())
            changed[place] = kept
    slope = (losses[0] - losses[1]) / 2e-4  # w · ∂L/∂w
    assert score[place].item() == pytest.approx(slope**2, rel=1e-3)


def test_taylor_of_a_unit_is_the_slope_of_scaling_all_its_weights(tiny_resnet):
    images, labels = images_for(tiny_resnet), torch.arange(6)
    found = taylor.unit_scores(tiny_resnet, UNITS, images, labels)
    assert set(found) == {group.producer for group in tiny_resnet.unit_groups}
    group, unit = tiny_resnet.unit_groups[1], 3
    losses = []
    with torch.no_grad():
        for scale in (1 + 1e-5, 1 - 1e-5):
            changed = tiny_resnet.copy().module.double()
            changed.get_submodule(group.producer).weight[unit] *= scale
            changed.get_submodule(group.consumer).weight[:, unit] *= scale
            losses.append(F.cross_entropy(changed(images.double()), labels).item())
    slope = (losses[0] - losses[1]) / 2e-5
    assert found[group.producer][unit].item() == pytest.approx(slope**2, rel=1e-2, abs=1e-10)


def test_taylor_of_units_and_dimensions_has_their_shapes_and_follows_the_chosen_units(tiny_vit):
    images, labels = images_for(tiny_vit), torch.arange(6)
    found = taylor.unit_scores(tiny_vit, UNITS, images, labels)
    assert {name: tuple(scores.shape) for name, scores in found.items()} == {
        "blocks.0.mlp.fc1": (128,), "blocks.0.attn.qkv": (2, 16), "blocks.1.mlp.fc1": (128,), "blocks.1.attn.qkv": (2, 16),
    }  # fmt: skip
    weight = tiny_vit.module.blocks[1].attn.qkv.weight
    gradient = gradients_of(tiny_vit, "blocks.1.attn.qkv", images, labels)
    term = (weight.detach() * gradient).sum(1)
    torch.testing.assert_close(found["blocks.1.attn.qkv"][1, 5], (term[16 + 5] + term[32 + 16 + 5]).square(), rtol=1e-3, atol=1e-12)
    only = taylor.unit_scores(tiny_vit, PruningChoice(pattern="structured", units=("qk",)), images, labels)
    assert set(only) == {"blocks.0.attn.qkv", "blocks.1.attn.qkv"}


def test_variance_of_units_is_that_of_what_the_consumer_sees(tiny_vit, tiny_resnet):
    for network, count in ((tiny_vit, 40), (tiny_resnet, 40)):  # more than a batch
        images, seen = images_for(network, count), []
        group = network.unit_groups[0]
        handle = network.module.get_submodule(group.consumer).register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
        with torch.no_grad():
            network.module(images)
        handle.remove()
        rows = seen[0].movedim(1, -1) if network is tiny_resnet else seen[0]
        found = variance.unit_scores(network, UNITS, images)[group.producer]
        torch.testing.assert_close(found, rows.flatten(0, -2).var(0, unbiased=False), rtol=1e-4, atol=1e-7)


def test_a_large_mean_does_not_hide_a_small_variance():
    seen = variance._Running()
    x = torch.randn(3000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.01, 0.02]) + 100
    for part in x.float().split(256):
        seen.rows(part)
    torch.testing.assert_close(seen.variance(), x.var(0, unbiased=False), rtol=1e-2, atol=0)


def test_variance_of_a_dimension_ignores_what_is_the_same_for_all_keys(tiny_vit):
    """A constant added to k_d moves every logit of a query alike, which the softmax does not see."""
    images = images_for(tiny_vit)
    before = variance.unit_scores(tiny_vit, UNITS, images)["blocks.0.attn.qkv"]
    with torch.no_grad():
        tiny_vit.module.blocks[0].attn.qkv.bias[32 + 3] += 5.0
    torch.testing.assert_close(variance.unit_scores(tiny_vit, UNITS, images)["blocks.0.attn.qkv"], before, rtol=1e-3, atol=1e-6)
    with torch.no_grad():
        tiny_vit.module.blocks[0].attn.qkv.bias[3] += 5.0
    after = variance.unit_scores(tiny_vit, UNITS, images)["blocks.0.attn.qkv"]
    assert after[0, 3] > 3 * before[0, 3] and torch.allclose(after[1], before[1], rtol=1e-3)


def test_a_constant_unit_has_no_variance():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x):
            return self.fc2(self.fc1(x))

    torch.manual_seed(0)
    module = Two()
    with torch.no_grad():
        module.fc1.weight[2] = 0
    network = Network.of(module, blocks=["fc1"], input_size=(4,), unit_groups=(UnitGroup("fc1", "fc2"),))
    found = variance.unit_scores(network, UNITS, torch.randn(10, 4))["fc1"]
    assert found.argmin() == 2 and found[2] < 1e-10 < found.sort().values[1]


def test_constants_of_an_entry_are_read_without_importing_it():
    for entries in (SCORES, SOLVERS, STARTS):
        for name in entries.names():
            for constant in ("PATTERNS", "TRAINS", "NEEDS_GRADIENTS"):
                assert entries.constant(name, constant, "absent") == getattr(entries.module(name), constant, "absent"), (name, constant)

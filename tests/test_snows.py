"""SNOWS and its surrogate: derivatives against finite differences, steps against closed forms, promises of every repair."""

from __future__ import annotations

import pytest
import torch
from test_healing import Watcher, half, images_for, lively, same
from torch import nn
from torch.nn import functional as F

from starfish_lab.errors import Cancelled, ImagesError, RecipeError
from starfish_lab.healing import snows_layers, snows_newton
from starfish_lab.healing.repairs import snows, snows_adam
from starfish_lab.healing.session import Session
from starfish_lab.healing.snows_segment import Segment, chain, distance, operations, recorded
from starfish_lab.models.loading import bundled
from starfish_lab.models.network import Network
from starfish_lab.progress import Reporter
from starfish_lab.pruning.masks import apply
from starfish_lab.recipe import TokensChoice
from starfish_lab.tokens import merge
from starfish_lab.training.batches import Batches

CPU = torch.device("cpu")
SHORT = {"snows": (snows.repair, {"max_cg": 3}), "snows_adam": (snows_adam.repair, {"steps": 3, "learning_rate": 1e-3})}


def session_of(network: Network, masks: dict | None = None, *, count: int = 10, student: Network | None = None, **known) -> Session:
    """A run on the network's own weights × masks."""
    masks, images = half(network) if masks is None else masks, images_for(network, count)
    if student is None:
        student = network.copy()
        apply(student.module, masks)
    return Session(
        dense=network, student=student, masks=masks, batches=Batches(images, batch_size=4), calibration=images, device=CPU,
        **{"reporter": Reporter(), "teacher_memory": 1e9, **known},
    )  # fmt: skip


def problems(session: Session, **options) -> list[snows_layers.Problem]:
    """The problems of all layers, each as it stands when it is its turn; nothing is fitted."""
    found = []
    snows_layers.reconstruct(session, "test", **{"k": None, "batch_size": 128, "minimise": found.append, **options})
    return found


@pytest.fixture(params=("tiny_vit", "tiny_resnet", "tiny_convnext", "tiny_swin", "tiny_hiera"))
def network(request):
    return lively(request.getfixturevalue(request.param))


@pytest.fixture
def linear():
    """One Linear of 6 inputs and 4 outputs, rows of input as images, and a mask that keeps 3 of 6."""
    torch.manual_seed(0)
    net = Network.of(nn.Sequential(nn.Linear(6, 4)).double(), blocks=["0"], input_size=(6,))
    mask = torch.rand(4, 6).argsort(1) < 3
    return net, {"0": mask}


@pytest.mark.parametrize("fixture", ("tiny_vit", "tiny_resnet"))
def test_an_unpruned_network_stays_bit_for_bit(request, fixture):
    network = lively(request.getfixturevalue(fixture))
    ones = {name: torch.ones_like(mask) for name, mask in half(network).items()}
    for repair, options in SHORT.values():
        session = session_of(network, ones, count=4)
        repair(session, k=3, **options)
        assert same(session.student, network)


@pytest.mark.parametrize("name", SHORT)
def test_every_family_is_fitted_and_its_zeros_stay(network, name):
    before, session = network.copy(), session_of(network)
    start = session.student.copy()
    repair, options = SHORT[name]
    repair(session, k=3, **options)
    assert same(network, before)
    moved = 0
    for key, value in session.student.module.state_dict().items():
        layer = key.removesuffix(".weight")
        if layer in session.masks:
            assert (value[~session.masks[layer]] == 0).all() and value.isfinite().all()
            moved += not torch.equal(value, start.module.state_dict()[key])
        else:
            assert torch.equal(value, start.module.state_dict()[key]), key
    assert moved >= len(session.masks) / 2
    for parameter in [*session.student.module.parameters(), *network.module.parameters()]:
        assert parameter.requires_grad and parameter.grad is None
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in session.student.module.modules())


def test_what_comes_after_a_layer():
    """The starter, by hand: attention is one operation, and a segment crosses into the next block."""
    network = bundled()
    calls = recorded(network, images_for(network, 1))
    assert chain(calls, "blocks.4") == ("blocks.4", "blocks.5", "norm")
    named = operations(network)
    assert [name for name in named if name.startswith("blocks.0.")] == [
        f"blocks.0.{name}" for name in ("norm1", "attn", "norm2", "mlp.fc1", "mlp.act", "mlp.fc2")
    ]
    x, module = torch.randn(2, 17, 192), network.module
    block, following = module.blocks[0], module.blocks[1]
    with torch.no_grad():
        attended = block.attn(block.norm1(x))
        normed = block.norm2(x + attended)
        inner = block.mlp.fc1(normed)
        outer = block.mlp.fc2(block.mlp.act(inner))
        after = following.norm1(x + attended + outer)
        expected = {
            "attn.qkv": [attended, normed, inner, block.mlp.act(inner)],
            "attn.proj": [attended, normed, inner, block.mlp.act(inner)],
            "mlp.fc2": [outer, after, following.attn(after), following.norm2(x + attended + outer + following.attn(after))],
        }
        for layer, outputs in expected.items():
            found = Segment.of(f"blocks.0.{layer}", network, calls, 3).outputs(module, x)
            assert len(found) == 4 and all(map(torch.allclose, found, outputs)), layer
        last = Segment.of("blocks.5.mlp.fc2", network, calls, 3).outputs(module, x)
        assert len(last) == 2  # the layer and the final norm: after it tokens are pooled, which is no module


def test_values_before_an_activation_in_place_are_kept(tiny_resnet):
    network = lively(tiny_resnet)
    calls = recorded(network, images_for(network, 1))
    block, x = network.module.layer1[0], torch.randn(2, 64, 8, 8)
    with torch.no_grad():
        found = Segment.of("layer1.0.conv1", network, calls, 7).outputs(network.module, x)
        plain = [block.conv1(x), block.bn1(block.conv1(x))]
        plain.append(F.relu(plain[1]))
        plain += [block.conv2(plain[2]), block.bn2(block.conv2(plain[2]))]
        plain += [block.downsample[0](x), block.downsample(x)]
        plain.append(F.relu(plain[4] + plain[6]))  # the block returns this very tensor: one operation, not two
        plain.append(network.module.layer2[0].conv1(plain[7]))
        assert torch.allclose(Segment.of("layer1.0.conv1", network, calls, 8).outputs(network.module, x)[8], plain[8], atol=1e-5)
    assert len(found) == 8 and all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, plain))
    assert (found[1] < 0).any()


def test_only_the_segment_runs_in_a_hessian_vector_product(tiny_vit):
    session = session_of(tiny_vit)
    problem = problems(session, k=1)[0]
    assert problem.segment.layer == "blocks.0.attn.qkv"
    ran = []
    for name, module in session.student.module.named_modules():
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        problem.weight.requires_grad_(True)
        gradient, curvature = snows_newton.second_order(problem, 0)
        assert "blocks.0.norm2" in ran and not any(n.startswith(("blocks.0.mlp", "blocks.1", "patch_embed", "head")) for n in ran)
        ran.clear()
        curvature(gradient)
        assert ran == []  # the graph is walked, nothing runs


@pytest.mark.parametrize("fixture", ("tiny_vit", "tiny_resnet", "tiny_convnext"))
def test_hessian_vector_products_are_differences_of_gradients(request, fixture):
    network = lively(request.getfixturevalue(fixture))
    network.module.double()
    session = session_of(network, count=4)
    session.student.module.double()
    checked = 0
    for module in (network.module, session.student.module):
        module.register_forward_pre_hook(lambda m, args: (args[0].double(),))

    def minimise(problem):  # float32 images are cast by the hook
        nonlocal checked
        generator = torch.Generator().manual_seed(5)
        v = torch.randn(problem.weight.shape, generator=generator, dtype=torch.float64) * problem.mask
        product = snows_newton.second_order(problem, 0)[1](v)
        start, found = problem.weight.detach().clone(), []
        for sign in (1, -1):
            with torch.no_grad():
                problem.weight.copy_(start + sign * 1e-5 * v)
            found.append(torch.autograd.grad(problem.loss(0), problem.weight)[0] * problem.mask)
        with torch.no_grad():
            problem.weight.copy_(start)
        difference = (found[0] - found[1]) / 2e-5
        assert product.norm() > 0 and (product - difference).norm() < 1e-4 * product.norm(), problem.segment.layer
        checked += 1

    snows_layers.reconstruct(session, "test", k=3, batch_size=128, minimise=minimise)
    assert checked == len(session.masks)


def test_without_following_operations_a_newton_step_is_masked_least_squares(linear):
    net, masks = linear
    x = torch.randn(400, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    x = x + 2 * x[:, :1]  # inputs that know of each other: else what survives is nearly the solution
    session = session_of(net, masks, count=4)
    learning, _ = minibatches = snows_layers.split(400, 200, seed=0)
    weight = session.student.module[0].weight
    problem = snows_layers.Problem(session, Segment("0", ("0",), ("0",), 0), weight, masks["0"].double(), x, minibatches)
    snows_newton.newton(problem, passes=1, max_cg=200, damping=0.0, tolerance=1e-13, check=lambda: None)
    dense, found = net.module[0].weight.detach(), problem.weight.detach()
    for row in range(4):
        kept = masks["0"][row]
        solved = torch.linalg.lstsq(x[learning][:, kept], x[learning] @ dense[row]).solution
        assert torch.allclose(found[row, kept], solved, atol=1e-9)
        assert (found[row, ~kept] == 0).all()


def test_conjugate_gradients_solve_damped_systems_and_stop_at_negative_curvature():
    torch.manual_seed(0)
    a = torch.randn(8, 8, dtype=torch.float64)
    a, b = a @ a.T, torch.randn(8, dtype=torch.float64)
    found = snows_newton.conjugate_gradient(lambda v: a @ v, b, damping=0.3, tolerance=1e-12, iterations=50)
    assert torch.allclose(found, torch.linalg.solve(a + 0.3 * torch.eye(8), b))
    early = snows_newton.conjugate_gradient(lambda v: a @ v, b, damping=0.3, tolerance=1e-12, iterations=2)
    assert not torch.allclose(early, found)
    assert torch.equal(snows_newton.conjugate_gradient(lambda v: -v, b, damping=0.3, tolerance=1e-12, iterations=50), b)
    bent = torch.diag(torch.tensor([1.0] * 7 + [-9.0], dtype=torch.float64))
    descent = snows_newton.conjugate_gradient(lambda v: bent @ v, b, damping=0.0, tolerance=1e-12, iterations=50)
    assert descent @ b > 0


class Bowl:
    """A problem of one weight: f(w) = w² on all images, or what is said of those held out."""

    def __init__(self, held_out):
        self.weight, self.mask = nn.Parameter(torch.tensor([1.0])), torch.ones(1)
        self.held_out = lambda: held_out(self.weight.item())


def test_armijo_takes_the_first_length_that_lowers_the_held_out_loss():
    near = Bowl(lambda w: (w - 0.5) ** 2)  # from 1 by −1: lower as soon as the move is shorter than 1
    assert snows_newton.armijo(near, torch.tensor([-1.0]), slope=-2.0) == pytest.approx(0.9)
    assert near.weight.item() == pytest.approx(0.1)
    for held_out, slope in ((lambda w: -w, -2.0), (lambda w: w, 2.0), (lambda w: float("nan"), -2.0)):
        worse = Bowl(held_out)
        assert snows_newton.armijo(worse, torch.tensor([-1.0]), slope=slope) == 0 and worse.weight.item() == 1


@pytest.mark.parametrize("fixture, name", [("tiny_vit", "snows"), ("tiny_convnext", "snows"), ("tiny_vit", "snows_adam")])
def test_the_held_out_loss_of_no_layer_rises(request, fixture, name, monkeypatch):
    network, before = lively(request.getfixturevalue(fixture)), {}
    reconstruct = snows_layers.reconstruct

    def watched(session, name, *, minimise, **options):
        def around(problem):
            start = problem.held_out()
            minimise(problem)
            before[problem.segment.layer] = start, problem.held_out()

        reconstruct(session, name, minimise=around, **options)

    repair, options = SHORT[name]
    monkeypatch.setattr(snows if name == "snows" else snows_adam, "reconstruct", watched)
    session = session_of(network)
    repair(session, k=2, **options)
    assert len(before) == len(session.masks)
    assert all(after <= start for start, after in before.values()) and any(after < start for start, after in before.values())


def test_layers_still_to_come_are_dense(tiny_vit):
    session, order = session_of(tiny_vit), []
    start = session.student.copy()

    def minimise(problem):
        order.append(problem.segment.layer)
        for layer in session.masks:
            weight = session.student.module.get_submodule(layer).weight
            expected = (start if layer in order else tiny_vit).module.get_submodule(layer).weight
            assert torch.equal(weight, expected)

    snows_layers.reconstruct(session, "test", k=3, batch_size=4, minimise=minimise)
    assert order == list(session.masks) and same(session.student, start)


def test_the_objective_is_the_sum_of_mean_squares():
    found, targets = [torch.zeros(2, 3), torch.ones(4)], [torch.full((2, 3), 2.0), torch.full((4,), 4.0)]
    assert float(distance(found, targets)) == 4 + 9


def attention_kernels() -> tuple[bool, ...]:
    cuda = torch.backends.cuda
    return cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled(), cuda.cudnn_sdp_enabled()


@pytest.mark.parametrize("name", SHORT)
def test_cancel_is_obeyed_inside_a_layer_and_leaves_no_trace(tiny_vit, name):
    class Stops(Watcher):
        asked = 0

        def cancel_requested(self):
            self.asked += 1
            return self.asked > 3  # one look at the inputs, then two iterations

    stops, kernels = Stops(), attention_kernels()
    session = session_of(tiny_vit, reporter=stops)
    start = session.student.copy()
    repair, options = SHORT[name]
    with pytest.raises(Cancelled):
        repair(session, **options)
    assert stops.asked == 4 and stops.step == 0  # in the first layer
    assert attention_kernels() == kernels
    assert all(p.requires_grad for network in (session.student, tiny_vit) for p in network.module.parameters())
    first = "blocks.0.attn.qkv.weight"
    assert all(torch.equal(v, start.module.state_dict()[n]) for n, v in session.student.module.state_dict().items() if n != first)
    assert (session.student.module.state_dict()[first][~session.masks["blocks.0.attn.qkv"]] == 0).all()


def test_what_cannot_be_fitted_is_refused(tiny_vit):
    with pytest.raises(ImagesError, match="at least two"):
        snows.repair(session_of(tiny_vit, count=1))
    for wrong in ({"k": -1}, {"k": 1.5}, {"max_cg": 0}, {"damping": -1}, {"passes": True}, {"batch_size": 0}):
        with pytest.raises(RecipeError, match=f"healing.repair_options.{next(iter(wrong))} is"):
            snows.repair(session_of(tiny_vit), **wrong)
    with pytest.raises(RecipeError, match="learning_rate"):
        snows_adam.repair(session_of(tiny_vit), learning_rate=0)
    merging = tiny_vit.copy()
    merge(merging, TokensChoice(r=(2,)))
    with pytest.raises(RecipeError, match="'snows'.*merges tokens"):
        snows.repair(session_of(tiny_vit, student=merging))


def test_blocks_of_two_tensors_and_idle_layers_are_refused():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.block, self.idle = nn.Bilinear(4, 4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.block(x, x)

    network = Network.of(Pair(), blocks=["block"], input_size=(4,))
    with pytest.raises(RecipeError, match="'block' takes more than one tensor"):
        snows.repair(session_of(network, {"block": torch.ones(4, 4, 4, dtype=torch.bool)}))
    with pytest.raises(RecipeError, match="layer idle takes no part"):
        snows.repair(session_of(network, {"idle": torch.ones(4, 4, dtype=torch.bool)}))

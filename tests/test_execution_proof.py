"""Precision around every call, compiling, and the proof that nothing unequal is timed."""

from __future__ import annotations

import math

import pytest
import torch
from test_slicing import masked, structured

from starfish_lab.errors import Refused
from starfish_lab.execution import precision, proof
from starfish_lab.execution.backends import sliced
from starfish_lab.execution.build import ready
from starfish_lab.execution.choice import Execution
from starfish_lab.execution.running import Run


def test_differences_are_fractions_of_the_largest_logit():
    expected = torch.tensor([[1.0, -4.0], [2.0, 0.0]])
    found = expected + torch.tensor([[0.0, 0.02], [0.0, 0.0]])
    same = proof.compare(found, expected)
    assert same.largest_difference == pytest.approx(0.02 / 4) == same.from_float32 and same.tolerance == 1e-5 and not same.equal
    assert same.top1_agreement == 1 and same.images == 2


def test_a_shorter_format_is_allowed_three_times_its_own_rounding():
    exact = torch.tensor([[4.0, 1.0]])
    rounded = exact + 0.04  # 1 % of the largest logit
    for shift, equal in ((0.11, True), (0.13, False)):  # 2.75 % and 3.25 % from the rounded one
        found = proof.compare(rounded + torch.tensor([[0.0, shift]]), rounded, exact)
        assert found.tolerance == pytest.approx(0.03, rel=1e-4) and found.equal == equal
        assert found.from_float32 == pytest.approx((0.04 + shift) / 4, rel=1e-4)


def test_what_is_not_finite_is_not_equal():
    logits = torch.tensor([[1.0, 2.0]])
    assert not proof.compare(logits * math.nan, logits).equal
    assert not proof.compare(logits * math.inf, logits * math.inf).equal
    nothing = proof.compare(logits * 0, logits * 0)
    assert not nothing.equal and "cannot be compared" in str(nothing)


def test_agreement_counts_images():
    expected = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    assert proof.compare(expected.flip(1)[[0, 1, 2, 3]], expected).top1_agreement == 0
    assert proof.compare(expected[[0, 2, 2, 3]], expected).top1_agreement == 0.75


def test_a_backend_that_changes_answers_is_refused(tiny_vit, monkeypatch):
    masks = structured(tiny_vit)
    student = masked(tiny_vit, masks)
    right = sliced.build

    def wrong(*args, **options):
        network = right(*args, **options)
        network.module.head.bias.data[3] += 1e-3
        return network

    monkeypatch.setattr(sliced, "build", wrong)
    with pytest.raises(Refused, match="differ by at most .* so it is not used"):
        ready(tiny_vit, student, masks, Execution(backend="sliced"))


def test_kernels_that_fail_are_a_refusal_and_a_lack_of_memory_is_not(tiny_vit, monkeypatch):
    masks = structured(tiny_vit)
    student = masked(tiny_vit, masks)

    def fails(error):
        def failing(*args, **options):
            raise error

        monkeypatch.setattr(sliced, "build", failing)
        return ready(tiny_vit, student, masks, Execution(backend="sliced"))

    with pytest.raises(Refused, match=r"'sliced' does not run here \(RuntimeError: no kernel image\): choose another"):
        fails(RuntimeError("no kernel image\nCompile with TORCH_USE_CUDA_DSA"))
    with pytest.raises(torch.OutOfMemoryError):
        fails(torch.OutOfMemoryError("CUDA out of memory"))


def test_a_network_that_overflows_in_fp16_is_refused_so(tiny_vit):
    large = tiny_vit.copy()
    with torch.no_grad():
        large.module.head.bias.fill_(1e5)  # fp16 ends at 65504
    with pytest.raises(Refused, match="not finite: choose a precision with a wider range"):
        ready(large, large, {}, Execution(backend="dense", precision="fp16"))
    assert ready(large, large, {}, Execution(backend="dense", precision="bf16")).proof.equal


@pytest.mark.parametrize("label, weights, images", [
    ("dense", torch.float32, torch.float32), ("dense, fp16", torch.float16, torch.float16), ("dense, bf16", torch.bfloat16, torch.bfloat16),
    ("dense, autocast", torch.float32, torch.float32),
])  # fmt: skip
def test_weights_and_images_have_the_precisions_format(tiny_vit, label, weights, images):
    found = ready(tiny_vit, tiny_vit, {}, Execution.of(label))
    assert {p.dtype for p in found.network.module.parameters()} == {weights}
    batch = found.module.inputs(torch.randn(2, 3, 32, 32))
    assert batch.dtype == images
    heard = []
    found.network.module.blocks[0].mlp.fc1.register_forward_hook(lambda *args: heard.append(args[2].dtype))
    logits = found.module(batch)
    assert heard == [torch.bfloat16 if "autocast" in label else weights] and not logits.requires_grad
    assert not torch.is_autocast_enabled("cpu") and not torch.is_inference_mode_enabled()


def test_tf32_is_on_inside_and_as_before_outside():
    cudnn, before = torch.backends.cudnn, torch.get_float32_matmul_precision()
    outside = (before, cudnn.allow_tf32)
    for name, expected in (("tf32", ("high", True)), ("float32", ("highest", False)), ("bf16", ("highest", False))):
        with pytest.raises(ZeroDivisionError), precision.products(name):
            assert (torch.get_float32_matmul_precision(), cudnn.allow_tf32) == expected
            raise ZeroDivisionError
        assert (torch.get_float32_matmul_precision(), cudnn.allow_tf32) == outside


def test_a_run_sets_the_products_of_its_own_precision_on_cuda():
    seen = []
    run = Run(lambda images: seen.append(torch.get_float32_matmul_precision()) or images, precision="tf32", device="cuda:0")
    run(torch.zeros(1))
    assert seen == ["high"] and torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize("device, capability, refused", [
    ("cpu", None, True), ("mps", None, True), ("cuda:0", (7, 5), True), ("cuda:0", (8, 0), False), ("cuda:0", None, False),
])  # fmt: skip
def test_tf32_is_for_ampere_and_later(monkeypatch, device, capability, refused):
    monkeypatch.setattr(precision, "capability", lambda device: capability)
    assert (precision.refuses("tf32", device=device) is not None) == refused
    assert precision.refuses("bf16", device=device) is None


def test_channels_last_lays_out_weights_and_images(tiny_resnet):
    found = ready(tiny_resnet, tiny_resnet, {}, Execution.of("dense, channels last"))
    layer, images = found.network.module.layer1[0].conv1, found.module.inputs(torch.randn(2, 3, 32, 32))
    assert layer.weight.is_contiguous(memory_format=torch.channels_last) and not layer.weight.is_contiguous()
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_compiled_runs_what_torch_compiled(tiny_vit, monkeypatch):
    calls = []

    def pretend(module, *, dynamic):
        assert dynamic is False
        return lambda images: calls.append(len(images)) or module(images)

    monkeypatch.setattr(torch, "compile", pretend)
    found = ready(tiny_vit, tiny_vit, {}, Execution.of("dense, compiled"), images=torch.randn(3, 3, 32, 32))
    assert calls == [3]  # proven on what is timed
    found.module(found.module.inputs(torch.randn(5, 3, 32, 32)))
    assert calls == [3, 5] and torch._dynamo.config.recompile_limit >= 256


def test_a_compiler_that_is_not_there_is_a_refusal_and_one_that_errs_too(tiny_vit, monkeypatch):
    def missing(images):
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found\nmore")

    monkeypatch.setattr(torch, "compile", lambda module, *, dynamic: missing)
    with pytest.raises(Refused, match=r"torch.compile does not work here \(RuntimeError: .*found\): run it eagerly"):
        ready(tiny_vit, tiny_vit, {}, Execution.of("dense, compiled"))
    monkeypatch.setattr(torch, "compile", lambda module, *, dynamic: lambda images: module(images) + 0.1)
    with pytest.raises(Refused, match="so it is not used"):
        ready(tiny_vit, tiny_vit, {}, Execution.of("dense, compiled"))


@pytest.mark.parametrize("label", ["merged+sliced", "sliced, bf16"])
def test_dynamo_takes_a_network_whole(tiny_vit, label):
    """One graph, no break: what a compiler then makes of it is the compiler's business."""
    masks = structured(tiny_vit)
    found = ready(tiny_vit, masked(tiny_vit, masks), masks, Execution.of(label))
    torch._dynamo.reset()
    explained = torch._dynamo.explain(found.module.forward)(found.module.inputs(torch.randn(2, 3, 32, 32)))
    assert (explained.graph_count, explained.graph_break_count) == (1, 0)

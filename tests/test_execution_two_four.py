"""2:4 kernels: what is legal, which layers fit, what is refused and why. The kernels themselves need a GPU; here stand-ins run."""

from __future__ import annotations

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn import functional as F

from starfish_lab.errors import LabError, Refused
from starfish_lab.execution import precision, semi_structured, unfolding
from starfish_lab.execution.build import ready, refusal
from starfish_lab.execution.choice import Execution
from starfish_lab.models.gather import gather
from starfish_lab.models.loading import wrap
from starfish_lab.models.network import Network, Preprocessing
from starfish_lab.pruning.prune import make_masks, pruned
from starfish_lab.recipe import PruningChoice

CUTLASS, CUSPARSELT = ("semi_structured(cutlass), bf16", "semi_structured(cusparselt), fp16")
CUDA = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)


@pytest.fixture
def vit():
    """64 wide, so that CUTLASS's 32 × 64 fits; 10 classes, which no kernel takes."""
    torch.manual_seed(0)
    module = VisionTransformer(img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=2, num_classes=10).eval()
    return wrap(module, name="vit64", num_classes=10, preprocessing=Preprocessing(input_size=(3, 32, 32)))


def two_four(network, **choice):
    masks = make_masks(network, PruningChoice(pattern="n_m", **choice)).masks
    return pruned(network, masks), masks


@pytest.fixture
def ampere(monkeypatch):
    """A GPU that is not there: of capability 8.0, its kernels dense. What is 'cuda:0' lies on the CPU."""
    compressed = []

    def compress(weight, kernel):
        compressed.append((kernel, tuple(weight.shape), weight.dtype))
        return weight.contiguous()

    monkeypatch.setattr(precision, "capability", lambda device: (8, 0))
    monkeypatch.setattr(semi_structured, "trial", lambda *args: "")
    monkeypatch.setattr(semi_structured, "compress", compress)
    move, stay = nn.Module.to, torch.Tensor.to
    monkeypatch.setattr(nn.Module, "to", lambda self, *args: move(self, *("cpu" if a == "cuda:0" else a for a in args)))
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *args, **kw: stay(self, *("cpu" if a == "cuda:0" else a for a in args), **kw))
    return compressed


def test_two_of_four_is_legal_and_the_first_bad_group_is_named():
    weight = torch.zeros(4, 12)
    weight[:, [0, 3, 5, 6, 8]] = 1
    assert semi_structured.first_bad_group(weight) is None
    weight[3, 9] = weight[3, 10] = 1
    weight[2, 4] = -1  # the first: row 2, inputs 4 to 7
    assert semi_structured.first_bad_group(weight) == (2, 1)
    with pytest.raises(LabError, match=r"fc1 is not 2:4: row 2, inputs 4 to 7 hold 3 nonzeros where 2 may be"):
        semi_structured.check_legal("fc1", weight)
    with pytest.raises(LabError, match="fc1 has 10 inputs, no multiple of 4"):
        semi_structured.check_legal("fc1", torch.ones(4, 10))


def test_a_convolution_is_looked_at_as_it_is_unfolded():
    """Groups run through channel, row and column of the kernel in that order."""
    weight = torch.zeros(1, 4, 1, 3)
    weight.view(-1)[[0, 1, 4, 5, 8, 9]] = 1
    semi_structured.check_legal("conv", weight)
    weight[0, 0, 0, 2] = 1  # the third of the first four
    with pytest.raises(LabError, match="row 0, inputs 0 to 3"):
        semi_structured.check_legal("conv", weight)


@pytest.mark.parametrize("kernel, rows, columns, said", [
    ("cutlass", 32, 64, ""), ("cutlass", 1000, 768, "its 1000 rows are no multiple of 32"),
    ("cutlass", 64, 288, "its 288 inputs are no multiple of 64"), ("cusparselt", 16, 16, ""),
    ("cusparselt", 1000, 768, "its 1000 rows are no multiple of 16"), ("cusparselt", 64, 72, "its 72 inputs are no multiple"),
])  # fmt: skip
def test_shapes_must_be_multiples_of_the_kernels_own(kernel, rows, columns, said):
    """arXiv 2606.02608: the head of 1000 rows and deep-stem convolutions of 288 columns stay dense with CUTLASS."""
    found = semi_structured.misfit(torch.ones(rows, columns), kernel, "bf16")
    assert found.startswith(said) and bool(found) == bool(said)


def test_layers_that_fit_are_chosen_and_the_others_named(vit):
    student, masks = two_four(vit, include=("*",), exclude=("blocks.1.*",))
    masks["blocks.1.mlp.fc1"] = torch.ones(256, 64, dtype=torch.bool)
    fitting, dense = semi_structured.select(student, masks, kernel="cutlass", precision="bf16")
    assert list(fitting) == [f"blocks.0.{name}" for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]
    assert dense == {"patch_embed.proj": "not pruned", "head": "its 10 rows are no multiple of 32", "blocks.1.mlp.fc1": "not pruned"}
    said = semi_structured.sentence(fitting, dense, "2:4 (cutlass)")
    assert said.startswith("4 of 7 layers run 2:4 (cutlass); dense stays patch_embed.proj, blocks.1.mlp.fc1 (not pruned)")
    assert "head (its 10 rows" in said


@pytest.mark.parametrize("label", [CUTLASS, CUSPARSELT])
def test_chosen_layers_are_compressed_and_the_answers_stay(vit, ampere, label):
    student, masks = two_four(vit)
    found = ready(vit, student, masks, Execution.of(label), device="cuda:0")
    kernel, weights = Execution.of(label).options["kernel"], precision.dtype_of(Execution.of(label).precision)
    assert ampere == [(kernel, shape, weights) for _ in range(2) for shape in ((192, 64), (64, 64), (256, 64), (64, 256))]
    assert found.proof.equal and found.note.startswith("8 of 8 layers run 2:4")
    assert type(found.network.module.blocks[0].mlp.fc1) is semi_structured.SemiStructuredLinear
    assert type(student.module.blocks[0].mlp.fc1) is nn.Linear


def test_layers_that_gather_go_on_gathering(vit, ampere):
    layer = vit.module.blocks[0].mlp.fc1
    gather(layer, torch.randperm(64))
    student, masks = two_four(vit)
    found = ready(vit, student, masks, Execution.of(CUTLASS), device="cuda:0")
    assert len(ampere) == 8 and found.proof.equal and torch.equal(found.network.module.blocks[0].mlp.fc1.order, layer.order)


def test_a_network_that_is_not_two_four_is_refused_with_the_group(vit, ampere):
    student, masks = two_four(vit)
    name = "blocks.1.attn.proj"
    masks[name][7, 8:12] = True
    with torch.no_grad():
        student.module.get_submodule(name).weight[7, 8:12] = 1
    with pytest.raises(Refused, match=rf"{name} is not 2:4: row 7, inputs 8 to 11 hold 4 nonzeros"):
        ready(vit, student, masks, Execution.of(CUTLASS), device="cuda:0")
    assert not ampere
    for pattern in ("unstructured", "structured"):
        student = vit.copy()
        masks = make_masks(student, PruningChoice(pattern=pattern, sparsity=0.5)).masks
        assert "is not 2:4" in refusal(vit, pruned(student, masks), masks, Execution.of(CUTLASS), device="cuda:0")


def test_a_network_without_pruned_layers_that_fit_is_refused(tiny_vit, ampere):
    student, masks = two_four(tiny_vit)  # 32 wide: CUTLASS wants 64 inputs
    only = {"blocks.0.mlp.fc1": masks["blocks.0.mlp.fc1"]}
    assert "its 32 inputs are no multiple of 64" in refusal(tiny_vit, student, only, Execution.of(CUTLASS), device="cuda:0")
    assert refusal(tiny_vit, student, only, Execution.of(CUSPARSELT), device="cuda:0") is None
    assert "nothing is masked" in refusal(tiny_vit, student, {}, Execution.of(CUSPARSELT), device="cuda:0")


@pytest.mark.parametrize("name", ["float32", "tf32", "autocast"])
@pytest.mark.parametrize("backend", ["semi_structured(cutlass)", "im2col(cutlass)"])
def test_float32_is_refused_because_its_format_is_one_of_two(tiny_resnet, vit, backend, name, monkeypatch):
    monkeypatch.setattr(precision, "capability", lambda device: (8, 6))
    network = tiny_resnet if "im2col" in backend else vit
    student, masks = two_four(network)
    said = refusal(network, student, masks, Execution.of(f"{backend}, {name}"), device="cuda:0")
    assert "1:2 and not 2:4" in said and f"'{name}'" in said and "fp16 or bf16" in said


def test_a_cpu_and_an_old_gpu_are_refused(vit, monkeypatch):
    student, masks = two_four(vit)
    for device in ("cpu", "mps"):
        assert "need a CUDA GPU of compute capability ≥ 8.0" in refusal(vit, student, masks, Execution.of(CUTLASS), device=device)
    assert refusal(vit, student, masks, Execution.of(CUTLASS), device="cuda:0") is None or CUDA  # nobody here to ask
    monkeypatch.setattr(precision, "capability", lambda device: (7, 5))
    assert "cuda:0 has 7.5" in refusal(vit, student, masks, Execution.of(CUTLASS), device="cuda:0")


def test_a_kernel_that_the_gpu_does_not_run_is_refused_in_its_own_words(vit, monkeypatch):
    """Hopper with CUTLASS, as torch 2.4 to 2.11 answer (pytorch#132928)."""
    student, masks = two_four(vit)
    said = "sparse_semi_structured_mad_op : Supported only on GPUs with compute capability 8.x"
    monkeypatch.setattr(precision, "capability", lambda device: (9, 0))
    monkeypatch.setattr(semi_structured, "trial", lambda kernel, *args: said if kernel == "cutlass" else "")
    found = refusal(vit, student, masks, Execution.of(CUTLASS), device="cuda:0")
    assert said in found and "9.0" in found and torch.__version__ in found and "try the kernel 'cusparselt'" in found
    assert refusal(vit, student, masks, Execution.of(CUSPARSELT), device="cuda:0") is None


def test_a_trial_tells_a_wrong_product_from_a_right_one_and_from_none(monkeypatch):
    def trial(compress):
        monkeypatch.setattr(semi_structured, "compress", compress)
        return semi_structured.trial.__wrapped__("cutlass", "cpu", torch.bfloat16)

    def broken(weight, kernel):
        raise RuntimeError("CUDA error: architecture mismatch\nmore")

    assert trial(lambda weight, kernel: weight) == ""
    assert trial(lambda weight, kernel: weight.roll(1, 1)) == "its product is wrong"
    assert trial(broken) == "CUDA error: architecture mismatch"


def test_torchs_own_packer_keeps_what_is_legal_and_drops_the_rest_silently():
    """Why every group is looked at: the conversion that CUTLASS's class uses runs on a CPU too."""
    from torch.sparse._semi_structured_conversions import sparse_semi_structured_from_dense_cutlass, sparse_semi_structured_to_dense_cutlass

    weight = torch.tensor([1.0, 0.0, 0.0, 2.0]).repeat(32, 16).to(torch.bfloat16)  # (32, 64)
    assert torch.equal(sparse_semi_structured_to_dense_cutlass(*sparse_semi_structured_from_dense_cutlass(weight)), weight)
    weight[5, 9] = 3
    assert semi_structured.first_bad_group(weight) == (5, 2)
    assert not torch.equal(sparse_semi_structured_to_dense_cutlass(*sparse_semi_structured_from_dense_cutlass(weight)), weight)


def test_rows_reach_the_kernel_contiguous():
    layer, images = nn.Linear(16, 16), torch.randn(2, 16, 3).transpose(1, 2)
    heard, linear = [], F.linear
    semi_structured.compress, before = (lambda weight, kernel: weight), semi_structured.compress
    try:
        semi_structured.convert(layer, "cutlass")
        F.linear = lambda input, *args: heard.append(input.is_contiguous()) or linear(input, *args)
        layer(images)
    finally:
        semi_structured.compress, F.linear = before, linear
    assert heard == [True] and not images.is_contiguous()


def test_sparse_kernels_take_the_convolutions_that_fit_and_leave_the_others_to_cudnn(tiny_resnet, ampere):
    student, masks = two_four(tiny_resnet)
    found = ready(tiny_resnet, student, masks, Execution.of("im2col(cusparselt), bf16"), device="cuda:0")
    weights = {name: tiny_resnet.module.get_submodule(name).weight.flatten(1) for name in masks}
    fits = [name for name, weight in weights.items() if weight.shape[0] % 16 == 0 == weight.shape[1] % 16]
    assert 0 < len(fits) < len(masks)
    assert [shape for _, shape, _ in ampere] == [tuple(weights[name].shape) for name in fits]
    for name in masks:
        assert isinstance(found.network.module.get_submodule(name), unfolding.UnfoldedConv2d) == (name in fits)
    assert found.note.startswith(f"{len(fits)} of {len(masks)} layers run 2:4 (cusparselt); dense stays") and "its 8 rows" in found.note
    assert found.proof.equal


def test_a_convolution_that_is_not_two_four_is_refused_by_name(tiny_resnet, ampere):
    masks = make_masks(tiny_resnet, PruningChoice(sparsity=0.5)).masks
    student = pruned(tiny_resnet, masks)
    assert "layer3.0.conv2 is not 2:4: row" in refusal(tiny_resnet, student, masks, Execution.of("im2col(cusparselt), fp16"), device="cuda:0")


@pytest.mark.skipif(not CUDA, reason="needs a CUDA GPU of compute capability ≥ 8.0")
@pytest.mark.parametrize("label", [CUTLASS, CUSPARSELT, "semi_structured(cusparselt), fp16, compiled"])
def test_real_kernels_answer_as_the_masked_network(vit, label):
    student, masks = two_four(vit)
    execution = Execution.of(label)
    reason = refusal(vit, student, masks, execution, device="cuda:0")
    if reason is not None:
        assert "does not run on cuda:0" in reason
        pytest.skip(reason)
    found = ready(vit, student, masks, execution, device="cuda:0")
    assert found.proof.equal and isinstance(found.network, Network)
    assert isinstance(found.network.module.blocks[0].mlp.fc1.weight, semi_structured.subclass(execution.options["kernel"]))

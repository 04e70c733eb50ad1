"""MACs against closed forms and the papers' figures; nothing of the network is touched."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer

from starfish_lab.measure import macs
from starfish_lab.models.loading import wrap
from starfish_lab.models.network import Network, Preprocessing


def vit_macs(tokens, width, depth, patches, classes=1000, pixels=768):
    """Σ_blocks (12 N D² + 2 N² D) + patch embedding + head (arXiv 2606.02608)."""
    return depth * (12 * tokens * width**2 + 2 * tokens**2 * width) + patches * pixels * width + classes * width


def build(name):
    with torch.device("meta"):
        return wrap(timm.create_model(name), name=name)


@pytest.mark.parametrize(
    ("name", "width", "depth", "giga"),
    [("deit_small_patch16_224", 384, 12, 4.5989), ("deit_base_patch16_224", 768, 12, 17.5638), ("vit_large_patch16_224", 1024, 24, 61.5547)],
)
def test_vits_have_the_papers_count(name, width, depth, giga):
    total = macs.total_macs(build(name))
    assert total == vit_macs(197, width, depth, 196)
    assert total / 1e9 == pytest.approx(giga, abs=5e-5)


def test_resnet50_has_its_count():
    assert macs.total_macs(build("resnet50")) / 1e9 == pytest.approx(4.09, abs=0.005)


def test_layers_add_up_and_attention_has_rows_of_its_own(tiny_vit):
    table = macs.layer_macs(tiny_vit).set_index("layer")
    assert table["macs"].sum() == macs.total_macs(tiny_vit) == vit_macs(17, 32, 2, 16, classes=10, pixels=3 * 64)
    for block in tiny_vit.blocks:
        assert table.loc[f"{block}.attn.matmul", "macs"] == 2 * 17**2 * 32
        assert table.loc[f"{block}.attn.qkv", "macs"] == 17 * 32 * 96
        assert table.loc[f"{block}.mlp.fc1", "macs"] == 17 * 32 * 128
    assert table.loc["blocks.0.attn.matmul", "kind"] == "attention" and table.loc["blocks.0.mlp.fc2", "kind"] == "mlp"


def test_depthwise_convolutions_count_one_channel_each(tiny_convnext):
    table = macs.layer_macs(tiny_convnext).set_index("layer")["macs"]
    assert table["stages.0.blocks.0.conv_dw"] == 16 * 16 * 8 * 49  # 64 pixels ÷ 4, 8 channels, 7×7


def test_any_module_can_be_counted():
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 5), torch.nn.Linear(5, 2))
    network = Network.of(module, blocks=["1"], input_size=(3, 2, 2))
    assert macs.layer_macs(network).to_dict("list") == {"layer": ["1", "2"], "kind": ["other", "other"], "macs": [60, 10]}


def test_counting_touches_nothing(tiny_resnet):
    tiny_resnet.module.train()
    before = {name: tensor.clone() for name, tensor in tiny_resnet.module.state_dict().items()}
    macs.total_macs(tiny_resnet)
    assert tiny_resnet.module.training
    for name, tensor in tiny_resnet.module.state_dict().items():
        assert tensor.device.type == "cpu" and torch.equal(tensor, before[name])


def test_zero_weights_cost_nothing_in_effective_macs(tiny_vit):
    torch.manual_seed(0)
    weight = tiny_vit.module.blocks[0].mlp.fc1.weight
    mask = torch.rand(weight.shape) > 0.75
    saved = 17 * 32 * 128 * (1 - mask.float().mean().item())
    assert macs.effective_macs(tiny_vit, {"blocks.0.mlp.fc1": mask}) == pytest.approx(macs.total_macs(tiny_vit) - saved, abs=1)
    assert macs.effective_macs(tiny_vit, {}) == macs.total_macs(tiny_vit)


def test_structured_masks_count_as_the_smaller_network():
    """Half the MLP units and half the Q/K dimensions: QKᵀ halves, AV stays."""
    module = VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=1, num_heads=2, num_classes=10)
    network = wrap(module, name="vit", preprocessing=Preprocessing(input_size=(3, 32, 32)))
    layers = ("blocks.0.mlp.fc1", "blocks.0.mlp.fc2", "blocks.0.attn.qkv")
    masks = {name: torch.ones_like(module.get_submodule(name).weight, dtype=torch.bool) for name in layers}
    masks["blocks.0.mlp.fc1"][:64] = False
    masks["blocks.0.mlp.fc2"][:, :64] = False
    for head in range(4):  # two of Q, two of K
        masks["blocks.0.attn.qkv"][16 * head : 16 * head + 8] = False
    saved = 2 * 17 * 32 * 64 + 17 * 32 * 32 + 17**2 * 16
    assert macs.effective_macs(network, masks) == macs.total_macs(network) - saved

"""The kit's real networks and images, through the same doors as anyone's. Skips where the kit is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from starfish_lab import settings
from starfish_lab.data import ImageSet, open_images
from starfish_lab.data.images import transform
from starfish_lab.models.loading import load, state_dict_from, wrap
from starfish_lab.models.network import Network, Preprocessing, prunable
from starfish_lab.pruning.prune import make_masks, pruned
from starfish_lab.recipe import ImagesChoice, ModelChoice, PruningChoice

KIT = (settings.ROOT / Path(settings.KIT()).expanduser()).resolve()

pytestmark = pytest.mark.skipif(not KIT.is_dir(), reason=f"{settings.KIT.name} is not set and the kit is not beside the repository")


@pytest.fixture(scope="module")
def vit() -> Network:
    weights = KIT / "vit_tiny_tinyimagenet200" / "model.safetensors"
    preprocessing = {"interpolation": "bilinear", "crop_pct": 0.875}  # mean and std stand in its config.json
    return load(ModelChoice(name="deit_tiny_patch16_224", weights="file", path=str(weights), preprocessing=preprocessing))


@pytest.fixture(scope="module")
def splits(vit):
    folder = KIT / "tiny_imagenet"
    choice = ImagesChoice(
        source="csv", path=str(folder / "val_first_5000.zip"), csv=str(folder / "val_labels.csv"), label_column="wnid",
        calibration_path=str(folder / "train_50_per_class.zip"), calibration_csv=str(folder / "train_labels.csv"),
        calibration=400, drift=64, evaluation=1000, order="first",
    )  # fmt: skip
    return open_images(choice, vit)


@torch.inference_mode()
def top1(network: Network, images: ImageSet) -> float:
    """In percent."""
    correct = sum(int((network.module(x).argmax(1) == images.labels[i]).sum()) for i, x in images.batches(50))
    return 100 * correct / len(images)


def test_images_come_in_order_with_the_heads_labels(vit, splits):
    assert splits.evaluation.names == [f"val/val_{i}.JPEG" for i in range(1000)]
    assert (vit.num_classes, vit.preprocessing.mean) == (200, (0.5, 0.5, 0.5))
    assert splits.evaluation.labels[:2].tolist() == [99, 166]  # logit_index of its table, found here by WordNet id
    assert splits.calibration.labels.bincount().tolist() == [2] * 200
    assert all(name.startswith("train/") for name in splits.calibration.names + splits.drift.names)
    assert not set(splits.calibration.names) & set(splits.drift.names) and splits.notes == []


def test_vit_dense(vit, splits):
    assert top1(vit, splits.evaluation) == pytest.approx(68.7, abs=0.3)


def test_vit_half_pruned_without_healing(vit, splits):
    masks = make_masks(vit, PruningChoice(sparsity=0.5)).masks
    assert len(masks) == 48  # qkv, proj, fc1, fc2 of twelve blocks
    assert top1(pruned(vit, masks), splits.evaluation) == pytest.approx(41.8, abs=0.3)


def resnet(layers: int) -> Network:
    """CIFAR's ResNet, whose stem and shortcuts timm has under no name: any module goes through `wrap`."""
    from timm.models.resnet import BasicBlock, ResNet
    from torch import nn

    module = ResNet(BasicBlock, [layers] * 3, num_classes=10, channels=(16, 32, 64), stem_type="deep", stem_width=8)
    module.conv1, module.maxpool, module.layer4 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.Identity(), nn.Identity()
    module.load_state_dict(state_dict_from(KIT / "resnet_cifar10" / f"resnet{6 * layers + 2}_cifar10_timm.safetensors"))
    for stage in (module.layer2, module.layer3):  # identities in form of batch norms, whose statistics must not follow batches
        stage[0].downsample[1] = nn.Identity()
    preprocessing = Preprocessing(input_size=(3, 32, 32), interpolation="bilinear", crop_pct=1.0)
    return wrap(module.eval(), name=f"resnet{6 * layers + 2}_cifar10", num_classes=10, preprocessing=preprocessing)


@pytest.mark.parametrize("layers", [3, 9])
def test_resnet_on_cifar(layers):
    network = resnet(layers)
    assert len(network.blocks) == 3 * layers
    shortcuts = [name for name in prunable(network) if "downsample" in name]
    assert len(shortcuts) == 2 and not set(shortcuts) & set(prunable(network, exclude=("*downsample*",)))
    images, labels = cifar()
    made = ImageSet.of(torch.stack([transform(network.preprocessing)(image) for image in images]), labels)
    assert top1(network, made) > 88  # 91.5 and 92.6 % of test images 0…999, of which these are half


def cifar():
    """The first 500 test images: rows of one PNG, each the pixels of a 32×32 image in a row."""
    import numpy as np
    from PIL import Image

    pixels = np.asarray(Image.open(KIT / "cifar10" / "cifar10_test_first_500.png").convert("RGB"))
    labels = json.loads((KIT / "cifar10" / "labels.json").read_text())["labels"]["test_first_500"]
    return [Image.fromarray(row.reshape(32, 32, 3)) for row in pixels], torch.tensor(labels)

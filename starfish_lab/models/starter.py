"""The starter: a small vision transformer trained on scikit-learn's handwritten digits, and how it is trained.

1,797 real images of 8×8 grey pixels are shown in RGB, enlarged to 32×32, so that they take the same way as
photographs do. `python -m starfish_lab train-starter` trains it again.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import time
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from torch import LongTensor, Tensor, nn
from torch.nn import functional as F

from starfish_lab import settings
from starfish_lab.models.network import Preprocessing
from starfish_lab.progress import Reporter

FOLDER = settings.ASSETS / "starter"
ARGUMENTS = {"img_size": 32, "patch_size": 8, "embed_dim": 192, "depth": 6, "num_heads": 6, "num_classes": 10}
PREPROCESSING = Preprocessing(input_size=(3, 32, 32), mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear", crop_pct=1.0)

CALIBRATION, TEST = 256, 540  # of 1,797 images; the other 1,001 train
BATCH, LEARNING_RATE, WEIGHT_DECAY = 64, 6e-4, 0.05
SHIFT, NOISE = 4, 0.2  # pixels of the enlarged image (half a pixel of the scan); standard deviation after normalising


def build() -> VisionTransformer:
    """The architecture, with random weights."""
    return VisionTransformer(**ARGUMENTS)


@cache
def card() -> dict[str, object]:
    """What is written about the bundled weights: recipe, split, accuracy, sha256."""
    return json.loads((FOLDER / "card.json").read_text())


def digits() -> tuple[list[Image.Image], LongTensor]:
    """The 1,797 images (8×8, grey) and their labels, in scikit-learn's order."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = np.round(bunch.images * (255 / 16)).astype(np.uint8)  # (1797, 8, 8), from 0…16
    return [Image.fromarray(image) for image in pixels], torch.from_numpy(bunch.target).long()


def split(seed: int) -> dict[str, list[int]]:
    """Indices of the images that train, that may calibrate, and that test."""
    order = np.random.default_rng(seed).permutation(1797).tolist()
    return {
        "calibration": sorted(order[:CALIBRATION]),
        "test": sorted(order[CALIBRATION : CALIBRATION + TEST]),
        "train": sorted(order[CALIBRATION + TEST :]),
    }


def train_starter(folder: Path, *, epochs: int = 120, seed: int = 0, reporter: Reporter | None = None) -> dict[str, object]:
    """Train the starter and write starter.safetensors and card.json to `folder`. Returns the card without its split.

    AdamW with one-cycle learning rate, random shifts and noise. Minutes on two CPU cores.
    """
    from safetensors.torch import save_file

    reporter = reporter or Reporter()
    reporter.stage("train")
    images, labels = _prepared()
    indices = split(seed)
    train = torch.tensor(indices["train"])
    torch.manual_seed(seed)
    started = time.perf_counter()
    model = build()
    _fit(model, images[train], labels[train], epochs=epochs, reporter=reporter)
    seconds = time.perf_counter() - started

    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / "starter.safetensors"
    save_file(model.state_dict(), weights)
    written = _card(model, images, labels, indices, epochs=epochs, seed=seed, seconds=seconds)
    written["sha256"] = hashlib.sha256(weights.read_bytes()).hexdigest()
    (folder / "card.json").write_text(json.dumps({**written, "split": indices}, separators=(",", ":")).replace(',"', ',\n"') + "\n")
    card.cache_clear()
    return written


def _prepared() -> tuple[Tensor, LongTensor]:
    """All images as the network sees them (1797, 3, 32, 32), and their labels."""
    from starfish_lab.data.images import transform

    images, labels = digits()
    prepare = transform(PREPROCESSING)
    return torch.stack([prepare(image.convert("RGB")) for image in images]), labels


def _fit(model: nn.Module, images: Tensor, labels: LongTensor, *, epochs: int, reporter: Reporter) -> None:
    per_epoch = math.ceil(len(images) / BATCH)
    optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=epochs * per_epoch)
    model.train()
    for epoch in range(epochs):
        for batch in torch.randperm(len(images)).split(BATCH):
            reporter.check()
            loss = F.cross_entropy(model(_augmented(images[batch])), labels[batch], label_smoothing=0.1)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        reporter.progress(epoch + 1, epochs)
        reporter.metric("loss", epoch + 1, loss.item())
    model.eval()


def _augmented(images: Tensor) -> Tensor:
    """Each image shifted by up to SHIFT pixels and made noisy; (b, C, H, W) → the same."""
    height, width = images.shape[-2:]
    padded = F.pad(images, (SHIFT,) * 4, value=images.min().item())
    corners = torch.randint(2 * SHIFT + 1, (len(images), 2)).tolist()
    shifted = torch.stack([image[:, y : y + height, x : x + width] for image, (y, x) in zip(padded, corners)])
    return shifted + NOISE * torch.randn_like(shifted)


@torch.inference_mode()
def _card(
    model: nn.Module, images: Tensor, labels: LongTensor, indices: dict[str, list[int]], *, epochs: int, seed: int, seconds: float
) -> dict[str, object]:
    import timm

    from starfish_lab.measure.accuracy import wilson
    from starfish_lab.measure.hardware import fingerprint

    test = torch.tensor(indices["test"])
    correct = int((model(images[test]).argmax(1) == labels[test]).sum())
    low, high = wilson(correct, len(test))
    return {
        "name": "starter",
        "architecture": {"timm": "VisionTransformer", **ARGUMENTS},
        "parameters": sum(p.numel() for p in model.parameters()),
        "data": "scikit-learn's handwritten digits (load_digits): UCI optical recognition of handwritten digits, 1,797 images of 8×8, CC BY 4.0",
        "recipe": f"AdamW, one cycle to {LEARNING_RATE:g}, weight decay {WEIGHT_DECAY}, batch {BATCH}, label smoothing 0.1, {epochs} epochs, "
        f"shifts of up to {SHIFT} pixels, noise {NOISE}",
        "seed": seed,
        "test_images": len(test),
        "test_correct": correct,
        "test_top1": correct / len(test),
        "test_interval_95": [low, high],
        "seconds": round(seconds, 1),
        "hardware": fingerprint("cpu")["cpu"],
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "timm": timm.__version__},
    }

"""Shared fixtures: the repository on the path, tiny networks, a lab of its own for every test."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# Networks this small run faster on one thread, and threads of several tests do not crowd each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from browsing import browser, lab, page  # noqa: E402, F401 - fixtures
from postgres import database_url, postgres  # noqa: E402, F401 - fixtures


@pytest.fixture(autouse=True)
def lab_home(tmp_path, monkeypatch):
    """A home folder of its own, so that no test sees another's store."""
    home = tmp_path / "lab"
    monkeypatch.setenv("STARFISH_LAB_HOME", str(home))
    monkeypatch.delenv("STARFISH_LAB_DATABASE_URL", raising=False)
    return home


@pytest.fixture
def profiled(request):
    """From the name of a fixture below: its network, and the network's profile as a page gets it, through JSON."""
    from starfish_lab import profile
    from starfish_lab.whatif import Profile

    def get(name: str):
        network = request.getfixturevalue(name)
        return network, Profile.from_json(profile.compute(network).to_json())

    return get


@pytest.fixture
def tiny_vit():
    """A DeiT-like network small enough for any test: 32 wide, 2 deep, 2 heads, 17 tokens, 10 classes."""
    import torch
    from timm.models.vision_transformer import VisionTransformer

    from starfish_lab.models.loading import wrap
    from starfish_lab.models.network import Preprocessing

    torch.manual_seed(0)
    module = VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=10).eval()
    return wrap(module, name="tiny_vit", num_classes=10, preprocessing=Preprocessing(input_size=(3, 32, 32)))


@pytest.fixture
def tiny_resnet():
    """A ResNet small enough for any test: two basic blocks, 10 classes."""
    import torch
    from timm.models.resnet import BasicBlock, ResNet

    from starfish_lab.models.loading import wrap
    from starfish_lab.models.network import Preprocessing

    torch.manual_seed(0)
    module = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=10, channels=(8, 8, 16, 16)).eval()
    return wrap(module, name="tiny_resnet", num_classes=10, preprocessing=Preprocessing(input_size=(3, 32, 32)))


@pytest.fixture
def tiny_convnext():
    """A ConvNeXt V2 small enough for any test: one block a stage, 10 classes."""
    import torch
    from timm.models.convnext import ConvNeXt

    from starfish_lab.models.loading import wrap
    from starfish_lab.models.network import Preprocessing

    torch.manual_seed(0)
    module = ConvNeXt(num_classes=10, depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), use_grn=True, ls_init_value=None).eval()
    return wrap(module, name="tiny_convnext", num_classes=10, preprocessing=Preprocessing(input_size=(3, 64, 64)))


@pytest.fixture
def tiny_convnext1():
    """A ConvNeXt of the first kind, without global response norm: one block a stage, 10 classes."""
    import torch
    from timm.models.convnext import ConvNeXt

    from starfish_lab.models.loading import wrap
    from starfish_lab.models.network import Preprocessing

    torch.manual_seed(0)
    module = ConvNeXt(num_classes=10, depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), ls_init_value=0.5).eval()
    return wrap(module, name="tiny_convnext1", num_classes=10, preprocessing=Preprocessing(input_size=(3, 64, 64)))


@pytest.fixture
def tiny_swin():
    """A Swin small enough for any test: two stages of two blocks (the second one's windows shifted), 10 classes."""
    import torch
    from timm.models.swin_transformer import SwinTransformer

    from starfish_lab.models.loading import wrap
    from starfish_lab.models.network import Preprocessing

    torch.manual_seed(0)
    module = SwinTransformer(img_size=32, patch_size=2, window_size=4, embed_dim=16, depths=(2, 2), num_heads=(2, 4), num_classes=10).eval()
    return wrap(module, name="tiny_swin", num_classes=10, preprocessing=Preprocessing(input_size=(3, 32, 32)))


@pytest.fixture
def tiny_hiera():
    """A Hiera small enough for any test: two stages, queries pooled where the second begins, 10 classes."""
    import torch
    from timm.models.hiera import Hiera

    from starfish_lab.models.loading import wrap
    from starfish_lab.models.network import Preprocessing

    torch.manual_seed(0)
    module = Hiera(
        img_size=(64, 64), num_classes=10, embed_dim=16, num_heads=1, stages=(1, 2), q_pool=1, mask_unit_size=(4, 4), mask_unit_attn=(True, False)
    ).eval()
    return wrap(module, name="tiny_hiera", num_classes=10, preprocessing=Preprocessing(input_size=(3, 64, 64)))


@pytest.fixture
def pictures(tmp_path):
    """Eleven pictures of different sizes in a folder, as an ImageSet for 32 × 32 networks."""
    import numpy as np
    import torch
    from PIL import Image

    from starfish_lab.data.images import ImageSet, Stored
    from starfish_lab.models.network import Preprocessing

    items = []
    for i in range(11):
        path = tmp_path / "pictures" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (36 + i, 50 - i, 3), dtype=np.uint8)).save(path)
        items.append(Stored(path.name, path))
    return ImageSet.lazy(items, torch.arange(11) % 10, Preprocessing(input_size=(3, 32, 32)))


def until(condition: Callable[[], object], seconds: float = 30.0) -> float:
    """Wait for a condition; returns how long that took."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, "waited in vain"
        time.sleep(0.02)
    return time.monotonic() - started


def at_once(count: int, do: Callable[[], object]) -> list:
    """What so many threads get that do the same at the same moment; what one of them raises is raised here."""
    begin = threading.Barrier(count)

    def together(_: int) -> object:
        begin.wait()
        return do()

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(together, range(count)))


def pytest_addoption(parser):
    parser.addoption("--screenshots", type=Path, default=None, help="folder to keep the browser test's pictures in")


@pytest.fixture
def screenshots(request):
    """The folder for pictures, or None where none was asked for."""
    folder = request.config.getoption("--screenshots")
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    return folder

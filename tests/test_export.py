"""A saved network loads again by one call, bit for bit; whatever is wrong with the files is said in words."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import zipfile
from pathlib import Path

import pytest
import timm
import torch
from test_slicing import masked, structured
from timm.models.vision_transformer import VisionTransformer

from starfish_lab import export
from starfish_lab.errors import StoreError, WeightsError
from starfish_lab.execution import slicing
from starfish_lab.models.loading import wrap
from starfish_lab.models.network import Preprocessing, prunable
from starfish_lab.recipe import Recipe

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 10}


@pytest.fixture
def vit():
    """A network as the starter is described."""
    torch.manual_seed(0)
    return wrap(
        VisionTransformer(**VIT).eval(), name="small", num_classes=10, class_names=tuple("0123456789"), origin="random weights (seed 0)",
        preprocessing=Preprocessing(input_size=(3, 32, 32), mean=(0.5,) * 3, std=(0.5,) * 3), weights_sha256="ab" * 32, facts={"vit": VIT},
    )  # fmt: skip


def save(folder, network, masks=None):
    return export.save(folder, network, Recipe(name="a run"), masks=masks or {}, facts={"top1_healed": 0.98})


def outputs(network):
    torch.manual_seed(1)
    with torch.no_grad():
        return network.module(torch.randn(3, *network.preprocessing.input_size))


def edit(folder, **changes):
    path = folder / "recipe.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def zipped(folder: Path) -> Path:
    """The folder as a zip, as a person would send it."""
    return Path(shutil.make_archive(str(folder), "zip", folder))


@pytest.mark.parametrize("kind", ["masked", "sliced"])
@pytest.mark.parametrize("packed", [False, True])
def test_reload_answers_bit_for_bit(vit, tmp_path, kind, packed):
    masks = structured(vit)
    network = masked(vit, masks)
    network = slicing.slice_network(network, masks) if kind == "sliced" else network
    path = save(tmp_path / "healed", network, masks)
    loaded = export.load_pruned(zipped(path) if packed else path)
    assert torch.equal(outputs(loaded), outputs(network))
    assert not any(module.training for module in loaded.module.modules())
    for field in dataclasses.fields(network):
        if field.name != "module":
            assert getattr(loaded, field.name) == getattr(network, field.name), field.name


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_timm_networks_come_back_by_name(name, tmp_path):
    arguments = {"num_classes": 7}
    module = timm.create_model(name, **arguments).eval()
    network = wrap(module, name=name, num_classes=7, preprocessing=Preprocessing(), facts={"timm_name": name, "arguments": arguments})
    masks = structured(network)
    small = slicing.slice_network(masked(network, masks), masks)
    loaded = export.load_pruned(save(tmp_path / "n", small, masks))
    assert torch.equal(outputs(loaded), outputs(small))
    assert all(not tensor.is_meta for tensor in loaded.module.state_dict().values())


def test_recipe_and_figures_stand_beside_the_weights(vit, tmp_path):
    masks = structured(vit)
    folder = save(tmp_path / "n", vit, masks)
    assert sorted(path.name for path in folder.iterdir()) == ["network.safetensors", "recipe.json"]
    written = json.loads((folder / "recipe.json").read_text())
    assert Recipe.from_dict(written["recipe"]) == Recipe(name="a run")
    assert written["facts"] == {"top1_healed": 0.98} and written["class_names"] == list("0123456789")
    assert set(written["sparsity"]) == set(prunable(vit)) and written["sparsity"]["blocks.0.mlp.fc1"] == 0.5


def test_altered_weights_are_refused(vit, tmp_path):
    folder = save(tmp_path / "n", vit)
    path = folder / "network.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="sha256"):
        export.load_pruned(folder)
    path.write_bytes(content[:100])
    with pytest.raises(WeightsError, match="sha256"):
        export.load_pruned(folder)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b'{"starfish_lab_network": 99}', b"\xff\xfe", b'{"starfish_lab_network": 1, "weights_sha256": 1}']
)
def test_damaged_descriptions_are_refused(vit, tmp_path, content):
    folder = save(tmp_path / "n", vit)
    (folder / "recipe.json").write_bytes(content)
    with pytest.raises(WeightsError, match=r"recipe\.json|sha256"):
        export.load_pruned(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"network": {"vit": VIT | {"embed_dim": 64}}},  # other shapes than the weights have
        {"network": {"vit": VIT | {"depth": 3}}},
        {"network": {"vit": VIT | {"embed_dim": 33}}},  # not divisible by its heads
        {"structure": {"units": {"blocks.7.mlp.fc1": 3}, "qk_dims": {}}},
        {"structure": None},
        {"preprocessing": {"size": 3}},
        {"class_names": 5},
    ],
)
def test_descriptions_of_another_network_are_refused(vit, tmp_path, changes):
    folder = save(tmp_path / "n", vit)
    edit(folder, **changes)
    with pytest.raises(WeightsError):
        export.load_pruned(folder)


@pytest.mark.parametrize(
    "network",
    [
        {"timm_name": "resnet18", "arguments": {"checkpoint_path": "/tmp/code.pth"}},
        {"timm_name": "resnet18", "arguments": {"pretrained_cfg": {"file": "/tmp/code.pth"}}},
        {"timm_name": "resnet18", "arguments": {"num_classes": {"a": 1}}},
        {"timm_name": "hf-hub:someone/resnet18", "arguments": {}},
        {"timm_name": "local-dir:/tmp/resnet18", "arguments": {}},
        {"timm_name": "resnet18"},
        {"vit": VIT | {"block_fn": "os.system"}},
        {},
        "resnet18",
    ],
)
def test_a_description_reaches_no_file_no_address_and_no_code(vit, tmp_path, network, monkeypatch):
    def never(*arguments, **options):
        raise AssertionError("a network was built")

    folder = save(tmp_path / "n", vit)
    edit(folder, network=network)
    monkeypatch.setattr(timm, "create_model", never)
    monkeypatch.setattr(export, "VisionTransformer", never)
    with pytest.raises(WeightsError):
        export.load_pruned(folder)


def test_a_huge_claim_costs_no_memory(vit, tmp_path):
    folder = save(tmp_path / "n", vit)
    edit(folder, network={"vit": VIT | {"embed_dim": 2**17, "num_heads": 1}})  # 3 TB, if it were believed
    with pytest.raises(WeightsError):
        export.load_pruned(folder)


def test_pickles_are_never_opened(vit, tmp_path):
    folder = save(tmp_path / "n", vit)
    torch.save({"a": torch.zeros(1)}, folder / "network.safetensors")
    import hashlib

    edit(folder, weights_sha256=hashlib.sha256((folder / "network.safetensors").read_bytes()).hexdigest())
    with pytest.raises(WeightsError, match="does not fit"):
        export.load_pruned(folder)


def test_what_is_not_there_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.zip").write_text("no zip")
    for path in (tmp_path / "empty", tmp_path / "text.zip", tmp_path / "nowhere"):
        with pytest.raises(WeightsError, match=r"recipe\.json cannot be read"):
            export.load_pruned(path)


def test_a_malicious_zip_writes_nothing(vit, tmp_path):
    folder = save(tmp_path / "inside" / "n", vit)
    archive = zipped(folder)
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr("../../escaped.txt", "out")
        file.writestr("/escaped.txt", "out")
    before = sorted(tmp_path.rglob("*"))
    assert torch.equal(outputs(export.load_pruned(archive)), outputs(vit))
    assert sorted(tmp_path.rglob("*")) == before
    evil = tmp_path / "evil.zip"
    with zipfile.ZipFile(evil, "w") as file:
        file.writestr("../recipe.json", (folder / "recipe.json").read_text())
        file.write(folder / "network.safetensors", "../network.safetensors")
    with pytest.raises(WeightsError, match="cannot be read"):
        export.load_pruned(evil)


@pytest.mark.parametrize("call", ["fsync", "replace"])  # where the bytes reach the disk, and where the file gets its name
def test_a_full_disk_leaves_what_was_there(vit, tmp_path, monkeypatch, call):
    folder = save(tmp_path / "n", vit)
    before = {path: path.read_bytes() for path in (folder / "network.safetensors", folder / "recipe.json")}

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with torch.no_grad():
        vit.module.head.bias.add_(1)
    monkeypatch.setattr(os, call, full)
    with pytest.raises(StoreError, match="No space left"):
        save(folder, vit)
    assert {path: path.read_bytes() for path in before} == before
    assert not list(tmp_path.rglob("*.partial"))


def test_a_folder_that_cannot_be_made_is_an_error_in_words(vit, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="was not written"):
        save(tmp_path / "file" / "n", vit)


def test_a_module_without_a_name_is_not_half_saved(tiny_vit, tmp_path):
    with pytest.raises(WeightsError, match="cannot be built again"):
        save(tmp_path / "n", tiny_vit)
    assert not (tmp_path / "n").exists()

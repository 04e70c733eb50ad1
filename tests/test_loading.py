"""Networks by name and from files: what loads, what is refused, and how that is said."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import urllib.error
import urllib.request

import pytest
import timm
import torch
from safetensors.torch import save_file

from starfish_lab.errors import RecipeError, WeightsError
from starfish_lab.models import FAMILIES, PAPER_MODELS
from starfish_lab.models.loading import load, state_dict_from, supported_names, wrap
from starfish_lab.models.network import prunable
from starfish_lab.recipe import ModelChoice

SMALL = "convnextv2_atto"  # the smallest supported network of timm


@pytest.fixture(scope="module")
def small_state():
    torch.manual_seed(1)
    return timm.create_model(SMALL, num_classes=7).state_dict()


def choice(path, name=SMALL, **known):
    return ModelChoice(name=name, weights="file", path=str(path), **known)


@pytest.mark.parametrize("file", ["weights.safetensors", "weights.pt", "nested.pth", "parallel.bin"])
def test_a_file_of_any_common_form_gives_the_same_network(small_state, tmp_path, file):
    path = tmp_path / file
    if path.suffix == ".safetensors":
        save_file(small_state, path)
    elif path.suffix == ".pt":
        torch.save(small_state, path)
    elif path.suffix == ".pth":
        torch.save({"model": small_state, "epoch": 3, "args": argparse.Namespace(lr=0.1)}, path)
    else:
        torch.save({"state_dict": {f"module.{k}": v for k, v in small_state.items()}}, path)
    network = load(choice(path))
    assert network.num_classes == 7  # read from the head
    assert not network.module.training
    for name, tensor in network.module.state_dict().items():
        assert torch.equal(tensor, small_state[name]), name
    assert network.weights_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert file in network.origin and str(tmp_path) not in network.origin


def test_facts_rebuild_the_module(small_state, tmp_path):
    save_file(small_state, tmp_path / "w.safetensors")
    facts = load(choice(tmp_path / "w.safetensors")).facts
    timm.create_model(facts["timm_name"], **facts["arguments"]).load_state_dict(small_state)


def test_notes_beside_the_file_are_read_and_the_choice_wins(small_state, tmp_path):
    save_file(small_state, tmp_path / "w.safetensors")
    notes = {
        "preprocessing": {"mean": [0.5, 0.5, 0.5], "crop_pct": 1.0},
        "class_ids": list("gfedcba"),
        "class_names": [f"class {c}" for c in "gfedcba"],
    }
    (tmp_path / "w.json").write_text(json.dumps(notes))
    network = load(choice(tmp_path / "w.safetensors", preprocessing={"crop_pct": 0.8, "interpolation": "bilinear"}))
    assert network.preprocessing.mean == (0.5, 0.5, 0.5)
    assert (network.preprocessing.crop_pct, network.preprocessing.interpolation) == (0.8, "bilinear")
    assert network.preprocessing.std == (0.229, 0.224, 0.225)  # timm's, since nobody says otherwise
    assert network.class_names[0] == "class g" and network.facts["class_ids"] == list("gfedcba")


def test_config_json_of_a_hub_folder_is_understood(small_state, tmp_path):
    save_file(small_state, tmp_path / "model.safetensors")
    config = {"label_names": list("abcdefg"), "pretrained_cfg": {"std": [1.0, 1.0, 1.0], "input_size": [3, 64, 64], "url": "x"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    network = load(choice(tmp_path / "model.safetensors"))
    assert network.preprocessing.std == (1.0, 1.0, 1.0) and network.preprocessing.input_size == (3, 64, 64)
    assert network.facts["class_ids"] == list("abcdefg")


def test_notes_that_disagree_with_the_head_are_refused(small_state, tmp_path):
    save_file(small_state, tmp_path / "w.safetensors")
    (tmp_path / "w.json").write_text(json.dumps({"class_names": ["a", "b"]}))
    with pytest.raises(WeightsError, match="list 2 class names.*7 classes"):
        load(choice(tmp_path / "w.safetensors"))
    (tmp_path / "w.json").write_text("{")
    with pytest.raises(WeightsError, match="not valid JSON"):
        load(choice(tmp_path / "w.safetensors"))


def test_weights_of_another_network_name_the_first_tensors(small_state, tmp_path):
    save_file(small_state, tmp_path / "w.safetensors")
    with pytest.raises(
        WeightsError, match=r"w\.safetensors does not fit convnextv2_femto: stem\.0\.weight is 40×3×4×4 where convnextv2_femto has 48×3×4×4.*more"
    ):
        load(choice(tmp_path / "w.safetensors", name="convnextv2_femto"))
    with pytest.raises(WeightsError, match=r"no tensor 'fc\.weight'"):
        load(choice(tmp_path / "w.safetensors", name="resnet18"))


def test_missing_and_unknown_tensors_are_named(small_state, tmp_path):
    changed = dict(small_state)
    changed["stem.0.bais"] = changed.pop("stem.0.bias")
    save_file(changed, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"stem\.0\.bias 40 is missing.*stem\.0\.bais 40 is unknown"):
        load(choice(tmp_path / "w.safetensors"))


class Evil:
    """Runs a command when unpickled."""

    def __reduce__(self):
        return os.system, ("touch executed",)


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, monkeypatch, protocol):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Evil()}, tmp_path / "evil.pt", pickle_protocol=protocol)
    with pytest.raises(WeightsError, match="refused.*only tensors are safe"):
        load(choice(tmp_path / "evil.pt"))
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("file", ["w.safetensors", "w.pt"])
@pytest.mark.parametrize("damage", ["empty", "text", "half"])
def test_a_damaged_file_says_so(small_state, tmp_path, file, damage):
    path = tmp_path / file
    (save_file if file.endswith("tensors") else torch.save)(small_state, path)
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "text": b"not weights" * 20, "half": whole[: len(whole) // 2]}[damage])
    with pytest.raises(WeightsError, match="damaged"):
        state_dict_from(path)


def test_files_that_hold_no_weights(tmp_path):
    with pytest.raises(WeightsError, match="There is no file"):
        state_dict_from(tmp_path / "absent.pt")
    (tmp_path / "w.onnx").write_bytes(b"")
    with pytest.raises(WeightsError, match="safetensors"):
        state_dict_from(tmp_path / "w.onnx")
    torch.save({"epoch": 3}, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match="no tensors"):
        state_dict_from(tmp_path / "w.pt")


def test_random_weights_say_so_and_follow_the_seed():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, again, other = (load(ModelChoice(name=SMALL, weights="random", seed=seed)) for seed in (3, 3, 4))
    assert "random weights" in first.origin
    assert first.weights_sha256 == again.weights_sha256 != other.weights_sha256
    assert torch.equal(torch.random.get_rng_state(), before)  # nobody else's seed moves
    assert len(first.class_names) == first.num_classes == 1000


def test_another_input_size_builds_another_position_embedding():
    network = load(ModelChoice(name="deit_tiny_patch16_224", weights="random", preprocessing={"input_size": [3, 96, 96]}))
    with torch.inference_mode():
        assert network.module(torch.zeros(1, 3, 96, 96)).shape == (1, 1000)


@pytest.mark.parametrize(
    "changes, said",
    [({"size": 3}, "size is not known"), ({"mean": 0.5}, "three numbers"), ({"crop_pct": 0}, "fraction"), ({"interpolation": "magic"}, "bilinear")],
)
def test_preprocessing_is_checked(changes, said):
    with pytest.raises(RecipeError, match=said):
        load(ModelChoice(name=SMALL, weights="random", preprocessing=changes))


@pytest.mark.parametrize(
    "name, said",
    [
        ("vit_bse_patch16_224", "Close to it: vit_base_patch16_224"),
        ("nothing at all", "timm has no network 'nothing at all'"),
        ("mixer_b16_224", "family the lab does not support"),
        ("vit_relpos_base_patch16_224", "family the lab does not support"),
        ("resnet50.magic", r"no weights 'magic' of resnet50.*resnet50\.a1_in1k"),
    ],
)
def test_names_that_cannot_be_loaded(name, said):
    with pytest.raises(WeightsError, match=said):
        load(ModelChoice(name=name, weights="random"))


def test_supported_names_hold_the_papers_and_build_a_network_of_their_family():
    names = supported_names()
    assert set(PAPER_MODELS) <= set(names) and names == sorted(set(names))
    assert supported_names("deit_tiny*") == [n for n in names if n.startswith("deit_tiny")]
    for family in FAMILIES.names():
        for pattern in FAMILIES.module(family).NAMES:
            plain = [n for n in supported_names(pattern) if "." not in n]
            for name in (plain[0], plain[len(plain) // 2], plain[-1]):
                with torch.device("meta"):
                    network = wrap(timm.create_model(name), name=name)
                assert network.blocks and prunable(network)


def test_offline_without_weights_is_one_sentence(monkeypatch, tmp_path):
    def unreachable(*_, **__):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError) as raised:
        load(ModelChoice(name=PAPER_MODELS[2], weights="pretrained"))
    assert "no weights can be downloaded here" in str(raised.value) and "local file" in str(raised.value)
    assert "\n" not in str(raised.value) and raised.value.__cause__ is None


def test_a_network_without_published_weights_or_head_says_so():
    with pytest.raises(WeightsError, match="no pretrained weights"):
        load(ModelChoice(name="vit_base_patch16_18x2_224", weights="pretrained"))
    with pytest.raises(WeightsError, match="no classification head"):
        load(ModelChoice(name="vit_small_patch14_dinov2", weights="random"))


def test_a_module_of_no_family_is_refused():
    with pytest.raises(WeightsError, match="Network.of"):
        wrap(torch.nn.Linear(2, 2), name="linear")

"""A person's own picture through the three networks of a run: answers, attention, merged tokens; and how it travels."""

from __future__ import annotations

import base64
import dataclasses
import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from app import pictures
from starfish_lab import experiment, tokens
from starfish_lab.errors import ImagesError, LabError, RecipeError, WeightsError
from starfish_lab.gallery import own_picture
from starfish_lab.gallery.attention import Heard, probabilities
from starfish_lab.gallery.plan import PicturePlan
from starfish_lab.jobs import worker
from starfish_lab.models.loading import bundled, load
from starfish_lab.recipe import (
    HealingChoice,
    ImagesChoice,
    MeasureChoice,
    ModelChoice,
    PruningChoice,
    Recipe,
    StartChoice,
    TokensChoice,
)
from starfish_lab.store import Store

QUICK = MeasureChoice(latency=False, spectra=False, certificates=False, snapshots=0)
IMAGES = ImagesChoice(calibration=8, drift=4, evaluation=8)


def file(size=(64, 48), kind="PNG", mode="RGB", **options) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    drawn = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(drawn, kind, **options)
    return drawn.getvalue()


def plan(recipe: Recipe, artefact, content: bytes | None = None) -> PicturePlan:
    return PicturePlan(recipe=recipe, run=1, artefact=str(artefact), file="mine.png", picture=base64.b64encode(content or file()).decode())


def ran(folder, **parts) -> tuple[Recipe, experiment.Report]:
    recipe = Recipe(**{"images": IMAGES, "measure": QUICK, "healing": HealingChoice(steps=2), **parts})
    return recipe, experiment.run(recipe, folder=folder, device="cpu")


# -- the job ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def merging(tmp_path_factory):
    """A run whose network merges two tokens a block."""
    folder = tmp_path_factory.mktemp("merging")
    return ran(folder, tokens=TokensChoice(r=(2,)))[0], folder / "healed"


def test_all_three_answer_look_and_merge(merging):
    recipe, artefact = merging
    report = own_picture.compute(plan(recipe, artefact), device="cpu")
    top5, looks, merges = report.frame("top5"), report.frame("attention"), report.frame("merges")
    assert list(looks["stage"]) == list(dict.fromkeys(top5["stage"])) == ["dense", "pruned", "healed"]
    assert top5.groupby("stage")["probability"].apply(lambda p: p.is_monotonic_decreasing and p.sum() <= 1 + 1e-6).all()
    assert all(len(values) == 16 and 0 < sum(values) < 1 for values in looks["values"]), "the rest goes to the class token"
    assert looks["how"].str.contains("class token").all()
    assert set(merges["stage"]) == {"pruned", "healed"} and len(merges) == 2 * 6 * 16
    (picture,) = report.tables["pictures"]
    assert (picture["rows"], picture["cols"]) == (4, 4) and Image.open(io.BytesIO(base64.b64decode(picture["png"]))).size == (32, 32)
    assert not report.tables.get("notes")


def test_the_pruned_network_is_the_runs_own():
    recipe = Recipe(images=IMAGES, measure=QUICK, pruning=PruningChoice(score="wanda", sparsity=0.5), healing=HealingChoice(method="none"))
    dense = bundled()
    again = own_picture.rebuilt(dense, recipe)
    splits = own_picture.data.open_images(recipe.images, dense)
    known = own_picture.prepare(dense, own_picture.begin(dense, recipe, splits), recipe, splits).network
    assert all(torch.equal(a, b) for a, b in zip(again.module.state_dict().values(), known.module.state_dict().values(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(again.module.parameters(), dense.module.parameters()))


def test_a_run_that_was_not_healed_saved_its_pruned_network(tmp_path):
    recipe, _ = ran(tmp_path, healing=HealingChoice(method="none"))
    report = own_picture.compute(plan(recipe, tmp_path / "healed"), device="cpu")
    assert list(report.frame("attention")["stage"]) == ["dense", "pruned"]


def test_a_small_network_looks_too(tmp_path):
    recipe, _ = ran(tmp_path, pruning=PruningChoice(pattern="structured", sparsity=0.5))
    report = own_picture.compute(plan(recipe, tmp_path / "healed"), device="cpu")
    assert all(len(values) == 16 and 0 < sum(values) < 1 for values in report.frame("attention")["values"]) and len(report.frame("attention")) == 3


def test_what_would_have_to_train_again_is_left_out_in_words(merging):
    recipe, artefact = merging
    cycles = dataclasses.replace(recipe, start=StartChoice(method="magnitude", sparsity=0.05, step=0.05, steps=1))
    report = own_picture.compute(plan(cycles, artefact), device="cpu")
    assert list(report.frame("attention")["stage"]) == ["dense", "healed"]
    assert "trains in cycles" in report.frame("notes")["note"][0]


def test_a_network_without_attention_over_patches_answers_alone(tmp_path, monkeypatch, tiny_resnet):
    monkeypatch.setattr(own_picture, "load", lambda choice: tiny_resnet)
    monkeypatch.setattr(own_picture, "load_pruned", lambda path: tiny_resnet)
    recipe = Recipe(model=ModelChoice(name="resnet18", weights="random"), pruning=PruningChoice(sparsity=0.5))
    report = own_picture.compute(plan(recipe, tmp_path), device="cpu")
    assert report.frame("top5").groupby("stage").size().to_dict() == {"dense": 5, "pruned": 5, "healed": 5}
    assert "attention" not in report.tables and report.tables["pictures"][0]["rows"] == 0
    assert "the answers alone" in report.frame("notes")["note"][0]


def test_a_lost_network_and_a_broken_picture_are_told(merging, tmp_path):
    recipe, artefact = merging
    with pytest.raises(WeightsError, match="cannot be read"):
        own_picture.compute(plan(recipe, tmp_path / "nowhere"), device="cpu")
    with pytest.raises(ImagesError, match="mine.png cannot be read"):
        own_picture.compute(plan(recipe, artefact, b"no picture"), device="cpu")


@pytest.mark.parametrize("changes", [{"picture": ""}, {"picture": "%%%"}, {"picture": base64.b64encode(b"0" * (2**20 + 1)).decode()}, {"run": -1}])
def test_a_plan_holds_one_small_picture(changes):
    with pytest.raises(RecipeError):
        PicturePlan(**{"picture": base64.b64encode(b"1").decode(), **changes})


def test_the_picture_lies_in_the_jobs_row_and_goes_with_the_run(lab_home, merging):
    recipe, artefact = merging
    store = Store()
    run = store.submit(recipe)
    store.finish(run, experiment.Report())
    job = store.submit(plan(recipe, artefact), "picture", parent=run)
    worker.work(store, "cpu", once=True)
    assert store.run(job).status == "done" and len(store.report(job).tables["top5"]) == 15
    assert PicturePlan.from_json(store.run(job).recipe_json).content == file()
    store.delete(run)
    with pytest.raises(LabError, match="no run"):
        store.run(job)
    assert store.report(job).tables == {} and not (lab_home / "runs" / str(job)).exists()


# -- attention --------------------------------------------------------------------------------------------------------


def test_attention_is_what_mixes_the_values(tiny_vit):
    """With the identity for values, scaled dot-product attention gives the very probabilities."""
    attention, x = tiny_vit.module.blocks[-1].attn, torch.randn(2, 17, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        q, k, _ = attention.qkv(x).reshape(2, 17, 3, 2, 16).permute(2, 0, 3, 1, 4)
        bias = torch.randn(2, 1, 1, 17, generator=torch.Generator().manual_seed(2))
        expected = F.scaled_dot_product_attention(q, k, torch.eye(17).expand(2, 2, 17, 17), attn_mask=bias)
        assert torch.allclose(probabilities(attention, x, bias), expected, atol=1e-6)
        with Heard(tiny_vit) as heard:
            tiny_vit.module(torch.randn(2, 3, 32, 32))
        shares = heard.over_patches()
    assert shares.shape == (2, 16) and (shares > 0).all() and (shares.sum(1) < 1).all()


def test_a_merged_token_shares_its_attention_among_its_patches(tiny_vit):
    tokens.merge(tiny_vit, TokensChoice(r=(4, 0)))
    from starfish_lab.tokens_view import Caught

    with torch.no_grad(), Heard(tiny_vit) as heard, Caught(tiny_vit) as caught:
        tiny_vit.module(torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
        source = caught.sources[0]
        drawn = probabilities(heard._attention, heard._tokens, heard._mask).mean(1)[:, 0]
        shares = heard.over_patches(source)
    assert drawn.shape == (1, 13) and shares.shape == (1, 16)
    assert shares.sum().item() == pytest.approx(drawn[0, 1:].sum().item(), abs=1e-6), "nothing is lost, nothing counted twice"
    first = source[0, 1:] == source[0, 1]
    assert shares[0, first].tolist() == pytest.approx([drawn[0, source[0, 1]].item() / int(first.sum())] * int(first.sum()))


# -- how a picture travels --------------------------------------------------------------------------------------------


def opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(pictures.small(content, "mine")))


def test_a_picture_travels_small_upright_and_without_what_else_was_in_the_file():
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "my address"  # lies on its side
    content = file((2000, 1000), "JPEG", exif=exif)
    sent = pictures.small(content, "mine.jpg")
    assert opened(content).size == (384, 768) and len(sent) < 2**19 and b"my address" not in sent
    assert opened(file((40, 30))).format == "PNG", "what is small stays exact"
    assert np.array_equal(np.asarray(opened(file((40, 30)))), np.asarray(Image.open(io.BytesIO(file((40, 30))))))


def test_every_mode_becomes_colour():
    grey16 = io.BytesIO()
    Image.fromarray(np.array([[0, 65535], [25700, 257]], np.uint16)).save(grey16, "PNG")
    assert np.asarray(opened(grey16.getvalue()))[..., 0].tolist() == [[0, 255], [100, 1]]
    clear = io.BytesIO()
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(clear, "PNG")
    assert (np.asarray(opened(clear.getvalue())) == 255).all(), "what is transparent lies on white"
    for mode in ("L", "1", "P", "CMYK"):
        assert opened(file((8, 8), "PNG" if mode != "CMYK" else "JPEG", mode)).mode == "RGB"


def test_one_pixel_and_very_long_pictures_pass():
    assert opened(file((1, 1))).size == (1, 1)
    assert opened(file((3000, 1))).size == (4, 1)
    picture = Image.open(io.BytesIO(pictures.small(file((900, 100)), "long")))
    assert picture.size == (400, 100), "its middle: a network crops to a square anyway"


def test_far_too_many_pixels_are_told_before_they_are_decoded():
    header = file((1, 1))
    size = (100_000).to_bytes(4, "big")
    import struct
    import zlib

    chunk = b"IHDR" + size + size + header[24:29]
    bomb = header[:12] + chunk + struct.pack(">I", zlib.crc32(chunk)) + header[33:]
    with pytest.raises(ImagesError, match="million at most"):
        pictures.small(bomb, "bomb.png")
    with pytest.raises(ImagesError, match="cannot be read as a picture"):
        pictures.small(b"GIF89a but no more", "film.gif")


def test_a_one_pixel_picture_is_answered(merging):
    recipe, artefact = merging
    report = own_picture.compute(plan(recipe, artefact, pictures.small(file((1, 1)), "dot")), device="cpu")
    assert len(report.frame("top5")) == 15 and load(recipe.model).preprocessing.input_size == (3, 32, 32)

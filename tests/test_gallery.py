"""The gallery's tables: what each network answered, what became of it, class by class, and which images are kept as pictures."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from synthetic_gallery import ANSWERS, GROUPS, LABELS, all_stages, predictions

from starfish_lab import experiment
from starfish_lab.data.images import ImageSet
from starfish_lab.data.thumbnails import SIDE, thumbnail
from starfish_lab.gallery import pictures as thumbnails
from starfish_lab.gallery.answers import answer_rows, class_rows, common
from starfish_lab.gallery.damage import damage_rows
from starfish_lab.gallery.groups import images
from starfish_lab.models.network import Preprocessing
from starfish_lab.recipe import HealingChoice, ImagesChoice, MeasureChoice, Recipe

FIRST = Preprocessing(input_size=(3, 8, 8), mean=(0.5,) * 3, std=(0.5,) * 3)


def frame(*stages: str) -> pd.DataFrame:
    """A row an image, by way of the JSON of the store."""
    return images(pd.DataFrame(json.loads(json.dumps(answer_rows(all_stages(*stages))))))


def test_every_image_comes_back_from_a_row_a_class():
    rows = answer_rows(all_stages())
    assert [row["label"] for row in rows] == [0, 1, 2] and rows[1]["image"] == [4, 5, 6] and rows[1]["pruned"] == [0, 0, 1]
    found = frame()
    assert found["image"].tolist() == list(range(8)) and found["label"].tolist() == LABELS.tolist() and found["group"].tolist() == GROUPS
    for stage, answers in ANSWERS.items():
        assert found[stage].tolist() == answers.tolist() and (found[f"{stage}_confidence"] == 0.75).all()
    assert images(pd.DataFrame()).empty


def test_without_healing_an_answer_is_flipped_or_kept():
    found = frame("dense", "pruned")
    assert found["group"].tolist() == ["kept", "flipped", "flipped", "kept", "flipped", "flipped", "kept", "kept"] and "healed" not in found


def test_a_network_that_answers_nan_has_no_confidence():
    (row,) = answer_rows({"dense": predictions([0], [0], confidence=np.nan)})
    assert row["dense_confidence"] == [None]
    assert np.isnan(images(pd.DataFrame(answer_rows({s: predictions([0], [0], np.nan) for s in ("dense", "pruned")})))["pruned_confidence"][0])


def test_only_images_that_every_network_answered_count():
    pruned = predictions(ANSWERS["pruned"])
    fewer = type(pruned)(pruned.indices[2:], pruned.top5[2:], pruned.labels[2:], confidence=pruned.confidence[2:])
    found = common({"dense": predictions(ANSWERS["dense"]), "pruned": fewer})
    assert all(answers.indices.tolist() == [2, 3, 4, 5, 6, 7] for answers in found.values())
    assert found["dense"].top1.tolist() == ANSWERS["dense"][2:].tolist()


def test_classes_are_those_that_are_a_label_or_an_answer(tiny_vit):
    assert class_rows(tiny_vit, {"dense": predictions([7, 1], [1, 1])}) == [{"place": 1, "name": "class 1"}, {"place": 7, "name": "class 7"}]


def test_the_damage_of_a_class_is_counted_by_hand():
    rows = damage_rows(all_stages())
    assert [(row["label"], row["images"], row["dense_correct"], row["pruned_correct"], row["healed_correct"]) for row in rows] == [
        (0, 4, 3, 1, 2), (1, 3, 3, 1, 1), (2, 1, 1, 1, 1),
    ]  # fmt: skip
    assert [row["difference_pp"] for row in rows] == pytest.approx([-25, -200 / 3, 0])
    assert not any(row["resolved"] for row in rows) and rows[1]["verdict"] == "not resolved (n = 3)"
    assert rows[0]["healed"] == 0.5 and rows[0]["healed_low"] < 0.5 < rows[0]["healed_high"]


def test_a_loss_is_resolved_only_after_correction_for_the_number_of_classes():
    """Six of eight lost and none won has p = 2 / 2⁶ = 0.031: one class of one is resolved, one of two (p = 0.0625) is not."""
    labels = np.array([0] * 8 + [1] * 8)
    dense, after = labels.copy(), labels.copy()
    after[:6] = 1
    both = {"dense": predictions(dense, labels), "pruned": predictions(after, labels)}
    first, second = damage_rows(both)
    assert first["p_value"] == pytest.approx(2 * 2 / 2**6) and not first["resolved"] and second["p_value"] == 1
    alone = {stage: predictions(found.top1[:8], labels[:8]) for stage, found in both.items()}
    (first,) = damage_rows(alone)
    assert first["p_value"] == pytest.approx(2 / 2**6) and first["resolved"] and first["verdict"] == "75.0 pp lower"


def test_pictures_are_kept_by_turns_of_group_and_class():
    found = pd.DataFrame({
        "image": range(9), "label": [0, 0, 0, 1, 1, 0, 0, 1, 1],
        "group": ["back", "back", "back", "back", "never", "never", "broken", "kept", "back"],
    })  # fmt: skip
    # first turn: never 0 and 1, broken 0, back 0 and 1; second: back 0 and 1; third: back 0
    assert thumbnails.chosen(found) == [5, 4, 6, 0, 3, 1, 8, 2]


def test_pictures_stop_at_their_bounds(monkeypatch, tiny_vit):
    found = frame()
    pixels = ImageSet.of(torch.zeros(8, 3, 32, 32))
    every = thumbnails.thumbnail_rows(found, pixels, tiny_vit)
    assert [row["image"] for row in every] == thumbnails.chosen(found) and len(every) == GROUPS.count("back") + GROUPS.count("never") + 1
    monkeypatch.setattr(thumbnails, "MOST_BYTES", 2 * len(every[0]["jpeg"]))
    assert [row["image"] for row in thumbnails.thumbnail_rows(found, pixels, tiny_vit)] == thumbnails.chosen(found)[:2]
    monkeypatch.setattr(thumbnails, "MOST_IMAGES", 1)
    assert len(thumbnails.thumbnail_rows(found, pixels, tiny_vit)) == 1


def test_a_thumbnail_is_what_the_network_sees():
    pixels = torch.full((3, 200, 100), -1.0)
    pixels[0] = 1.0
    picture = Image.open(io.BytesIO(base64.b64decode(thumbnail(pixels, FIRST))))
    assert picture.format == "JPEG" and picture.size == (SIDE // 2, SIDE)
    assert np.abs(np.asarray(picture).reshape(-1, 3).mean(0) - [255, 0, 0]).max() < 3  # JPEG's own error


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    images = ImagesChoice(calibration=16, drift=8, evaluation=60)
    measure = MeasureChoice(latency=False, spectra=False, certificates=False, snapshots=2)
    return experiment.run(Recipe(images=images, measure=measure, healing=HealingChoice(steps=4)), folder=tmp_path_factory.mktemp("run"), device="cpu")


def test_a_run_keeps_its_answers(report):
    every, accuracy = images(report.frame("answers")), report.frame("accuracy").set_index("stage")
    assert every["image"].tolist() == list(range(60))
    for stage in ("dense", "pruned", "healed"):
        assert (every[stage] == every["label"]).sum() == accuracy.loc[stage, "correct"] == report.frame("class_damage")[f"{stage}_correct"].sum()
        assert every[f"{stage}_confidence"].between(0.1, 1).all(), "the largest of ten probabilities"
    changed = set(every[every["group"] != "kept"]["image"])
    assert set(report.frame("thumbnails")["image"]) == changed and len(changed) > 5
    assert {"name": "7", "place": 7} in report.tables["classes"]
    assert "gallery" in set(report.frame("seconds")["stage"])


def test_the_strip_and_the_spectra_hang_together_with_the_rest(report):
    every = images(report.frame("answers")).set_index("image")
    strip, looks, spectra = report.frame("strip"), report.frame("healing_strip"), report.frame("healing_spectra")
    assert len(strip) == 12 and (strip["dense"] != strip["pruned"]).sum() == 8
    for row in strip.itertuples():
        assert (row.dense, row.pruned, row.label) == tuple(every.loc[row.image, ["dense", "pruned", "label"]])
        last = looks[(looks["image"] == row.image) & (looks["step"] == 4)].iloc[0]
        assert last["answer"] == every.loc[row.image, "healed"] and last["confidence"] == pytest.approx(
            every.loc[row.image, "healed_confidence"], abs=2e-4
        )
    assert spectra["layer"].nunique() == 24 and spectra["stage"].value_counts().to_dict() == {"dense": 24, "pruned": 24, "healing": 48}
    assert len(json.dumps({name: report.tables[name] for name in ("healing_spectra", "strip", "healing_strip")})) < 150_000


def test_images_without_labels_leave_no_gallery(tmp_path):
    for i in range(20):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    chosen = ImagesChoice(source="folder", path=str(tmp_path), calibration=4, drift=4, evaluation=8)
    measure = MeasureChoice(latency=False, spectra=False, certificates=False, snapshots=2)
    report = experiment.run(Recipe(images=chosen, measure=measure, healing=HealingChoice(steps=2)), device="cpu")
    assert not {"answers", "classes", "class_damage", "thumbnails"} & set(report.tables)
    assert report.tables["strip"] == [] and len(report.tables["healing_spectra"]) == 24 * 4

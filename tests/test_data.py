"""Images: sources, labels, preprocessing, and splits that never overlap."""

from __future__ import annotations

import os
import urllib.error
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from starfish_lab.data import SOURCES, ImageSet, open_images
from starfish_lab.data.images import Stored, stored, transform
from starfish_lab.errors import ImagesError
from starfish_lab.models.network import Preprocessing
from starfish_lab.recipe import SOURCES as RECIPE_SOURCES
from starfish_lab.recipe import ImagesChoice


@pytest.fixture
def network(tiny_vit):
    """Ten classes; class 0 is 'c9', class 9 is 'c0', so that sorted order would be wrong."""
    return replace(tiny_vit, facts={"class_ids": [f"c{9 - i}" for i in range(10)]})


def picture(path, seed: int, size: int = 12):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def classes(tmp_path):
    """Ten class folders of six images."""
    for label in range(10):
        for i in range(6):
            picture(tmp_path / "images" / f"c{label}" / f"{i}.png", 100 * label + i)
    return tmp_path / "images"


def zipped(folder, path, prefix=""):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*.*")):
            archive.write(file, prefix + file.relative_to(folder).as_posix())
    return path


def table(path, rows, columns=("file", "label")):
    path.write_text("\n".join([",".join(columns), *(",".join(map(str, row)) for row in rows)]) + "\n")
    return str(path)


def choice(**known):
    return ImagesChoice(**{"source": "folder", "calibration": 10, "drift": 10, **known})


def test_the_registry_holds_what_a_recipe_may_name():
    assert sorted(RECIPE_SOURCES) == SOURCES.names()


def test_folder_splits_are_complete_disjoint_balanced_and_seeded(classes, network):
    splits = open_images(choice(path=str(classes)), network)
    sets = [set(s.names) for s in (splits.calibration, splits.drift, splits.evaluation)]
    assert [len(s) for s in sets] == [10, 10, 40] and len(set.union(*sets)) == 60
    assert sorted(splits.calibration.labels.tolist()) == sorted(splits.drift.labels.tolist()) == list(range(10))
    for images in (splits.calibration, splits.evaluation):
        assert images.labels.tolist() == [9 - int(name[1]) for name in images.names]  # the network's order, not the sorted one
    again, other = open_images(choice(path=str(classes)), network), open_images(choice(path=str(classes), seed=1), network)
    assert again.calibration.names == splits.calibration.names and again.evaluation.names == splits.evaluation.names
    assert other.calibration.names != splits.calibration.names
    assert torch.equal(again.calibration.tensor(), splits.calibration.tensor())


def test_first_order_takes_images_as_listed(classes, tmp_path, network):
    files = [image.name for image in stored(classes)][::-1]
    csv = table(tmp_path / "t.csv", [(f, 9 - int(f[1])) for f in files])
    picked = choice(source="csv", path=str(classes), csv=csv, order="first", evaluation=7)
    splits = open_images(picked, network)
    left = [f for f in files if f not in splits.calibration.names + splits.drift.names]
    assert splits.evaluation.names == left[:7]


def test_training_images_are_apart_balanced_and_change_no_other_split(classes, network):
    plain = open_images(choice(path=str(classes), evaluation=15), network)
    assert plain.training is None
    for training, expected in ((20, 20), (None, 25)):
        splits = open_images(choice(path=str(classes), evaluation=15, training=training), network)
        assert len(splits.training) == expected
        for name in ("calibration", "drift", "evaluation"):
            assert getattr(splits, name).names == getattr(plain, name).names
            assert not set(getattr(splits, name).names) & set(splits.training.names)
        assert splits.training.labels.tolist() == [9 - int(name[1]) for name in splits.training.names]
    rest = open_images(choice(path=str(classes), training=20), network)
    assert torch.bincount(rest.training.labels).tolist() == [2] * 10  # class by class, as far as each class goes
    assert len(rest.evaluation) == 20 and not set(rest.evaluation.names) & set(rest.training.names)
    assert rest.training.names == open_images(choice(path=str(classes), training=20), network).training.names
    with pytest.raises(ImagesError, match="both take all images that remain"):
        open_images(choice(path=str(classes), training=None), network)
    with pytest.raises(ImagesError, match="25 images are left to train on.*26 are asked for"):
        open_images(choice(path=str(classes), evaluation=15, training=26), network)


def test_training_images_of_a_separate_source_have_no_twin_elsewhere(classes, tmp_path, network):
    for i in range(20):
        picture(tmp_path / "train" / f"c{i % 10}" / f"{i}.png", 7000 + i)
    (tmp_path / "train" / "c3" / "copy.png").write_bytes((classes / "c1" / "1.png").read_bytes())  # of an evaluation image
    (tmp_path / "train" / "c4" / "broken.png").write_bytes(b"no image")
    picked = choice(path=str(classes), calibration_path=str(tmp_path / "train"), calibration=4, drift=4, training=None)
    splits = open_images(picked, network)
    used = splits.calibration.names + splits.drift.names
    own = {f"c{i % 10}/{i}.png" for i in range(20)} | {"c4/broken.png"}  # found broken only when its batch is made
    assert set(splits.training.names) == own - set(used) and len(splits.evaluation) == 60
    assert any("c3/copy.png" in note and "training" in note for note in splits.notes)
    (tmp_path / "train" / "c5" / "twin.png").write_bytes((tmp_path / "train" / splits.drift.names[0]).read_bytes())
    again = open_images(picked, network)
    drifting, training = ({(tmp_path / "train" / name).read_bytes() for name in images.names} for images in (again.drift, again.training))
    assert not drifting & training


def test_training_images_are_compared_without_reading_them_whole(classes, tmp_path, network, monkeypatch):
    """A million of them: only their size is looked at, and some bytes of those that have another's size."""
    for i in range(40):
        picture(tmp_path / "train" / f"c{i % 10}" / f"{i}.png", 7000 + i)
    read = []
    whole = Stored.read
    monkeypatch.setattr(Stored, "read", lambda self: read.append(self.name) or whole(self))
    splits = open_images(choice(path=str(classes), calibration_path=str(tmp_path / "train"), calibration=4, drift=4, training=None), network)
    assert len(splits.training) == 32 and not set(read) & set(splits.training.names)


def test_too_few_images_is_an_error_with_counts(classes, network):
    with pytest.raises(ImagesError, match="40 images are left to evaluate on, and 41"):
        open_images(choice(path=str(classes), evaluation=41), network)
    with pytest.raises(ImagesError, match="60 images are left.*and 61 are asked for"):
        open_images(choice(path=str(classes), calibration=51), network)
    with pytest.raises(ImagesError, match="0 images are left to evaluate on"):
        open_images(choice(path=str(classes), calibration=50), network)


def test_the_same_file_or_content_never_calibrates_and_evaluates(classes, tmp_path, network):
    """Calibration source: a link to an evaluation file, a copy under another name, a copy in a zip, and images of its own."""
    mixed = tmp_path / "mixed"
    for i in range(8):
        picture(mixed / f"own{i}.png", 5000 + i)
    os.symlink(classes / "c0" / "0.png", mixed / "link.png")
    (mixed / "copy.png").write_bytes((classes / "c1" / "1.png").read_bytes())
    splits = open_images(choice(path=str(classes), calibration_path=str(mixed), calibration=4, drift=4), network)
    assert set(splits.calibration.names + splits.drift.names) == {f"own{i}.png" for i in range(8)}
    os.symlink(tmp_path / "nowhere.png", mixed / "broken link.png")
    os.symlink(tmp_path / "nowhere.png", classes / "c0" / "broken link.png")
    with pytest.raises(ImagesError, match="8 images are left.*1 cannot be read and 2 occur elsewhere"):
        open_images(choice(path=str(classes), calibration_path=str(mixed), calibration=5, drift=4), network)
    (mixed / "broken link.png").unlink()
    archive = zipped(mixed, tmp_path / "mixed.zip")
    with pytest.raises(ImagesError, match="8 images are left"):
        open_images(choice(path=str(classes), calibration_path=str(archive), calibration=5, drift=4), network)
    with pytest.raises(ImagesError, match="0 images are left.*60 occur elsewhere"):
        open_images(choice(path=str(classes), calibration_path=str(classes)), network)


def test_twins_within_one_source_stay_in_evaluation_and_are_named(tmp_path, network):
    for i in range(20):
        picture(tmp_path / "in" / f"c{i % 10}" / f"{i}.png", i % 14)  # 0…5 occur twice
    splits = open_images(choice(path=str(tmp_path / "in"), calibration=4, drift=4), network)
    kept = {int(name.split("/")[1][:-4]) % 14 for name in splits.calibration.names + splits.drift.names}
    assert kept == set(range(6, 14))
    assert len(splits.evaluation) == 12
    assert any("occur twice" in note for note in splits.notes)


def test_broken_images_are_replaced_in_calibration_and_skipped_in_evaluation(classes, network):
    for label in range(10):
        (classes / f"c{label}" / "broken.png").write_bytes(b"" if label % 2 else b"no image")
    splits = open_images(choice(path=str(classes), calibration=30, drift=10), network)
    assert splits.calibration.tensor().shape == (30, 3, 32, 32)
    named = [name for note in splits.notes for name in note.split(": ")[-1].split(", ") if "cannot be read" in note]
    assert named and all("broken" in name for name in named)
    seen = torch.cat([indices for indices, _ in splits.evaluation.batches(7)]).tolist()
    broken = [i for i, name in enumerate(splits.evaluation.names) if "broken" in name]
    assert sorted(seen + broken) == list(range(len(splits.evaluation))) and seen == sorted(seen)
    list(splits.evaluation.batches(7))  # a second pass names nothing twice
    assert splits.evaluation.skipped == [splits.evaluation.names[i] for i in broken]


def test_preprocessing_is_the_networks_own():
    """Against plain PIL: resize the shorter side to 32 / 0.8 = 40, cut out the middle, scale, normalise."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    made = transform(Preprocessing(input_size=(3, 32, 32), mean=(0.5, 0.4, 0.3), std=(0.5, 0.2, 0.1), interpolation="bilinear", crop_pct=0.8))(image)
    by_hand = np.asarray(image.resize((56, 40), Image.BILINEAR).crop((12, 4, 44, 36)), dtype=np.float32) / 255
    by_hand = (by_hand - np.array([0.5, 0.4, 0.3])) / np.array([0.5, 0.2, 0.1])
    torch.testing.assert_close(made.double(), torch.from_numpy(by_hand).permute(2, 0, 1).double(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_every_colour_mode_becomes_rgb(tmp_path, mode):
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    Image.new(mode, (4, 4)).save(path)
    assert stored(tmp_path)[0].open().mode == "RGB"


def test_flat_folder_calibrates_without_labels(classes, tmp_path, network):
    for i in range(25):
        picture(tmp_path / "flat" / f"{i}.png", 9000 + i)
    splits = open_images(choice(path=str(classes), calibration_path=str(tmp_path / "flat")), network)
    assert splits.calibration.labels is None and len(splits.evaluation) == 60
    alone = open_images(choice(path=str(tmp_path / "flat")), network)
    assert alone.evaluation.labels is None and any("no labels" in note for note in alone.notes)


def test_calibration_labels_that_fit_nothing_are_left_out(classes, tmp_path, network):
    for i in range(25):
        picture(tmp_path / "other" / f"zebra{i % 3}" / f"{i}.png", 9000 + i)
    splits = open_images(choice(path=str(classes), calibration_path=str(tmp_path / "other")), network)
    assert splits.calibration.labels is None and any("not used" in note for note in splits.notes)


def test_csv_by_index_and_by_class_in_folder_and_zip_agree(classes, tmp_path, network):
    files = [image.name for image in stored(classes)]
    archive = zipped(classes, tmp_path / "images.zip")
    by_index = table(tmp_path / "index.csv", [(f, 9 - int(f[1])) for f in files])
    by_class = table(tmp_path / "class.csv", [(f"./{f}", f[:2]) for f in files], ("path", "wnid"))
    first = open_images(choice(source="csv", path=str(classes), csv=by_index), network)
    second = open_images(choice(source="csv", path=str(archive), csv=by_class, file_column="path", label_column="wnid"), network)
    assert first.evaluation.names == second.evaluation.names
    assert first.evaluation.labels.tolist() == second.evaluation.labels.tolist() == [9 - int(n[1]) for n in first.evaluation.names]
    assert torch.equal(first.drift.tensor(), second.drift.tensor())


def test_csv_errors_say_what_there_is(classes, tmp_path, network):
    files = [image.name for image in stored(classes)]
    good = [(f, 0) for f in files]
    cases = [
        (table(tmp_path / "a.csv", good, ("file", "class")), "no column 'label'. Its columns: file, class"),
        (table(tmp_path / "b.csv", [*good, (files[0], 10)]), "Label 10 is out of range.*0 to 9"),
        (table(tmp_path / "c.csv", [(files[0], -1), *good]), "Label -1 is out of range"),
        (table(tmp_path / "d.csv", [("../secret.png", 0)]), "outside the folder"),
        (table(tmp_path / "e.csv", [("absent.png", 0)]), "None of the 1 files.*absent.png"),
        (table(tmp_path / "f.csv", [(files[0], "c0"), (files[1], "")]), "gives no label for"),
        (str(tmp_path / "absent.csv"), "cannot be read"),
    ]
    for csv, said in cases:
        with pytest.raises(ImagesError, match=said):
            open_images(choice(source="csv", path=str(classes), csv=csv), network)


def test_rows_without_a_file_are_named(classes, tmp_path, network):
    csv = table(tmp_path / "t.csv", [("gone.png", 1), *((image.name, 0) for image in stored(classes))])
    splits = open_images(choice(source="csv", path=str(classes), csv=csv), network)
    assert any("1 of 61 rows" in note and "gone.png" in note for note in splits.notes)


def test_calibration_table_may_lack_labels(classes, tmp_path, network):
    files = [image.name for image in stored(classes)]
    csv = table(tmp_path / "e.csv", [(f, 0) for f in files[:30]])
    plain = table(tmp_path / "c.csv", [(f,) for f in files[30:]], ("file",))
    splits = open_images(choice(source="csv", path=str(classes), csv=csv, calibration_csv=plain), network)
    assert splits.calibration.labels is None and set(splits.calibration.names) <= set(files[30:])
    assert len(splits.evaluation) == 30


def test_class_order_where_nothing_is_known(classes, tiny_vit):
    splits = open_images(choice(path=str(classes)), tiny_vit)
    assert splits.evaluation.labels.tolist() == [int(name[1]) for name in splits.evaluation.names]
    assert any("sorted order" in note for note in splits.notes)
    with pytest.raises(ImagesError, match="10 classes.*has 7"):
        open_images(choice(path=str(classes)), replace(tiny_vit, num_classes=7))


def test_class_names_partly_known_are_refused(classes, tiny_vit):
    with pytest.raises(ImagesError, match="7 of 10 classes of the images are unknown.*'c3'"):
        open_images(choice(path=str(classes)), replace(tiny_vit, class_names=("c0", "c1", "c2")))


def test_wordnet_folders_meet_a_thousand_classes(tmp_path, tiny_vit):
    thousand = replace(tiny_vit, num_classes=1000)
    for i in range(12):
        picture(tmp_path / "val" / ("n01440764" if i % 2 else "n15075141") / f"{i}.png", i)
    splits = open_images(choice(source="imagenet", path=str(tmp_path / "val"), calibration=4, drift=4), thousand)
    assert splits.evaluation.labels.tolist() == [0 if "n01440764" in name else 999 for name in splits.evaluation.names]
    picture(tmp_path / "val" / "cats" / "x.png", 99)
    with pytest.raises(ImagesError, match="has cats where n01440764"):
        open_images(choice(source="imagenet", path=str(tmp_path / "val"), calibration=4, drift=4), thousand)


def test_a_zip_wrapped_in_one_folder_keeps_its_classes(classes, tmp_path, network):
    archive = zipped(classes, tmp_path / "images.zip", prefix="top/val/")
    splits = open_images(choice(path=str(archive)), network)
    assert splits.evaluation.labels.tolist() == [9 - int(name.split("/")[2][1]) for name in splits.evaluation.names]


def test_folders_that_hold_nothing(tmp_path, network):
    with pytest.raises(ImagesError, match="There is no folder or zip"):
        open_images(choice(path=str(tmp_path / "absent")), network)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / ".hidden.png").write_bytes(b"")
    with pytest.raises(ImagesError, match="holds no images"):
        open_images(choice(path=str(tmp_path / "empty")), network)
    (tmp_path / "bad.zip").write_bytes(b"PK no zip")
    with pytest.raises(ImagesError, match="cannot be read as a zip"):
        open_images(choice(path=str(tmp_path / "bad.zip")), network)


def test_imagenette_offline_says_so_and_a_copy_by_hand_is_used(tmp_path, tiny_vit, monkeypatch):
    def offline(*_, **__):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr("torchvision.datasets.Imagenette", offline)
    thousand = replace(tiny_vit, num_classes=1000)
    picked = choice(source="imagenette", path=str(tmp_path), calibration=4, drift=4)
    with pytest.raises(ImagesError, match="cannot be downloaded"):
        open_images(picked, thousand)
    for split, count in (("train", 8), ("val", 3)):
        for i in range(count):
            picture(tmp_path / "imagenette2-320" / split / "n01440764" / f"{i}.png", len(split) * 100 + i)
    splits = open_images(picked, thousand)
    assert len(splits.evaluation) == 3 and splits.calibration.labels.tolist() == [0] * 4


def test_evaluation_decodes_one_batch_at_a_time(network, classes, monkeypatch):
    opened = []
    monkeypatch.setattr("starfish_lab.data.images.Stored.open", lambda self: opened.append(self.name) or Image.new("RGB", (8, 8)))
    images = open_images(choice(path=str(classes)), network).evaluation
    opened.clear()
    next(images.batches(5))
    assert len(opened) == 5


def test_an_image_set_of_tensors():
    images = torch.randn(5, 3, 4, 4)
    made = ImageSet.of(images, labels=torch.arange(5))
    assert torch.equal(made.tensor(), images) and made.tensor() is made.tensor()
    indices, batches = zip(*made.batches(2))
    assert torch.equal(torch.cat(batches), images) and torch.cat(indices).tolist() == list(range(5))

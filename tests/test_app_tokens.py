"""The page Tokens: choosing r and pictures, the job, the figures; charts and uploads apart from it."""

from __future__ import annotations

import base64
import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from synthetic import button, charts, open_page, said, traces, unharmed

from app import pictures
from app.charts import tokens as drawn
from starfish_lab import ledger, tokens_view
from starfish_lab.errors import ImagesError, RecipeError
from starfish_lab.jobs import worker
from starfish_lab.recipe import ImagesChoice, Recipe, TokensChoice
from starfish_lab.report import Report
from starfish_lab.store import Store


@pytest.fixture
def store(lab_home):
    return Store()


def photo(size=(64, 48), kind="PNG", **options) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def link(app) -> dict[str, str]:
    return {name: value[0] if isinstance(value, list) else value for name, value in app.query_params.items()}


# -- the job ----------------------------------------------------------------------------------------------------------


def test_the_job_follows_every_patch():
    report = tokens_view.compute(Recipe(tokens=TokensChoice(r=(2,))), images=2, device="cpu")
    found, merges = report.frame("pictures"), report.frame("merges")
    assert list(found["image"]) == [0, 1] and set(found["rows"]) == set(found["cols"]) == {4}
    assert len(merges) == 2 * 6 * 16
    for (_, depth), rows in merges.groupby(["image", "depth"]):
        assert set(rows["tokens"]) == {17 - 2 * (depth + 1)} and rows["token"].nunique() == 16 - 2 * (depth + 1) and rows["token"].min() == 1
        assert (rows.groupby("token").size().loc[rows["token"]].to_numpy() == rows["size"]).all(), "the sizes count the patches"
    picture = Image.open(io.BytesIO(base64.b64decode(found["png"][0])))
    assert picture.size == (32, 32) and found["dense_class"][0] in "0123456789" and 0 < found["merged_probability"][0] <= 1


def test_one_picture_without_a_label_is_enough(tmp_path):
    path = tmp_path / "mine.png"
    path.write_bytes(photo())
    recipe = Recipe(images=ImagesChoice(source="folder", path=str(path)), tokens=TokensChoice(r=(8,)))
    report = tokens_view.compute(recipe, device="cpu")
    (row,) = report.tables["pictures"]
    assert row["name"] == "mine.png" and row["label"] == ""
    assert "Tokens run out" in report.frame("notes")["note"][0]
    folder = Recipe(images=ImagesChoice(source="folder", path=str(tmp_path)), tokens=TokensChoice(r=(1,)))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    report = tokens_view.compute(folder, device="cpu")
    assert [row["name"] for row in report.tables["pictures"]] == ["mine.png"] and "broken.png" in report.frame("notes")["note"][0]
    path.unlink()
    with pytest.raises(ImagesError, match="None of the 1 pictures"):
        tokens_view.compute(folder, device="cpu")


def test_no_merging_is_no_job():
    with pytest.raises(RecipeError, match="Nothing merges"):
        tokens_view.compute(Recipe(), device="cpu")


# -- the page ---------------------------------------------------------------------------------------------------------


def test_at_first_the_page_says_what_will_be_here(store):
    app = open_page("tokens")
    assert unharmed(app) and not charts(app) and button(app, "Merge tokens").disabled
    assert "1 would be usual for the 17 tokens" in said(app)
    app.number_input(key="choice.merge").set_value(2).run()
    assert link(app)["merge"] == "2" and not button(app, "Merge tokens").disabled
    assert "by estimate" in next(iter(charts(app)))


def test_the_button_queues_a_job_and_its_figures_come(store):
    app = open_page("tokens", merge=2, sparsity=0.5)
    button(app, "Merge tokens").click().run()
    (row,) = store.runs(kind="merging").to_dict("records")
    recipe = store.run(row["id"]).recipe
    assert recipe.tokens.r == (2,) and recipe.images.source == "starter"
    assert unharmed(app) and "No worker is running" in said(app) and button(app, "Merge tokens").disabled
    worker.work(store, "cpu", once=True)
    assert store.run(row["id"]).status == "done"
    app = open_page("tokens", merge=2, sparsity=0.9, after=5)
    assert unharmed(app) and "With all tokens the network says" in said(app), "what is pruned does not matter here"
    over_picture, over_depth = charts(app).items()
    assert over_picture[0].startswith("After block 5, 4 tokens hold the 16 patches")
    found = traces(over_depth[1])
    assert found["tokens, as run"]["y"] == found["tokens, by the schedule"]["y"] == [15, 13, 11, 9, 7, 5]
    app.slider(key="value.after").set_value(0).run()
    assert "After block 0, 14 tokens hold" in next(iter(charts(app)))
    app.segmented_control(key="value.shown").set_value(1).run()
    assert unharmed(app) and link(app)["shown"] == "1"


def test_ones_own_picture_comes_from_the_link_and_stays_on_this_machine(store):
    number = pictures.keep(photo(), "photo.png")
    app = open_page("tokens", merge=3, pictures="own", picture=number)
    button(app, "Merge tokens").click().run()
    recipe = store.run(int(store.runs(kind="merging")["id"].iloc[0])).recipe
    assert recipe.images.path == str(pictures.path(number))
    worker.work(store, "cpu", once=True)
    app.run()
    assert unharmed(app) and len(charts(app)) == 2 and "labelled" not in said(app)


@pytest.mark.parametrize(("number", "words"), [("../secret", "64 hex digits"), ("0" * 64, "not on this machine"), ("", "Upload a picture")])
def test_a_link_to_no_picture_says_so(store, number, words):
    app = open_page("tokens", merge=1, pictures="own", **({"picture": number} if number else {}))
    assert unharmed(app) and words in said(app) and button(app, "Merge tokens").disabled


def test_a_network_on_a_grid_has_no_tokens_to_merge(store, tiny_resnet):
    from starfish_lab import profile, whatif
    from starfish_lab.recipe import ModelChoice

    store.save_profile(whatif.profile_key(ModelChoice(name="resnet18", weights="random")), profile.compute(tiny_resnet))
    app = open_page("tokens", model="resnet18", weights="random", merge=4)
    assert unharmed(app) and "no tokens to merge" in said(app) and not charts(app)


def test_what_stopped_a_job_stands_on_the_page(store):
    app = open_page("tokens", merge=2)
    button(app, "Merge tokens").click().run()
    store.fail(int(store.runs(kind="merging")["id"].iloc[0]), "There is no folder.")
    app.run()
    assert "Merging stopped: There is no folder." in said(app) and not button(app, "Merge tokens").disabled


def test_nonsense_in_the_link_leaves_the_page_standing(store):
    run = store.submit(Recipe(images=ImagesChoice(), tokens=TokensChoice(r=(1,))), "merging")
    store.finish(run, synthetic_report())
    app = open_page("tokens", merge=1, pictures="pie", shown=77, after=-3)
    assert unharmed(app) and len(charts(app)) == 2


# -- charts -----------------------------------------------------------------------------------------------------------


def synthetic_report() -> Report:
    """One picture of 2 × 2 patches of 2 pixels, of which the upper two share a token after the only block."""
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    report = Report()
    report.add("pictures", [dict(
        image=0, name="one", label="", width=4, height=4, rows=2, cols=2, png=base64.b64encode(file.getvalue()).decode(),
        dense_class="cat", dense_probability=0.9, merged_class="dog", merged_probability=0.5,
    )])  # fmt: skip
    for row, col, token, size in ((0, 0, 1, 2), (0, 1, 1, 2), (1, 0, 2, 1), (1, 1, 3, 1)):
        report.add("merges", [dict(image=0, depth=0, tokens=4, row=row, col=col, token=token, size=size)])
    return report


def test_the_map_fills_what_has_merged_and_leaves_the_rest():
    report = synthetic_report()
    picture, merges = report.tables["pictures"][0], report.frame("merges")
    fig = drawn.merge_map(picture, merges)
    assert fig.layout.title.text == "After block 0, 3 tokens hold the 4 patches; the largest holds 2"
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    shown = [np.asarray(Image.open(io.BytesIO(base64.b64decode(trace.source.partition(",")[2])))) for trace in fig.data[:2]]
    assert (shown[0] == pixels).all() and (shown[1][2:] == pixels[2:]).all()
    assert (shown[1][:2] == pixels[:2].reshape(-1, 3).mean(0).round()).all()
    (sizes,) = [trace for trace in fig.data if trace.name == "sizes"]
    assert np.asarray(sizes.z).tolist() == [[2, 2], [1, 1]] and np.asarray(sizes.text)[0, 0] == "2 patches share this token"
    line = next(trace for trace in fig.data if trace.name == "outlines")
    drawn_edges = {(line.x[i], line.y[i], line.x[i + 1], line.y[i + 1]) for i in range(0, len(line.x), 3)}
    assert drawn_edges == {
        (-0.5, -0.5, -0.5, 0.5), (1.5, -0.5, 1.5, 0.5),  # left and right of the pair
        (-0.5, -0.5, 0.5, -0.5), (0.5, -0.5, 1.5, -0.5), (-0.5, 0.5, 0.5, 0.5), (0.5, 0.5, 1.5, 0.5),  # above and below, none between
    }  # fmt: skip


def test_before_anything_merges_the_map_says_so():
    report = synthetic_report()
    merges = report.frame("merges").assign(token=[1, 2, 3, 4], size=1)
    fig = drawn.merge_map(report.tables["pictures"][0], merges, dark=True)
    assert "each of the 4 patches still has a token of its own" in fig.layout.title.text
    assert not next(trace for trace in fig.data if trace.name == "outlines").x


def test_estimates_and_measurements_never_look_alike():
    estimate = pd.DataFrame({"depth": [0, 1], "tokens": [15, 13], "share_saved": [0.1, 0.2]})
    fig = drawn.tokens_over_depth(estimate, estimate[["depth", "tokens"]], saved=0.15)
    found = {trace.name: trace for trace in fig.data}
    assert found["tokens, by the schedule"].line.dash == "dash" and found["tokens, by the schedule"].marker.symbol.endswith("-open")
    assert found["tokens, as run"].marker.symbol == "x" and found["MACs saved, by the schedule"].marker.pattern.shape == "/"
    assert list(found["MACs saved, by the schedule"].y) == [10, 20] and fig.layout.title.text.startswith("15.0 % fewer")
    assert len(drawn.tokens_over_depth(estimate, estimate.iloc[:0][["depth", "tokens"]], saved=0.0).data) == 2


def test_the_estimate_is_what_a_merging_network_costs(tiny_vit):
    from starfish_lab import profile, tokens
    from starfish_lab.measure import macs

    found = ledger.of_profile(profile.compute(tiny_vit), tokens=TokensChoice(r=(3,)))
    tokens.merge(tiny_vit, TokensChoice(r=(3,)))
    table = macs.layer_macs(tiny_vit)
    matching = table["layer"].isin([f"{block}.matmul" for block in tiny_vit.blocks])
    assert found["true_macs"].sum() == pytest.approx(table.loc[~matching, "macs"].sum())


# -- uploads ----------------------------------------------------------------------------------------------------------


def test_a_picture_is_kept_small_turned_and_without_what_else_was_in_the_file(lab_home):
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "my address"  # lies on its side
    number = pictures.keep(photo((2000, 1000), "JPEG", exif=exif), "a.jpg")
    kept = Image.open(pictures.path(number))
    assert kept.size == (512, 1024) and kept.mode == "RGB" and not kept.getexif()
    assert pictures.path(number).is_relative_to(lab_home / "pictures") and b"my address" not in pictures.path(number).read_bytes()
    assert pictures.keep(photo((2000, 1000), "JPEG", exif=exif), "b.jpg") == number
    assert not list((lab_home / "pictures").glob("*.partial"))


@pytest.mark.parametrize(
    ("content", "words"), [(b"", "cannot be read"), (b"%PDF-1.7", "cannot be read"), (photo()[:200], "cannot be read"), (None, "million at most")]
)
def test_what_is_no_picture_is_refused_in_words(content, words, monkeypatch, lab_home):
    if content is None:
        monkeypatch.setattr(pictures, "LARGEST_PICTURE", 0.001)
        content = photo()
    with pytest.raises(ImagesError, match=words):
        pictures.keep(content, "file")
    monkeypatch.setattr(pictures, "LARGEST_FILE", 0)
    with pytest.raises(ImagesError, match="MB at most"):
        pictures.keep(photo(), "file")

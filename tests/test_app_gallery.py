"""The page Gallery: which run, images by what became of them, classes, and a picture of one's own."""

from __future__ import annotations

import base64

import pandas as pd
import pytest
import synthetic
from synthetic import button, charts, labels, open_page, said, traces, unharmed
from synthetic_gallery import add_gallery, finished
from test_own_picture import file

from app.charts import attention
from app.charts import damage as drawn
from starfish_lab.gallery.plan import PicturePlan
from starfish_lab.report import Report
from starfish_lab.store import Store


@pytest.fixture
def store(lab_home):
    return Store()


def link(app) -> dict[str, str]:
    return {name: value[0] if isinstance(value, list) else value for name, value in app.query_params.items()}


def cards(app) -> str:
    """The HTML of the cards on a page; '' where there are none."""
    return "".join(element.proto.body for element in app.get("html") if 'class="cards' in element.proto.body)


# -- which run --------------------------------------------------------------------------------------------------------


def test_without_a_run_the_page_says_what_will_be_here(store):
    app = open_page("gallery")
    assert unharmed(app) and "Which answers did pruning flip?" in said(app) and "Go to Prune & heal" in labels(app) and not cards(app)


def test_the_newest_finished_run_comes_first_and_stands_in_the_link(store):
    finished(store)
    newest = finished(store)
    store.submit(synthetic.recipe())
    app = open_page("gallery")
    assert unharmed(app) and link(app)["run"] == str(newest)
    app.selectbox(key="value.run").set_value(1).run()
    assert unharmed(app) and link(app)["run"] == "1"
    finished(store)
    assert app.run() and link(app)["run"] == "1", "a newer one changes nothing"


def test_a_runs_own_page_leads_here(store):
    finished(store)
    app = open_page("prune_and_heal", run=1)
    finished(store)
    button(app, "Gallery").click().run()
    assert unharmed(app) and link(app)["run"] == "1" and cards(app)


@pytest.mark.parametrize("asked", [77, 10**30, -1])
def test_a_link_to_no_run_shows_the_newest_and_says_so(store, asked):
    run = finished(store)
    app = open_page("gallery", run=asked)
    assert unharmed(app) and f"asks for run {asked}" in said(app) and link(app)["run"] == str(run) and cards(app)


def test_an_older_run_says_what_is_missing_and_how_to_get_it(store):
    app = open_page("gallery", run=synthetic.done(store))
    assert unharmed(app) and "This run kept no answers" in said(app) and "Clone" in said(app) and not cards(app)
    report = synthetic.report()
    report.tables.pop("accuracy")
    run = store.submit(synthetic.recipe())
    store.finish(run, report)
    assert "have no labels" in said(open_page("gallery", run=run, gallery="classes"))


# -- images -----------------------------------------------------------------------------------------------------------


def test_images_are_shown_by_what_became_of_them(store):
    app = open_page("gallery", run=finished(store))
    assert unharmed(app) and "Pruning flipped 4 of 8 answers; healing brought 2 of them back and broke 1 other." in said(app)
    shown = cards(app)
    assert shown.count("<figure") == 1 and "1.png, labelled cat" in shown and "1 of these 2 images were kept" in said(app).replace(",", "")
    assert shown.count("cat ✓") == 2 and "75 %" in shown, "dense and healed say cat, pruned does not"
    became = app.segmented_control(key="value.became")
    assert became.options == ["Came back (2)", "Never came back (2)", "Broken by healing (1)"]
    became.set_value("never").run()
    shown = cards(app)
    assert shown.count("<figure") == 2 and "&lt;b&gt;dog" in shown and "<b>dog</b> ✓" not in shown and link(app)["became"] == "never"
    app.selectbox(key="value.of_class").set_value(0).run()
    assert cards(app).count("<figure") == 1 and "2.png" in cards(app) and link(app)["of_class"] == "0"
    app.segmented_control(key="value.became").set_value("broken").run()
    assert unharmed(app) and not cards(app) and "No image of this choice was kept as a picture" in said(app) and "of_class" not in link(app)


def test_a_run_that_was_not_healed_shows_what_pruning_flipped(store):
    app = open_page("gallery", run=finished(store, "dense", "pruned"))
    assert unharmed(app) and "Pruning flipped 4 of 8 answers; this run was not healed." in said(app) and cards(app).count("<figure") == 3


def test_every_image_is_in_the_table_that_opens(store):
    app = open_page("gallery", run=finished(store))
    assert not app.dataframe
    app.session_state["every_image"] = True
    app.run()
    table = app.dataframe[0].value
    assert unharmed(app) and len(table) == 8 and table["Group"].value_counts()["Kept throughout"] == 3
    assert table.loc[2, ["Label", "Dense", "Pruned", "Healed"]].tolist() == ["cat", "cat", "<b>dog</b>", "newt"]


def test_many_images_come_by_pages(store):
    import numpy as np
    from synthetic_gallery import jpeg, predictions

    from starfish_lab.gallery.answers import answer_rows
    from starfish_lab.gallery.damage import damage_rows

    truth = np.zeros(60, int)
    known = {"dense": predictions(truth, truth), "pruned": predictions(truth + 1, truth), "healed": predictions(truth, truth)}
    report = synthetic.report()
    report.add("answers", answer_rows(known))
    report.add("class_damage", damage_rows(known))
    report.add("classes", [{"place": place, "name": str(place)} for place in (0, 1)])
    report.add("thumbnails", [{"image": i, "name": f"{i}.png", "jpeg": jpeg()} for i in range(60)])
    run = store.submit(synthetic.recipe())
    store.finish(run, report)
    app = open_page("gallery", run=run, gallery_page=3)
    assert unharmed(app) and cards(app).count("<figure") == 12 and "59.png" in cards(app)
    assert cards(open_page("gallery", run=run, gallery_page=99)).count("<figure") == 12, "the last there is"
    assert cards(open_page("gallery", run=run, gallery_page=-5)).count("<figure") == 24


@pytest.mark.parametrize("query", [{"gallery": "x"}, {"became": "gone"}, {"of_class": "cat"}, {"of_class": 99}, {"gallery_page": "x"}])
def test_nonsense_in_the_link_leaves_the_page_standing(store, query):
    app = open_page("gallery", run=finished(store), **query)
    assert unharmed(app) and cards(app)


# -- classes ----------------------------------------------------------------------------------------------------------


def test_classes_stand_worst_first_with_counts_and_intervals(store):
    app = open_page("gallery", run=finished(store), gallery="classes")
    (figure,) = charts(app).values()
    assert unharmed(app) and figure["layout"]["title"]["text"] == "No class is resolved from dense"
    assert figure["layout"]["yaxis"]["ticktext"] == ["&lt;b&gt;dog&lt;/b&gt; (3)", "cat (4)", "newt (1)"]
    found = traces(figure)
    assert found["dense"]["x"] == pytest.approx([100, 75, 100]) and found["healed"]["x"] == pytest.approx([100 / 3, 50, 100])
    assert all(low > 0 for low in found["healed"]["error_x"]["arrayminus"]) and found["healed"]["error_x"]["array"][2] == pytest.approx(0, abs=1e-9)
    assert "3 of 3 classes: not resolved from dense (n = 1 to 4)." in said(app)
    app.session_state["every_class"] = True
    app.run()
    assert app.dataframe[0].value["label"].tolist() == [1, 0, 2]


def test_more_classes_than_there_is_room_for_are_in_the_table_alone():
    rows = [
        {"label": i, "name": f"class {i}", "images": 9, "difference_pp": -float(i), "resolved": i > 28, "verdict": "", "p_value": 1.0}
        | {f"{stage}{end}": 0.5 for stage in ("dense", "pruned", "healed") for end in ("", "_low", "_high", "_correct")}
        for i in range(30)
    ]
    fig = drawn.by_class(pd.DataFrame(rows))
    assert len(fig.data[0].x) == drawn.MOST and fig.layout.yaxis.ticktext[0] == "class 29 (9)"
    assert fig.layout.title.text == "class 29 loses most, 29.0 pp; 1 of 30 classes is resolved from dense"


# -- one's own picture ------------------------------------------------------------------------------------------------


def picture_report() -> Report:
    import io

    from PIL import Image

    png = io.BytesIO()
    Image.new("RGB", (4, 4), (200, 0, 0)).save(png, "PNG")
    report = Report()
    row = dict(image=0, name="mine.png", label="", width=4, height=4, rows=2, cols=2, png=base64.b64encode(png.getvalue()).decode())
    report.add("pictures", [row])
    for stage, name in (("dense", "<cat>"), ("pruned", "dog"), ("healed", "<cat>")):
        report.add(
            "top5", [dict(stage=stage, rank=1, place=0, name=name, probability=0.6), dict(stage=stage, rank=2, place=1, name="x", probability=0.2)]
        )
        report.add("attention", [dict(stage=stage, how="attention of the class token", values=[0.1, 0.2, 0.3, 0.3])])
    for stage in ("pruned", "healed"):
        report.add(
            "merges",
            [dict(stage=stage, image=0, depth=0, tokens=4, row=r, col=c, token=max(1, 2 * r + c), size=2 - r) for r in (0, 1) for c in (0, 1)],
        )
    report.add("notes", [dict(note="Something is not shown.")])
    return report


def shown_to(store, run: int, report: Report | None) -> int:
    plan = PicturePlan(recipe=synthetic.recipe(), run=run, artefact="/nowhere", file="mine.png", picture=base64.b64encode(file()).decode())
    job = store.submit(plan, "picture", parent=run)
    if report is not None:
        store.finish(job, report)
    return job


def test_at_first_there_is_an_upload_and_nothing_to_press(store):
    app = open_page("gallery", run=finished(store), gallery="own")
    assert unharmed(app) and "Upload a picture" in said(app) and button(app, "Show it to all three").disabled
    assert "not within reach" in said(app), "the run saved no network"


def test_what_the_networks_say_and_where_they_look(store):
    run = finished(store)
    app = open_page("gallery", run=run, gallery="own", shown=shown_to(store, run, picture_report()))
    assert unharmed(app) and "Dense says <cat>, pruned says dog, healed says <cat>" in said(app) and "Something is not shown." in said(app)
    (answers,) = [element.proto.body for element in app.get("html") if 'class="answers"' in element.proto.body]
    assert answers.count("<table>") == 3 and answers.count(">&lt;cat&gt;<") == 2 and answers.count(">dog<") == 1 and "60.0 %" in answers
    titles = list(charts(app))
    assert titles[0] == "Pruned shares 100 % of the dense network's attention, healed 100 %" and "3 tokens hold the 4 patches" in titles[1]
    app.segmented_control(key="value.merged_stage").set_value("pruned").run()
    assert unharmed(app) and link(app)["merged_stage"] == "pruned"
    button(app, "Forget this picture").click().run()
    assert unharmed(app) and len(store.runs(kind="picture")) == 0 and "shown" not in link(app)


def test_a_picture_of_another_run_is_not_shown(store):
    first, second = finished(store), finished(store)
    job = shown_to(store, first, picture_report())
    app = open_page("gallery", run=second, gallery="own", shown=job)
    assert unharmed(app) and not charts(app) and "shown" not in link(app)
    app = open_page("gallery", run=second, gallery="own", shown=999)
    assert unharmed(app) and "asks for picture 999" in said(app)


def test_pictures_shown_before_stay_within_reach(store):
    run = finished(store)
    older, newer = (shown_to(store, run, picture_report()) for _ in range(2))
    app = open_page("gallery", run=run, gallery="own")
    before = next(box for box in app.selectbox if box.label == "Shown before")
    assert before.value == newer and before.options == [f"mine.png ({newer})", f"mine.png ({older})"]
    before.set_value(older).run()
    assert unharmed(app) and link(app)["shown"] == str(older)
    button(app, "Forget this picture").click().run()
    assert unharmed(app) and store.runs(kind="picture")["id"].tolist() == [newer]


def test_a_job_that_waits_or_failed_says_so(store):
    run = finished(store)
    job = shown_to(store, run, None)
    app = open_page("gallery", run=run, gallery="own", shown=job)
    assert unharmed(app) and "No worker is running" in said(app) and "Forget this picture" not in labels(app)
    store.fail(job, "There is no folder.")
    app = open_page("gallery", run=run, gallery="own", shown=job)
    assert "could not be shown: There is no folder." in said(app) and "Forget this picture" in labels(app)
    app = open_page("prune_and_heal", run=shown_to(store, run, picture_report()))
    assert unharmed(app) and f"a picture to the networks of run {run}" in said(app)


def test_maps_lay_shares_on_one_scale_over_the_grey_picture():
    report = picture_report()
    report.tables["attention"][1]["values"] = [0.4, 0.0, 0.0, 0.0]
    fig = attention.maps(report.tables["pictures"][0], report.frame("attention"))
    assert fig.layout.title.text.startswith("Pruned shares 11 % of the dense network's attention, healed 100 %")
    marks = [trace for trace in fig.data if trace.type == "heatmap"]
    assert [mark.z.tolist() for mark in marks][:2] == [[[10, 20], [30, 30]], [[40, 0], [0, 0]]] and fig.layout.coloraxis.cmin == 0
    assert {mark.coloraxis for mark in marks} == {"coloraxis"}


def test_the_gallery_is_in_the_csvs_of_a_run(store):
    from app import run_files

    report = add_gallery(synthetic.report())
    assert b"class_damage.csv" in run_files.tables(report) and b"answers.csv" in run_files.tables(report)

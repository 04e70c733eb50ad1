"""Bake-off: the form and its plan, live figures, the result of each tab, what is not resolved, what was refused, what is delivered."""

from __future__ import annotations

import math
from dataclasses import asdict

import pandas as pd
import pytest
from synthetic import IMAGES, button, charts, labels, open_page, said, traces, unharmed

from app import bakeoff_measured, bakeoff_rows, published
from app.charts import bakeoff as figures
from app.charts import theme
from starfish_lab.bakeoff.plan import BakeOff
from starfish_lab.measure.accuracy import wilson
from starfish_lab.recipe import HealingChoice, PruningChoice, Recipe
from starfish_lab.report import Report
from starfish_lab.store import Store

DENSE = 530  # right answers of the dense network, of IMAGES
RIGHT = {"none": 100, "least_squares": 300, "logit_distillation": 500, "cross_entropy": 470, "starfish": 505}
KEYS = ("healer", "seed", "sparsity", "images", "steps")


DELIVERED = bakeoff_measured.TABLE


@pytest.fixture(autouse=True)
def nothing_delivered(monkeypatch, tmp_path):
    """Pages as they are without figures of our own; tests that want some say so."""
    monkeypatch.setattr(bakeoff_measured, "TABLE", tmp_path / "none.csv")


@pytest.fixture
def store(lab_home):
    return Store()


def plan(**changes: object) -> BakeOff:
    recipe = Recipe(pruning=PruningChoice(sparsity=0.9), healing=HealingChoice(steps=100))
    return BakeOff(**{"recipe": recipe, "healers": tuple(RIGHT), "seeds": (0,), "rates": (), **changes})


def row(cell, right: int, *, note: str = "") -> dict[str, object]:
    """A row of the table 'healers'; a cell with a note has failed."""
    found = {**asdict(cell), "note": note, "labels": cell.healer == "cross_entropy"}
    names = ("top1", "low", "high", "correct", "evaluated", "top1_dense", "share", "share_low", "share_high", "healing_seconds", "peak_memory_bytes")
    if note:
        return found | dict.fromkeys(names)
    low, high = wilson(right, IMAGES)
    dense = DENSE / IMAGES
    values = (right / IMAGES, low, high, right, IMAGES, dense, right / DENSE, low / dense, high / dense, 0.5 + cell.steps / 10, 3 * 2**20)
    return found | dict(zip(names, values)) | {"drift": 0.1, "kl": 0.2}


def report(baked: BakeOff, right=lambda cell: RIGHT[cell.healer], notes: dict[str, str] | None = None) -> Report:
    found = Report()
    for cell in baked.cells():
        found.add("healers", [row(cell, right(cell), note=(notes or {}).get(cell.healer, ""))])
        found.add("healer_curves", [
            dict(asdict(cell), step=step, seconds=step / 10, images_seen=32 * step, loss=0.3 * math.exp(-step / 50), accuracy=0.9 * step / 100,
                 evaluated=256) for step in (range(0, cell.steps + 1, 20) if cell.steps else (0,))
        ])  # fmt: skip
        if cell.healer != "starfish":
            found.add("paired", [dict(
                asdict(cell), first="starfish", second=cell.healer, difference_pp=-3.0, p_value=0.01, resolved=cell.seed < 2, evaluated=IMAGES,
                verdict="3.0 pp lower (n = 540)",
            )])  # fmt: skip
    found.add("notes", [dict(note="One image could not be read.")])
    return found


def baked(store: Store, of: BakeOff, **options: object) -> int:
    run = store.submit(of, "bakeoff")
    store.finish(run, report(of, **options))
    return run


def at_work(store: Store, of: BakeOff, finished: int) -> int:
    """A bake-off whose first cells are finished and whose next one is healing."""
    run = store.submit(of, "bakeoff")
    store.announce("worker-1", "cpu", "Test CPU")
    store.claim("worker-1", "cpu")
    store.heartbeat("worker-1", run)
    events, cells = [], of.cells()
    for number, cell in enumerate(cells[: finished + 1]):
        for step in range(0, cell.steps + 1, 20):
            events += [(0.0, f"loss:{cell.label}", step, 0.3 * math.exp(-step / 50)), (0.0, f"accuracy:{cell.label}", step, 0.9 * step / 100)]
            events += [(0.0, f"seconds:{cell.label}", step, step / 10)]
        if number < finished:
            figures_of = row(cell, RIGHT[cell.healer])
            names = {"dense": "top1_dense", "peak_memory": "peak_memory_bytes"}
            for name in ("top1", "low", "high", "share", "drift", "kl", "healing_seconds", "peak_memory", "dense"):
                events.append((0.0, f"{name}:{cell.label}", cell.steps, figures_of[names.get(name, name)]))
    store.add_events(run, events)
    store.set_progress(run, stage=f"{finished + 1} of {len(cells)}: {cells[finished].healer}", step=50, steps=100)
    return run


def only(app) -> pd.DataFrame:
    (found,) = app.dataframe
    return found.value


# -- the form ---------------------------------------------------------------------------------------------------------------------


def test_nothing_baked_yet_says_what_will_be_here_and_the_button_brings_it(store):
    app = open_page("bake_off", sparsity=0.8, steps=50)
    assert unharmed(app) and "No bake-off here yet" in said(app) and not charts(app)
    assert app.multiselect[0].value[0] == "none" and "starfish" in app.multiselect[0].value
    button(app, "Heal with all").click().run()
    (listed,) = store.runs(kind="bakeoff").to_dict("records")
    made = store.run(listed["id"]).plan
    assert made.healers == tuple(app.multiselect[0].value) and made.seeds == (0,) and made.rates == ()
    assert (made.recipe.pruning.sparsity, made.recipe.healing.steps, made.images, made.sparsities) == (0.8, 50, (), ())
    assert unharmed(app) and "No worker is running" in said(app) and "Cancel" in labels(app)


def test_seeds_tuning_and_healers_stand_in_the_link(store):
    app = open_page("bake_off", seeds=3, tuned=1, healers_all="starfish,dense+starfish")
    assert app.multiselect[0].value == ["starfish", "dense+starfish"] and "6 healings (6 train)" in said(app) and "3 learning rates" in said(app)
    app.multiselect[0].set_value(["starfish"]).run()
    assert app.query_params["healers_all"] == "starfish"
    button(app, "Heal with all").click().run()
    made = store.run(1).plan
    assert made.seeds == (0, 1, 2) and len(made.rates) == 3 and made.healers == ("starfish",)


def test_what_a_healer_is_known_with_is_not_overruled_by_the_form_of_another(store):
    """The form of Prune & heal stands at another learning rate; a bake-off takes each healer as its source does."""
    app = open_page("bake_off", lr=0.5, optimiser="sgd", precision="bf16", healers_all="starfish")
    button(app, "Heal with all").click().run()
    healing = store.run(1).plan.choice("starfish")
    assert (healing.learning_rate, healing.optimiser, healing.precision) == (HealingChoice().learning_rate, "adam", "bf16")


def test_the_images_axis_goes_from_eight_to_all_there_are(store):
    app = open_page("bake_off", axis="images")
    assert unharmed(app)
    button(app, "Heal with all").click().run()
    assert store.run(1).plan.images == (8, 16, 32, 64, 128, 192)  # 256 may calibrate, 64 of them show drift
    assert open_page("bake_off", axis="images", drift=100).button_group[1].options[-1] == "156"


@pytest.mark.parametrize(("pattern", "expected"), [("unstructured", (0.3, 0.5, 0.75, 0.9, 0.95)), ("structured", (0.25, 0.5, 0.75))])
def test_the_sparsity_axis_depends_on_the_pattern(store, pattern, expected):
    app = open_page("bake_off", axis="sparsity", pattern=pattern)
    button(app, "Heal with all").click().run()
    assert store.run(1).plan.sparsities == expected and store.run(1).plan.recipe.pruning.pattern == pattern


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ({"healers_all": "starfish,astrology"}, "do not exist"),
        ({"healers_all": ""}, ""),
        ({"axis": "sideways"}, "one of all, images, sparsity"),
        ({"seeds": 9}, "one of 1, 3"),
        ({"bake_all": 99}, "none of that number"),
        ({"axis": "sparsity", "pattern": "n_m"}, "one sparsity"),
        ({"axis": "images", "axis_images": "x,7"}, ""),
    ],
    ids=str,
)
def test_nonsense_in_the_link_is_told_and_the_page_stands(store, query, words):
    app = open_page("bake_off", **query)
    assert unharmed(app) and words in said(app) and "Heal with all" in labels(app)


# -- at work ----------------------------------------------------------------------------------------------------------------------


def test_curves_appear_while_healers_are_at_work(store):
    at_work(store, plan(), finished=3)
    app = open_page("bake_off")
    assert unharmed(app)
    course, losses = charts(app).values()
    (bar,) = app.get("progress")
    assert bar.proto.value == 55 and "cross entropy" in bar.proto.text and "3 of 5 finished" in bar.proto.text
    lines = traces(course)
    assert lines["logit distillation"]["x"] == [0, 2, 4, 6, 8, 10] and lines["logit distillation"]["y"][-1] == pytest.approx(90 * IMAGES / DENSE)
    assert lines["least squares, ended"]["x"] == [0.5] and lines["least squares, ended"]["y"][0] == pytest.approx(100 * 300 / DENSE)
    assert traces(losses)["cross entropy"]["y"][-1] == pytest.approx(math.exp(-2)) and len(only(app)) == 3
    app.button_group[-1].set_value("images_seen").run()
    assert unharmed(app) and traces(next(iter(charts(app).values())))["logit distillation"]["x"][-1] == 100 * 32
    button(app, "Cancel").click().run()
    assert store.cancel_requested(1)


# -- what came of it --------------------------------------------------------------------------------------------------------------


def test_the_result_says_who_recovers_most_and_what_is_not_resolved(store):
    baked(store, plan())
    app = open_page("bake_off")
    assert unharmed(app)
    (title,) = charts(app)
    assert title == "STARFISH recovers 95.3 % of dense; logit distillation is not resolved from it (n = 540)"
    found = only(app).set_index("healer")
    assert list(found.index) == ["STARFISH", "logit distillation", "cross entropy", "least squares", "no healing"]
    assert found.loc["STARFISH", "standing"] == "the best" and found.loc["logit distillation", "standing"] == "not resolved (−0.9 pp)"
    assert found.loc["cross entropy", "standing"] == "−6.5 pp" and found.loc["cross entropy", "labels"] == "yes"
    assert found.loc["none" if "none" in found.index else "no healing", "against"] == "3.0 pp lower (n = 540)" and "note" not in found
    low, high = wilson(505, IMAGES)
    assert found.loc["STARFISH", "accuracy"] == f"{100 * 505 / IMAGES:.1f} ± {50 * (high - low):.1f} %" and found.loc["STARFISH", "memory"] == 3


def test_it_says_whether_drift_alone_would_have_picked_the_best(store):
    found = report(plan())
    for entry in found.tables["healers"]:
        entry["drift"] = 1 - entry["top1"] if entry["healer"] != "logit_distillation" else 0.0  # the least, and 5 of IMAGES behind the best
    run = store.submit(plan(), "bakeoff")
    store.finish(run, found)
    app = open_page("bake_off")
    lost = 100 * (RIGHT["starfish"] - RIGHT["logit_distillation"]) / IMAGES
    assert unharmed(app) and "0 of 1 group (5 networks" in said(app) and f"It loses {lost:.1f} pp" in said(app)


def test_three_seeds_are_one_mark_with_their_mean(store):
    baked(store, plan(seeds=(0, 1, 2)), right=lambda cell: RIGHT[cell.healer] + 10 * cell.seed)
    app = open_page("bake_off")
    (chart,) = charts(app).values()
    assert traces(chart)["STARFISH"]["x"] == [pytest.approx(100 * 515 / DENSE)] and len(traces(chart)["STARFISH, seeds"]["x"]) == 3
    found = only(app).set_index("healer")
    assert found.loc["no healing", "against"] == "lower in 2 of 3" and (found["steps"] >= 0).all()


def test_a_refused_healer_shows_its_reason_and_the_others_stand(store):
    baked(store, plan(), notes={"least_squares": "It needs more images than there are."})
    app = open_page("bake_off")
    assert unharmed(app) and "**Least squares** did not run: It needs more images than there are." in said(app)
    assert only(app).set_index("healer").loc["least squares", "note"].startswith("It needs") and "least squares" not in traces(*charts(app).values())


def test_without_labels_the_table_has_drift(store):
    found = report(plan())
    for entry in found.tables["healers"]:
        entry |= dict.fromkeys(("top1", "low", "high", "share", "share_low", "share_high", "top1_dense"))
    run = store.submit(plan(), "bakeoff")
    store.finish(run, found)
    app = open_page("bake_off")
    assert unharmed(app) and "no labels" in said(app) and not charts(app) and (only(app)["drift"] == 0.1).all()


def test_the_images_axis_is_logarithmic_and_marks_the_knee(store):
    of = plan(images=(8, 64, 192), healers=("starfish", "logit_distillation"))
    found = report(of, right=lambda cell: RIGHT[cell.healer] - (100 if cell.images == 8 else 0))
    found.add("knee", [dict(healer="starfish", sparsity=0.9, steps=100, knee_images=64, best_images=192, at_end=False, seeds=1)])
    run = store.submit(of, "bakeoff")
    store.finish(run, found)
    app = open_page("bake_off", axis="images")
    ((title, chart),) = charts(app).items()
    assert title == "64 images are enough for STARFISH: more change nothing resolved"
    assert chart["layout"]["xaxis"]["type"] == "log" and chart["layout"]["xaxis"]["tickvals"] == [8, 64, 192]
    assert len(traces(chart)["knee"]["x"]) == 1 and traces(chart)["knee"]["x"][0] == pytest.approx(64, rel=0.05)
    assert not charts(open_page("bake_off"))  # of another tab


def test_the_sparsity_axis_says_how_far_it_goes_and_names_the_published_claim(store):
    baked(store, plan(sparsities=(0.5, 0.9)), right=lambda cell: 528 if cell.sparsity == 0.5 else RIGHT[cell.healer])
    app = open_page("bake_off", axis="sparsity")
    (title,) = charts(app)
    assert title == "STARFISH keeps 95 % of dense at 90 % sparsity"
    assert "DeiT-B at 75 % sparsity: 82 % for STARFISH and 40 % for best competing recovery (arXiv 2606.01126" in said(app)


@pytest.mark.parametrize("wanted", ["While healing", "Notes"])
def test_details_open_when_asked_for(store, wanted):
    baked(store, plan())
    app = open_page("bake_off")
    app.segmented_control(key="bake_details").set_value(wanted).run()
    assert unharmed(app) and len(charts(app)) + len(app.dataframe) == (4 if wanted == "While healing" else 3)


def test_a_cancelled_bake_off_keeps_what_it_had(store):
    run = at_work(store, plan(), finished=2)
    store.mark_cancelled(run)
    app = open_page("bake_off")
    assert unharmed(app) and "goes on where this one ended" in said(app) and len(only(app)) == 2
    button(app, "Run again").click().run()
    assert unharmed(app) and store.run(run + 1).plan == plan() and store.run(run + 1).active


# -- delivered figures ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def delivered(tmp_path, monkeypatch):
    """A file of measured rows in place of the delivered one."""
    path = tmp_path / "healing.csv"
    monkeypatch.setattr(bakeoff_measured, "TABLE", path)

    def write(of: BakeOff, **columns: object) -> None:
        report(of).frame("healers").assign(**columns).to_csv(path, index=False)

    return write


def test_delivered_figures_stand_below_with_their_hardware_and_the_claim_hollow(store, delivered):
    delivered(plan(sparsities=(0.5, 0.75)), network="deit_base_patch16_224", hardware="NVIDIA H100", precision="bf16")
    app = open_page("bake_off", axis="sparsity")
    assert unharmed(app) and "DeiT-B, measured with this lab: on NVIDIA H100" in said(app) and "100 steps" in said(app)
    (chart,) = charts(app).values()
    hollow = [trace for trace in chart["data"] if str(trace["marker"]["symbol"]).endswith("-open")]
    assert [trace["y"] for trace in hollow] == [[pytest.approx(82)], [pytest.approx(40)]] and all(trace["x"] == [75] for trace in hollow)
    assert traces(chart)["STARFISH"]["marker"]["symbol"] == "diamond"


def test_delivered_trainings_of_different_length_share_no_picture(store, delivered):
    delivered(plan(steps=(20, 100)), network="starter", hardware="CPU")
    app = open_page("bake_off", measured_all="90 %, 64 images, 100 steps")
    at = next(box for box in app.selectbox if box.label == "At")
    assert unharmed(app) and list(at.options) == ["90 %, 64 images, 20 steps", "90 %, 64 images, 100 steps"]
    (chart,) = charts(app).values()
    names = [trace["name"] for trace in chart["data"]]
    assert sorted(names) == sorted({bakeoff_rows.label(healer) for healer in RIGHT})  # repairs too, and each once
    assert "100 steps" in said(app) and "20 or 100" not in said(app)


def test_a_knee_by_intervals_and_a_sparsity_beyond_which_nobody_keeps():
    cells = plan(healers=("starfish",), images=(8, 16, 64)).cells()
    found = bakeoff_rows.summary(pd.DataFrame([row(cell, right) for cell, right in zip(cells, (300, 495, 500))]))
    assert bakeoff_rows.knees(found).to_dict("records") == [{"healer": "starfish", "knee_images": 16, "at_end": False}]
    assert bakeoff_rows.knees(found[:2]).empty
    sparse = plan(healers=("none", "starfish"), sparsities=(0.3, 0.9))
    rows = bakeoff_rows.summary(pd.DataFrame([row(cell, 520 if cell.sparsity == 0.3 else 200) for cell in sparse.cells()]))
    assert bakeoff_rows.title_over_sparsity(rows) == "Beyond 30 % sparsity nobody keeps 90 % of dense"


def test_a_delivered_file_without_what_is_needed_is_as_none(store, delivered):
    delivered(plan())  # no network, no hardware
    app = open_page("bake_off")
    assert unharmed(app) and "No bake-off here yet" in said(app)


# -- looks ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dark", [False, True])
def test_healers_look_different_and_starfish_is_teal(dark):
    rows = pd.DataFrame([
        ("starfish", 9, False), ("starfish_plus", 9, False), ("none", 0, False), ("corp", 0, False), ("dense", 0, False), ("lora", 9, False),
        ("logit_distillation", 9, False), ("cross_entropy", 9, True), ("distillation", 9, True),
    ], columns=["healer", "steps", "labels"])  # fmt: skip
    found = figures.looks(rows, dark=dark)
    assert len({(look.colour, look.dash, look.symbol) for look in found.values()}) == len(rows)
    assert found["starfish"].colour == theme.stage_colour("healed", dark) == found["lora"].colour and found["starfish"].dash == "solid"
    brightness = [sum(int(found[name].colour[i : i + 2], 16) for i in (1, 3, 5)) for name in ("starfish_plus", "starfish")]
    assert brightness[0] < brightness[1] and found["corp"].colour == theme.stage_colour("pruned", dark)


def test_names_at_the_ends_of_lines_never_stand_on_each_other():
    rows = bakeoff_rows.summary(pd.DataFrame([row(cell, 500 + i) for i, cell in enumerate(plan(images=(8, 16)).cells())]))
    fig = figures.over(rows, "images", title="?")
    heights = sorted(note.y for note in fig.layout.annotations if note.text != "dense")
    assert len(heights) == len(RIGHT) and min(b - a for a, b in zip(heights, heights[1:])) * (fig.layout.height - 130) >= figures.LABEL_GAP - 1e-6
    assert heights[0] >= 0 and heights[-1] <= 1


def test_intervals_that_overlap_are_not_resolved_and_others_are():
    cells = plan(healers=("starfish", "logit_distillation", "none")).cells()
    found = bakeoff_rows.summary(pd.DataFrame([row(cell, right) for cell, right in zip(cells, (500, 495, 100))]))
    words = bakeoff_rows.against_best(found)
    assert list(words) == ["the best", "not resolved (−0.9 pp)", "−74.1 pp"]


def test_the_published_shares_are_read_from_the_literature():
    rows = published.recoveries("deit_base_patch16_224")
    assert rows["share"].tolist() == [0.82, 0.40] and rows["source"].str.contains("2606.01126").all() and len(published.recoveries()) >= 2


def test_the_delivered_figures_are_shown(store, monkeypatch):
    monkeypatch.setattr(bakeoff_measured, "TABLE", DELIVERED)
    app = open_page("bake_off", new=1)
    assert unharmed(app) and "What we measured" in said(app) and len(charts(app)) == 1
    assert set(pd.read_csv(DELIVERED)) >= bakeoff_measured.NEEDED

"""The paper's rows: published figures hollow beside measured ones, a row becomes a recipe in the form, the ledger of the present choice."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import synthetic
from synthetic import button, charts, labels, open_page, said, traces, unharmed

from app import paper_runs
from app.charts import ledger as ledger_charts
from app.charts import paper as paper_charts
from starfish_lab import ledger, presets
from starfish_lab.recipe import ImagesChoice, PruningChoice
from starfish_lab.store import Store

HYBRID = "vit-b-16.hybrid.0.35"


@pytest.fixture
def store(lab_home):
    return Store()


def measured(store, key: str, *, top1: float, **changes) -> int:
    """A finished run of a published row; `changes` replace parts of its recipe."""
    run = store.submit(replace(presets.recipe_of(key, ImagesChoice()), **changes))
    store.finish(run, synthetic.report(healed=top1))
    return run


def main(app) -> dict:
    """The chart of accuracy against sparsity."""
    return next(figure for figure in charts(app).values() if "xaxis" in figure["layout"] and "Sparsity" in figure["layout"]["xaxis"]["title"]["text"])


def test_published_figures_are_hollow_and_have_sources(store):
    app = open_page("paper")
    assert unharmed(app)
    figure = main(app)
    assert figure["layout"]["title"]["text"] == "Nothing of ViT-B/16 was measured here yet"
    names = traces(figure)
    assert {"magnitude-SER hybrid", "global magnitude + fine-tuning", "CAST 2:4 + ToMe", "SEB+Haar, no fine-tuning"} <= set(names)
    assert all(trace["marker"]["symbol"].endswith("-open") for trace in figure["data"])
    assert all(source == "arXiv 2606.02608" for trace in figure["data"] for *_, source in trace["customdata"])
    assert dict(zip(names["magnitude-SER hybrid"]["x"], names["magnitude-SER hybrid"]["y"]))[35.0] == 84.55
    table = app.dataframe[0].value
    assert len(table) == (presets.presets()["model"] == "ViT-B/16").sum() and set(table["source"]) == {"arXiv 2606.02608"}


def test_network_and_method_stand_in_the_link(store):
    app = open_page("paper", paper_network="Swin-T", paper_method="magnitude-SER hybrid (drop threshold)")
    assert unharmed(app) and list(traces(main(app))) == ["magnitude-SER hybrid (drop threshold)"]
    assert app.dataframe[0].value["sparsity"].tolist() == pytest.approx(np.arange(0.05, 0.71, 0.05))
    app = open_page("paper", model="deit_small_patch16_224.fb_in1k", weights="pretrained")
    assert app.selectbox(key="value.paper_network").value == "DeiT-S"  # the network the pages are about
    app = open_page("paper", paper_network="Abacus", paper_method="?", row="nothing")
    assert unharmed(app) and "Abacus" in said(app)


def test_a_measured_row_is_filled_with_its_interval_and_the_newest_counts(store):
    measured(store, HYBRID, top1=0.80)
    run = measured(store, HYBRID, top1=0.84)
    synthetic.done(store)  # a run of no published row
    app = open_page("paper", paper_network="ViT-B/16")
    figure = main(app)
    mark = traces(figure)["healed, measured here"]
    assert mark["text"] == [f"run {run}"] and mark["x"] == [35.0] and mark["y"] == pytest.approx([100 * round(0.84 * 540) / 540])
    assert mark["marker"]["symbol"] == "diamond" and mark["error_y"]["array"][0] > 0
    assert figure["layout"]["title"]["text"] == "1 of 1 measured rows of ViT-B/16 have the published figure in their interval"
    row = app.dataframe[0].value.set_index("key").loc[HYBRID]
    assert row["run"] == run and row["here"].startswith("84.07 ± ") and row["here"].endswith("n = 540") and row["differs"] == ""


def test_a_run_of_the_rows_name_with_other_settings_says_which(store):
    recipe = presets.recipe_of(HYBRID)
    run = measured(store, HYBRID, top1=0.9, start=replace(recipe.start, steps=20))
    app = open_page("paper", paper_network="ViT-B/16")
    row = app.dataframe[0].value.set_index("key").loc[HYBRID]
    assert row["run"] == run and row["differs"] == "start.steps"
    assert "Nothing of ViT-B/16" in main(app)["layout"]["title"]["text"]  # such a run is shown, not counted
    exact = measured(store, HYBRID, top1=0.8)
    measured(store, HYBRID, top1=0.9, start=replace(recipe.start, steps=30))
    assert open_page("paper", paper_network="ViT-B/16").dataframe[0].value.set_index("key").loc[HYBRID, "run"] == exact


def test_a_row_opens_as_a_recipe_with_the_persons_images(store):
    query = dict(images="folder", folder="/mine/val", cal_folder="/mine/train", eval=100)
    app = open_page("paper", row="vit-b-16.cast-perm.6-12", **query)
    assert unharmed(app) and "Doubtful" in said(app)
    button(app, "Open this row").click().run()
    assert unharmed(app)
    recipe = app.session_state["opened"]
    assert recipe.pruning.group == 12 and recipe.pruning.score_options["alpha"] == 0.5
    assert (recipe.images.path, recipe.images.calibration_path, recipe.images.evaluation) == ("/mine/val", "/mine/train", 100)
    assert app.session_state["choice"].model == presets.TIMM["ViT-B/16"] and app.session_state["choice"].group == 12


def test_without_a_chosen_row_there_is_nothing_to_open(store):
    app = open_page("paper")
    assert "Open this row" in labels(app) and button(app, "Open this row").disabled and "Choose a row" in said(app)


def test_every_way_of_counting_stands_in_the_ledger(store):
    app = open_page("paper", pattern="n_m")
    assert unharmed(app)
    figure = next(figure for title, figure in charts(app).items() if "kernels of today" in title)
    assert traces(figure)["left"]["y"] == list(ledger_charts.NAMES.values())
    assert "Counters such as fvcore and thop" in said(app)
    app = open_page("paper", model="resnet18.tv_in1k", weights="pretrained")
    assert unharmed(app) and "once it has a profile" in said(app)


def test_identity_of_a_recipe():
    recipe = presets.recipe_of(HYBRID)
    assert paper_runs.identity(recipe) == (HYBRID, "")
    assert paper_runs.identity(replace(recipe, name="mine")) == (HYBRID, "")
    assert paper_runs.identity(replace(recipe, name="mine", pruning=PruningChoice())) == ("", "")
    key, differs = paper_runs.identity(replace(recipe, pruning=replace(recipe.pruning, seed=3)))
    assert (key, differs) == (HYBRID, "pruning.seed")


def test_charts_of_nothing_measured_and_of_nothing_saved(store):
    table = presets.presets()
    rows = table[table["model"] == "DeiT-B"]
    fig = paper_charts.accuracy_against_sparsity(rows, pd.DataFrame(columns=list(paper_runs.COLUMNS)), model="DeiT-B")
    assert {f"{line.y0:.2f}" for line in fig.layout.shapes} == {"81.80", "81.97"}  # two published dense figures
    assert paper_charts.lowest(rows, pd.DataFrame()) is None  # every method trains: all is in view
    vit = table[table["model"] == "ViT-B/16"]
    assert paper_charts.lowest(vit, pd.DataFrame()) == pytest.approx(67.44 - 3)
    assert paper_charts.accuracy_against_sparsity(vit, pd.DataFrame(), model="ViT-B/16").layout.yaxis.range[0] == pytest.approx(64.44)
    assert "Untrained figures below" in said(open_page("paper", paper_network="ViT-B/16"))
    totals = pd.DataFrame({"convention": ["true", "kernels of today"], "dense_g": 1.0, "after_g": 1.0, "reduction_pct": 0.0, "note": ""})
    assert ledger_charts.conventions(totals).layout.title.text == "Nothing is saved yet, whoever counts"
    assert set(ledger_charts.NAMES) == {"as printed", "block input", "true", "kernels of today", "no sparse kernel", "fvcore, thop"}
    assert ledger.KERNEL_ROWS == 32

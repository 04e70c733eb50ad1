"""The page Spectra through AppTest."""

from __future__ import annotations

import numpy as np
import pytest
from test_app_explore import bundled, figure, link, open_app, values

from app import state
from app.charts import spectra, spectra_grid
from starfish_lab.report import Report
from starfish_lab.store import Store


def panels(fig: dict) -> list[tuple[str, str]]:
    return [tuple(key) for trace in fig["data"] if trace["type"] == "bar" for key in trace["customdata"]]


def finished_run(spectra: dict[str, int]) -> int:
    """A run whose table of spectra is the profile's, with so many spikes in every row of a stage."""
    report, rows = Report(), bundled().spectra
    for stage, spikes in spectra.items():
        report.add("spectra", rows[rows["depth"] >= 0].assign(spikes=spikes), stage=stage)
    store = Store()
    run = store.submit(state.recipe(state.Choice()))
    store.claim("w", "cpu")
    store.finish(run, report)
    return run


def test_grid_shows_every_matrix_of_the_starter_one_enlarged_and_a_heat_map():
    at = open_app(page="spectra")
    assert not at.error and not at.warning and len(at.get("plotly_chart")) == 3
    grid, enlarged, depth = (figure(at, i) for i in range(3))
    inside = bundled().spectra.query("depth >= 0 and part != 'qkv'")
    assert set(panels(grid)) == set(zip(inside["layer"], inside["part"])) and len(panels(grid)) == 36
    areas = [np.array(values(t["y"]), float) for t in grid["data"] if t.get("fill") == "toself"]
    panels_drawn = [part[~np.isnan(part)] for area in areas for part in np.split(area, np.flatnonzero(np.isnan(area)))]
    tops = [max([*row["counts"], *spectra.density(row, 40)[1]]) for _, row in inside.iterrows()]
    whole = [spectra_grid.HIGH * min(row.rows, row.cols) / top for row, top in zip(inside.itertuples(), tops)]
    assert sorted((part[1:-1:2] - part[0]).sum() for part in panels_drawn) == pytest.approx(sorted(whole)), "every eigenvalue in a histogram"
    assert enlarged["layout"]["xaxis"]["type"] == "log"
    top = inside.loc[inside["spikes"].idxmax()]
    diamonds = next(t for t in enlarged["data"] if t["name"] == "spikes")
    assert values(diamonds["x"]) == pytest.approx(top["spike_values"]), "at first the matrix with most spikes is enlarged"
    heat, figures = depth["data"]
    assert heat["type"] == "heatmap" and heat["y"] == ["qkv", "q", "k", "v", "proj", "fc1", "fc2"]
    assert len(figures["text"]) == 42 and set(figures["textfont"]["color"]) == {"#000000", "#ffffff"}


def test_a_link_chooses_kinds_matrix_and_figure():
    at = open_app("kinds=q,fc2&layer=blocks.2.mlp.fc2&value=stable_rank", page="spectra")
    grid, enlarged, depth = (figure(at, i) for i in range(3))
    assert len(panels(grid)) == 12 and {part for _, part in panels(grid)} == {"q", ""}
    assert enlarged["layout"]["title"]["text"].startswith("fc2, block 2")
    assert depth["layout"]["title"]["text"].startswith("Largest stable rank")
    assert link(at) == {"kinds": "q,fc2", "layer": "blocks.2.mlp.fc2", "value": "stable_rank"}


@pytest.mark.parametrize("query", ["kinds=zzz", "layer=no.such", "part=zz", "value=pie", "stage=later", "run=77", "run=-1", "control=1"])
def test_nonsense_in_a_link_leaves_the_page_standing(query):
    at = open_app(query, page="spectra")
    assert not at.error and len(at.get("plotly_chart")) == 3


def test_spectra_before_and_after_pruning_and_healing():
    run = finished_run({"dense": 7, "pruned": 3, "healed": 5})
    at = open_app(f"run={run}", page="spectra")
    assert set(values(figure(at, 2)["data"][0]["z"])) == {5}, "at first the last stage"
    at.segmented_control(key="value.stage").set_value("pruned").run()
    assert set(values(figure(at, 2)["data"][0]["z"])) == {3} and link(at)["stage"] == "pruned"
    at.selectbox(key="value.run").set_value(0).run()
    assert set(values(figure(at, 2)["data"][0]["z"])) != {3} and "run" not in link(at)


def test_a_layer_outside_the_law_shows_its_verdict():
    report, rows = Report(), bundled().spectra
    report.add("spectra", rows[rows["depth"] == 0].assign(applies=False, verdict="MP does not describe this layer: a test"), stage="healed")
    store = Store()
    run = store.submit(state.recipe(state.Choice()))
    store.claim("w", "cpu")
    store.finish(run, report)
    at = open_app(f"run={run}", page="spectra")
    assert figure(at, 1)["layout"]["title"]["text"].startswith("MP does not describe")
    assert any("MP does not describe this layer: a test" in caption.value for caption in at.caption)


def test_every_matrix_is_listed_when_asked_for():
    at = open_app(page="spectra")
    assert not at.dataframe
    at.session_state["matrices"] = True
    at.run()
    assert not at.exception and len(at.dataframe[0].value) == len(bundled().spectra)

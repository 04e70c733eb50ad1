"""Lineage of runs: who comes from whom, how the graph is drawn, and that a mark leads to its run."""

from __future__ import annotations

import json
from dataclasses import replace

import pandas as pd
import pytest
import sqlalchemy as sa
import synthetic
from synthetic import charts, open_page, said, unharmed

from app.charts import lineage as picture
from app.review import lineage
from starfish_lab.recipe import PruningChoice, StartChoice
from starfish_lab.store import Store
from starfish_lab.store.schema import RUNS


@pytest.fixture
def store(lab_home):
    return Store()


def _graph(store) -> lineage.Graph:
    runs = store.runs()
    return lineage.graph(runs, store.recipes(runs["id"]))


def _places(found: lineage.Graph) -> dict[tuple[int, str], tuple[float, float]]:
    return {(row.run, row.name): (row.x, row.y) for row in found.nodes.itertuples(index=False)}


def test_a_family_is_everything_that_came_from_the_oldest_ancestor():
    runs = pd.DataFrame({"id": [1, 2, 3, 4, 5, 6], "parent": [None, 1, 2, None, 2, 99]})
    assert lineage.family(runs, 3) == [1, 2, 3, 5]
    assert lineage.family(runs, 6) == [6]  # its parent was deleted
    assert lineage.missing(runs) == [99]


def test_a_run_goes_from_dense_to_pruned_to_healed_with_its_figures(store):
    run = synthetic.done(store, name="one")
    found = _graph(store)
    assert _places(found) == {(run, "dense"): (0, 0), (run, "pruned"): (1, 0), (run, "healed"): (2, 0)}
    assert list(found.edges.itertuples(index=False, name=None)) == [(0, 0, 1, 0, "stage"), (1, 0, 2, 0, "stage")]
    healed = found.nodes.iloc[-1]
    assert healed["top1"] == pytest.approx(524 / 540) and healed["macs_g"] == synthetic.MACS_G["healed"] and healed["last"]


def test_clones_stand_below_their_parent_and_say_what_they_changed(store):
    first = synthetic.done(store)
    other = synthetic.done(store, sparsity=0.8)
    child = synthetic.done(store, sparsity=0.5, parent=first, method="logit_distillation")
    found = _graph(store)
    assert [run for run in found.names] == [first, child, other]
    assert found.changes == {child: "sparsity 0.9 → 0.5, method starfish → logit_distillation"}
    assert (1, 0, 1, 1, "cloned") in list(found.edges.itertuples(index=False, name=None))
    assert _places(found)[child, "distilled"] == (2, 1)
    assert list(found.nodes["name"]).count("dense") == 1  # of one network, on the same images


def test_a_run_that_starts_from_anothers_network_goes_on_from_its_healed_mark(store):
    first = synthetic.done(store)
    with store.transaction() as connection:
        connection.execute(sa.update(RUNS).where(RUNS.c.id == first).values(artefact="/far/7-abc"))
    recipe = synthetic.recipe(method="distillation")
    start = StartChoice(method="file", path="/far/7-abc/network.safetensors")
    second = store.submit(replace(recipe, start=start, pruning=PruningChoice(pattern="kept")))
    store.finish(second, synthetic.report(healed=0.98))
    found = _graph(store)
    assert (2, 0, 3, 1, "continued") in list(found.edges.itertuples(index=False, name=None))
    assert (second, "dense") not in _places(found) and _places(found)[second, "distilled"] == (3, 1)
    assert (second, "pruned") not in _places(found)  # nothing is pruned: it goes on from what is healed


def test_a_run_without_figures_has_a_mark_that_says_how_far_it_is(store):
    run = store.submit(synthetic.recipe())
    found = _graph(store)
    assert _places(found)[run, "queued"] == (1, 0)
    fig = picture.lineage(found.nodes, found.edges, names=found.names, changes=found.changes)
    assert any(trace.name == "not finished" for trace in fig.data) and fig.layout.annotations[0].text.startswith("queued")


def test_an_unfinished_clone_shares_the_dense_network_of_its_parent(store):
    parent = synthetic.done(store)
    store.submit(synthetic.recipe(sparsity=0.5), parent=parent)
    found = _graph(store)
    assert list(found.nodes["name"]) == ["dense", "pruned", "healed", "queued"]
    assert (0, 0, 1, 1, "stage") in list(found.edges.itertuples(index=False, name=None))


def test_marks_are_drawn_where_the_rows_say_and_carry_their_run(store):
    first = synthetic.done(store)
    child = synthetic.done(store, sparsity=0.5, parent=first)
    found = _graph(store)
    fig = picture.lineage(found.nodes, found.edges, names=found.names, changes=found.changes, chosen=(child,))
    marks = {trace.name: trace for trace in fig.data if trace.mode == "markers"}
    sent = {trace["name"]: trace for trace in json.loads(fig.to_json())["data"]}
    assert sent["healed"]["customdata"] == [[first], [child]]  # plain lists: what a click brings back of a packed array is no list
    assert list(marks["healed"].x) == [2, 2] and list(marks["healed"].y) == [0, 1] and list(marks["healed"].marker.size) == [10, 15]
    texts = [note.text for note in fig.layout.annotations]
    assert texts[0].startswith("97.0 % · 6 M MACs") and "sparsity 0.9 → 0.5" in texts[1]
    assert fig.layout.title.text == f"Run {child} and its 1 relative"
    assert list(fig.layout.xaxis.ticktext) == ["Dense", "Pruned", "Healed"]


def test_what_a_person_typed_never_becomes_a_tag(store):
    synthetic.done(store, name="<script>alert(1)</script>")
    found = _graph(store)
    text = picture.lineage(found.nodes, found.edges, names=found.names, changes=found.changes).to_json()
    assert "<script" not in text and "&lt;script" in text


def test_compare_shows_the_lineage_with_parents_that_were_not_chosen(store):
    parent = synthetic.done(store)
    child = synthetic.done(store, parent=parent, sparsity=0.5)
    app = open_page("compare", runs=child, show="lineage")
    assert unharmed(app)
    figure = charts(app)[f"Run {child} and its 1 relative"]
    assert [row[0] for trace in figure["data"] if trace.get("name") == "healed" for row in trace["customdata"]] == [parent, child]
    assert "Click a mark" in said(app)


def test_a_click_on_a_mark_leads_to_its_run(store):
    """AppTest clicks no charts: the page is told of the selection as the browser tells it."""
    from unittest.mock import patch

    run = synthetic.done(store, name="there")
    with patch("app.review.lineage_view.frame.chart", return_value=[run]):
        app = open_page("compare", runs=run, show="lineage")
    assert unharmed(app) and f"Run {run}: there" in said(app)

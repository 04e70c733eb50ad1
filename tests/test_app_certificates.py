"""The certificate of a finished run: closed until asked for, in words, with inputs that stand in the link."""

from __future__ import annotations

import pytest
import synthetic
from synthetic import charts, open_page, said, traces, unharmed
from test_charts_certificates import certified

from app import certificate_view, run_files
from starfish_lab.store import Store


@pytest.fixture
def store(lab_home):
    return Store()


def finished(store, **options) -> int:
    run = store.submit(synthetic.recipe())
    store.finish(run, certified(**options))
    return run


def opened(run: int, **query):
    """The page of a run with the certificate open."""
    app = open_page("prune_and_heal", run=run, **query)
    app.session_state["certificate"] = True
    return app.run()


def test_a_run_without_certificates_shows_none(store):
    app = open_page("prune_and_heal", run=synthetic.done(store))
    assert unharmed(app) and not any("Certificate" in found.label for found in app.expander) and len(charts(app)) == 2
    assert certificate_view.figures(store.report(1)) == []


def test_closed_it_says_the_finding_and_draws_nothing(store):
    app = open_page("prune_and_heal", run=finished(store))
    labels = [found.label for found in app.expander]
    assert unharmed(app) and "Certificate: 25 % of images provably keep their label pruned, 75 % healed" in labels
    assert len(charts(app)) == 2 and "cross-entropy moves by" not in said(app)


def test_open_it_draws_four_charts_and_says_what_kind_of_statement_each_is(store):
    app = opened(finished(store))
    assert unharmed(app) and len(charts(app)) == 6
    words = said(app)
    assert "**Pruned, whole network, measured** (bound, n = 100): cross-entropy moves by 4 nats at most, on average" in words
    assert "and moved by 0.500" in words
    assert "top-1 by 60 pp at most, and moved by 3 pp" in words
    assert "what if: head alone, 90 % of it pruned by magnitude" in words
    assert "Bound: an image above the diagonal" in words and "Bound per unit L" in words and "not known" in words
    assert "labels changed, which must not be" not in words


def test_inputs_move_the_charts_and_stand_in_the_link(store):
    app = opened(finished(store), lambda_one="0.001", certified_layer="blocks.1.mlp.fc1", delta="0.1")
    assert unharmed(app) and app.selectbox(key="value.certified_layer").value == "blocks.1.mlp.fc1"
    assert "If L were 1: certified where λ₂ exceeds 0.156" in charts(app)  # (16 − 0.4) / 100
    assert any("holds with 90 %" in name for name in traces(charts(app)["blocks.2.mlp.fc1 changes its output most: by 12"]))
    app.number_input(key="value.lambda_one").set_value(0.002).run()
    assert unharmed(app) and "If L were 1: certified where λ₂ exceeds 0.152" in charts(app) and "0.002" in app.query_params["lambda_one"]


def test_the_layer_first_shown_is_the_head_where_L_is_known(store):
    app = opened(finished(store))
    assert app.selectbox(key="value.certified_layer").value == "head" and "Bound, L = 1" in said(app)
    assert "head" not in str(traces(charts(app)["blocks.2.mlp.fc1 changes its output most: by 12"]))


def test_weights_that_moved_have_no_inequality(store):
    app = opened(finished(store), certified="healed")
    assert unharmed(app) and "No inequality here: weights that stay have moved" in charts(app)


@pytest.mark.parametrize(
    "query", [{"lambda_one": "-3"}, {"delta": "2"}, {"certified": "dense"}, {"certified_layer": "blocks.9"}, {"lambda_two": "x"}]
)
def test_nonsense_in_the_link_falls_back(store, query):
    app = opened(finished(store), **query)
    assert unharmed(app) and len(charts(app)) == 6


def test_unhealed_runs_and_runs_without_layers_stand(store):
    run = store.submit(synthetic.recipe())
    report = certified(healed=False, head=False)
    del report.tables["certificate_layers"]
    store.finish(run, report)
    app = opened(run)
    assert unharmed(app) and len(charts(app)) == 4


def test_a_certificate_that_failed_is_told(store):
    assert "6 certified labels changed, which must not be" in said(opened(finished(store, flipped=3, head=False)))


def test_downloads_hold_the_charts(store):
    run = finished(store)
    page = run_files.charts(store.run(run), store.report(run))
    assert page.count("Plotly.newPlot(") >= 6

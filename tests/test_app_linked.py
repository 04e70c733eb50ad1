"""Explore's linked figure: sliders and layers set by hand move the budget, the costs, the predicted drift and the bound at once."""

from __future__ import annotations

import numpy as np
import pytest
from test_app_explore import bundled, figure, figures, link, lost, open_app, values, words

from starfish_lab import consequence, whatif
from starfish_lab.recipe import PruningChoice
from starfish_lab.store import Store

EDGE = "edge.blocks.1.mlp.fc1"
MOVED = "budget=mp_edge&sparsity=0.5&layer=blocks.1.mlp.fc1"


def shown(at) -> tuple[list[float], list[float]]:
    """Predicted drift by block, and the bounds of all layers in the order of the budget, as drawn."""
    (drift,) = figure(at, 2)["data"]
    places = {}
    for trace in figure(at, 3)["data"]:
        places |= dict(zip(values(trace["x"]), values(trace["y"])))
    return values(drift["y"]), [places[x] for x in sorted(places)]


def agrees(at, choice: PruningChoice) -> None:
    profile = bundled()
    answer = whatif.predict(profile, choice)
    assert lost(figure(at)) == dict(zip(answer.layers["layer"], answer.layers["removed"]))
    drift, bounds = shown(at)
    expected = consequence.follow(profile, answer, choice)
    np.testing.assert_allclose(drift, expected.blocks["drift"])
    np.testing.assert_allclose(bounds, expected.layers["change_bound"])
    assert f"{1e3 * answer.totals['macs_g_effective']:.3g} M" in figures(at)


def test_every_slider_moves_everything_at_once():
    at = open_app(MOVED)
    agrees(at, PruningChoice(budget="mp_edge", sparsity=0.5))
    at.slider(key="choice.sparsity").set_value(0.6).run()
    agrees(at, PruningChoice(budget="mp_edge", sparsity=0.6))
    at.select_slider(key="choice.beta").set_value("3").run()
    agrees(at, PruningChoice(budget="mp_edge", sparsity=0.6, options={"beta": 3.0}))
    at.slider(key=EDGE).set_value(1.2).run()
    agrees(at, PruningChoice(budget="mp_edge", sparsity=0.6, options={"beta": 3.0, "edges": {"blocks.1.mlp.fc1": 1.2}}))
    assert link(at) == {"budget": "mp_edge", "sparsity": "0.6", "beta": "3", "edges": "blocks.1.mlp.fc1~1.2", "layer": "blocks.1.mlp.fc1"}
    assert any("by hand = 1.20" in trace.get("name", "") for trace in figure(at, 1)["data"])


def test_the_edge_slider_starts_at_the_fitted_edge_and_goes_back_there():
    fitted = bundled().layers.set_index("layer")["sigma_plus"]["blocks.1.mlp.fc1"]
    at = open_app(MOVED)
    slider = at.slider(key=EDGE)
    assert slider.value == pytest.approx(fitted) and (slider.min, slider.max) == pytest.approx((fitted / 2, fitted * 2)) and not slider.disabled
    slider.set_value(fitted * 1.5).run()
    assert "edges" in link(at)
    at.slider(key=EDGE).set_value(fitted * 1.001).run()
    assert "edges" not in link(at)


@pytest.mark.parametrize(
    "query, why", [("sparsity=0.9", "edges play no part"), ("sparsity=0.15", "follows Hill's α"), ("signal=hill_alpha&sparsity=0.5", "Hill")]
)
def test_an_edge_that_moves_nothing_says_why(query, why):
    at = open_app(f"budget=mp_edge&layer=blocks.1.mlp.fc1&{query}")
    slider = at.slider(key=EDGE)
    assert slider.disabled and why in slider.label
    assert "*By MP edge* this edge can be moved" in words(open_app("sparsity=0.5"))


def test_layers_of_a_link_are_marked_launched_and_undone():
    query = "sparsity=0.5&layers=blocks.0.*~0.2,blocks.5.mlp.fc2~0.95"
    at = open_app(query)
    assert not at.warning and not at.error
    choice = PruningChoice(sparsity=0.5, layers={"blocks.0.*": 0.2, "blocks.5.mlp.fc2": 0.95})
    agrees(at, choice)
    (pins,) = [trace for trace in figure(at)["data"] if trace.get("name") == "set by hand"]
    assert pins["customdata"] == [*(f"blocks.0.{name}" for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")), "blocks.5.mlp.fc2"]
    assert "sparsity of `blocks.0.*`, `blocks.5.mlp.fc2`" in words(at)
    press(at, "Prune & heal")
    assert Store().run(1).recipe.pruning == choice
    at = open_app(query)
    press(at, "Back to the rule")
    assert link(at) == {"sparsity": "0.5"} and "Back to the rule" not in [button.label for button in at.button]
    agrees(at, PruningChoice(sparsity=0.5))


def press(at, label: str) -> None:
    next(button for button in at.button if button.label == label).click().run()
    assert not at.exception


def test_what_leaves_no_way_to_the_sparsity_is_said_and_can_be_undone():
    at = open_app("sparsity=0.9&layers=*~0.1")
    assert "at most 0.1000 of all weights can go" in at.warning[0].value and not at.get("plotly_chart")
    press(at, "Back to the rule")
    assert not at.warning and len(at.get("plotly_chart")) == 4


def test_the_layers_of_one_network_do_not_follow_to_another():
    at = open_app("sparsity=0.5&layers=blocks.0.*~0.2")
    model = at.selectbox(key="choice.model")
    model.set_value(model.options[1]).run()
    assert "layers" not in link(at)


@pytest.mark.parametrize(
    "query", ["layers=fc1", "layers=fc1~1", "layers=~0.5", "layers=a~0.5,,b~x", "edges=a~-1&budget=mp_edge&sparsity=0.5", "layers=%3Cb%3E~0.5"]
)
def test_nonsense_for_layers_is_told(query):
    at = open_app(query)
    assert len(at.warning) == 1 and "such as blocks.0.mlp.fc1~0." in at.warning[0].value and not at.error
    assert len(at.get("plotly_chart")) == 4


def test_the_table_takes_what_is_typed_and_what_is_emptied():
    from app import layers_editor

    column, layers = layers_editor.BY_HAND, ["a", "b", "c"]
    assert layers_editor.edited({}, {1: {column: 30}, 2: {column: 120.0}}, layers) == {"b": 0.3, "c": 0.999}
    assert layers_editor.edited({"b": 0.3, "c": 0.5}, {1: {column: None}, 0: {"kind": "x"}}, layers) == {"c": 0.5}
    at = open_app("sparsity=0.5&layers=blocks.0.attn.qkv~0.2")
    at.session_state["details"] = True
    at.run()
    table = at.dataframe[0].value
    assert not at.exception and table[column].tolist()[0] == 20 and table[column].isna().sum() == 23


def test_no_certificate_where_the_profile_cannot_know():
    at = open_app("score=sparsegpt&sparsity=0.5")
    assert len(at.get("plotly_chart")) == 3 and "No certificate before a run: the solver 'sparsegpt'" in words(at)
    assert figure(open_app("budget=global&sparsity=0.5"), 3)["layout"]["title"]["text"].startswith("Estimate")
    assert figure(open_app("sparsity=0.5"), 3)["layout"]["title"]["text"].startswith("Bound")


def test_an_estimate_is_dashed_and_says_its_rule():
    (drift,) = figure(open_app("sparsity=0.5"), 2)["data"]
    assert drift["line"]["dash"] == "dash" and drift["marker"]["symbol"].endswith("-open") and "estimate" in drift["hovertemplate"]


def test_the_estimate_says_how_well_it_did_where_it_was_measured():
    import pandas as pd

    from starfish_lab import settings

    rows = pd.read_csv(settings.ASSETS / "measured" / "predicted_drift.csv").set_index("network")
    said = words(open_app("sparsity=0.5"))
    assert f"rank correlation {rows['rank_all']['starter']:.2f} on the bundled network" in said
    assert set(rows.index) <= {"starter", "vit"} and rows["rank_all"].between(0.5, 1).all(), "else the page must say that it does not sort"

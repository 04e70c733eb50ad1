"""Explore, 'Which layers can bear it?': measured once by a worker, spent by a slider, kept in the link."""

from __future__ import annotations

import dataclasses

import pytest
import synthetic
from synthetic import button, charts, labels, open_page, said, unharmed

from starfish_lab.jobs.kinds import KINDS
from starfish_lab.progress import Reporter
from starfish_lab.recipe import PruningChoice, Recipe
from starfish_lab.report import Report
from starfish_lab.sensitivity.plan import Sensitivity
from starfish_lab.store import Store

DEPTH, LEVELS = 6, (0.2, 0.5, 0.8, 0.95)
ROLES = {"attn.qkv": ("attention", 110592), "attn.proj": ("attention", 36864), "mlp.fc1": ("mlp", 147456), "mlp.fc2": ("mlp", 147456)}

UNITS = (("attn.qkv", "attention", 73728, 0.2), ("mlp.fc1", "mlp", 294912, 1.0))


@pytest.fixture
def store(lab_home):
    return Store()


def curves() -> Report:
    """Of the starter's layers: those of early blocks hurt more."""
    found = Report()
    found.add("sensitivity", [
        dict(layer=f"blocks.{d}.{role}", block=f"blocks.{d}", depth=d, kind=kind, weights=weights, macs_g=1e-3, level=level, sparsity=level,
             cosine_distance=0.3 * level / (d + 1), kl=level**3 / 4**d, agreement=0.9, images=64)
        for level in LEVELS for d in range(DEPTH) for role, (kind, weights) in ROLES.items()
    ])  # fmt: skip
    return found


def measured(store: Store, **changes) -> int:
    run = store.submit(Sensitivity.of(synthetic.recipe(), **changes), "sensitivity")
    store.finish(run, curves())
    return run


def opened(**query):
    """Explore with the expander open."""
    app = open_page("explore", **query)
    app.session_state["sens_details"] = True
    return app.run()


def by_hand(app) -> dict[str, float]:
    words = app.query_params.get("layers", "")
    return {name: float(value) for name, _, value in (word.rpartition("~") for word in words.split(",") if word)}


def test_where_nothing_was_measured_a_button_brings_it(store):
    app = opened()
    assert unharmed(app) and "Measure layer by layer" in labels(app)
    button(app, "Measure layer by layer").click().run()
    assert unharmed(app)
    run = store.run(1)
    assert run.kind == "sensitivity" and run.plan == Sensitivity.of(run.recipe)
    app = opened(sens=1)
    assert unharmed(app) and "Cancel" in labels(app)
    button(app, "Cancel").click().run()
    assert unharmed(app) and store.run(1).status == "cancelled"


def test_curves_stand_there_with_the_slider_and_the_sum_of_damages(store):
    measured(store)
    app = opened()
    assert unharmed(app) and "Measured by run 1" in said(app)
    titles = list(charts(app))
    assert any("bears least" in title for title in titles) and any("less damage" in title for title in titles)


def test_the_slider_spends_along_the_curves_and_all_of_it_stands_in_the_link(store):
    measured(store)
    app = opened()
    slider = next(found for found in app.slider if found.label == "Accuracy ⟷ speed")
    assert slider.value == pytest.approx(0.9)
    slider.set_value(0.6).run()
    assert unharmed(app)
    shares = by_hand(app)
    assert len(shares) == 24 and all(0 <= share <= 0.99 for share in shares.values())
    sizes = {f"blocks.{d}.{role}": weights for d in range(DEPTH) for role, (_, weights) in ROLES.items()}
    overall = sum(shares[layer] * size for layer, size in sizes.items()) / sum(sizes.values())
    assert float(app.query_params["sparsity"]) == pytest.approx(overall, abs=1e-3) == pytest.approx(0.6, abs=0.01)
    assert shares["blocks.0.mlp.fc1"] < shares["blocks.3.mlp.fc1"], "where it hurts more, less goes"
    assert any("spent along the curves" in title for title in charts(app))
    assert "Leave it to the budget" in labels(app)
    button(app, "Leave it to the budget").click().run()
    assert unharmed(app) and not by_hand(app) and float(app.query_params["sparsity"]) == pytest.approx(overall, abs=1e-3)


def test_what_the_slider_chose_is_what_a_run_does(store):
    measured(store)
    app = opened()
    button(app, "Spend along the curves").click().run()
    button(app, "Prune & heal").click().run()
    run = store.run(2)
    assert run.kind == "experiment" and len(run.recipe.pruning.layers) == 24
    assert Recipe.from_json(run.recipe.to_json()) == run.recipe


def test_other_questions_have_other_curves(store):
    measured(store)
    assert "Measure layer by layer" in labels(opened(score="wanda"))
    assert "Measure layer by layer" in labels(opened(sens_on="evaluation"))
    assert "Measured by run 1" in said(opened(sparsity=0.5, steps=7, budget="global"))


def units_measured(store: Store) -> int:
    """Of the starter's groups: MLP units, and Q/K dimensions that cost less and hurt less."""
    recipe = dataclasses.replace(synthetic.recipe(), pruning=PruningChoice(pattern="structured"))
    found = Report()
    found.add("sensitivity", [
        dict(layer=f"blocks.{d}.{role}", block=f"blocks.{d}", depth=d, kind=kind, weights=weights, macs_g=weights / 1e8, level=level,
             sparsity=level, cosine_distance=0.3 * level / (d + 1), kl=harm * level**3 / 4**d, agreement=0.9, images=64)
        for level in LEVELS for d in range(DEPTH) for role, kind, weights, harm in UNITS
    ])  # fmt: skip
    run = store.submit(Sensitivity.of(recipe), "sensitivity")
    store.finish(run, found)
    return run


def test_units_have_curves_and_shares_of_their_own(store):
    assert "Measure layer by layer" in labels(opened(pattern="structured"))
    units_measured(store)
    app = opened(pattern="structured", sparsity=0.5)
    assert unharmed(app) and "Measured by run 1" in said(app) and "A column is a group of units alone" in said(app)
    slider = next(found for found in app.slider if found.label == "Accuracy ⟷ speed")
    assert slider.value == pytest.approx(0.5)
    slider.set_value(0.6).run()
    shares = by_hand(app)
    assert unharmed(app) and set(shares) == {f"blocks.{d}.{role}" for d in range(DEPTH) for role, *_ in UNITS}
    assert shares["blocks.0.mlp.fc1"] < shares["blocks.3.mlp.fc1"], "where it hurts more, less goes"
    weights = {f"blocks.{d}.{role}": weight for d in range(DEPTH) for role, _, weight, _ in UNITS}
    assert sum(shares[name] * weight for name, weight in weights.items()) / sum(weights.values()) == pytest.approx(0.6, abs=0.01)
    button(app, "Prune & heal").click().run()
    run = store.run(2)
    assert run.recipe.pruning.pattern == "structured" and len(run.recipe.pruning.layers) == 12
    fresh = opened(**{name: value for name, value in app.query_params.items() if name in ("pattern", "layers", "sparsity")})
    assert unharmed(fresh) and by_hand(fresh) == shares


def test_shares_go_with_the_pattern_that_has_them(store):
    app = opened(pattern="structured", layers="*.fc1~0.75")
    assert unharmed(app) and "sparsity of `*.fc1`" in said(app)
    next(found for found in app.button_group if found.label == "Pattern").set_value("unstructured").run()
    assert unharmed(app) and not by_hand(app)


def test_sizes_in_steps_are_chosen_beside_the_units(store):
    app = opened(pattern="structured", sparsity=0.3)
    steps = next(found for found in app.selectbox if found.label == "Sizes in steps of")
    assert steps.value == 1 and "sizes that are no multiple of 16" in said(app)
    steps.set_value(16).run()
    assert unharmed(app) and app.query_params["multiple"] in ("16", ["16"])
    assert "sizes that are no multiple of 16" not in said(app)
    button(app, "Prune & heal").click().run()
    assert store.run(1).recipe.pruning.multiple == 16


def test_what_the_start_left_and_nonsense_are_told(store):
    measured(store)
    app = opened(pattern="kept", start="magnitude")
    assert unharmed(app) and "choose one to see who can bear" in said(app)
    app = opened(sens_on="?", sens_by="gold", sens_spend="x", sens="many")
    assert unharmed(app) and "sens_on = '?'" in said(app)


def test_a_worker_does_it(store):
    plan = Sensitivity.of(dataclasses.replace(Recipe(), images=dataclasses.replace(Recipe().images, calibration=8, drift=4)), levels=(0.9,))
    number = store.submit(plan, "sensitivity")
    run = store.claim("worker-1", "cpu")
    report = KINDS["sensitivity"](run, store=store, reporter=Reporter(), folder=None, device="cpu")
    store.finish(number, report)
    assert len(store.table([number], "sensitivity")) == 24

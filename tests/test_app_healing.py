"""Prune & heal: repairs, methods and their chains in the form, what ablations vary, and the address bar that keeps it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import synthetic
from synthetic import button, labels, open_page, said, unharmed

from app import basis, healing_controls, merging, results
from starfish_lab.healing import METHODS, REPAIRS, healers
from starfish_lab.recipe import HealingChoice, Recipe
from starfish_lab.store import Store

ABLATED = HealingChoice(
    repair="least_squares", steps=50, schedule="linear", average=0.98, trains="affine", order="shuffled", augmentation="light", teacher="half",
    precision="bf16", gradient_clip=1.0, final_learning_rate=1e-5, options={"loss": "both", "weight": 0.5, "blocks": 2, "tokens": "class"},
    repair_options={"inputs": "dense", "ridge": 0.1},
)  # fmt: skip
LINK = dict(
    new=1, repair="least_squares", steps=50, schedule="linear", average=0.98, trains="affine", shuffle="shuffled", augment="light", teacher="half",
    precision="bf16", clip=1, final=1e-5, heal_loss="both", heal_weight=0.5, heal_blocks=2, heal_tokens="class", repair_inputs="dense",
    repair_ridge=0.1,
)  # fmt: skip


@pytest.fixture
def store(lab_home):
    return Store()


def test_every_method_and_repair_is_offered_with_what_it_does_and_whether_it_uses_labels(store):
    app = open_page("prune_and_heal", new=1, repair="dense", heal="cross_entropy")
    method, repair = app.selectbox(key="choice.healing"), app.selectbox(key="choice.repair")
    assert len(method.options) == len(METHODS.names()) and len(repair.options) == len(REPAIRS.names())
    assert "cross entropy (labels)" in method.options and "STARFISH" in method.options
    for name in METHODS.names():
        assert METHODS.describe(name) in method.help
    for name in REPAIRS.names():
        assert REPAIRS.describe(name) in repair.help
    assert REPAIRS.describe("dense") in said(app) and "Uses the labels of its images." in said(app)
    assert "Repaired by dense, then healed by cross entropy: 200 steps" in said(app)


def test_a_link_alone_says_all_that_ablations_vary(store):
    app = open_page("prune_and_heal", **LINK)
    assert unharmed(app) and app.selectbox(key="value.heal_loss").value == "both" and app.number_input(key="value.repair_ridge").value == 0.1
    button(app, "Prune & heal").click().run()
    assert store.run(1).recipe.healing == ABLATED


def test_an_opened_recipe_comes_back_as_it_was_and_its_link_says_the_same(store):
    recipe = Recipe(healing=replace(ABLATED, seed=3))
    app = open_page("prune_and_heal", new=1)
    app.file_uploader[0].set_value(("recipe.json", recipe.to_json().encode(), "application/json")).run()
    assert unharmed(app) and "loss both" in said(app) and "weights averaged with decay 0.98" in said(app)
    query = {name: found[0] if isinstance(found, list) else found for name, found in app.query_params.items()}
    button(app, "Prune & heal").click().run()
    assert store.run(1).recipe == recipe
    button(open_page("prune_and_heal", **query | {"new": 1}), "Prune & heal").click().run()
    assert store.run(2).recipe.healing == ABLATED


def test_the_button_says_what_was_set_behind_it(store):
    app = open_page("prune_and_heal", new=1)
    assert any(popover.label == "More" for popover in popovers(app))
    app.selectbox(key="value.heal_loss").set_value("relative_l2").run()
    app.selectbox(key="value.trains").set_value("all").run()
    assert any(popover.label == "More · trains: everything, loss relative_l2" for popover in popovers(app))


def popovers(app):
    return [block.proto.popover for block in app.get("popover")]


def test_another_method_forgets_the_options_of_the_one_before(store):
    app = open_page("prune_and_heal", new=1, heal_loss="both", repair="least_squares", repair_ridge=0.1)
    app.selectbox(key="choice.healing").set_value("logit_distillation").run()
    assert "heal_loss" not in app.query_params and "repair_ridge" in app.query_params
    app.number_input(key="value.heal_temperature").set_value(4.0).run()
    button(app, "Prune & heal").click().run()
    healing = store.run(1).recipe.healing
    assert (healing.method, healing.options, healing.repair_options) == ("logit_distillation", {"temperature": 4.0}, {"ridge": 0.1})


def test_a_method_brings_the_settings_of_its_source_and_only_what_differs_stands_in_the_link(store):
    known = healers.choice("feature_mimicking", HealingChoice())
    assert known.optimiser == "sgd" != HealingChoice().optimiser
    app = open_page("prune_and_heal", new=1)
    app.selectbox(key="choice.healing").set_value("feature_mimicking").run()
    assert app.selectbox(key="value.optimiser").value == "sgd" and "optimiser" not in app.query_params and "lr" not in app.query_params
    app.selectbox(key="value.optimiser").set_value("adam").run()
    assert app.query_params["optimiser"] == "adam"
    button(app, "Prune & heal").click().run()
    assert store.run(1).recipe.healing == replace(known, optimiser="adam", steps=200)


def test_a_clone_keeps_the_healing_of_its_run(store):
    run = store.submit(Recipe(healing=ABLATED))
    store.finish(run, synthetic.report())
    app = open_page("prune_and_heal", run=run)
    button(app, "Clone").click().run()
    button(app, "Prune & heal").click().run()
    assert unharmed(app) and store.run(2).recipe.healing == ABLATED


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ({"repair": "magic"}, "one of aligned"), ({"average": 2}, "average = '2'"), ({"shuffle": "random"}, "one of fixed, shuffled"),
        ({"compile": "maybe"}, "compile = 'maybe'"), ({"heal_weight": "heavy"}, "heal_weight = 'heavy'"), ({"heal_unknown": 3}, ""),
    ],
    ids=str,
)  # fmt: skip
def test_nonsense_in_the_link_is_told_and_the_page_stands(store, query, words):
    app = open_page("prune_and_heal", new=1, **query)
    assert unharmed(app) and words in said(app) and "Prune & heal" in labels(app)


def test_every_word_that_an_option_takes_is_offered():
    """Words of options are offered by option name, so no two entries may mean different words by one name without all being there."""
    from starfish_lab.healing.methods import starfish

    for entries in (METHODS, REPAIRS):
        for entry in entries.names():
            for option, default in merging.shown_options(entries, entry).items():
                if isinstance(default, str):
                    assert default in healing_controls.CHOICES[option][0], f"{entry}.{option}"
    assert healing_controls.CHOICES["loss"][0] == starfish.LOSSES


def test_a_method_comes_with_the_repair_it_is_known_with(store):
    app = open_page("prune_and_heal", new=1)
    app.selectbox(key="choice.healing").set_value("starfish_plus").run()
    assert unharmed(app) and app.query_params["repair"] == "aligned"
    app.selectbox(key="choice.repair").set_value("none").run()
    button(app, "Prune & heal").click().run()
    app = open_page("prune_and_heal", new=1, repair="aligned", heal="starfish_plus")
    app.selectbox(key="choice.healing").set_value("starfish").run()
    button(app, "Prune & heal").click().run()
    made = [store.run(number).recipe.healing for number in (1, 2)]
    assert [(each.repair, each.method, each.learning_rate, each.warmup) for each in made] == [
        ("none", "starfish_plus", 3e-3, 10), ("none", "starfish", 6e-4, 0),
    ]  # fmt: skip


def test_names_in_words():
    assert results.name("snows_adam") == "SNOWS with Adam" and basis.healer("starfish", "corp") == "corp+starfish"
    assert healing_controls.described("none", "corp").endswith("No labels are used.")

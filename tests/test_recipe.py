"""Recipes: JSON both ways, and every bad field named in words."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import pytest

from starfish_lab.errors import RecipeError
from starfish_lab.recipe import HealingChoice, ImagesChoice, ModelChoice, PruningChoice, Recipe, edit


def test_json_both_ways():
    recipe = Recipe(
        name="half",
        model=ModelChoice(name="deit_base_patch16_224.fb_in1k", weights="pretrained", preprocessing={"crop_pct": 0.875}),
        pruning=PruningChoice(pattern="n_m", keep=6, group=12, include=("head",)),
        healing=HealingChoice(steps=7),
    )
    assert Recipe.from_json(recipe.to_json()) == recipe


def test_missing_fields_keep_their_defaults():
    assert Recipe.from_dict({"starfish_lab_recipe": 1, "pruning": {"sparsity": 0.5}}) == Recipe(pruning=PruningChoice(sparsity=0.5))


def test_fingerprint_ignores_the_name_only():
    recipe = Recipe()
    assert replace(recipe, name="other").fingerprint() == recipe.fingerprint()
    assert replace(recipe, pruning=PruningChoice(sparsity=0.89)).fingerprint() != recipe.fingerprint()


def test_a_field_added_later_leaves_fingerprints_as_they_were():
    @dataclass(frozen=True, kw_only=True)
    class Later(PruningChoice):
        dither: float = 0.0

    for sparsity in (PruningChoice().sparsity, 0.5):
        before = Recipe(pruning=PruningChoice(sparsity=sparsity)).fingerprint()
        assert Recipe(pruning=Later(sparsity=sparsity)).fingerprint() == before
        assert Recipe(pruning=Later(sparsity=sparsity, dither=0.1)).fingerprint() != before


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"pruning": {"sparsity": 0}}, "0 removes nothing"),
        ({"pruning": {"sparsity": 1}}, "1 removes everything"),
        ({"pruning": {"sparsity": "half"}}, "pruning.sparsity must be of type float"),
        ({"pruning": {"sparsity": True}}, "pruning.sparsity must be of type float"),
        ({"pruning": {"pattern": "n_m", "keep": 5, "group": 4}}, "5:4"),
        ({"pruning": {"score": "luck"}}, "There is no pruning score 'luck'"),
        ({"pruning": {"score": "../../etc"}}, "There is no pruning score"),
        ({"pruning": {"units": "mlp"}}, "pruning.units must be a list"),
        ({"pruning": {"units": ["heads"]}}, "pruning.units is 'heads'"),
        ({"pruning": {"sparsety": 0.5}}, "pruning.sparsety is not a field"),
        ({"healing": {"method": "prayer"}}, "There is no healing method 'prayer'"),
        ({"healing": {"steps": 0}}, "healing.steps is 0"),
        ({"healing": {"learning_rate": 1e-9}}, "healing.learning_rate"),
        ({"images": {"source": "web"}}, "images.source is 'web'"),
        ({"images": {"source": "folder"}}, "needs images.path"),
        ({"images": {"calibration": 0}}, "images.calibration is 0"),
        ({"model": {"name": "starter", "weights": "random"}}, "'starter' has no others"),
        ({"model": {"name": "resnet50", "weights": "file"}}, "model.path goes with"),
        ({"model": "starter"}, "model must be an object"),
        ({"measure": {"batch_sizes": []}}, "measure.batch_sizes is empty"),
        ({"start": {"method": "luck"}}, "There is no start 'luck'"),
        ({"start": {"method": "file"}}, "start.path goes with"),
        ({"start": {"step": 0.5}}, "start.sparsity 0.35 is reached in steps of start.step 0.5"),
        ({"start": {"method": "ser", "steps": 0}}, "start.steps is 0"),
        ({"tokens": {"r": [-1]}}, "tokens.r is -1"),
        ({"tokens": {"r": 8}}, "tokens.r must be a list"),
        ({"images": {"training": -1}}, "images.training is -1"),
        ({"pruning": {"permutation": "luck"}}, "There is no permutation 'luck'"),
        ({"healing": {"optimiser": "lion"}}, "healing.optimiser is 'lion'"),
        ({"healing": {"augmentation": "mixup"}}, "healing.augmentation is 'mixup'"),
        ({"healing": {"weight_decay": -1.0}}, "healing.weight_decay is -1"),
        ({"healing": {"repair": "glue"}}, "There is no repair 'glue'"),
        ({"healing": {"schedule": "steps"}}, "healing.schedule is 'steps'"),
        ({"healing": {"average": 1}}, "healing.average is 1"),
        ({"healing": {"trains": "norms"}}, "healing.trains is 'norms'"),
        ({"healing": {"order": "sorted"}}, "healing.order is 'sorted'"),
        ({"healing": {"teacher": "quarter"}}, "healing.teacher is 'quarter'"),
        ({"healing": {"precision": "fp8"}}, "healing.precision is 'fp8'"),
        ({"healing": {"compile": 1}}, "healing.compile must be of type bool"),
        ({"healing": {"repair_options": []}}, "healing.repair_options must be of type dict"),
        ({"measure": {"snapshots": -1}}, "measure.snapshots is -1"),
    ],
)
def test_bad_fields_are_named(change, says):
    with pytest.raises(RecipeError, match=says.replace("(", r"\(")):
        Recipe.from_dict({"starfish_lab_recipe": 1, **change})


@pytest.mark.parametrize("text", ["", "[1, 2]", "{}", '{"starfish_lab_recipe": 99}', "not json"])
def test_files_that_are_no_recipe(text):
    with pytest.raises(RecipeError):
        Recipe.from_json(text)


def test_edit_takes_json_and_plain_text():
    recipe = edit(Recipe(), ["pruning.sparsity=0.5", "healing.method=none", "measure.batch_sizes=[1]", "name=a=b"])
    assert (recipe.pruning.sparsity, recipe.healing.method, recipe.measure.batch_sizes, recipe.name) == (0.5, "none", (1,), "a=b")
    for wrong in ("sparsity", "a.b.c=1", "pruning.speed=1"):
        with pytest.raises(RecipeError):
            edit(Recipe(), [wrong])


def test_default_steps_are_ten_epochs():
    assert HealingChoice().total_steps(5000) == 1570  # STARFISH §3: 157 batches of 32, 10 epochs
    assert HealingChoice(steps=200).total_steps(64) == 200


def test_every_default_is_written_out():
    assert json.loads(Recipe().to_json())["images"]["calibration"] == ImagesChoice().calibration

"""Every published row is a recipe that validates, and every kind of them runs end to end on a tiny network of its family."""

from __future__ import annotations

import doctest
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from starfish_lab import experiment, literature, presets
from starfish_lab.data import ImageSet, Splits
from starfish_lab.data.images import InMemory
from starfish_lab.errors import RecipeError
from starfish_lab.models.network import Network, prunable
from starfish_lab.progress import Reporter
from starfish_lab.pruning import STARTS, rules
from starfish_lab.recipe import ImagesChoice, MeasureChoice, Recipe

TABLE = presets.presets()
STAND_INS = {
    "vit": "tiny_vit", "deit": "tiny_vit", "swin": "tiny_swin", "hiera": "tiny_hiera", "convnext": "tiny_convnext1", "convnextv2": "tiny_convnext",
    "resnet18": "tiny_resnet", "resnet34": "tiny_resnet", "resnet50": "tiny_resnet", "resnet50d": "tiny_resnet", "resnet101d": "tiny_resnet",
    "resnet152d": "tiny_resnet",
}  # fmt: skip


def kinds() -> list[str]:
    """One preset of each kind: of equal family of networks, start, pruning and healing, the first."""
    found = {}
    for row in TABLE.itertuples():
        recipe = presets.recipe_of(row.key)
        start, pruning = recipe.start, recipe.pruning
        kind = (
            stand_in(recipe), start.method, "drop" in start.options, pruning.score, pruning.budget, pruning.pattern, pruning.group,
            pruning.permutation, str(pruning.permutation_options), bool(recipe.tokens.r), recipe.healing.method, recipe.healing.optimiser,
        )  # fmt: skip
        found.setdefault(kind, row.key)
    return list(found.values())


def stand_in(recipe: Recipe) -> str:
    return STAND_INS[recipe.model.name.partition("_")[0].partition(".")[0]]


def small(recipe: Recipe) -> Recipe:
    """The same recipe, short: two cycles of one step each, one step of healing, few images.

    No stand-in has inputs that 12 divides, so 6:12 becomes 4:8.
    """
    start, pruning = recipe.start, recipe.pruning
    if start.method != "dense":
        start = replace(start, sparsity=0.3, step=0.15, steps=1, batch_size=8)
    if pruning.group == 12:
        pruning = replace(pruning, keep=4, group=8)
    return replace(
        recipe, start=start, pruning=pruning, device="cpu", tokens=replace(recipe.tokens, r=(2,) if recipe.tokens.r else ()),
        healing=replace(recipe.healing, steps=1, batch_size=8, warmup=0), images=replace(recipe.images, calibration=16, drift=8),
        measure=MeasureChoice(latency=False, spectra=False, certificates=False),
    )  # fmt: skip


def pictures(network, count: int, seed: int) -> ImageSet:
    """Labelled pictures of noise, in the network's size."""
    size = network.preprocessing.input_size[1:]
    noise = np.random.default_rng(seed).integers(0, 256, (count, *size, 3), dtype=np.uint8)
    items = [InMemory(f"{seed} {i}", Image.fromarray(one)) for i, one in enumerate(noise)]
    return ImageSet.lazy(items, torch.arange(count) % network.num_classes, network.preprocessing)


def test_doctests():
    found = doctest.testmod(presets)
    assert found.attempted and not found.failed


def test_every_published_row_is_there_once():
    published = literature.accuracies()
    published = published[published["source"].eq("arXiv 2606.02608")]
    assert len(TABLE) == len(published) == 331 and TABLE["key"].is_unique
    assert TABLE["timm_name"].notna().all() and TABLE["top1"].tolist() == published["top1"].tolist()
    assert TABLE["key"].str.fullmatch(r"[a-z0-9.-]{5,60}").all()  # they stand in the address bar


def test_every_preset_validates_survives_json_and_differs_from_all_others():
    recipes = {key: presets.recipe_of(key) for key in TABLE["key"]}
    for key, recipe in recipes.items():
        assert Recipe.from_json(recipe.to_json()) == recipe, key
        rules.check(recipe.pruning)
        assert set(recipe.start.options) <= set(STARTS.options(recipe.start.method)), key
        assert recipe.model.weights == "pretrained" and recipe.images.source == "imagenet" and recipe.images.calibration == 256
    assert len({recipe.fingerprint() for recipe in recipes.values()}) == len(recipes)
    assert len({recipe.name for recipe in recipes.values()}) == len(recipes)


def test_rows_say_what_they_are():
    hybrid = presets.recipe_of("vit-b-16.hybrid.0.35")
    assert (hybrid.start.method, hybrid.start.sparsity, hybrid.pruning.pattern, hybrid.healing.method) == ("hybrid", 0.35, "kept", "none")
    assert hybrid.start.grid() == pytest.approx([0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35]) and hybrid.images.training is None
    cast = presets.recipe_of("vit-b-16.cast-perm.6-12")
    assert (cast.pruning.score, cast.pruning.keep, cast.pruning.group, cast.pruning.permutation) == ("cast", 6, 12, "deal")
    assert cast.pruning.score_options["alpha"] == 0.5 and cast.start.method == "hybrid" and cast.tokens.r == ()
    merged = presets.recipe_of("vit-l-16.cast-tome.2-4")
    assert merged.tokens.r == (8,) and merged.healing.batch_size == 8 and merged.healing.learning_rate == 1e-5 and merged.healing.epochs == 3
    resnet = presets.recipe_of("resnet50.cast-dense-perm.8-16")
    assert (resnet.start.method, resnet.healing.optimiser, resnet.healing.batch_size, resnet.healing.warmup) == ("dense", "sgd", 256, 500)
    assert presets.recipe_of("deit-b.hybrid-dd.0.50").start.options["drop"] == 0.7
    assert presets.recipe_of("vit-b-16.seb-no-ft.0.60").pruning.budget == "mp_edge"
    assert presets.recipe_of("convnextv2-b.cast-dense.12-16").pruning.permutation == "none"  # what the authors' script ran


def test_doubtful_rows_say_so_and_sound_ones_do_not():
    for key in ("convnextv2-b.cast-dense.12-16", "convnextv2-b.cast-dense.8-16", "vit-b-16.cast-perm.6-12"):
        assert presets.note(key).startswith("Doubtful"), key
    assert "Doubtful" not in presets.note("vit-l-16.cast-dense-perm.8-16")
    assert presets.note("vit-b-16.magnitude-no-ft.0.50") == ""
    assert "Haar" in presets.note("vit-b-16.seb-no-ft.0.50")
    assert "73.80" in presets.note("vit-b-16.ser.0.65") and "73.80" not in presets.note("vit-b-16.ser.0.50")
    assert "dense figure" in presets.note("deit-b.hybrid-dd.0.50") and "dense figure" not in presets.note("convnextv2-b.hybrid-dd.0.50")
    for key in TABLE["key"]:
        presets.note(key)


def test_a_persons_images_stay_theirs():
    mine = ImagesChoice(source="folder", path="/mine/val", calibration_path="/mine/train", evaluation=500, seed=7)
    recipe = presets.recipe_of("vit-b-16.cast-tome.2-4", mine)
    assert (recipe.images.source, recipe.images.path, recipe.images.evaluation, recipe.images.seed) == ("folder", "/mine/val", 500, 7)
    assert recipe.images.calibration == 256 and recipe.images.training is None
    single = ImagesChoice(source="imagenet", path="/mine/val")
    assert presets.recipe_of("vit-b-16.cast-tome.2-4", single).images.training == 0  # all but a few evaluate: nothing is left to train on
    assert presets.recipe_of("vit-b-16.magnitude-no-ft.0.50", mine).images.training == 0


def test_what_makes_a_recipe_that_of_a_row():
    recipe = presets.recipe_of("vit-b-16.hybrid.0.35")
    assert presets.same_parts(recipe) == presets.same_parts(replace(recipe, name="mine", device="cpu", measure=MeasureChoice(latency=False)))
    assert presets.same_parts(recipe) != presets.same_parts(replace(recipe, start=replace(recipe.start, steps=10)))
    assert len({presets.same_parts(presets.recipe_of(key)) for key in TABLE["key"]}) == len(TABLE)


def test_an_unknown_key_is_said():
    with pytest.raises(RecipeError, match="no published row 'vit-b'"):
        presets.recipe_of("vit-b")


class Killed(Exception):
    """Stands for a process that is gone."""


class Killer(Reporter):
    """Ends the run at a stage, after the first step that it reports there."""

    def __init__(self, where: str):
        self.where, self.here, self.resumed = where, "", False

    def stage(self, name):
        self.here = name

    def progress(self, step, steps):
        if self.where and self.here.startswith(self.where):
            raise Killed

    def note(self, text):
        self.resumed |= "continues" in text


@pytest.fixture
def laid_out(request, monkeypatch):
    """A preset's recipe, short, on the tiny network of its family: `laid_out(key)` → the recipe, ready to run, and the network."""

    def lay_out(key: str) -> tuple[Recipe, Network]:
        recipe = presets.recipe_of(key, ImagesChoice())
        network = request.getfixturevalue(stand_in(recipe))
        splits = Splits(
            calibration=pictures(network, 16, 1), drift=pictures(network, 8, 2), evaluation=pictures(network, 20, 3), notes=[],
            training=pictures(network, 24, 4),
        )  # fmt: skip
        monkeypatch.setattr(experiment, "load", lambda choice: network)
        monkeypatch.setattr(experiment.data, "open_images", lambda choice, dense: splits)
        return small(recipe), network

    return lay_out


@pytest.mark.parametrize("key", kinds())
def test_every_kind_of_row_runs_on_a_tiny_network_of_its_family(key, laid_out):
    recipe, network = laid_out(key)
    report = experiment.run(recipe, device="cpu")
    stages = report.frame("accuracy")["stage"].tolist()
    assert stages == (["dense", "pruned", "healed"] if recipe.healing.method != "none" else ["dense", "pruned"])
    layers, ledger = report.frame("layers"), report.frame("ledger")
    removed, weights = int(layers["removed"].sum()), int(layers["weights"].sum())
    for row in report.frame("totals").itertuples():
        assert row.stage == "dense" or row.sparsity_prunable == removed / weights
    assert (ledger["true_macs"].sum() < ledger["dense_macs"].sum()) == bool(recipe.tokens.r)
    if recipe.start.method != "dense":
        assert report.frame("cycles")["sparsity"].max() == pytest.approx(0.3, abs=0.04)
    if recipe.pruning.pattern in ("kept", "unstructured"):
        assert removed == round((0.3 if recipe.pruning.pattern == "kept" else recipe.pruning.sparsity) * weights)
        assert ("head" in set(layers["layer"])) == ("vit" in stand_in(recipe))  # the paper prunes and counts the head too
        return
    outside = ~layers["layer"].isin(list(prunable(network, recipe.pruning.include)))  # these keep the zeros of the start, and no pattern
    assert (layers[outside]["removed"] > 0).all() and outside.any() == (recipe.start.method != "dense")
    fitting = layers[layers["note"].eq("") & ~outside]
    more = fitting["removed"] * recipe.pruning.group - fitting["weights"] * (recipe.pruning.group - recipe.pruning.keep)
    assert len(fitting) and (more >= 0).all()
    assert (more == 0).all() == (recipe.start.method == "dense" or recipe.pruning.score == "cast")  # magnitude restores no zero of the start
    assert (len(report.frame("solver")) > 0) == (recipe.pruning.score == "cast")
    assert (len(report.frame("permutation")) > 0) == (recipe.pruning.permutation == "deal")


@pytest.mark.parametrize("key", [key for key in kinds() if presets.recipe_of(key).start.method != "dense" or "cast" in key])
def test_every_kind_of_row_goes_on_after_a_kill_as_if_nothing_had_been(key, laid_out, tmp_path):
    recipe, _ = laid_out(key)
    where = "heal" if recipe.healing.method != "none" else "start: cycle 2, tune"
    whole = experiment.run(recipe, folder=tmp_path / "whole", device="cpu")
    with pytest.raises(Killed):
        experiment.run(recipe, reporter=Killer(where), folder=tmp_path / "cut", device="cpu")
    again = Killer("")
    found = experiment.run(recipe, reporter=again, folder=tmp_path / "cut", device="cpu")
    assert again.resumed or recipe.start.method == "dense"  # a single step of healing leaves nothing to go on from
    for table in ("accuracy", "layers", "drift", "losses", "totals"):
        assert found.tables.get(table) == whole.tables.get(table), table

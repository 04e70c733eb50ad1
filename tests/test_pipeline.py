"""Parts that were built one by one, together in one run: sparse starts, merged tokens, new orders, solvers, training, export and reload."""

from __future__ import annotations

import json
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from starfish_lab import data, experiment, ledger
from starfish_lab.errors import ImagesError, LabError, RecipeError, WeightsError
from starfish_lab.export import load_pruned
from starfish_lab.jobs import worker
from starfish_lab.latency.plan import LatencyPlan
from starfish_lab.latency.run import run as time_executions
from starfish_lab.measure import accuracy, costs
from starfish_lab.models.checkpoints import fit
from starfish_lab.preparation import prepare
from starfish_lab.pruning import cycles
from starfish_lab.pruning.patterns import MaskResult
from starfish_lab.recipe import HealingChoice, ImagesChoice, MeasureChoice, ModelChoice, PruningChoice, Recipe, StartChoice, TokensChoice
from starfish_lab.report import Report
from starfish_lab.store import Store, folder_of

IMAGES = ImagesChoice(calibration=16, drift=8, evaluation=30)
QUICK = MeasureChoice(batch_sizes=(1,), seconds=0.02, spectra=False, latency=False, certificates=False)
SPARSE = StartChoice(method="magnitude", sparsity=0.6, step=0.6, steps=1, batch_size=8)
TWO_FOUR = PruningChoice(pattern="n_m")


def recipe(**parts) -> Recipe:
    return Recipe(**{"images": IMAGES, "measure": QUICK, "healing": HealingChoice(steps=3), **parts})


def run(folder=None, **parts) -> Report:
    """A run on the starter, or on what `experiment.load` gives; its report is strict JSON."""
    report = experiment.run(recipe(**parts), folder=folder, device="cpu")
    json.dumps(report.tables, allow_nan=False)
    return report


def zeros(network) -> int:
    return sum(int((m.weight == 0).sum()) for m in network.module.modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d))


def notes(report: Report) -> str:
    return " ".join(report.frame("notes")["note"]) if "notes" in report.tables else ""


@pytest.fixture
def pictures(tmp_path):
    """Colour noise in ten classes, and without classes: two folders."""
    rng = np.random.default_rng(0)
    for i in range(60):
        for folder in (tmp_path / "classes" / str(i % 10), tmp_path / "flat"):
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "classes", tmp_path / "flat"


# -- a start with zeros -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "choice",
    [
        PruningChoice(sparsity=0.5),
        PruningChoice(sparsity=0.5, score="sparsegpt"),
        TWO_FOUR,
        PruningChoice(pattern="n_m", score="cast", score_options={"free_restoration": False}),
        PruningChoice(pattern="kept"),
    ],
    ids=lambda choice: f"{choice.pattern} {choice.score}",
)
def test_a_start_sparser_than_the_pattern_stays_as_sparse(tmp_path, choice):
    report = run(tmp_path, start=SPARSE, pruning=choice)
    totals = report.frame("totals").set_index("stage")
    removed = report.frame("layers")["removed"].sum()
    assert zeros(load_pruned(tmp_path / "healed")) == removed  # healing brought none back, and none is missing from the figures
    assert totals.loc["healed", "sparsity_prunable"] == removed / report.frame("layers")["weights"].sum()
    if choice.score in ("magnitude", "cast"):
        assert removed >= report.frame("cycles")["weights_removed"].sum()
        assert ("stay zero" in notes(report)) == (choice.pattern != "kept")


def test_what_a_solver_restores_is_no_zero_of_the_start(tmp_path):
    report = run(tmp_path, start=SPARSE, pruning=PruningChoice(pattern="n_m", score="cast"))
    assert report.frame("totals").set_index("stage").loc["healed", "sparsity_prunable"] == 0.5
    assert zeros(load_pruned(tmp_path / "healed")) == report.frame("layers")["removed"].sum()


@pytest.mark.parametrize("score", ["random", "wanda", "taylor"])
def test_zeros_of_the_start_count_towards_the_sparsity_under_every_score(score):
    report = run(
        start=replace(SPARSE, sparsity=0.35, step=0.35), pruning=PruningChoice(score=score, sparsity=0.8), healing=HealingChoice(method="none")
    )
    assert report.frame("totals").set_index("stage").loc["pruned", "sparsity_prunable"] == pytest.approx(0.8, abs=1e-6)


def test_units_of_a_sparse_network_are_cut_out_and_its_other_zeros_counted(tmp_path):
    report = run(tmp_path, start=SPARSE, pruning=PruningChoice(pattern="structured", sparsity=0.5))
    small, healed = load_pruned(tmp_path / "healed"), report.frame("totals").set_index("stage").loc["healed"]
    parameters = sum(p.numel() for p in small.module.parameters())
    assert healed["parameters_m"] == parameters / 1e6 < 2
    assert healed["nonzero_parameters_m"] == (parameters - zeros(small)) / 1e6 < 0.6 * healed["parameters_m"]
    assert healed["macs_g_effective"] < 0.6 * healed["macs_g"]
    cut = report.frame("ledger").set_index("layer")["removed"]
    assert cut["blocks.0.mlp.fc1"] == pytest.approx(0.5)  # what makes the layer smaller, not its zeros
    assert cut["blocks.0.attn.qkv"] == pytest.approx(1 / 3)


def test_layers_outside_pruning_keep_the_zeros_of_the_start(tmp_path):
    report = run(
        tmp_path, start=replace(SPARSE, options={"include_all": True}), pruning=replace(TWO_FOUR, exclude=("blocks.0.*", "*.qkv")),
    )  # fmt: skip
    layers, found = report.frame("layers"), load_pruned(tmp_path / "healed")
    assert {"patch_embed.proj", "blocks.0.mlp.fc1", "blocks.3.attn.qkv", "head"} <= set(layers["layer"])
    assert zeros(found) == layers["removed"].sum()
    names = [name for name, _ in found.module.named_modules()]
    assert sorted(layers["layer"], key=names.index) == list(layers["layer"])  # in depth order
    why = report.frame("ledger").set_index("layer")["why_dense"]
    assert why["blocks.0.mlp.fc1"] == why["blocks.3.attn.qkv"] == ledger.IRREGULAR  # zeros without a pattern are not sold as 2:4
    assert why["blocks.1.mlp.fc1"] == ""


def test_masks_of_a_dense_start_are_those_of_the_pattern(tiny_vit):
    tiny_vit.module.blocks[0].mlp.fc1.weight.data[0] = 0  # a network may have zeros of its own, which train
    made = prepare(tiny_vit, cycles.StartResult(tiny_vit), recipe(pruning=PruningChoice(sparsity=0.1, exclude=("*.fc1",))), None)
    assert "blocks.0.mlp.fc1" not in made.result.masks


def test_only_groups_within_the_pattern_are_regular(tiny_vit):
    layer = "blocks.0.mlp.fc2"
    weight = tiny_vit.module.get_submodule(layer).weight
    for kept, why in (([1, 1, 0, 0], ""), ([1, 0, 0, 0], ""), ([1, 1, 1, 0], ledger.IRREGULAR)):
        mask = torch.tensor(kept, dtype=torch.bool).repeat(weight.shape[0], weight.shape[1] // 4)
        rows = costs.ledger_rows(tiny_vit, MaskResult({layer: mask}), recipe(pruning=TWO_FOUR))
        assert next(row for row in rows if row["layer"] == layer)["why_dense"] == why


# -- a start from a file ------------------------------------------------------------------------------------------------


def _from(folder, **parts) -> Report:
    path = str(folder / "healed" / "network.safetensors")
    return run(start=StartChoice(method="file", path=path), pruning=PruningChoice(pattern="kept"), healing=HealingChoice(method="none"), **parts)


def test_an_export_is_a_start(tmp_path):
    before = run(tmp_path, pruning=PruningChoice(sparsity=0.7), tokens=TokensChoice(r=(1,)))
    after = _from(tmp_path, tokens=TokensChoice(r=(1,)))
    rows = [report.frame("accuracy").iloc[-1]["correct"] for report in (before, after)]
    assert rows[0] == rows[1]
    assert after.frame("totals").iloc[-1]["sparsity_prunable"] == before.frame("totals").iloc[-1]["sparsity_prunable"]


@pytest.mark.parametrize("gather", [True, False])
def test_an_export_in_another_order_is_no_start(tmp_path, gather):
    """Its weight (i, j) is not that of the dense network, so CAST would restore wrong values and certificates would subtract them."""
    run(tmp_path, pruning=replace(TWO_FOUR, permutation="deal", permutation_options={"gather": gather}))
    with pytest.raises(WeightsError, match=r"another order \(pruning.permutation\)"):
        _from(tmp_path)


@pytest.mark.parametrize("beside", ["", "[]", '{"recipe": null}', '{"recipe": {"pruning": {}}}'])
def test_whatever_stands_beside_a_file_weights_are_a_start(tmp_path, beside):
    run(tmp_path, healing=HealingChoice(method="none"))
    (tmp_path / "healed" / "recipe.json").write_text(beside)
    assert _from(tmp_path).frame("totals").iloc[-1]["sparsity_prunable"] == pytest.approx(0.9, abs=1e-6)


def test_weights_that_are_not_finite_are_refused_wherever_they_are_read(tiny_vit):
    tensors = {name: tensor.clone() for name, tensor in tiny_vit.module.state_dict().items()}
    tensors["blocks.1.mlp.fc1.weight"][0, 0] = torch.nan
    with pytest.raises(WeightsError, match="not finite, first in blocks.1.mlp.fc1.weight"):
        fit(tiny_vit.module, tensors, source="a file", name="tiny")


# -- everything at once -------------------------------------------------------------------------------------------------

COMBINED = {
    "merged and cut": dict(pruning=PruningChoice(pattern="structured", sparsity=0.5)),
    "merged, reordered, CAST, distilled": dict(
        pruning=PruningChoice(pattern="n_m", score="cast", permutation="search", permutation_options={"effort": 0.1}),
        healing=HealingChoice(method="distillation", steps=2, trains="all", images="training", augmentation="crop", optimiser="sgd"),
    ),
    "sparse, merged, reordered, SparseGPT block by block": dict(
        start=replace(SPARSE, sparsity=0.35, step=0.35),
        pruning=PruningChoice(pattern="n_m", score="sparsegpt", permutation="snake", score_options={"sequential": True}, include=("head",)),
    ),
    "merged, healed by states": dict(pruning=TWO_FOUR, healing=HealingChoice(steps=2, trains="all")),
}


@pytest.mark.parametrize("name", COMBINED)
def test_a_reloaded_network_answers_as_the_one_that_was_measured(tmp_path, name):
    report = run(tmp_path, tokens=TokensChoice(r=(1,)), measure=replace(QUICK, certificates=True), **COMBINED[name])
    network = load_pruned(tmp_path / "healed")
    evaluation = data.open_images(IMAGES, network).evaluation
    again = accuracy.accuracy_row(accuracy.predict(network, evaluation, device="cpu"))
    measured = report.frame("accuracy").set_index("stage").loc["healed"]
    assert (again["correct"], again["images"]) == (measured["correct"], measured["images"])
    assert (report.frame("certificates")["flipped"] == 0).all()
    if name == "merged, healed by states":
        assert report.frame("block_losses")["depth"].nunique() == 6


@pytest.mark.parametrize("name", ["tiny_vit", "tiny_resnet", "tiny_convnext", "tiny_convnext1", "tiny_swin", "tiny_hiera"])
def test_every_family_goes_all_the_way(name, pictures, monkeypatch, request):
    network = request.getfixturevalue(name)
    monkeypatch.setattr(experiment, "load", lambda choice: network.copy())
    report = run(
        images=ImagesChoice(source="folder", path=str(pictures[0]), calibration=8, drift=6, evaluation=12),
        start=StartChoice(method="hybrid", sparsity=0.3, step=0.15, steps=1, batch_size=8, options={"include_all": True}),
        pruning=PruningChoice(pattern="n_m", score="cast", permutation="search", permutation_options={"effort": 0.01}),
        healing=HealingChoice(steps=2, batch_size=8), measure=replace(QUICK, certificates=True, spectra=True),
    )  # fmt: skip
    assert {"cycles", "permutation", "solver", "ledger", "certificates", "certificate_layers", "spectra", "block_losses"} <= set(report.tables)
    assert (report.frame("certificates")["flipped"] == 0).all()


def test_what_is_not_finite_is_none_in_a_report():
    report = Report()
    report.add("drift", [{"cka": float("nan"), "cosine_distance": np.float32("inf"), "depth": 1}])
    assert report.tables["drift"] == [{"cka": None, "cosine_distance": None, "depth": 1}]


# -- images -------------------------------------------------------------------------------------------------------------


def _folders(pictures, monkeypatch, tiny_vit, **choice) -> ImagesChoice:
    monkeypatch.setattr(experiment, "load", lambda model: tiny_vit.copy())
    return ImagesChoice(**{"source": "folder", "calibration": 8, "drift": 6, "evaluation": 12, "path": str(pictures[1]), **choice})


def test_without_labels_there_are_certificates_and_no_accuracy(pictures, monkeypatch, tiny_vit):
    images = _folders(pictures, monkeypatch, tiny_vit)
    report = run(images=images, pruning=PruningChoice(score="taylor"), measure=replace(QUICK, certificates=True))
    assert "accuracy" not in report.tables
    assert report.frame("certificates").query("scope == 'network'")["stage"].tolist() == ["pruned", "healed"]
    assert report.frame("certificates")["accuracy_change"].isna().all()


@pytest.mark.parametrize("training", [0, 10])
def test_what_needs_labels_says_so(pictures, monkeypatch, tiny_vit, training):
    images = _folders(pictures, monkeypatch, tiny_vit, training=training)
    for parts in (dict(start=StartChoice(method="ser")), dict(healing=HealingChoice(method="distillation", images="training"))):
        with pytest.raises(RecipeError, match="need[s]? label"):
            run(images=images, **parts)


@pytest.mark.parametrize("training", [None, 10])
def test_training_images_train(pictures, monkeypatch, tiny_vit, training):
    images = _folders(pictures, monkeypatch, tiny_vit, path=str(pictures[0]), training=training)
    report = run(
        images=images, start=replace(SPARSE, steps=None, batch_size=4), healing=HealingChoice(method="cross_entropy", images="training", epochs=1)
    )
    count = 10 if training else 60 - 8 - 6 - 12
    assert report.frame("cycles").query("phase == 'tune'")["steps"].tolist() == [-(-count // 4)]


def test_more_training_images_than_there_are(pictures, monkeypatch, tiny_vit):
    with pytest.raises(ImagesError, match="left to train on"):
        run(images=_folders(pictures, monkeypatch, tiny_vit, training=1000))


# -- latency alone ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "executions"),
    [
        (
            dict(pruning=replace(TWO_FOUR, permutation="deal", permutation_options={"importance": "energy"})),
            ["dense", "dense, fp16", "masked", "semi_structured(cusparselt), fp16"],
        ),
        (dict(tokens=TokensChoice(r=(1,))), ["dense", "merged"]),
        (dict(tokens=TokensChoice(r=(1,)), pruning=PruningChoice(pattern="structured")), ["dense", "merged+sliced"]),
    ],
)
def test_latency_without_images(parts, executions):
    report = time_executions(LatencyPlan.of(recipe(**parts)), device="cpu")
    json.dumps(report.tables, allow_nan=False)
    assert report.frame("latency")["execution"].tolist() == executions


@pytest.mark.parametrize(
    "parts",
    [dict(pruning=replace(TWO_FOUR, score="cast")), dict(pruning=replace(TWO_FOUR, permutation="deal")), dict(start=StartChoice(method="ser"))],
)
def test_latency_of_what_needs_images_is_refused(parts):
    with pytest.raises(RecipeError, match="needs (calibration|labelled) images"):
        time_executions(LatencyPlan.of(recipe(**parts)), device="cpu")


# -- jobs ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ends", ["cancel", "stop"])
def test_a_run_can_end_inside_its_start_and_go_on(monkeypatch, ends):
    """Asked to stop it stops; handed back by its worker it goes on after the last cycle and ends as one that was left alone."""
    monkeypatch.setattr(worker, "_title", lambda device: device)
    store, stop = Store(), threading.Event()
    choice = recipe(start=StartChoice(method="ser", sparsity=0.2, step=0.1, steps=1, batch_size=8), pruning=PruningChoice(pattern="kept"))
    number = store.submit(choice)
    finish = cycles.Course.finish

    def and_end(course, cycle):
        finish(course, cycle)
        stop.set() if ends == "stop" else store.request_cancel(number)
        course.reporter._cancel_at = 0.0  # it asks the store only so often

    with monkeypatch.context() as patch:
        patch.setattr(cycles.Course, "finish", and_end)
        worker.work(store, "cpu", once=True, stop=stop)
    assert (folder_of(number) / "cycles" / "state.ckpt").exists()
    if ends == "cancel":
        assert store.run(number).status == "cancelled"
        return
    assert store.run(number).status == "queued"
    worker.work(store, "cpu", once=True)
    assert store.run(number).status == "done"
    assert any("continues after cycle 1" in note for note in store.notes(number))
    assert sorted(path.name for path in folder_of(number).iterdir()) == ["healed", "run.txt"]
    whole = experiment.run(choice, device="cpu")
    for table in ("accuracy", "drift", "losses", "layers"):
        assert store.report(number).tables[table] == json.loads(json.dumps(whole.tables[table])), table


# -- refusals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parts",
    [
        dict(pruning=replace(TWO_FOUR, score="cast", score_options={"alpha": "x"})),
        dict(pruning=replace(TWO_FOUR, permutation="deal", permutation_options={"importance": 3})),
        dict(pruning=replace(TWO_FOUR, keep=3, group=7)),
        dict(start=replace(SPARSE, method="ser", options={"over": 2})),
        dict(start=StartChoice(options={"over": 0.1})),  # the dense start has no options, and says so
        dict(tokens=TokensChoice(r=(1, 2))),
        dict(tokens=TokensChoice(r=(100,))),
        dict(healing=HealingChoice(method="distillation", options={"temperature": float("inf")})),
        dict(healing=HealingChoice(method="logit_distillation", options={"temperature": float("inf")})),
    ],
)
def test_wrong_choices_are_said_in_one_sentence(parts):
    with pytest.raises(LabError) as said:
        run(**parts)
    assert str(said.value).endswith(".") and "\n" not in str(said.value)


def test_the_smallest_run_there_is():
    run(
        images=ImagesChoice(calibration=1, drift=4, evaluation=1), measure=replace(QUICK, certificates=True, spectra=True),
        pruning=PruningChoice(pattern="n_m", keep=15, group=16, score="cast", permutation="deal"),
    )  # fmt: skip


def test_recipes_from_before_there_were_starts_are_those_without():
    old = Recipe().to_dict()
    for part, new in {
        "images": ["training"], "pruning": ["permutation", "score_options", "permutation_options"], "measure": ["certificates"],
        "healing": ["epochs", "warmup", "optimiser", "weight_decay", "gradient_clip", "trains", "images", "augmentation", "precision"],
    }.items():  # fmt: skip
        for field in new:
            del old[part][field]
    del old["start"], old["tokens"]
    assert Recipe.from_json(json.dumps(old)) == Recipe()
    assert Recipe.from_json(json.dumps(old)).fingerprint() == Recipe().fingerprint()


def test_a_name_without_a_download_needs_none():
    """The families' tests above stand on networks put in by hand; this one on a choice as a person makes it."""
    report = run(
        model=ModelChoice(name="vit_tiny_patch16_224", weights="random", preprocessing={"input_size": [3, 32, 32]}),
        healing=HealingChoice(method="none"), pruning=TWO_FOUR, tokens=TokensChoice(r=(1,)),
    )  # fmt: skip
    assert report.frame("totals").iloc[-1]["sparsity_prunable"] == 0.5

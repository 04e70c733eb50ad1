"""Dense, pruned and healed step by step: spectra and answers followed through healing, and the view that one scrubber moves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from synthetic import charts, open_page, said, traces, unharmed
from synthetic_gallery import NAMES, jpeg, predictions
from test_app_drift import LOOKS, looked_at

from app import image_cards
from app.charts import followed as drawn
from starfish_lab.data.images import ImageSet
from starfish_lab.healing.followed_spectra import BINS, FollowedSpectra, followed
from starfish_lab.healing.heal import heal
from starfish_lab.healing.strip import chosen
from starfish_lab.healing.watching import Watch, look_at
from starfish_lab.measure.accuracy import predict
from starfish_lab.models.network import prunable
from starfish_lab.progress import Reporter
from starfish_lab.pruning.prune import make_masks, pruned
from starfish_lab.recipe import HealingChoice, PruningChoice
from starfish_lab.store import Store

# -- spectra ----------------------------------------------------------------------------------------------------------


def test_where_a_look_at_all_is_dear_whole_blocks_are_followed(tiny_vit):
    layers = list(prunable(tiny_vit))
    assert followed(tiny_vit, layers) == layers and len(layers) == 8
    cost = 8 * 32**3  # the smaller side of all eight is 32
    assert followed(tiny_vit, layers, work=cost) == layers
    assert followed(tiny_vit, layers, work=cost - 1) == [name for name in layers if name.startswith("blocks.0")]


def test_all_looks_share_the_dense_networks_bins(tiny_vit):
    student = pruned(tiny_vit, make_masks(tiny_vit, PruningChoice(sparsity=0.5)).masks)
    spectra = FollowedSpectra(tiny_vit, student, ["blocks.1.mlp.fc1"])
    dense, after = spectra.rows
    (now,) = spectra.look(tiny_vit, step=3)
    assert (dense["stage"], after["stage"], now["stage"], now["step"]) == ("dense", "pruned", "healing", 3)
    values = np.linalg.svd(tiny_vit.module.blocks[1].mlp.fc1.weight.detach().double().numpy(), compute_uv=False) ** 2 / 128
    edges = np.geomspace(dense["low"], dense["high"], BINS + 1)
    assert dense["counts"] == np.histogram(values, edges)[0].tolist() and sum(dense["counts"]) == 32
    assert (after["low"], after["high"]) == (dense["low"], dense["high"]) and sum(after["counts"]) == 32 and after["counts"] != dense["counts"]
    assert {name: now[name] for name in ("counts", "sigma", "spikes")} == {name: dense[name] for name in ("counts", "sigma", "spikes")}
    lost = tiny_vit.copy()
    with torch.no_grad():
        lost.module.blocks[1].mlp.fc1.weight.fill_(float("nan"))
    assert spectra.look(lost, step=4)[0]["counts"] == [], "a layer that diverged has none, and stops nothing"
    with torch.no_grad():
        lost.module.blocks[1].mlp.fc1.weight.zero_()
    assert spectra.look(lost, step=5)[0]["counts"][0] == 32, "what is below the bins is in the first"


# -- answers ----------------------------------------------------------------------------------------------------------


def test_the_strip_shows_what_pruning_flipped_and_some_that_it_kept():
    dense, after = np.zeros(30, int), np.zeros(30, int)
    after[10:] = 1
    assert chosen(predictions(dense), predictions(after)).tolist() == [0, 1, 2, 3, *range(10, 18)]
    assert chosen(predictions(dense), predictions(dense)).tolist() == list(range(12)), "where nothing flipped, the kept fill up"
    assert chosen(predictions(dense[:5]), predictions(np.ones(5, int))).tolist() == list(range(5)), "and of few images all are shown"


def labelled(network, count=20, broken=()):
    """Images of which some cannot be read, so that places in the set and in a batch differ."""
    pixels = torch.randn(count, *network.preprocessing.input_size, generator=torch.Generator().manual_seed(3))
    return ImageSet([f"image {i}" for i in range(count)], torch.arange(count) % 10, lambda i: None if i in broken else pixels[i])


def test_the_strip_names_images_by_their_place_in_the_set(tiny_vit):
    evaluation, other = labelled(tiny_vit, broken=(0, 4)), pruned(tiny_vit, make_masks(tiny_vit, PruningChoice(sparsity=0.9)).masks)
    answers = {"dense": predict(tiny_vit, evaluation), "pruned": predict(other, evaluation)}
    watch = Watch(tiny_vit, other, torch.randn(8, 3, 32, 32), evaluation, answers=answers)
    watch(0)
    strip, looks = watch._strip.rows, watch._tables["healing_strip"]
    assert [row["image"] for row in strip] == [row["image"] for row in looks] and not {0, 4} & {row["image"] for row in strip}
    for row, look in zip(strip, looks, strict=True):
        assert row["name"] == f"image {row['image']}" and row["label"] == row["image"] % 10
        assert (look["answer"], look["confidence"]) == (row["pruned"], row["pruned_confidence"]), "step 0 is the pruned network"
    (accuracy,) = watch._tables["healing_accuracy"]
    assert (
        accuracy["top1"] == accuracy["top1_pruned"] == answers["pruned"].correct.mean() and accuracy["top1_dense"] == answers["dense"].correct.mean()
    )


class Killed(Exception):
    pass


class KilledAt(Reporter):
    def __init__(self, step=None):
        self.step = step

    def progress(self, step, steps):
        if step == self.step:
            raise Killed


def healed(network, folder, kill_at=None):
    masks = make_masks(network, PruningChoice(sparsity=0.5)).masks
    student, evaluation = pruned(network, masks), labelled(network)
    answers = {"dense": predict(network, evaluation), "pruned": predict(student, evaluation)}
    drift = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    watch = Watch(network, student, drift, evaluation, layers=list(masks)[:2], answers=answers, file=folder / "seen.json")
    choice = HealingChoice(steps=4, batch_size=4, learning_rate=1e-3)
    result = heal(
        network, student, masks, drift, choice, reporter=KilledAt(kill_at), checkpoint=folder / "c", checkpoint_seconds=0,
        watch=look_at(4, 6), observer=watch,
    )  # fmt: skip
    return watch.finish(result)


def test_spectra_and_strip_survive_a_kill(tiny_vit, tmp_path):
    whole = healed(tiny_vit, tmp_path / "whole")
    with pytest.raises(Killed):
        healed(tiny_vit, tmp_path / "killed", kill_at=3)
    found = healed(tiny_vit, tmp_path / "killed")
    for table in ("healing_spectra", "healing_strip", "strip"):
        assert found[table] == whole[table], table
    assert {row["step"] for row in found["healing_strip"]} == {0, 1, 2, 3, 4} and len(found["healing_spectra"]) == 2 * (2 + 5)
    (tmp_path / "killed" / "seen.json").write_text('{"healing_drift": [], "healing_accuracy": []}')
    assert len(healed(tiny_vit, tmp_path / "killed")["healing_strip"]) == 12, "a file of an older lab costs the looks before, not the run"


# -- the view ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def store(lab_home):
    return Store()


def followed_report():
    """Two layers of four bins of which pruning moves three of four eigenvalues (fc1) or none (qkv), and healing brings two back."""
    report = looked_at()
    for layer, moved in (("blocks.0.attn.qkv", False), ("blocks.3.mlp.fc1", True)):
        place = dict(layer=layer, block=layer[:8], depth=int(layer[7]), kind="mlp", rows=4, cols=8, low=1e-3, high=10.0)
        fit = dict(sigma=0.1, sigma_plus=0.5, lower_edge=0.1, spikes=0, applies=True)
        report.add("healing_spectra", [place | fit | dict(stage="dense", step=None, counts=[0, 4, 0, 0])])
        report.add("healing_spectra", [place | fit | dict(stage="pruned", step=None, counts=[3, 1, 0, 0] if moved else [0, 4, 0, 0])])
        for step in LOOKS:
            counts = [3, 1, 0, 0] if moved and step == 0 else [1, 3, 0, 0] if moved else [0, 4, 0, 0]
            report.add("healing_spectra", [place | fit | dict(stage="healing", step=step, counts=counts)])
    for image, label in ((4, 0), (9, 1)):
        row = dict(image=image, name=f"{image}.png", label=label, dense=label, dense_confidence=0.9, pruned=2, pruned_confidence=0.5, jpeg=jpeg())
        report.add("strip", [row])
        for step in LOOKS:
            report.add("healing_strip", [dict(step=step, image=image, answer=label if step >= 3 + image else 2, confidence=0.6)])
    report.add("classes", [{"place": place, "name": name} for place, name in NAMES.items()])
    return report


def finished(store, report=None) -> int:
    import synthetic

    run = store.submit(synthetic.recipe())
    store.finish(run, report or followed_report())
    return run


def test_one_scrubber_moves_all_of_it(store):
    app = open_page("prune_and_heal", run=finished(store), at_step=0)
    words, shown = said(app), charts(app)
    assert unharmed(app) and "At step 0, 0 of these 2 answers are the dense network's" in words
    title = next(text for text in shown if text.startswith("fc1, block 3"))
    assert title.endswith("pruning moved 75 % of the eigenvalues, at step 0 it is 75 %"), "the layer that pruning moved most comes first"
    before = shown[title]["layout"]["yaxis"]["range"]
    assert traces(shown[title])["step 0"]["y"] == [3, 3, 1, 1, 0, 0, 0, 0] and traces(shown[title])["pruned"]["y"][:4] == [3, 3, 1, 1]
    app.select_slider(key="value.at_step").set_value(12).run()
    words, shown = said(app), charts(app)
    assert unharmed(app) and "At step 12, 2 of these 2 answers" in words and "Step 12, after 1 s" in words
    moved = next(text for text in shown if text.startswith("fc1, block 3"))
    assert moved.endswith("at step 12 it is 25 %") and shown[moved]["layout"]["yaxis"]["range"] == before
    assert "after step 12" in traces(shown["Every block loses at least 95 % of its drift"])
    (box,) = shown["At step 3 half of the drift is gone"]["layout"]["shapes"]
    assert (box["y0"], box["y1"]) == (2.5, 3.5), "rows are pruned, 0, 3, 12, 200"
    assert traces(shown["From 10.0 % to 86.0 % in 200 steps"])["step 12"]["x"] == ["12"]
    app.selectbox(key="value.follow").set_value("blocks.0.attn.qkv").run()
    assert unharmed(app) and any(text.startswith("qkv, block 0: pruning moved 0 %") for text in charts(app))
    assert app.query_params["follow"] in ("blocks.0.attn.qkv", ["blocks.0.attn.qkv"])


def test_nonsense_in_the_link_is_told(store):
    app = open_page("prune_and_heal", run=finished(store), at_step=7, follow="blocks.99", drift_as="x")
    assert unharmed(app) and "The link says follow" in said(app) and "Step 3, after" in said(app)


def test_an_older_run_says_what_is_missing_and_how_to_get_it(store):
    app = open_page("prune_and_heal", run=finished(store, looked_at()))
    assert unharmed(app) and len(charts(app)) == 2, "closed, as it was"
    app.session_state["healing_steps"] = True
    app.run()
    assert unharmed(app) and len(charts(app)) == 4 and "before spectra and answers were followed" in said(app) and "Clone" in said(app)


def test_without_labels_spectra_are_followed_alone(store):
    report = followed_report()
    for table in ("strip", "healing_strip", "healing_accuracy", "accuracy", "classes"):
        report.tables.pop(table)
    app = open_page("prune_and_heal", run=finished(store, report))
    assert unharmed(app) and "no strip of answers" in said(app) and any(text.startswith("fc1, block 3") for text in charts(app))


def test_the_run_page_reads_no_megabytes(store, monkeypatch):
    report = followed_report()
    report.add("thumbnails", [{"image": 0, "name": "a", "jpeg": "x" * 1000}])
    run = finished(store, report)
    asked = []
    plain = Store.report
    monkeypatch.setattr(Store, "report", lambda self, *a, **k: asked.append(found := plain(self, *a, **k)) or found)
    open_page("prune_and_heal", run=run)
    assert asked and all("thumbnails" not in found.tables and "healing_spectra" in found.tables for found in asked)


def test_what_images_are_called_is_text_and_no_markup():
    card = image_cards.Card('"><script>', "<b>dog</b>", "", (image_cards.Answer("dense", "dense", "<i>", 0.5, True),))
    shown = image_cards._card(card)
    assert "<script>" not in shown and "<i>" not in shown and "&lt;b&gt;dog" in shown and "50 %" in shown and "✓" in shown


def test_a_layer_that_diverged_is_drawn_empty():
    report = followed_report()
    for row in report.tables["healing_spectra"]:
        row["counts"] = [] if row["stage"] != "dense" or row["depth"] == 0 else row["counts"]
    table = report.frame("healing_spectra")
    assert len(drawn.spectrum(table, "blocks.3.mlp.fc1", step=3).data) == 1 and not drawn.spectrum(table, "blocks.0.attn.qkv", step=3).data

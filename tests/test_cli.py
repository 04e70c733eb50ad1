"""The command line: the same store, the same recipes, tables or JSON."""

from __future__ import annotations

import json

import pytest

from starfish_lab.__main__ import main
from starfish_lab.store import Store

QUICK = [
    "images.calibration=16", "images.drift=8", "images.evaluation=40", "healing.steps=4",
    "measure.latency=false", "measure.spectra=false",
]  # fmt: skip


def _call(capsys, *arguments: str):
    """Exit status, standard output parsed as JSON, standard error."""
    status = main([*arguments, "--json"])
    captured = capsys.readouterr()
    return status, json.loads(captured.out) if captured.out else None, captured.err


def _sets() -> list[str]:
    return [word for change in QUICK for word in ("--set", change)]


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    assert left.value.code == 0 and "bakeoff" in capsys.readouterr().out


def test_models_offers_the_starter_and_the_papers_six_first(capsys):
    status, rows, _ = _call(capsys, "models")
    assert status == 0 and len(rows) == 7 and rows[0] == {"model": "starter", "weights": "bundled"}
    _, rows, _ = _call(capsys, "models", "deit_tiny*")
    assert {"deit_tiny_patch16_224.fb_in1k", "deit_tiny_distilled_patch16_224.fb_in1k"} <= {row["model"] for row in rows}


def test_run_lands_in_the_store_and_can_be_exported(capsys, tmp_path):
    status, rows, err = _call(capsys, "run", *_sets())
    assert status == 0 and [row["stage"] for row in rows] == ["dense", "pruned", "healed"]
    assert "run 1" in err
    _, listed, _ = _call(capsys, "runs")
    assert listed[0]["status"] == "done" and listed[0]["top1_healed"] == rows[2]["top1"]
    _, drift, _ = _call(capsys, "runs", "1", "--table", "drift")
    assert {row["stage"] for row in drift} == {"pruned", "healed"}
    status, _, _ = _call(capsys, "export", "1", "--to", str(tmp_path / "out"))
    assert status == 0 and {"recipe.json", "accuracy.csv", "network"} <= {p.name for p in (tmp_path / "out").iterdir()}
    status, again, _ = _call(capsys, "evaluate", str(tmp_path / "out" / "recipe.json"), "--network", str(tmp_path / "out" / "network"))
    assert status == 0 and again[0]["correct"] == rows[2]["correct"]


def test_queue_leaves_the_run_to_a_worker(capsys):
    status, rows, _ = _call(capsys, "run", "--queue", *_sets())
    assert status == 0 and Store().run(rows[0]["run"]).status == "queued"
    _call(capsys, "runs", "--cancel", "1")
    assert Store().run(1).status == "cancelled"


def test_spectra_prints_numbers_in_the_table_and_histograms_in_json(capsys):
    _, rows, _ = _call(capsys, "spectra")
    assert sum(rows[0]["counts"]) > 0 and {row["part"] for row in rows} >= {"q", "k", "v"}
    assert main(["spectra"]) == 0
    assert "counts" not in capsys.readouterr().out.splitlines()[0]


def test_latency_prints_percentiles(capsys):
    changes = ["pruning.pattern=structured", "pruning.sparsity=0.5", "measure.batch_sizes=[1]", "measure.seconds=0.05"]
    status, rows, _ = _call(capsys, "latency", "--starts", "1", *(word for change in changes for word in ("--set", change)))
    assert status == 0 and {row["execution"] for row in rows} == {"dense", "sliced"}
    assert all(row["latency_ms_p50"] <= row["latency_ms_p90"] <= row["latency_ms_p99"] for row in rows)


def test_recipe_prints_what_run_reads(capsys, tmp_path):
    assert main(["recipe", "--set", "pruning.sparsity=0.5"]) == 0
    path = tmp_path / "recipe.json"
    path.write_text(capsys.readouterr().out)
    assert json.loads(path.read_text())["pruning"]["sparsity"] == 0.5
    status, rows, _ = _call(capsys, "run", str(path), "--queue")
    assert status == 0 and Store().run(rows[0]["run"]).recipe.pruning.sparsity == 0.5


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "--set", "pruning.sparsity=1"], "1 removes everything"),
        (["run", "--set", "model.name=deit_tinny_patch16_224", "--set", "model.weights=random"], "deit_tiny_patch16_224"),
        (["run", "nowhere.json"], "cannot be read"),
        (["runs", "--table", "drift"], "--table shows a table of one run"),
        (["export", "99"], "99"),
    ],
)
def test_mistakes_are_one_sentence_and_status_1(capsys, arguments, says):
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert says in error and "Traceback" not in error


def test_train_starter_writes_weights_card_and_profile(capsys, tmp_path):
    status, rows, _ = _call(capsys, "train-starter", "--to", str(tmp_path), "--epochs", "1")
    assert status == 0 and 0 <= rows[0]["test_top1"] <= 1 and rows[0]["test_images"] == 540
    profile = json.loads((tmp_path / "profile.json").read_text())
    assert profile["facts"]["weights_sha256"] == rows[0]["sha256"]


def test_bundled_profile_is_that_of_the_bundled_weights():
    from starfish_lab import profile, settings
    from starfish_lab.models.loading import bundled
    from starfish_lab.whatif import Profile

    stored = Profile.from_json((settings.ASSETS / "starter" / "profile.json").read_text())
    fresh = Profile.from_json(profile.compute(bundled()).to_json())
    assert stored.facts == fresh.facts
    assert stored.layers["sigma_plus"].tolist() == pytest.approx(fresh.layers["sigma_plus"].tolist(), rel=1e-4)
    assert stored.spectra["spikes"].tolist() == fresh.spectra["spikes"].tolist()

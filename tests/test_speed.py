"""What `speed` measures and recommends: its arithmetic by hand, failures as rows, and that the networks stay as they are."""

from __future__ import annotations

import pytest
import torch
from test_healing import half, same

from starfish_lab.errors import RecipeError
from starfish_lab.healing import speed
from starfish_lab.recipe import HealingChoice, ImagesChoice, PruningChoice, Recipe


@pytest.fixture(autouse=True)
def without_a_compiler(monkeypatch):
    def missing(*_, **__):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", missing)


def test_a_row_a_candidate_and_the_recommended_ones(tiny_vit):
    before = tiny_vit.copy()
    choice = HealingChoice(batch_size=4, epochs=3, augmentation="crop", repair="dense")
    rows = speed.measure(tiny_vit, tiny_vit.copy(), half(tiny_vit), choice, images=50, batch_sizes=(4, 8), steps=3)
    assert same(before, tiny_vit)
    assert [(row["batch_size"], row["precision"], row["compile"]) for row in rows] == [
        (size, precision, compiled) for size in (4, 8) for precision in ("float32", "bf16") for compiled in (False, True)
    ]
    for row in rows:
        assert row["images_per_s"] == pytest.approx(1e3 * row["batch_size"] / row["step_ms"])
        assert row["seconds"] == pytest.approx(row["startup_s"] + (150 - row["batch_size"]) / row["images_per_s"])
        assert bool(row["note"]) == row["compile"] and (row["peak_memory_gb"] is None or row["peak_memory_gb"] > 0)
    able = [row for row in rows if not row["compile"]]
    for words, among in (("fastest", able), ("at this batch size", able[:2])):
        best = min(among, key=lambda row: row["seconds"])
        assert [row for row in rows if words in row["recommended"].split(", ")] == [best]


def test_compiling_is_recommended_only_where_it_earns_back_what_it_costs():
    def rows(images):
        plain, compiled = ({"batch_size": 4, "note": "", "recommended": "", "seconds": start + images / rate} for start, rate in ((1, 10), (30, 20)))
        failed = plain | {"seconds": 0.0, "note": "torch.compile is of no use here"}
        speed._recommend(found := [plain, compiled, failed], 4)
        return [row["recommended"] for row in found]

    assert rows(100) == ["fastest, at this batch size", "", ""]
    assert rows(10_000) == ["", "fastest, at this batch size", ""]


def test_a_recipe_s_own_speed_and_its_refusals():
    recipe = Recipe(pruning=PruningChoice(sparsity=0.5), healing=HealingChoice(steps=9), images=ImagesChoice(calibration=8), device="cpu")
    table = speed.main(recipe, batch_sizes=(2,), steps=1)
    assert len(table) == 4 and (table["images_per_s"] > 0).all()
    with pytest.raises(RecipeError, match="takes no steps"):
        speed.main(Recipe(healing=HealingChoice(method="none"), device="cpu"))
    with pytest.raises(RecipeError, match="0 steps on batches of 2"):
        speed.main(recipe, batch_sizes=(2,), steps=0)

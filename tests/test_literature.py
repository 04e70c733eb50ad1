"""Published figures: complete, sourced, and read without torch."""

from __future__ import annotations

import pandas as pd
import pytest

from starfish_lab import literature


def test_every_figure_has_a_source_and_a_value():
    accuracies, latencies = literature.accuracies(), literature.latencies()
    assert accuracies["source"].notna().all() and latencies["source"].notna().all()
    assert accuracies["of_dense"].between(0, 1.05).all()
    assert accuracies["sparsity"].between(0, 1, inclusive="neither").sum() == len(accuracies)
    assert (latencies["images_per_s"] > 0).all()
    assert set(latencies["gpu"]) == {"A40", "A100"}


def test_figures_are_those_of_the_files():
    latencies = literature.latencies()
    row = latencies.query("gpu == 'A40' and model == 'DeiT-B' and batch == 64 and execution == 'dense, pure bf16'")
    assert row["images_per_s"].tolist() == [1590.4]
    accuracies = literature.accuracies()
    row = accuracies.query("model == 'ViT-B/16' and method == 'magnitude-SER hybrid' and sparsity == 0.5")
    assert row["top1"].tolist() == [83.37]
    assert row["of_dense"].tolist() == pytest.approx([83.37 / 85.11])


def test_a_fraction_of_dense_is_no_top1():
    starfish = literature.accuracies().query("method == 'STARFISH'")
    assert starfish["of_dense"].tolist() == [0.82]
    assert starfish["top1"].isna().all()


def test_sparsity_of_a_pattern_comes_from_the_pattern():
    table = literature.accuracies()
    assert set(table.loc[table["pattern"] == "12:16", "sparsity"]) == {0.25}


def test_callers_cannot_change_the_table():
    first = literature.accuracies()
    first["top1"] = 0.0
    assert not literature.accuracies()["top1"].eq(0).any()
    assert isinstance(literature.latencies(), pd.DataFrame)

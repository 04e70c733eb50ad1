"""Published speed: the headline ratios, and what the same data say like for like."""

from __future__ import annotations

import pytest

from app import published
from starfish_lab import literature


def test_the_headlines_are_computed_from_the_released_timings():
    first, second, third = published.headlines()
    assert (first["claim"], first["matched"]) == ("1.388×", pytest.approx(1654.5 / 1602.8)) and round(first["matched"], 3) == 1.032
    assert (third["claim"], third["matched"]) == ("1.62×", pytest.approx(258.7 / 670.4)) and round(third["matched"], 3) == 0.386
    assert (second["claim"], second["matched"], second["stated"]) == ("2.705×", None, True)  # its rows were not released
    assert "1 of 2" in second["compares"] and "TF32" in second["compares"] and "0.925×" in second["says"]  # 2660.8 / 2876.1, on the merged graph
    assert all(card["source"].startswith("arXiv 2606.02608") for card in (first, second, third))


def test_headlines_rest_on_rows_that_exist_and_claims_on_the_figures():
    for h, card in zip(literature.HEADLINES, published.headlines()):
        assert card["ratio"] == pytest.approx(h.claim, abs=0.005 if h.claim == 1.62 else 0.0006)


def test_the_words_about_a_card_and_network_say_what_was_divided():
    table = literature.latencies()
    a40 = table[(table["gpu"] == "A40") & (table["model"] == "ViT-B/16")]
    text = published.statement("A40", "ViT-B/16", published.ratios(a40))
    assert "1.388×" in text and "1.032×" in text and "mixed precision" in text
    a100 = published.statement("A100", "ViT-B/16", table.iloc[:0])
    assert "2.705×" in a100 and "without TF32" in a100
    assert published.statement("Abacus", "ViT-B/16", table.iloc[:0]) == ""


def test_every_card_and_network_has_its_ratio_at_matched_precision():
    table = literature.latencies()
    for (gpu, model), rows in table.groupby(["gpu", "model"]):
        ratios = published.ratios(rows)
        assert {"headline", "matched"} <= set(ratios), (gpu, model)
        assert (ratios["matched"] < ratios["headline"]).all()  # every published ratio shrinks like for like


def test_timed_accuracies_pair_a_timing_with_the_accuracy_of_its_method():
    table = literature.latencies()
    for model, top1 in (("ViT-B/16", 83.41), ("DeiT-B", 80.48), ("ResNet152d", 81.33), ("ConvNeXtV2-Base", 85.47)):
        (row,) = published.timed_accuracies(table[(table["gpu"] == "A40") & (table["model"] == model)], 128).itertuples()
        assert row.top1 == pytest.approx(top1 / 100) and row.source and not row.execution.startswith("dense")
    assert published.timed_accuracies(table.iloc[:0], 128).empty

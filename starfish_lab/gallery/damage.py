"""What pruning and healing did to each class: its accuracy at every stage, and whether so few images tell it from the dense network's.

A row a class: label, images, for each stage STAGE_correct, STAGE (top-1, a fraction), STAGE_low and STAGE_high (95 % Wilson);
difference_pp, of the last stage to dense; p_value of McNemar's exact test on the images of the class, corrected by Holm's method for
testing as many classes as there are, so that of all that are called resolved none is chance with 95 % confidence; resolved; verdict.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from starfish_lab.measure.accuracy import Predictions, mcnemar, wilson


def damage_rows(answers: Mapping[str, Predictions]) -> list[dict[str, object]]:
    """Rows in the order of labels, from answers to the same images; at least two stages, the dense one first."""
    dense, last = answers["dense"], list(answers.values())[-1]
    rows, chances = [], []
    for label in np.unique(dense.labels):
        of_class = dense.labels == label
        row = {"label": int(label), "images": int(of_class.sum())}
        for stage, found in answers.items():
            row |= _stage(stage, int(found.correct[of_class].sum()), row["images"])
        before, after = dense.correct[of_class], last.correct[of_class]
        lost, won = int((before & ~after).sum()), int((~before & after).sum())
        rows.append(row | {"difference_pp": 100 * (won - lost) / row["images"]})
        chances.append(mcnemar(lost, won))
    return [row | _verdict(row, p) for row, p in zip(rows, holm(np.array(chances)).tolist())]


def holm(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """p values (m,) corrected for m tests (Holm, Scand. J. Stat. 6, 1979).

    >>> holm(np.array([0.01, 0.04, 0.03])).tolist()
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p)
    raised = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    found = np.empty_like(p)
    found[order] = np.minimum(raised, 1)
    return found


def _stage(stage: str, correct: int, images: int) -> dict[str, object]:
    low, high = wilson(correct, images)
    return {f"{stage}_correct": correct, stage: correct / images, f"{stage}_low": low, f"{stage}_high": high}


def _verdict(row: dict[str, object], p: float) -> dict[str, object]:
    resolved, difference = p < 0.05, row["difference_pp"]
    words = f"{abs(difference):.1f} pp {'higher' if difference > 0 else 'lower'}" if resolved else f"not resolved (n = {row['images']})"
    return {"p_value": p, "resolved": resolved, "verdict": words}

"""How little data is enough: the knee of accuracy over the number of calibration images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from starfish_lab.measure.accuracy import Predictions, compare

FEWEST_POINTS = 3  # numbers of images below which there is no curve


def knee(curve: Mapping[int, Sequence[Predictions]]) -> dict[str, object]:
    """The fewest images whose result is not told apart from the best.

    curve : {number of calibration images: answers on the evaluation images, one for each seed, in the same order}

    The best is the number of images with the most right answers over all seeds (the smaller of two equals). Going up from the
    fewest images, the first number counts that McNemar's exact test does not tell apart from the best at p < 0.05, answers paired
    image by image and seed by seed; one that happens to be better than its neighbours counts too. With more evaluation images and
    seeds smaller differences are told apart, so the knee moves up: it is a statement about what was measured. Pairs of several
    seeds on the same evaluation images are not independent, so p is then somewhat too small and the knee no smaller than it should be.

    Keys: knee_images, best_images, top1_knee, top1_best, difference_pp (best minus knee), p_value, at_end (the knee is the largest
    number tried: more images might help).
    """
    pooled = {images: joined(answers) for images, answers in sorted(curve.items())}
    best = max(pooled, key=lambda images: (pooled[images].correct.mean(), -images))
    against = {images: compare(answers, pooled[best]) for images, answers in pooled.items()}
    fewest = next(images for images, found in against.items() if not found["resolved"])
    return {
        "knee_images": fewest, "best_images": best,
        "top1_knee": float(pooled[fewest].correct.mean()), "top1_best": float(pooled[best].correct.mean()),
        "difference_pp": against[fewest]["difference_pp"], "p_value": against[fewest]["p_value"], "at_end": fewest == max(pooled),
    }  # fmt: skip


def joined(answers: Sequence[Predictions]) -> Predictions:
    """Answers of several seeds as those to one long set of images."""
    longest = 1 + max(int(found.indices.max()) for found in answers)
    return Predictions(
        np.concatenate([seed * longest + found.indices for seed, found in enumerate(answers)]),
        np.concatenate([found.top5[:, :1] for found in answers]), np.concatenate([found.labels for found in answers]),
    )  # fmt: skip

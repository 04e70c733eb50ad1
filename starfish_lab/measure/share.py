"""The share of the dense network's accuracy that is left, with an interval that knows that both answered the same images."""

from __future__ import annotations

import numpy as np
from scipy.stats import norm

from starfish_lab.errors import ImagesError
from starfish_lab.measure.accuracy import Predictions, wilson


def share_row(dense: Predictions, other: Predictions, *, confidence: float = 0.95) -> dict[str, float | None]:
    """share, share_low, share_high of the images both answered: accuracy of `other` over that of `dense`; 1 is dense.

    The interval is Bonett and Price's for a ratio of paired proportions (Stat. Med. 25, 2006, 3039–3050): Wilson's bounds of the two
    proportions among the images that either gets right, divided crosswise, at a critical value shrunk by as much as their
    correlation allows. Unlike a bootstrap or the delta method it has a width where all answers agree, or none is right. None where
    the dense network is never right; `share_high` is None where it has no bound.
    """
    _, ours, theirs = np.intersect1d(dense.indices, other.indices, return_indices=True)
    if len(ours) == 0:
        raise ImagesError("The two networks have no image in common, so they cannot be compared. Evaluate both on the same images.")
    a, b = dense.correct[ours], other.correct[theirs]
    reference, left, only_one, either = int(a.sum()), int(b.sum()), int((a ^ b).sum()), int((a | b).sum())
    if reference == 0:
        return {"share": None, "share_low": None, "share_high": None}
    z = norm.ppf(0.5 + confidence / 2)
    apart = np.sqrt((only_one + 2) / ((left + 1) * (reference + 1)))  # standard error of the log of the ratio
    alone = sum(np.sqrt((1 - (count + 1) / (either + 2)) / (count + 1)) for count in (left, reference))  # were they independent
    level = 2 * norm.cdf(z * apart / alone) - 1
    (low, high), (least, most) = wilson(left, either, level), wilson(reference, either, level)
    return {"share": left / reference, "share_low": low / most, "share_high": high / least if least > 0 else None}

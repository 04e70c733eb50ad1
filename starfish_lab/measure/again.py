"""A timed figure, and the interval in which a second measurement like the first finds it in 95 % of cases.

It is a prediction interval: the first measurement scatters and so will the second, which makes it √2 as wide as a confidence interval for
the true figure. It answers what a person asks who measures again, and is on the safe side where only the true figure is asked for.

Two spreads add up. Rounds of one process scatter with what goes on beside it; and processes differ by more than their rounds show, since
memory, pages and threads are placed anew and everything in a process shares its luck. Only a figure of several starts knows of both.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import t as student

CONFIDENCE = 0.95
RESAMPLES = 2000

Figure = tuple[float, float, float]  # value, low, high


def figure(starts: Sequence[np.ndarray]) -> Figure:
    """From the rounds of every start, all positive: by starts where there are several, else by the rounds of the one."""
    return of_starts([np.median(rounds) for rounds in starts]) if len(starts) > 1 else of_rounds(starts[0])


def of_starts(values: Sequence[float]) -> Figure:
    """Geometric mean of one value a start, and where that of as many new starts lands.

    Student's t on logarithms: with k starts of standard deviation s, two means are s √(2/k) apart, and s is known by k − 1 degrees of
    freedom. Two starts know it by one, and say so by an interval that is hardly of use.

    >>> value, low, high = of_starts([1.50, 1.52, 1.47, 1.55, 1.49])
    >>> f"{value:.3f} from {low:.3f} to {high:.3f}"
    '1.506 from 1.453 to 1.560'
    """
    logs, count = np.log(values), len(values)
    reach = student.ppf(0.5 + CONFIDENCE / 2, count - 1) * logs.std(ddof=1) * np.sqrt(2 / count)
    return tuple(float(np.exp(logs.mean() + side * reach)) for side in (0, -1, 1))


def of_rounds(values: np.ndarray) -> Figure:
    """Median of the rounds of one process, and where that of as many new rounds of the same process lands.

    A circular block bootstrap (Politis & Romano 1992) in blocks of the cube root of the length, since machines drift, drawn once for
    this series and once for the second. Always with the same seed.
    """
    count, middle = len(values), float(np.median(values))
    length = max(1, round(count ** (1 / 3)))
    random = np.random.default_rng(0)

    def drawn() -> np.ndarray:
        starts = random.integers(count, size=(RESAMPLES, -(-count // length), 1))
        picks = (starts + np.arange(length)) % count  # (resamples, blocks, length)
        return np.log(np.median(values[picks.reshape(RESAMPLES, -1)[:, :count]], axis=1))

    few = np.sqrt(count / max(1, count - length))  # a resample varies less than the series did, by a block's share
    low, high = middle * np.exp(few * np.percentile(drawn() - drawn(), (2.5, 97.5)))
    return middle, min(float(low), middle), max(float(high), middle)

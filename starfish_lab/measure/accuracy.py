"""Accuracy with its uncertainty: Wilson intervals, and a paired test where two networks saw the same images."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import binomtest, norm

from starfish_lab.errors import ImagesError
from starfish_lab.measure.running import evaluating
from starfish_lab.models.network import Network
from starfish_lab.progress import Reporter

if TYPE_CHECKING:
    from starfish_lab.data import ImageSet

LOGITS = 2000  # images whose logits are kept


@dataclass(frozen=True)
class Predictions:
    """What a network answered.

    indices : (n,) positions of the images in their set
    top5 : (n, min(5, classes)) most probable classes, best first
    labels : (n,) true classes
    logits : (m, classes) of the first m images, m = min(n, 2,000): what a certificate compares
    confidence : (n,) probability that the network gives the most probable class
    """

    indices: np.ndarray
    top5: np.ndarray
    labels: np.ndarray
    logits: np.ndarray | None = None
    confidence: np.ndarray | None = None

    @property
    def top1(self) -> np.ndarray:
        """(n,) the most probable class."""
        return self.top5[:, 0]

    @cached_property
    def correct(self) -> np.ndarray:
        """(n,) bool: the most probable class is the true one."""
        return self.top1 == self.labels

    @cached_property
    def correct_of_five(self) -> np.ndarray:
        """(n,) bool: the true class is among the five."""
        return (self.top5 == self.labels[:, None]).any(axis=1)


def predict(network: Network, images: ImageSet, *, device: str = "cpu", batch_size: int = 64, reporter: Reporter | None = None) -> Predictions:
    """Ask the network for every readable image. The network is left as it was. Raises ImagesError without labels or images."""
    if images.labels is None:
        raise ImagesError("Accuracy needs labels and these images have none. Give a folder with one sub-folder a class, or a CSV of file and label.")
    reporter = reporter or Reporter()
    indices, ranked, labels, kept, confidence = [], [], [], [], []
    with evaluating(network.module, device) as module:
        for done, (positions, batch) in enumerate(images.batches(batch_size), start=1):
            reporter.check()
            logits = module(batch.to(device))  # (B, classes)
            ranked.append(logits.topk(min(5, logits.shape[1]), dim=1).indices.cpu().numpy())
            indices.append(positions.numpy())
            labels.append(images.labels[positions].numpy())
            confidence.append(logits.float().softmax(dim=1).amax(dim=1).cpu().numpy())
            kept.append(logits[: max(0, LOGITS - sum(map(len, kept)))].float().cpu().numpy())
            reporter.progress(min(done * batch_size, len(images)), len(images))
    if not indices:
        raise ImagesError("No image could be read, so there is no accuracy. Check that the files are images and not empty.")
    return Predictions(*map(np.concatenate, (indices, ranked, labels, kept, confidence)))


def wilson(correct: int, images: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (J. Am. Stat. Assoc. 22, 1927): honest for few images and near 0 and 1.

    >>> [round(bound, 4) for bound in wilson(85, 100)]
    [0.7672, 0.9069]
    """
    if not 0 <= correct <= images or images == 0:
        raise ImagesError(f"{correct} correct of {images} images is no proportion. Give at least one image.")
    z = norm.ppf(0.5 + confidence / 2)
    share = correct / images
    centre = share + z**2 / (2 * images)
    spread = z * np.sqrt(share * (1 - share) / images + z**2 / (4 * images**2))
    scale = 1 + z**2 / images
    return max(0.0, float((centre - spread) / scale)), min(1.0, float((centre + spread) / scale))


def accuracy_row(predictions: Predictions) -> dict[str, object]:
    """Top-1 and top-5 (of all classes where there are fewer than five) with the 95 % interval of top-1, as fractions."""
    images, correct = len(predictions.labels), int(predictions.correct.sum())
    low, high = wilson(correct, images)
    top5 = float(predictions.correct_of_five.mean())
    return {"top1": correct / images, "top5": top5, "low": low, "high": high, "correct": correct, "images": images}


def compare(first: Predictions, second: Predictions) -> dict[str, object]:
    """Is the second better or worse than the first, on the images both answered?

    McNemar's test in its exact two-sided form: of the images that only one of the two gets right, each network
    would have half if they were equally good. `difference_pp` is top-1 of the second minus that of the first,
    in percent points. Below p = 0.05 it counts as resolved.
    """
    _, ours, theirs = np.intersect1d(first.indices, second.indices, return_indices=True)
    images = len(ours)
    if images == 0:
        raise ImagesError("The two networks have no image in common, so they cannot be compared. Evaluate both on the same images.")
    a, b = first.correct[ours], second.correct[theirs]
    lost, won = int((a & ~b).sum()), int((~a & b).sum())
    p_value = mcnemar(lost, won)
    difference = 100 * (won - lost) / images
    resolved = p_value < 0.05
    verdict = f"not resolved with n = {images}"
    if resolved:
        verdict = f"{abs(difference):.1f} pp {'higher' if difference > 0 else 'lower'} (p = {p_value:.2g}, n = {images})"
    return {"difference_pp": difference, "p_value": p_value, "resolved": resolved, "images": images, "verdict": verdict}


def mcnemar(lost: int, won: int) -> float:
    """p of McNemar's exact two-sided test: `lost` images that only the first network gets right, `won` that only the second does.

    >>> mcnemar(0, 0), mcnemar(5, 0)
    (1.0, 0.0625)
    """
    return float(binomtest(won, won + lost, 0.5).pvalue) if won + lost else 1.0

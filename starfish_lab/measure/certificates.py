"""Certificates: what pruning provably cannot change, measured on given images (arXiv 2606.02608, certificates).

η of an image is the largest change of any of its logits, ‖z_dense − z_pruned‖_∞. The gap between two logits moves by 2η at most, so
an image whose two best classes lie more than 2η apart keeps its label, and its cross-entropy moves by 2η at most, whatever the
true class. With η measured, all of this is exact on these images; of other images it says nothing.

Tables of a report, each with the stage in front. `label` says what kind of statement a row is; kinds are never mixed.

`certificates`: one row a scope.

| column | meaning |
|---|---|
| scope, what | 'network': all of the pruned network; 'head': the classifier's head alone, put into the dense network. `what` in words |
| label | 'bound' |
| images | images compared |
| certified, certified_share | images that provably keep their label: margin > 2η |
| flipped | labels that changed although certified: 0, or the certificate is wrong |
| changed | labels that changed at all |
| mean_change | mean η |
| budget | B_T, mean 2η: the mean cross-entropy changes by no more |
| ce_change | mean absolute change of cross-entropy; None without labels, as are the following |
| accuracy_change_bound | share of images with a gap between the true and the best other class of 2η at most: top-1 changes by no more |
| accuracy_change | top-1 minus that of dense, as a fraction |

`certificate_images`: the first 2,000 images of a stage, scope 'network': image (position in the set), label, margin (logits between the
two best classes of dense), eta, certified, flipped (its label changed), true_margin (logit of the true class minus the best other one, in
dense), ce_change (signed).

`certificate_layers`: see `measure.certificate_layers`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from starfish_lab.certificate_bounds import BOUND
from starfish_lab.data.images import ImageSet
from starfish_lab.errors import ImagesError, LabError
from starfish_lab.measure.accuracy import Predictions
from starfish_lab.measure.running import evaluating
from starfish_lab.models.network import Network
from starfish_lab.progress import Reporter

MOST_IMAGES = 2000  # rows kept of each stage; the summary counts all images
# A network gives logits that differ in their last digits when the same image comes in another batch or on another device. A margin
# must clear 2η by more than that, or the label certified here could be another one where accuracy is measured.
RELATIVE = 1e-5  # of 2η
ABSOLUTE = 1e-6  # of the image's largest logit, about eight units in the last place of float32


@dataclass
class CertificateResult:
    """Rows of the three tables, and what could not be certified, in words."""

    images: list[dict[str, object]] = field(default_factory=list)
    summary: list[dict[str, object]] = field(default_factory=list)
    layers: list[dict[str, object]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def extend(self, other: CertificateResult) -> CertificateResult:
        """Take the other's rows in as well."""
        for name in ("images", "summary", "layers", "notes"):
            getattr(self, name).extend(getattr(other, name))
        return self


def certify(
    dense: Network,
    pruned: Network,
    images: ImageSet | Tensor,
    labels: Tensor | None = None,
    *,
    device: str = "cpu",
    batch_size: int = 32,
    reporter: Reporter | None = None,
) -> CertificateResult:
    """The whole pruned network against the dense one: a summary row, and a row an image. See `certify_stages`."""
    return certify_stages(dense, {"": pruned}, images, labels, device=device, batch_size=batch_size, reporter=reporter)[""]


def certify_stages(
    dense: Network,
    stages: dict[str, Network],
    images: ImageSet | Tensor,
    labels: Tensor | None = None,
    *,
    device: str = "cpu",
    batch_size: int = 32,
    reporter: Reporter | None = None,
) -> dict[str, CertificateResult]:
    """Several networks against the dense one, which runs and reads its images only once: {stage: rows}.

    images : an ImageSet, whose labels count where `labels` is None, or a tensor (n, C, H, W). `labels` (n,) are classes.
    All networks run in evaluation mode and float32, a batch at a time, and are left as they were. A stage may merge tokens or be
    otherwise different inside: only logits are compared. Raises LabError where there are fewer than two classes or no image.
    """
    reporter = reporter or Reporter()
    if labels is None and isinstance(images, ImageSet):
        labels = images.labels
    found: dict[str, list[dict[str, np.ndarray]]] = {stage: [] for stage in stages}
    positions, done = [], 0
    with ExitStack() as stack:
        stack.enter_context(exact_float32())
        teacher = stack.enter_context(evaluating(dense.module, device))
        students = {stage: stack.enter_context(evaluating(network.module, device)) for stage, network in stages.items()}
        for indices, batch in batches_of(images, batch_size):
            reporter.check()
            batch, truth = batch.to(device), None if labels is None else labels[indices]
            logits = teacher(batch)
            for stage, student in students.items():
                found[stage].append(compare_logits(logits, student(batch), truth))
            positions.append(indices.numpy())
            done += len(indices)
            reporter.progress(done, len(images))
    figures = {stage: joined(of_batches) for stage, of_batches in found.items()}
    return {
        stage: CertificateResult(
            images=image_rows(all_images, np.concatenate(positions)[:MOST_IMAGES]),
            summary=[summary_row(all_images, scope="network", what="whole network, measured")],
        )
        for stage, all_images in figures.items()
    }


def certify_answers(dense: Predictions, pruned: Predictions) -> CertificateResult:
    """As `certify`, from answers that are known already: the images whose logits both have kept."""
    count = min(len(dense.logits), len(pruned.logits))
    logits = [torch.from_numpy(answers.logits[:count]) for answers in (dense, pruned)]
    figures = compare_logits(*logits, torch.from_numpy(dense.labels[:count]))
    rows = image_rows(figures, dense.indices[: min(count, MOST_IMAGES)])
    return CertificateResult(images=rows, summary=[summary_row(figures, scope="network", what="whole network, measured")])


@torch.no_grad()
def compare_logits(dense: Tensor, other: Tensor, labels: Tensor | None = None) -> dict[str, np.ndarray]:
    """What a change of logits means for each image: arrays (B,), computed in float64.

    dense, other : (B, classes). margin, eta; certified, may_change (the true class may gain or lose first place), changed (label);
    with labels true_margin, ce_change (signed), right_change (−1, 0, 1).
    Nothing is certified for an image with a logit that is not finite.
    """
    if dense.ndim != 2 or dense.shape[1] < 2 or dense.shape != other.shape:
        raise LabError(
            f"A certificate compares logits (images, classes) of two or more classes; got {tuple(dense.shape)} and {tuple(other.shape)}. "
            "Measure networks with the same classifier."
        )
    z, y = (logits.cpu().double() for logits in (dense, other))
    best = z.topk(2, dim=1).values
    margin, eta = best[:, 0] - best[:, 1], (y - z).abs().amax(1)
    needed = 2 * eta * (1 + RELATIVE) + ABSOLUTE * z.abs().amax(1)
    figures = {"margin": margin, "eta": eta, "certified": margin > needed, "changed": z.argmax(1) != y.argmax(1)}
    if labels is not None:
        truth = labels.cpu().long()
        others = z.scatter(1, truth[:, None], -torch.inf).amax(1)
        true_margin = z.gather(1, truth[:, None])[:, 0] - others
        ce = [F.cross_entropy(logits, truth, reduction="none") for logits in (z, y)]
        right = [(logits.argmax(1) == truth).long() for logits in (z, y)]
        figures |= {
            "true_margin": true_margin, "may_change": ~(true_margin.abs() > needed),  # not '<=': nan may change anything
            "ce_change": ce[1] - ce[0], "right_change": right[1] - right[0],
        }  # fmt: skip
    return {name: values.numpy() for name, values in figures.items()}


def summary_row(figures: dict[str, np.ndarray], *, scope: str, what: str) -> dict[str, object]:
    """One row of the table certificates, from what `compare_logits` found for all images."""
    certified, changed = figures["certified"], figures["changed"]
    row = {
        "scope": scope, "what": what, "label": BOUND, "images": len(certified), "certified": int(certified.sum()),
        "certified_share": float(certified.mean()), "flipped": int((certified & changed).sum()), "changed": int(changed.sum()),
        "mean_change": plain(figures["eta"].mean()), "budget": plain(2 * figures["eta"].mean()),
        "ce_change": None, "accuracy_change_bound": None, "accuracy_change": None,
    }  # fmt: skip
    if "ce_change" in figures:
        row["ce_change"] = plain(np.abs(figures["ce_change"]).mean())
        row["accuracy_change_bound"] = float(figures["may_change"].mean())
        row["accuracy_change"] = float(figures["right_change"].mean())
    return row


def image_rows(figures: dict[str, np.ndarray], positions: np.ndarray) -> list[dict[str, object]]:
    """Rows of the table certificate_images, one for each position."""
    rows = []
    for i, position in enumerate(positions.tolist()):
        known = {name: plain(figures[name][i]) if name in figures else None for name in ("true_margin", "ce_change")}
        rows.append({
            "image": position, "label": BOUND, "margin": plain(figures["margin"][i]), "eta": plain(figures["eta"][i]),
            "certified": bool(figures["certified"][i]), "flipped": bool(figures["changed"][i]), **known,
        })  # fmt: skip
    return rows


@contextmanager
def exact_float32() -> Iterator[None]:
    """Convolutions on a GPU in float32 itself, not in TF32 with its ten bits, which PyTorch uses for them unless told otherwise."""
    cudnn = torch.backends.cudnn
    with cudnn.flags(enabled=cudnn.enabled, benchmark=cudnn.benchmark, deterministic=cudnn.deterministic, allow_tf32=False):
        yield


def plain(value: float) -> float | None:
    """A number fit for JSON: None for what is not finite."""
    return float(value) if np.isfinite(value) else None


def batches_of(images: ImageSet | Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Positions and images, a batch at a time."""
    if isinstance(images, ImageSet):
        yield from images.batches(size)
        return
    yield from zip(torch.arange(len(images)).split(size), images.split(size)) if len(images) else ()


def joined(found: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    if not found:
        raise ImagesError("No image could be read, so nothing can be certified. Check that the files are images and not empty.")
    return {name: np.concatenate([figures[name] for figures in found]) for name in found[0]}

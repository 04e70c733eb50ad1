"""Drift: how far a student's internal states are from those of the dense network, block by block.

Three figures for each group of tokens:

    tokens   'all', and apart 'class' (every prefix token) and 'patch', for networks of tokens; 'image' for convolutional ones
    cosine_distance   mean of 1 − cos(student, dense), a cosine a token, or an image (STARFISH, arXiv 2606.01126)
    relative_l2       ‖student − dense‖ / ‖dense‖, over all images together
    cka               debiased linear CKA between the images (Kornblith et al. 2019; Song et al., JMLR 13, 2012)

CKA compares one feature row an image: the mean over the group's tokens (for a single class token its vector), or over
the image's positions. The images should be used by neither calibration nor evaluation, or healing fits what it is judged by.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from starfish_lab.errors import ImagesError
from starfish_lab.measure.running import evaluating
from starfish_lab.models.network import Network
from starfish_lab.models.states import BlockStates

FEWEST_IMAGES = 4  # the debiased estimator divides by n (n − 3)


def drift(
    dense: Network, student: Network, images: Tensor, *, device: str = "cpu", batch_size: int = 32, known: list[list[Tensor]] | None = None
) -> list[dict[str, object]]:
    """One row a block and group of tokens, in depth order: block, depth, tokens, cosine_distance, relative_l2, cka.

    images : (n, C, H, W), n ≥ 4. States live for one batch; what stays is one vector an image, block and group.
    known : `states` of the dense network for these very images and batch size; None computes them.
    `cka` is None where it is undefined, e.g. for states that do not differ between images. Both networks are left as they were.
    """
    if len(images) < FEWEST_IMAGES:
        raise ImagesError(f"Drift is measured on {len(images)} images, but debiased CKA needs {FEWEST_IMAGES} at least. Give more drift images.")
    sums: dict[tuple[int, str], _Sums] = {}
    with (
        evaluating(dense.module, device) as teacher,
        evaluating(student.module, device) as module,
        BlockStates(teacher, dense.blocks) as wanted,
        BlockStates(module, student.blocks) as found,
    ):
        for i, batch in enumerate(images.split(batch_size)):
            if known is None:
                teacher(batch.to(device))
            module(batch.to(device))
            for depth, (reference, state) in enumerate(zip(known[i] if known else wanted.values, found.values, strict=True)):
                for (tokens, a), (_, b) in zip(_groups(dense, reference.to(state.device)), _groups(dense, state)):
                    sums.setdefault((depth, tokens), _Sums()).add(_exact(a), _exact(b), per_image=tokens == "image")
    return [{"block": dense.blocks[depth], "depth": depth, "tokens": tokens, **one.row()} for (depth, tokens), one in sums.items()]


def states(network: Network, images: Tensor, *, device: str = "cpu", batch_size: int = 32) -> list[list[Tensor]]:
    """The states of all blocks on the CPU, a list a batch: what `drift` takes as `known`, to compare many students with one dense network."""
    with evaluating(network.module, device) as module, BlockStates(module, network.blocks) as found:
        kept = []
        for batch in images.split(batch_size):
            module(batch.to(device))
            kept.append([state.cpu() for state in found.values])
    return kept


def _exact(state: Tensor) -> Tensor:
    """In float64, which Apple's devices do not have."""
    return (state.cpu() if state.device.type == "mps" else state).double()


def _groups(network: Network, state: Tensor) -> Iterator[tuple[str, Tensor]]:
    """A block's state as groups of vectors: (group, (B, vectors, features))."""
    if network.states == "image":
        yield "image", state.flatten(2).transpose(1, 2)  # (B, C, H, W) → (B, H·W, C)
        return
    tokens = state.reshape(len(state), -1, state.shape[-1])  # (B, N, D); a plain vector counts as one token
    yield "all", tokens
    if 0 < network.prefix_tokens < tokens.shape[1]:
        yield "class", tokens[:, : network.prefix_tokens]
        yield "patch", tokens[:, network.prefix_tokens :]


@dataclass
class _Sums:
    """Running sums of one block and group."""

    distance: float = 0.0
    cosines: int = 0
    difference: float = 0.0  # ‖student − dense‖²
    reference: float = 0.0  # ‖dense‖²
    features: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # (B, D) of dense and of student

    def add(self, dense: Tensor, student: Tensor, *, per_image: bool) -> None:
        a, b = (dense.flatten(1), student.flatten(1)) if per_image else (dense, student)
        # 1 − cos = ½ |u − v|² of unit vectors: exact where the two are equal
        distances = 0.5 * (F.normalize(a, dim=-1) - F.normalize(b, dim=-1)).square().sum(-1)
        self.distance += distances.sum().item()
        self.cosines += distances.numel()
        self.difference += (student - dense).square().sum().item()
        self.reference += dense.square().sum().item()
        self.features.append((dense.mean(1).cpu(), student.mean(1).cpu()))

    def row(self) -> dict[str, float | None]:
        a, b = (torch.cat(side) for side in zip(*self.features))  # (n, D) both
        relative = (self.difference / self.reference) ** 0.5 if self.reference else None
        return {"cosine_distance": self.distance / self.cosines, "relative_l2": relative, "cka": debiased_cka(a, b)}


def debiased_cka(a: Tensor, b: Tensor) -> float | None:
    """Linear CKA with the unbiased estimator of HSIC; about 0 for unrelated features however wide, 1 for equal ones.

    a, b : (n, features) of the same n ≥ 4 images; the widths may differ. Unchanged by rotation, shift and
    isotropic scaling of either. None where one side is constant.
    """
    k, m = (_gram(features.double()) for features in (a, b))
    own = _hsic(k, k) * _hsic(m, m)
    return _hsic(k, m) / own**0.5 if own > 0 else None


def _gram(features: Tensor) -> Tensor:
    """(n, n) inner products without their diagonal. Centring changes nothing in exact arithmetic and saves digits."""
    centred = features - features.mean(0)
    return (centred @ centred.T).fill_diagonal_(0)


def _hsic(k: Tensor, m: Tensor) -> float:
    """Unbiased HSIC of two Gram matrices with zero diagonals (Song et al. 2012, eq. 5)."""
    n = len(k)
    trace = (k * m).sum()
    means = k.sum() * m.sum() / ((n - 1) * (n - 2))
    cross = 2 / (n - 2) * (k.sum(0) @ m.sum(0))
    return ((trace + means - cross) / (n * (n - 3))).item()

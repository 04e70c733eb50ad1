"""What a layer's removed weights do to its own output, in the dense network: the literal budget, per unit L; and the head, where L = 1.

R is the layer's weight in the dense network minus that in the pruned one, ψ₁(s) what the layer gets of image s in the dense network.
Where a solver or healing moved the layer's bias too, R ψ₁ stands for R ψ₁ + what the bias lost. Other layers stay dense. What follows
the layer may enlarge the change by a factor L that nobody knows for transformers; it stays a symbol. The reference network must hold
its weights in the pruned network's order of columns, and keeps all its tokens, also where the pruned network merges some.

Table `certificate_layers`, one row a pruned layer and the stage in front:

| column | meaning |
|---|---|
| layer, block, depth, kind | where it stands; depth −1 outside every block |
| label | 'bound per unit L'; 'bound' for the head, where L = 1 |
| what | 'as pruned', or what the head loses where it is not among the pruned layers |
| rows, cols | of the weight, convolutions unfolded |
| images, positions | images measured, and vectors the layer sees of each: tokens, or places of the kernel |
| mean_change, max_change | mean and maximum over images of ‖R ψ₁‖_∞, the largest change of any output at any position |
| budget | 2 · mean_change: B_T per unit L |
| frobenius2, l1 | ‖R‖_F², ‖R‖₁ |
| disjoint | R and what stays have no entry in common: the elastic-net inequality holds |
| sigma, sigma_plus, applies | noise of the dense weight, its MP edge, and whether the law describes it; see `MarchenkoPastur` |
| mean_norm | mean over images of the largest ‖v‖₂ among the vectors v that the layer sees |
| note | why figures are missing |
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import pandas as pd
import torch
from torch import Tensor, nn

from starfish_lab.certificate_bounds import BOUND, PER_UNIT_L
from starfish_lab.data.images import ImageSet
from starfish_lab.errors import ImagesError, LabError
from starfish_lab.measure.certificates import (
    MOST_IMAGES,
    CertificateResult,
    batches_of,
    compare_logits,
    exact_float32,
    joined,
    plain,
    summary_row,
)  # fmt: skip
from starfish_lab.measure.running import evaluating
from starfish_lab.models.network import Network, layer_kind
from starfish_lab.spectra.layers import spectra_table

HEADLESS = "The logits of this network are not the output of one Linear layer, so its head has no certificate of its own."
NOT_LINEAR = "the layer changes its weight before it uses it, so R ψ₁ is not what its output loses"


def layer_rows(
    reference: Network,
    pruned: Network,
    layers: Sequence[str],
    images: Tensor,
    *,
    device: str = "cpu",
    batch_size: int = 16,
    spectra: pd.DataFrame | None = None,
) -> list[dict[str, object]]:
    """Rows of the table certificate_layers for `layers`, in their order, measured on images (n, C, H, W).

    `spectra` is the `spectra_table` of the dense network, to save fitting it again; whole layers are taken from it. Memory: the
    layers' weights once more, and one batch. A layer that runs several times for an image counts with its largest change. Raises
    LabError where a layer has another shape in the two networks or sees no input, ImagesError where there is no image.
    """
    if len(images) == 0:
        raise ImagesError("Without images no layer sees anything, so there is no budget. Give at least one image.")
    noise = _noise(reference, layers, spectra, device)
    seen = {layer: _Seen() for layer in layers}
    changes = {layer: removed(reference, pruned, layer) for layer in layers}
    with evaluating(reference.module, device) as module, exact_float32():
        handles = []
        for layer in layers:
            watched = module.get_submodule(layer)
            probe = applying(watched, changes[layer], _removed_bias(reference, pruned, layer))
            handles.append(watched.register_forward_hook(seen[layer].hook(probe, watched)))
        try:
            for batch in images.split(batch_size):
                for one in seen.values():
                    one.begin(len(batch))
                module(batch.to(device))
        finally:
            for handle in handles:
                handle.remove()
    for layer, one in seen.items():
        if not one.positions:
            raise LabError(f"The layer {layer} sees no input when the network runs, so it has no certificate. Take it out of the layers.")
    return [
        _row(reference, layer, changes[layer], pruned.module.get_submodule(layer).weight, seen[layer], noise.loc[layer], label=PER_UNIT_L)
        for layer in layers
    ]


def head_rows(
    reference: Network,
    pruned: Network,
    images: ImageSet | Tensor,
    labels: Tensor | None = None,
    *,
    layers: Sequence[str],
    sparsity: float,
    device: str = "cpu",
    batch_size: int = 32,
    spectra: pd.DataFrame | None = None,
) -> CertificateResult:
    """The certificate of the classifier's head alone, put into the otherwise dense network: a summary row and a layer's row, L = 1.

    Where the head is among `layers`, R is what pruning took from it. Elsewhere it answers a question of its own, and says so:
    what if magnitude pruning took the share `sparsity` of the head's weights? Networks whose logits are not the output of one
    Linear have no such certificate; a note says that. The first 2,000 images count, for which the dense network runs once more.
    """
    if labels is None and isinstance(images, ImageSet):
        labels = images.labels
    first = next(batches_of(images, 1), None)
    if first is None:
        raise ImagesError("No image could be read, so nothing can be certified. Check that the files are images and not empty.")
    name = find_head(reference, first[1], device=device)
    if not name:
        return CertificateResult(notes=[HEADLESS])
    weight = reference.module.get_submodule(name).weight.detach()
    if name in layers:
        what, change, shift = "head alone, as pruned", removed(reference, pruned, name), _removed_bias(reference, pruned, name)
    else:
        what, change, shift = f"what if: head alone, {100 * sparsity:.3g} % of it pruned by magnitude", weight * _smallest(weight, sparsity), None
    found, seen = [], _Seen()
    with evaluating(reference.module, device) as module, exact_float32():
        head = module.get_submodule(name)
        handle = head.register_forward_hook(seen.hook(applying(head, change, shift), head))
        try:
            for indices, batch in batches_of(images, batch_size):
                if int(indices[0]) >= MOST_IMAGES:
                    break
                seen.begin(len(batch))
                logits = module(batch.to(device)).cpu().double()
                found.append(compare_logits(logits, logits - seen.change.cpu().double(), None if labels is None else labels[indices]))
        finally:
            handle.remove()
    row = _row(reference, name, change, weight - change, seen, _noise(reference, [name], spectra, device).loc[name], label=BOUND)
    return CertificateResult(summary=[summary_row(joined(found), scope="head", what=what)], layers=[row | {"what": what}])


def find_head(network: Network, images: Tensor, *, device: str = "cpu") -> str:
    """Name of the Linear whose output is the network's own, found by running it on images (n, C, H, W); '' where there is none."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Callable:
        return lambda module, inputs, output: outputs.__setitem__(name, output)

    with evaluating(network.module, device) as module:
        matrices = {name: m for name, m in module.named_modules() if isinstance(getattr(m, "weight", None), Tensor) and m.weight.ndim == 2}
        handles = [m.register_forward_hook(keep(name)) for name, m in matrices.items() if not isinstance(m, nn.Embedding)]
        try:
            logits = module(images.to(device))
        finally:
            for handle in handles:
                handle.remove()
        same = [name for name, output in outputs.items() if output.ndim == 2 and output.shape == logits.shape and torch.equal(output, logits)]
    return same[-1] if same else ""


def removed(reference: Network, pruned: Network, layer: str) -> Tensor:
    """R: the layer's weight in the reference minus that in the pruned network."""
    dense, left = (network.module.get_submodule(layer).weight.detach() for network in (reference, pruned))
    if dense.shape != left.shape:
        raise LabError(
            f"The layer {layer} has weights {tuple(left.shape)} where the dense network has {tuple(dense.shape)}: nothing to subtract. "
            "Certify the masked network, not the one sliced out of it."
        )
    return dense.float() - left.to(dense.device).float()


def _removed_bias(reference: Network, pruned: Network, layer: str) -> Tensor | None:
    """The layer's bias in the reference minus that in the pruned network; None where it is the same, or there is none."""
    dense, left = (network.module.get_submodule(layer).bias for network in (reference, pruned))
    if dense is None or left is None:
        return None
    change = dense.detach().float() - left.detach().to(dense.device).float()
    return change if change.any() else None


def applying(layer: nn.Module, weight: Tensor, bias: Tensor | None = None) -> nn.Module:
    """A copy of a Linear or convolution that applies `weight` and adds `bias` instead of its own: x ↦ R x, padded and gathered as there."""
    copied = copy.deepcopy(layer)
    copied._forward_hooks.clear()
    copied._forward_pre_hooks.clear()
    copied.weight = nn.Parameter(weight.to(layer.weight), requires_grad=False)
    copied.bias = None if bias is None else nn.Parameter(bias.to(layer.weight), requires_grad=False)
    return copied.eval()


class _Seen:
    """What one layer showed, image by image: the largest entry of |R ψ₁|, and the largest norm of a vector it saw."""

    def __init__(self) -> None:
        self.peaks: list[Tensor] = []  # (B,) a batch
        self.norms: list[Tensor] = []
        self.positions = 0
        self.linear = True
        self.change: Tensor | None = None  # R ψ₁ of the last 2-D pass: the head's
        self._images = 0

    def begin(self, images: int) -> None:
        """A batch of so many images comes next."""
        self._images = images
        self.peaks.append(torch.zeros(images))
        self.norms.append(torch.zeros(images))

    def hook(self, probe: nn.Module, layer: nn.Module) -> Callable:
        """A forward hook for the layer."""
        convolution = layer.weight.ndim == 4
        if convolution:  # the squares under a kernel, summed: one output a group of channels
            squares = applying(layer, torch.ones_like(layer.weight[: layer.groups]))

        def look(watched: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            x = inputs[0]
            if not self.positions:
                self.linear = _is_linear(watched, x[:1])
            change = probe(x)
            # windows of attention stand in the batch dimension, those of an image next to each other
            self._keep(self.peaks, change.abs().reshape(self._images, -1).amax(1))
            seen = squares(x.square()).clamp(min=0).sqrt() if convolution else x.norm(dim=-1)
            self._keep(self.norms, seen.reshape(self._images, -1).amax(1))
            self.positions = change.numel() // (self._images * len(layer.weight))
            self.change = change if change.ndim == 2 else None

        return look

    def _keep(self, into: list[Tensor], values: Tensor) -> None:
        into[-1] = torch.maximum(into[-1], values.float().cpu())


def _is_linear(layer: nn.Module, x: Tensor) -> bool:
    """Twice the weight gives twice the output. Convolutions that standardise their weight do not pass."""
    once, twice = (applying(layer, scale * layer.weight.detach())(x) for scale in (1, 2))
    return torch.allclose(twice, 2 * once, rtol=1e-4, atol=1e-6)


def _row(reference: Network, layer: str, change: Tensor, kept: Tensor, seen: _Seen, noise: pd.Series, *, label: str) -> dict[str, object]:
    """One row of the table, from R, the weights that stay, and what the layer showed."""
    peaks, norms = (torch.cat(values).double() for values in (seen.peaks, seen.norms))
    mean, most = (peaks.mean().item(), peaks.max().item()) if seen.linear else (float("nan"),) * 2
    entries = change.double()
    return {
        "layer": layer, "block": reference.block_of(layer), "depth": reference.depth_of(layer), "kind": layer_kind(layer),
        "label": label, "what": "as pruned", "rows": len(change), "cols": change[0].numel(), "images": len(peaks), "positions": seen.positions,
        "mean_change": plain(mean), "max_change": plain(most), "budget": plain(2 * mean),
        "frobenius2": plain(entries.square().sum().item()), "l1": plain(entries.abs().sum().item()),
        "disjoint": not bool(((change != 0) & (kept.to(change.device) != 0)).any()),
        "sigma": plain(noise["sigma"]), "sigma_plus": plain(noise["sigma_plus"]), "applies": bool(noise["applies"]),
        "mean_norm": plain(norms.mean().item()), "note": "" if seen.linear else NOT_LINEAR,
    }  # fmt: skip


def _noise(reference: Network, layers: Sequence[str], spectra: pd.DataFrame | None, device: str) -> pd.DataFrame:
    """Index layer: the fit to each whole layer's dense weight, from the given table as far as that has it."""
    known = spectra[spectra["part"].isin(("", "qkv"))].drop_duplicates("layer").set_index("layer") if spectra is not None else pd.DataFrame()
    missing = [layer for layer in layers if layer not in known.index]
    if missing:
        fitted = spectra_table(reference, layers=missing, split_qkv=False, device=device).set_index("layer")
        known = pd.concat([known, fitted]) if len(known) else fitted
    return known


def _smallest(weight: Tensor, sparsity: float) -> Tensor:
    """bool, True for the share of smallest entries."""
    gone = torch.zeros(weight.numel(), dtype=torch.bool, device=weight.device)
    gone[weight.abs().flatten().argsort(stable=True)[: round(sparsity * weight.numel())]] = True
    return gone.view(weight.shape)

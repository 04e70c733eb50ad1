"""Accuracy right after pruning, without any healing, on the kit's ViT-Tiny: the table that masks are judged by.

    python tests/bars.py masks [csv=masks.csv] [images=1000] [seeds=0,1,2] [device=auto] [only=cast]

Rows: unstructured .5 .6 .7 .75 and n:m 2:4, 4:8, 6:12, 8:16, each by every way to choose masks; what looks at images is done
for every seed of the 256 class-balanced calibration images. `only` keeps the rows whose method contains it. Each row is
written when it is known, and rows that the file already has are not done again. Seconds are those for the masks alone; the first
row of a seed that needs a pass over the images includes it.
"""

from __future__ import annotations

import csv
import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import torch

from starfish_lab import settings
from starfish_lab.calibration import activations
from starfish_lab.data import ImageSet, open_images
from starfish_lab.measure import accuracy, hardware
from starfish_lab.models.loading import load
from starfish_lab.models.network import Network
from starfish_lab.pruning import permutation, prune
from starfish_lab.recipe import ImagesChoice, ModelChoice, PruningChoice

KIT = (settings.ROOT / Path(settings.KIT()).expanduser()).resolve()
COLUMNS = ["setting", "method", "seed", "images", "correct", "top1", "low", "high", "removed", "cost_saved", "seconds", "device"]
SPARSITIES = (0.5, 0.6, 0.7, 0.75)
SHAPES = ((2, 4), (4, 8), (6, 12), (8, 16))
PERMUTATIONS = ("deal", "snake", "search")


def choices() -> Iterator[tuple[str, str, PruningChoice, bool]]:
    """Setting, method, what to prune, and whether it depends on the calibration images."""
    for sparsity in SPARSITIES:
        base = PruningChoice(sparsity=sparsity)
        for method, fields, seeded in (
            ("magnitude, uniform", {}, False), ("magnitude, global", {"budget": "global"}, False),
            ("magnitude, mp_edge", {"budget": "mp_edge"}, False),
            ("wanda", {"score": "wanda"}, True), ("sparsegpt", {"score": "sparsegpt"}, True),
            ("sparsegpt, no update", {"score": "sparsegpt", "score_options": {"update": False}}, True),
        ):  # fmt: skip
            yield f"{sparsity:.0%}", method, dataclasses.replace(base, **fields), seeded
    for keep, group in SHAPES:
        base = PruningChoice(pattern="n_m", keep=keep, group=group)
        for score in ("magnitude", "wanda", "sparsegpt", "cast"):
            yield f"{keep}:{group}", score, dataclasses.replace(base, score=score), score != "magnitude"
        for score in ("magnitude", "cast"):
            for order in PERMUTATIONS:
                yield f"{keep}:{group}", f"{score} + {order}", dataclasses.replace(base, score=score, permutation=order), True


def main(*, csv: str = "masks.csv", images: str = "1000", seeds: str = "0,1,2", device: str = "auto", only: str = "") -> None:
    path, device = Path(csv), hardware.choose_device(device)
    network = vit()
    evaluation = splits(network, evaluation=int(images)).evaluation
    evaluation = ImageSet.of(evaluation.tensor(), evaluation.labels)  # decoded once
    seen = Seen(network)
    done = {(row["setting"], row["method"], row["seed"], row["images"]) for row in read(path)}
    if ("dense", "", "", images) not in done:
        write(path, measure(network, evaluation, device) | {"setting": "dense", "device": device})
    for seed in map(int, seeds.split(",")):
        calibration = None
        for setting, method, choice, seeded in choices():
            key = (setting, method, str(seed) if seeded else "", images)
            if key in done or only not in method:
                continue
            if calibration is None and seeded:
                calibration = splits(network, seed=seed).calibration.tensor()
            done.add(key)
            row = row_of(network, choice, calibration if seeded else None, evaluation, device, seen)
            write(path, row | dict(zip(COLUMNS, key)) | {"device": device})
    report(read(path), images)


def row_of(network: Network, choice: PruningChoice, calibration, evaluation: ImageSet, device: str, seen: Seen) -> dict[str, object]:
    started = time.perf_counter()
    with seen:
        orders = seen.orders_for(choice, calibration, device)
        network = permutation.permuted(network, orders) if orders else network
        result = prune.make_masks(network, choice, calibration=calibration, device=device)
    seconds = time.perf_counter() - started
    removed = sum(int((~mask).sum()) for mask in result.masks.values()) / sum(mask.numel() for mask in result.masks.values())
    saved = [row["saved"] for row in result.rows]
    facts = {"removed": f"{removed:.6f}", "seconds": f"{seconds:.1f}", "cost_saved": f"{sum(saved) / len(saved):.4f}" if saved else ""}
    return facts | measure(prune.pruned(network, result.masks, result.weights), evaluation, device)


def measure(network: Network, evaluation: ImageSet, device: str) -> dict[str, object]:
    row = accuracy.accuracy_row(accuracy.predict(network, evaluation, device=device))
    return {name: row[name] for name in ("images", "correct", "top1", "low", "high")}


class Seen:
    """While it is open, the library asks here what layers see: one pass for norms and one for moments serve all rows of a seed.

    Moments of groups are blocks of the whole ones, and those of a network with reordered inputs (Linear layers alone) the dense
    network's in that order; the same orders serve every way to choose masks.
    """

    def __init__(self, network: Network) -> None:
        self.network, self.images, self.known, self.orders = network, None, {}, {}
        places = ((prune, "second_moments", self.moments), (prune, "input_norms", self.norms), (permutation, "input_norms", self.norms))
        self.patches = [mock.patch.object(module, name, instead) for module, name, instead in places]

    def __enter__(self) -> None:
        for patch in self.patches:
            patch.start()

    def __exit__(self, *_: object) -> None:
        for patch in self.patches:
            patch.stop()

    def _once(self, images, what: object, ask: Callable[[], object]):
        if images is not self.images:
            self.images, self.known = images, {}
        if what not in self.known:
            self.known[what] = ask()
        return self.known[what]

    def orders_for(self, choice: PruningChoice, images, device: str) -> dict[str, torch.Tensor]:
        self.orders = {}
        if choice.permutation != "none":
            what = (choice.permutation, choice.keep, choice.group)
            self.orders = self._once(images, what, lambda: permutation.find(self.network, choice, images, device=device).orders)
        return self.orders

    def norms(self, _: Network, layers, images, **how) -> dict[str, torch.Tensor]:
        return dict(self._once(images, "norms", lambda: activations.input_norms(self.network, layers, images, **how)))  # whoever asks may empty it

    def moments(self, _: Network, layers, images, *, group: int | None = None, **how) -> dict[str, torch.Tensor]:
        made = {}
        for layer, found in self._once(images, "moments", lambda: activations.second_moments(self.network, layers, images, **how)).items():
            order = self.orders.get(layer, torch.arange(len(found)))
            made[layer] = found[order][:, order]
            if group is not None:
                made[layer] = made[layer].unflatten(0, (-1, group)).unflatten(2, (-1, group)).diagonal(dim1=0, dim2=2).movedim(-1, 0).contiguous()
        return made


def vit() -> Network:
    weights = KIT / "vit_tiny_tinyimagenet200" / "model.safetensors"
    preprocessing = {"interpolation": "bilinear", "crop_pct": 0.875}  # mean and std stand in its config.json
    return load(ModelChoice(name="deit_tiny_patch16_224", weights="file", path=str(weights), preprocessing=preprocessing))


def splits(network: Network, *, seed: int = 0, evaluation: int = 1, calibration: int = 256):
    folder = KIT / "tiny_imagenet"
    choice = ImagesChoice(
        source="csv", path=str(folder / "val_first_5000.zip"), csv=str(folder / "val_labels.csv"), label_column="wnid",
        calibration_path=str(folder / "train_50_per_class.zip"), calibration_csv=str(folder / "train_labels.csv"),
        calibration=calibration, drift=4, evaluation=evaluation, order="first", seed=seed,
    )  # fmt: skip
    return open_images(choice, network)


def read(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open())) if path.exists() else []


def write(path: Path, row: dict[str, object]) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="")
        if new:
            writer.writeheader()
        writer.writerow(row)
    seed = f" seed {row['seed']}" if row.get("seed", "") != "" else ""
    print(f"{row['setting']:>5} {row.get('method', ''):22}{seed:7} {interval(row)}, masks in {row.get('seconds', '0')} s", flush=True)


def interval(row: dict[str, object]) -> str:
    top1, low, high = (100 * float(row[name]) for name in ("top1", "low", "high"))
    return f"{top1:.1f} % [{low:.1f}, {high:.1f}], n = {row['images']}"


def report(rows: list[dict[str, str]], images: str) -> None:
    """One line a setting and method: top-1 with its Wilson interval, or the mean over seeds with the least and the largest."""
    groups: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in rows:
        if row["images"] == images:
            groups.setdefault((row["setting"], row["method"]), []).append(row)
    print(f"\n{'setting':>7} {'method':22} top-1 without healing")
    for (setting, method), found in sorted(groups.items()):
        if len(found) == 1:
            print(f"{setting:>7} {method:22} {interval(found[0])}")
            continue
        values = [100 * float(row["top1"]) for row in found]
        pooled = accuracy.wilson(round(sum(int(row["correct"]) for row in found) / len(found)), int(images))
        print(
            f"{setting:>7} {method:22} {sum(values) / len(values):.1f} % [{100 * pooled[0]:.1f}, {100 * pooled[1]:.1f}], n = {images}, "
            f"{len(found)} seeds from {min(values):.1f} to {max(values):.1f}"
        )

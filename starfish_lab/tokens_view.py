"""What token merging does to a few pictures: which patches end up in one token, and what the network then answers.

Two tables:

    pictures  image, name, label, width, height, rows, cols (of patches), png (base64, what the network sees), dense_class, dense_probability,
              merged_class, merged_probability
    merges    image, depth, tokens (in the whole row after that block), row, col, token, size: which token a patch is in after that
              block, and how many original tokens that one stands for; a row a patch

Depth counts blocks from 0. Labels are not needed.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from starfish_lab import tokens
from starfish_lab.data.classes import class_name, indices
from starfish_lab.data.images import SUFFIXES, Item, Stored, transform
from starfish_lab.data.splits import SOURCES
from starfish_lab.data.thumbnails import shown
from starfish_lab.errors import ImagesError, RecipeError
from starfish_lab.measure.hardware import choose_device
from starfish_lab.measure.running import evaluating
from starfish_lab.models.loading import load
from starfish_lab.models.network import Network, Preprocessing
from starfish_lab.progress import Reporter
from starfish_lab.recipe import ImagesChoice, Recipe
from starfish_lab.report import Report

IMAGES = 4


@dataclass(frozen=True)
class _Picture:
    """One picture: what it is called, what it shows ('' where nothing says so), and as the network takes it (C, H, W)."""

    name: str
    label: str
    pixels: Tensor


def compute(recipe: Recipe, *, images: int = IMAGES, device: str = "auto", reporter: Reporter | None = None) -> Report:
    """Merge tokens as `recipe.tokens` says in up to `images` pictures of `recipe.images`, whose path may also be a single picture.

    Raises RecipeError for a network whose tokens cannot merge, ImagesError if no picture can be read.
    """
    reporter, report = reporter or Reporter(), Report()
    device = choose_device(device)
    reporter.stage("load")
    dense = load(recipe.model)
    student = dense.copy()
    tokens.merge(student, recipe.tokens)
    if tokens.facts(student) is None:
        raise RecipeError("Nothing merges: tokens.r is empty or 0. Give how many tokens each block merges, such as 8.")
    notes = tokens.remarks(dense, recipe.tokens)
    pictures = _pictures(recipe.images, dense, images, notes)
    reporter.stage("merge")
    batch = torch.stack([picture.pixels for picture in pictures])
    with evaluating(dense.module, device) as module:
        expected = module(batch.to(device)).float().softmax(-1).cpu()
    with evaluating(student.module, device) as module, Caught(student) as caught:
        found = module(batch.to(device)).float().softmax(-1).cpu()
    rows, cols = dense.module.patch_embed.grid_size
    for i, picture in enumerate(pictures):
        report.add("pictures", [{
            "image": i, "name": picture.name, "label": picture.label, "width": batch.shape[-1], "height": batch.shape[-2], "rows": rows, "cols": cols,
            "png": png(picture.pixels, dense.preprocessing), **_answer("dense", expected[i], dense), **_answer("merged", found[i], dense),
        }])  # fmt: skip
        report.add("merges", merge_rows(i, [after[i] for after in caught.sources], dense.prefix_tokens, cols))
    for note in notes:
        reporter.note(note)
        report.add("notes", [{"note": note}])
    return report


def png(pixels: Tensor, preprocessing: Preprocessing) -> str:
    """The network's input (C, H, W) with its normalisation undone, as base64 of a PNG."""
    file = io.BytesIO()
    shown(pixels, preprocessing).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


class Caught:
    """Which token every original one is in after every block of one forward pass: `sources`, one (B, N) a block, on the CPU."""

    def __init__(self, network: Network):
        self._blocks = [network.module.get_submodule(name) for name in network.blocks]
        self.sources: list[Tensor] = []

    def __enter__(self) -> Caught:
        self._handles = [block.register_forward_hook(self._keep) for block in self._blocks]
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _keep(self, module: object, inputs: object, output: tokens.Tokens) -> None:
        count = output.values.shape[1]
        source = output.source if output.source is not None else torch.arange(count).expand(len(output.values), -1)
        self.sources.append(source.cpu())


def merge_rows(image: int, sources: list[Tensor], prefix: int, cols: int) -> list[dict[str, int]]:
    """Rows of one picture from its (N,) sources after every block."""
    found = []
    for depth, source in enumerate(sources):
        sizes = np.bincount(source.numpy())
        for patch, token in enumerate(source[prefix:].tolist()):
            row, col = divmod(patch, cols)
            found.append({
                "image": image, "depth": depth, "tokens": len(sizes), "row": row, "col": col, "token": token, "size": int(sizes[token]),
            })  # fmt: skip
    return found


def _answer(whose: str, probabilities: Tensor, network: Network) -> dict[str, object]:
    probability, place = probabilities.max(-1)
    return {f"{whose}_class": class_name(int(place), network), f"{whose}_probability": probability.item()}


def _pictures(choice: ImagesChoice, network: Network, count: int, notes: list[str]) -> list[_Picture]:
    """The first `count` readable pictures in the order the choice says."""
    items, labels = _listed(choice, network)
    order = range(len(items)) if choice.order == "first" else np.random.default_rng(choice.seed).permutation(len(items)).tolist()
    prepare = transform(network.preprocessing)
    found: list[_Picture] = []
    for place in order:
        if len(found) == count:
            break
        try:
            pixels = prepare(items[place].open())
        except Exception:  # whatever a decoder makes of a broken file
            notes.append(f"{items[place].name} cannot be read and was passed over.")
            continue
        found.append(_Picture(items[place].name, labels[place], pixels))
    if not found:
        raise ImagesError(f"None of the {len(items)} pictures can be read. Give a JPEG or PNG that opens in an image viewer.")
    return found


def _listed(choice: ImagesChoice, network: Network) -> tuple[list[Item], list[str]]:
    """Pictures and what they show in words, '' where that is not known."""
    path = Path(choice.path).expanduser() if choice.path else None
    if choice.source == "folder" and path is not None and path.is_file() and path.suffix.lower() in SUFFIXES:
        return [Stored(path.name, path)], [""]
    listing = SOURCES.get(choice.source)(choice, "evaluation")
    if listing.labels is None:
        return listing.items, [""] * len(listing.items)
    try:
        places, _ = indices(listing.labels, network)
        return listing.items, [class_name(place, network) for place in places.tolist()]
    except ImagesError:
        return listing.items, [str(label) for label in listing.labels]  # not the network's classes: shown as they are written

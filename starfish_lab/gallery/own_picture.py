"""compute(plan) → Report: what the dense, the pruned and the healed network of a run say of one picture, and where they look.

Tables, none of which needs a label:

    pictures   one row: image (0), name, label (''), width, height, rows, cols (of patches, 0 where there are none), png (base64, what the
               networks see)
    top5       a row a stage and class: stage, rank (1 is first), place, name, probability
    attention  a row a stage of a vision transformer: stage, how (in words), values (rows · cols shares of the attention, row by row)
    merges     stage, and the columns of tokens_view, of stages whose tokens merge
    notes      why something is not shown

The healed network is the one that the run saved. The pruned one is made again from the recipe, which takes what pruning took; where
that would mean to train, it is left out and a note says so. A run that was not healed saved its pruned network.
"""

from __future__ import annotations

import io
import warnings
from contextlib import nullcontext

import numpy as np
from PIL import Image
from torch import Tensor

from starfish_lab import artefacts, data, tokens
from starfish_lab.data.classes import class_name
from starfish_lab.data.images import transform
from starfish_lab.errors import ImagesError, LabError, RecipeError, Refused
from starfish_lab.export import load_pruned
from starfish_lab.gallery.attention import Heard, refuse
from starfish_lab.gallery.plan import PicturePlan
from starfish_lab.measure.hardware import choose_device
from starfish_lab.measure.running import evaluating
from starfish_lab.models.loading import load
from starfish_lab.models.network import Network
from starfish_lab.preparation import begin, prepare
from starfish_lab.progress import Reporter
from starfish_lab.pruning import STARTS
from starfish_lab.recipe import Recipe
from starfish_lab.report import Report
from starfish_lab.tokens_view import Caught, merge_rows, png

SHOWN = 5


def compute(plan: PicturePlan, *, device: str = "auto", reporter: Reporter | None = None) -> Report:
    """Show the picture to all three networks. Raises WeightsError where the run's network is gone, ImagesError for what is no picture."""
    reporter, report = reporter or Reporter(), Report()
    device = choose_device(device)
    reporter.stage("load")
    stages = {"dense": load(plan.recipe.model)}
    saved = load_pruned(artefacts.fetch(plan.artefact))
    pixels = _pixels(plan, stages["dense"])
    notes: list[str] = []
    reporter.stage("prune")
    if _heals(plan.recipe):
        try:
            stages["pruned"] = rebuilt(stages["dense"], plan.recipe, device=device, reporter=reporter)
        except LabError as error:
            notes.append(f"The pruned network is not shown: {error}")
        stages["healed"] = saved
    else:
        stages["pruned"] = saved
    reporter.stage("answer")
    rows, cols = _grid(stages["dense"], notes)
    report.add("pictures", [{
        "image": 0, "name": plan.file, "label": "", "width": pixels.shape[-1], "height": pixels.shape[-2], "rows": rows, "cols": cols,
        "png": png(pixels, stages["dense"].preprocessing),
    }])  # fmt: skip
    for stage, network in stages.items():
        reporter.check()
        _show(report, stage, network, pixels[None], looks=rows > 0, cols=cols, device=device)
    for text in dict.fromkeys(notes):
        reporter.note(text)
        report.add("notes", [{"note": text}])
    return report


def rebuilt(dense: Network, recipe: Recipe, *, device: str = "cpu", reporter: Reporter | None = None) -> Network:
    """The pruned network of a run, before it was healed. Raises LabError where that would mean to train, or images are missing.

    Images are opened only where pruning looks at any.
    """
    if STARTS.constant(recipe.start.method, "TRAINS", False):
        raise RecipeError(f"its start '{recipe.start.method}' trains in cycles, which making it again would repeat.")
    try:
        return prepare(dense, begin(dense, recipe, None, device=device), recipe, None, device=device, reporter=reporter).network
    except RecipeError:
        splits = data.open_images(recipe.images, dense)
        return prepare(dense, begin(dense, recipe, splits, device=device), recipe, splits, device=device, reporter=reporter).network


def _heals(recipe: Recipe) -> bool:
    return (recipe.healing.repair, recipe.healing.method) != ("none", "none")


def _pixels(plan: PicturePlan, network: Network) -> Tensor:
    """(C, H, W) as the networks take it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return transform(network.preprocessing)(Image.open(io.BytesIO(plan.content)).convert("RGB"))
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise ImagesError(f"{plan.file or 'The picture'} cannot be read ({error}). Upload it again.") from None


def _grid(dense: Network, notes: list[str]) -> tuple[int, int]:
    """Rows and columns of patches; (0, 0) and a note where there is no attention over patches."""
    try:
        refuse(dense)
        return tuple(dense.module.patch_embed.grid_size)
    except Refused as error:
        notes.append(str(error))
        return 0, 0


def _show(report: Report, stage: str, network: Network, batch: Tensor, *, looks: bool, cols: int, device: str) -> None:
    """One network's answers, and of a transformer what its last block attends to and which tokens merged."""
    module = network.module
    with evaluating(module, device):
        if not looks:
            answers = module(batch.to(device))
        else:
            merges = tokens.facts(network) is not None
            with Heard(network) as heard, Caught(network) if merges else nullcontext() as caught:
                answers = module(batch.to(device))
            entering = caught.sources[-2] if merges and len(caught.sources) > 1 else None
            values = heard.over_patches(entering)[0]
            report.add("attention", [{"stage": stage, "how": heard.how, "values": np.round(values.float().numpy(), 6).tolist()}])
            if merges:
                report.add("merges", merge_rows(0, [after[0] for after in caught.sources], network.prefix_tokens, cols), stage=stage)
    probabilities = answers[0].float().softmax(-1).cpu()
    best = probabilities.topk(min(SHOWN, len(probabilities)))
    report.add("top5", [
        {"stage": stage, "rank": rank, "place": int(place), "name": class_name(int(place), network), "probability": float(p)}
        for rank, (p, place) in enumerate(zip(best.values, best.indices), start=1)
    ])  # fmt: skip

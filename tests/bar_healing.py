"""Every healer under one protocol on real networks: the table of assets/measured/healing.csv.

    python tests/bars.py healing network=vit|resnet|starter [score=magnitude|aligned|…] [sparsities=.75] [images=400] [steps=130]
        [seeds=0] [healers=none,starfish,…] [rates=0.3,1,3] [tuning=40] [at=lora:2e-3,…] [precision=bf16] [csv=healing.csv] [cells=FOLDER]
        [evaluation=4000]

A bake-off (`starfish_lab.bakeoff`) on the starter, or on the kit's ViT-Tiny or ResNet-20. Calibration images are training images,
evaluation images never: the kit's first 1,000 of Tiny ImageNet's validation set, or the first 500 of CIFAR-10's test set.
`evaluation` takes more of the former, up to 4,000: its second thousand, on which STARFISH+ was put together, is left out. Rows of
the table are written as they come; cells that `cells` already has are not done again, and rows of the same cell are replaced.
Without `rates` every healer heals at its own learning rate, or at the one that `at` gives it. `healers=ablation` takes STARFISH+'s
training apart, one choice at a time, on masks that come with their weights (score=aligned).
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import bar_masks
import pandas as pd
import test_kit
from PIL import Image

from starfish_lab.bakeoff.plan import BakeOff
from starfish_lab.bakeoff.run import run
from starfish_lab.models.network import Network
from starfish_lab.progress import Reporter
from starfish_lab.recipe import HealingChoice, ImagesChoice, MeasureChoice, ModelChoice, PruningChoice, Recipe
from starfish_lab.report import Report

UNLABELLED = (
    "none", "mean_shift", "sparsegpt_update", "least_squares", "snows_adam", "aligned", "block_local", "feature_mimicking", "pseudo_labels",
    "logit_distillation", "lora", "starfish", "least_squares+starfish", "starfish_plus",
)  # fmt: skip
ABLATION = {
    "STARFISH+ on all tokens": {"options": {"keep": 1}}, "STARFISH+ without class weight": {"options": {"class_weight": 0}},
    "STARFISH+, weights alone": {"trains": "weights"}, "STARFISH+ without flips": {"augmentation": "none"},
    "STARFISH+ at the paper's rate": {"learning_rate": 6e-4, "warmup": 0}, "STARFISH+ without warm-up": {"warmup": 0},
    "STARFISH+ in fixed order": {"order": "fixed"},
}  # fmt: skip
KEY = ["network", "masks", "healer", "seed", "sparsity", "images", "steps", "precision", "learning_rate", "rate_tuned", "hardware"]


def main(
    *, network: str = "vit", score: str = "magnitude", sparsities: str = "0.75", images: str = "", steps: str = "", seeds: str = "0",
    healers: str = "", rates: str = "", tuning: str = "", at: str = "", precision: str = "float32", csv: str = "healing.csv", cells: str = "cells",
    evaluation: str = "", device: str = "cpu",
) -> None:  # fmt: skip
    path = Path(csv)
    dense, recipe = {"vit": _vit, "resnet": _resnet, "starter": _starter}[network](Path(cells))
    if evaluation:
        recipe = _evaluated(recipe, int(evaluation), Path(cells))
    numbers = tuple(map(int, images.split(","))) if images else (recipe.images.calibration,)
    solver = {"precision": precision} if score == "aligned" else {}
    recipe = _with(recipe, pruning=PruningChoice(score=score, exclude=recipe.pruning.exclude, score_options=solver), precision=precision)
    options = {name: {"learning_rate": float(rate)} for name, rate in (pair.split(":") for pair in at.split(",") if pair)}
    chosen = tuple(healers.split(",")) if healers else (*UNLABELLED, "cross_entropy")
    if chosen == ("ablation",):
        chosen, options = ("none+starfish_plus", *ABLATION), {name: {"healer": "none+starfish_plus", **fields} for name, fields in ABLATION.items()}
    plan = BakeOff(
        recipe=recipe, healers=chosen, options=options, images=numbers,
        sparsities=tuple(map(float, sparsities.split(","))), steps=tuple(map(int, steps.split(","))) if steps else (),
        seeds=tuple(map(int, seeds.split(","))), rates=tuple(map(float, rates.split(","))) if rates else (),
        tuning_steps=int(tuning) if tuning else None,
    )  # fmt: skip
    report = run(plan, dense=dense, reporter=Said(), folder=Path(cells), device=device)
    rows = _rows(report, network, score)
    known = pd.read_csv(path) if path.exists() else rows.iloc[:0]
    whole = pd.concat([known, rows], ignore_index=True).drop_duplicates(KEY, keep="last")
    whole.sort_values(KEY).to_csv(path, index=False)
    print(f"{len(rows)} rows of {len(whole)} in {path}")


class Said(Reporter):
    def note(self, text: str) -> None:
        print(text, flush=True)


def _rows(report: Report, network: str, score: str) -> pd.DataFrame:
    """The healers' rows, each with what it takes to know where it comes from."""
    facts = report.frame("provenance").set_index("name")["value"]
    threads = facts["hardware.threads"]
    where = {
        "network": {"vit": "vit_tiny_tinyimagenet200", "resnet": "resnet20_cifar10", "starter": "starter"}[network], "masks": score,
        "pattern": "unstructured", "hardware": f"{facts['hardware.device_name']}, {threads} thread{'s' * (threads != '1')}",
        "torch": facts["version.torch"], "timm": facts["version.timm"], "measured_at": facts["measured_at"], "weights": facts["weights_sha256"][:12],
    }  # fmt: skip
    return report.frame("healers").assign(**where)


def _with(recipe: Recipe, *, pruning: PruningChoice, precision: str) -> Recipe:
    return Recipe(
        model=recipe.model, images=recipe.images, pruning=pruning, healing=HealingChoice(precision=precision), measure=MeasureChoice(snapshots=0)
    )


def _evaluated(recipe: Recipe, count: int, cells: Path) -> Recipe:
    """On so many images, none of them of the second thousand."""
    table, path = pd.read_csv(recipe.images.csv), cells / "evaluation.csv"
    cells.mkdir(parents=True, exist_ok=True)
    table[~table.index.isin(range(1000, 2000))].to_csv(path, index=False)
    return replace(recipe, images=replace(recipe.images, csv=str(path), evaluation=count))


def _starter(_: Path) -> tuple[None, Recipe]:
    return None, Recipe()


def _vit(_: Path) -> tuple[Network, Recipe]:
    folder = bar_masks.KIT / "tiny_imagenet"
    weights = bar_masks.KIT / "vit_tiny_tinyimagenet200" / "model.safetensors"
    preprocessing = {"interpolation": "bilinear", "crop_pct": 0.875}
    return None, Recipe(
        model=ModelChoice(name="deit_tiny_patch16_224", weights="file", path=str(weights), preprocessing=preprocessing),
        images=ImagesChoice(
            source="csv", path=str(folder / "val_first_5000.zip"), csv=str(folder / "val_labels.csv"), label_column="wnid",
            calibration_path=str(folder / "train_50_per_class.zip"), calibration_csv=str(folder / "train_labels.csv"),
            calibration=400, drift=64, evaluation=1000, order="first",
        ),
    )  # fmt: skip


def _resnet(cells: Path) -> tuple[Network, Recipe]:
    """CIFAR-10's sheets of pixels are cut into images in a folder of `cells`."""
    source, folder = bar_masks.KIT / "cifar10", cells / "cifar10"
    labels = json.loads((source / "labels.json").read_text())["labels"]
    sheets = {name if "test" in name else f"batch_{name}": known for name, known in labels.items()}
    for sheet, known in sheets.items():
        (folder / sheet).mkdir(parents=True, exist_ok=True)
        whole = Image.open(source / f"cifar10_{sheet}.png").convert("RGB")
        for row in range(len(known)):
            if not (file := folder / sheet / f"{row:04}.png").exists():
                Image.frombytes("RGB", (32, 32), whole.crop((0, row, 1024, row + 1)).tobytes()).save(file)
    for name, test in (("evaluation", True), ("calibration", False)):
        rows = [
            {"file": f"{sheet}/{row:04}.png", "label": label}
            for sheet, known in sheets.items() if ("test" in sheet) is test for row, label in enumerate(known)
        ]  # fmt: skip
        pd.DataFrame(rows).to_csv(folder / f"{name}.csv", index=False)
    images = ImagesChoice(
        source="csv", path=str(folder), csv=str(folder / "evaluation.csv"), calibration_path=str(folder),
        calibration_csv=str(folder / "calibration.csv"), calibration=400, drift=64, evaluation=500, order="first",
    )  # fmt: skip
    return test_kit.resnet(3), Recipe(images=images, pruning=PruningChoice(exclude=("*downsample*",)))

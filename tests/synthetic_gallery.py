"""Answers of three networks that never ran, for reports of runs that never ran either."""

from __future__ import annotations

import base64
import io

import numpy as np
import synthetic
from PIL import Image

from starfish_lab.gallery.answers import answer_rows
from starfish_lab.gallery.damage import damage_rows
from starfish_lab.measure.accuracy import Predictions

NAMES = {0: "cat", 1: "<b>dog</b>", 2: "newt"}
LABELS = np.array([0, 0, 0, 0, 1, 1, 1, 2])
ANSWERS = {  # of eight images, three of class 0
    "dense": np.array([0, 0, 0, 1, 1, 1, 1, 2]),
    "pruned": np.array([0, 1, 1, 1, 0, 0, 1, 2]),
    "healed": np.array([0, 0, 2, 1, 1, 0, 0, 2]),
}
GROUPS = ["kept", "back", "never", "kept", "back", "never", "broken", "kept"]


def predictions(top1, labels=LABELS, confidence=0.75) -> Predictions:
    """Answers to images 0, 1, 2 … with the same confidence in all."""
    top1 = np.asarray(top1)
    return Predictions(np.arange(len(top1)), top1[:, None], np.asarray(labels), confidence=np.full(len(top1), confidence))


def all_stages(*stages: str) -> dict[str, Predictions]:
    return {stage: predictions(ANSWERS[stage]) for stage in stages or ANSWERS}


def jpeg(side: int = 8) -> str:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)).save(file, "JPEG")
    return base64.b64encode(file.getvalue()).decode()


def add_gallery(report, *stages: str):
    """The tables of the gallery, in a report."""
    known = all_stages(*stages)
    report.add("answers", answer_rows(known))
    report.add("classes", [{"place": place, "name": name} for place, name in NAMES.items()])
    report.add("class_damage", damage_rows(known))
    report.add("thumbnails", [{"image": place, "name": f"{place}.png", "jpeg": jpeg()} for place in (1, 2, 5)])
    return report


def finished(store, *stages: str) -> int:
    """A finished run with answers of these stages (all)."""
    run = store.submit(synthetic.recipe())
    store.finish(run, add_gallery(synthetic.report(), *stages))
    return run

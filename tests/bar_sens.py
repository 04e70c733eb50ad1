"""Budgets along sensitivity curves against uniform and global ones, pruned and not healed; and Trade-offs with 10,000 runs.

    python tests/bars.py sensitivity [sparsities=.8,.9,.95] [images=1000] [network=starter|vit] [pattern=structured] [score=corp] [device=auto]
    python tests/bars.py trade_offs [runs=10000]

`budgets` measures the curves on the drift images without labels (once: they stay in the lab's home), then prunes the starter, and where the
kit is there its ViT-Tiny, by every budget at equal sparsity; whole units at an equal share, and along the curves so that as many
multiply-adds go. Accuracy is that on the evaluation images, with its 95 % Wilson interval.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import bar_healing
import bar_masks

from starfish_lab import settings
from starfish_lab.data import Splits, open_images
from starfish_lab.measure import accuracy, hardware
from starfish_lab.measure.macs import effective_macs
from starfish_lab.models.loading import load
from starfish_lab.models.network import Network
from starfish_lab.pruning.prune import make_masks, pruned
from starfish_lab.recipe import PruningChoice, Recipe
from starfish_lab.sensitivity import spending, stored
from starfish_lab.sensitivity.plan import Sensitivity
from starfish_lab.sensitivity.run import run


def budgets(
    *, sparsities: str = ".8,.9,.95", images: str = "1000", network: str = "", pattern: str = "unstructured", score: str = "magnitude",
    device: str = "auto",
) -> None:  # fmt: skip
    device = hardware.choose_device(device)
    for dense, splits, recipe in _networks(int(images), network):
        started, calibration = time.perf_counter(), splits.calibration.tensor()
        recipe = replace(recipe, pruning=PruningChoice(pattern=pattern, score=score))
        report = run(Sensitivity.of(recipe), dense=dense, splits=splits, folder=settings.home() / "sensitivity", device=device)
        rows = report.frame("sensitivity")
        print(f"{dense.name}: {len(rows)} cells in {time.perf_counter() - started:.0f} s on {device}")
        answers = accuracy.accuracy_row(accuracy.predict(dense, splits.evaluation, device=device))
        print(f"{'dense':24} {answers['top1']:.1%} ({answers['low']:.1%} to {answers['high']:.1%}, n = {answers['images']})")
        for sparsity in map(float, sparsities.split(",")):
            base = replace(recipe.pruning, sparsity=sparsity)
            budgets = ("uniform", "global", "mp_edge", "sensitivity") if pattern == "unstructured" else ("uniform",)
            choices = {name: replace(base, budget=name) for name in budgets}
            choices |= {f"sensitivity, {damage}": spending.budget(base, rows, damage=damage) for damage in stored.damages(rows)}
            for name, choice in choices.items():
                masks = make_masks(dense, choice, calibration=calibration, device=device).masks
                student = pruned(dense, masks)
                found = accuracy.accuracy_row(accuracy.predict(student, splits.evaluation, device=device))
                told = "no curves: squared scores" if name == "sensitivity" else name
                left = effective_macs(dense, masks) / 1e9
                print(f"{sparsity:.0%} {told:28} {found['top1']:.1%} ({found['low']:.1%} to {found['high']:.1%}), {left:.4f} GMACs", flush=True)


def _networks(images: int, network: str) -> Iterator[tuple[Network, Splits, Recipe]]:
    for name in [network] if network else ["starter", *(["vit"] if bar_masks.KIT.is_dir() else [])]:
        recipe = Recipe() if name == "starter" else bar_healing._vit(Path())[1]
        if recipe.images.evaluation is not None:
            recipe = replace(recipe, images=replace(recipe.images, evaluation=images))
        dense = load(recipe.model)
        yield dense, open_images(recipe.images, dense), recipe


def trade_offs(*, runs: str = "10000") -> None:
    """Wall seconds of the first paint and the median of ten reruns, with so many finished runs in the store."""
    import synthetic
    from test_app_trade_offs import many

    from starfish_lab.store import Store

    with tempfile.TemporaryDirectory() as home:
        os.environ["STARFISH_LAB_HOME"] = home
        many(Store(), int(runs))
        for cost in ("macs_g", "healing_s"):
            started = time.perf_counter()
            app = synthetic.open_page("trade_offs", cost=cost)
            first, again = time.perf_counter() - started, []
            for _ in range(10):
                started = time.perf_counter()
                app.run()
                again.append(time.perf_counter() - started)
            print(
                f"Trade-offs, {runs} runs, against {cost}: first {1000 * first:.0f} ms, again {1000 * statistics.median(again):.0f} ms (median of 10)"
            )

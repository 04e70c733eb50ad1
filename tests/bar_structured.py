"""Structured healing measured: units removed by CORP's ranking, healed while masked, then sliced."""

from __future__ import annotations

import bar_masks
import numpy as np
import torch

from starfish_lab.data import open_images
from starfish_lab.execution.slicing import slice_network
from starfish_lab.healing import healers
from starfish_lab.healing.heal import heal
from starfish_lab.measure import accuracy, latency, macs
from starfish_lab.models.loading import load
from starfish_lab.models.network import Network
from starfish_lab.pruning.prune import make_masks, pruned
from starfish_lab.recipe import HealingChoice, ImagesChoice, ModelChoice, PruningChoice


def main(
    *, only: str = "", seeds: str = "", steps: str = "", images: str = "", evaluation: str = "", shares: str = "0.25,0.5,0.75",
    names: str = "starfish,corp,corp+starfish", device: str = "cpu", batch: str = "8",
) -> None:  # fmt: skip
    """One line a seed, share of units removed and healer; seeds and names with commas, steps of training, images that calibrate."""
    for name in ("starter", "kit"):
        if only not in ("", name) or (name == "kit" and not bar_masks.KIT.is_dir()):
            continue
        dense = bar_masks.vit() if name == "kit" else load(ModelChoice())
        for seed in map(int, (seeds or ("0,1,2" if name == "starter" else "0")).split(",")):
            if name == "kit":
                splits = bar_masks.splits(dense, seed=seed, evaluation=int(evaluation or 1000), calibration=int(images or 400))
            else:
                splits = open_images(ImagesChoice(calibration=int(images or 64), evaluation=int(evaluation or 540), seed=seed), dense)
            calibration, wanted = splits.calibration.tensor(), accuracy.predict(dense, splits.evaluation, device=device)
            print(f"{name} seed {seed}: dense {_said(wanted)}, {len(calibration)} calibration images", flush=True)
            for share in map(float, shares.split(",")):
                choice = PruningChoice(pattern="structured", score="corp", sparsity=share, seed=seed)
                masks = make_masks(dense, choice, calibration=calibration, device=device).masks
                student = pruned(dense, masks)
                print(f"{share:.0%} pruned {_said(accuracy.predict(student, splits.evaluation, device=device))}", flush=True)
                for healer in names.split(","):
                    base = HealingChoice(steps=int(steps) if steps else 100 if name == "starter" else 130, seed=seed)
                    healed = student.copy()
                    result = heal(dense, healed, masks, calibration, healers.choice(healer, base), device=device)
                    small = slice_network(healed, masks)
                    whole, cut = (accuracy.predict(network, splits.evaluation, device=device) for network in (healed, small))
                    same = "identical" if np.array_equal(whole.top1, cut.top1) else f"{(whole.top1 != cut.top1).sum()} differ"
                    seconds = result.repair_seconds + result.seconds
                    print(
                        f"    {healer:14s} healed {_said(whole)}, {whole.correct.mean() / wanted.correct.mean():.1%} of dense; sliced "
                        f"{cut.correct.mean():.1%}, predictions {same}; {seconds:.0f} s",
                        flush=True,
                    )
                if seed == 0:  # what is left has the same shape under every healer and seed
                    print(f"    {_speed(dense, small, device, int(batch))}", flush=True)


def _said(answers: accuracy.Predictions) -> str:
    row = accuracy.accuracy_row(answers)
    return f"{row['top1']:.1%} [{row['low']:.1%}, {row['high']:.1%}] (n = {row['images']})"


def _speed(dense: Network, small: Network, device: str, batch: int) -> str:
    before, after = macs.total_macs(dense), macs.total_macs(small)
    modules, size = {"dense": dense.module, "sliced": small.module}, dense.preprocessing.input_size
    row = latency.measure(modules, size, device=device, batch_sizes=(batch,), seconds=5)[-1]
    return (
        f"sliced: {after / 1e9:.4f} of {before / 1e9:.4f} GMACs, {before / after:.2f} times fewer; measured {row['speedup']:.2f} times as fast "
        f"[{row['speedup_low']:.2f}, {row['speedup_high']:.2f}] at batch {batch}, {torch.get_num_threads()} threads"
    )

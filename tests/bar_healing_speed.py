"""How much sooner the speed-ups reach plain STARFISH's final loss, on the kit's ViT-Tiny.

    python tests/bars.py healing_speed [sparsity=.75] [images=400] [steps=130]

Loss is STARFISH's own, on all tokens of the same batches in the same order, as a mean over an epoch. Plain is the paper's recipe in
float32; the others change how it is computed or where it starts, one after the other. Seconds are those of the processor, repair
included, because they hardly depend on what else the machine does.
"""

from __future__ import annotations

import time
from pathlib import Path

import bar_healing
import pandas as pd

from starfish_lab import data
from starfish_lab.healing import healers
from starfish_lab.healing.heal import heal
from starfish_lab.models.loading import load
from starfish_lab.pruning.prune import make_masks, pruned
from starfish_lab.recipe import HealingChoice, PruningChoice

WAYS = {
    "STARFISH, float32": ("starfish", {}),
    "bf16": ("starfish", {"precision": "bf16"}),
    "bf16, teacher kept in half": ("starfish", {"precision": "bf16", "teacher": "half"}),
    "and from least squares": ("least_squares+starfish", {"precision": "bf16", "teacher": "half"}),
    "and from an aligned start": ("aligned+starfish", {"precision": "bf16", "teacher": "half"}),
}


def main(*, sparsity: str = "0.75", images: str = "400", steps: str = "130", ways: str = "") -> None:
    _, recipe = bar_healing._vit(Path())
    dense = load(recipe.model)
    calibration = data.open_images(recipe.images, dense).calibration.tensor()[: int(images)]
    masks = make_masks(dense, PruningChoice(sparsity=float(sparsity)), calibration=calibration).masks
    rows, goal = [], None
    for name, (healer, changed) in WAYS.items():
        if ways and name not in ways.split(";"):
            continue
        choice = healers.choice(healer, HealingChoice(steps=int(steps), **changed))
        clock = _Clock()
        result = heal(dense, pruned(dense, masks), masks, calibration, choice, observer=clock, watch=range(int(steps) + 1))
        losses = pd.Series(dict(result.losses)).rolling(-(-len(calibration) // choice.batch_size)).mean()
        goal = losses.iloc[-1] if goal is None else goal
        reached = losses.index[losses <= goal]
        step = int(reached[0]) if len(reached) else None
        rows.append({
            "way": name, "final_loss": losses.iloc[-1], "processor_seconds": clock.at[int(steps)], "reached_at_step": step,
            "seconds_to_goal": None if step is None else clock.at[step], "repair_seconds": result.repair_seconds,
        })  # fmt: skip
        print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    table["share_of_plain"] = table["seconds_to_goal"] / table["processor_seconds"].iloc[0]
    print(table.round(3).to_string(index=False))


class _Clock:
    """Processor seconds at each step."""

    def __init__(self) -> None:
        self._began = time.process_time()
        self.at: dict[int, float] = {}

    def __call__(self, step: int) -> None:
        self.at[step] = time.process_time() - self._began

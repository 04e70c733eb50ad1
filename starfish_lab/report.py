"""What an experiment found: a few tables of plain rows with named columns and units in the names.

table         a row is                          columns
------------  --------------------------------  --------------------------------------------------------------
accuracy      a stage: dense, pruned, healed    stage, top1, top5, low, high (95 % Wilson of top1), correct, images
comparisons   two stages on the same images     first, second, difference_pp, p_value, resolved, images, verdict
layers        a prunable layer, in depth order  layer, block, depth, kind, weights, removed, sparsity, macs_g,
                                                macs_g_effective, note
totals        a stage                           stage, parameters_m, nonzero_parameters_m, sparsity_prunable,
                                                sparsity_all, macs_g, macs_g_effective
drift         a block, a stage, some tokens     stage, block, depth, tokens, cosine_distance, relative_l2, cka
losses        a healing step                    step, loss
block_losses  a block at a recorded step        step, depth, loss
healing_drift a block at a step looked at       the columns of healing.watching, as have healing_accuracy, and images_seen, healing_spectra,
                                                strip and healing_strip
answers       a class of the evaluation images  the columns of gallery.answers, as has classes
class_damage  a class of the evaluation images  the columns of gallery.damage
thumbnails    an image whose answer changed     image (its place in the evaluation set), name, jpeg (base64)
spectra       a weight matrix at a stage        stage, and the columns of spectra.layers.spectra_table
latency       a stage at a batch size           stage, and the columns of measure.latency.measure, in latency runs of latency.run,
                                                as have latency_layers, sensors, peak and hardware
seconds       a stage of the run                stage, seconds
cycles        a phase of a cycle before pruning cycle, sparsity, phase, method, weights_removed, restored, steps,
                                                loss_first, loss_last, seconds, learning_rate
solver        a layer a solver worked on        layer, and the columns of the solver
permutation   a layer with reordered inputs     layer, and the columns of pruning.permutation
ledger        a layer that multiplies           layer, and the columns of ledger
certificates  a certificate at a stage          the columns of measure.certificates, as have
              an image, a layer                 certificate_images and certificate_layers
merges        a patch of a picture at a block   the columns of tokens_view, as have pictures
top5          a class, a stage, one picture     the columns of gallery.own_picture, as has attention
healers       a healing of a bake-off           the columns of bakeoff.run, as have healer_blocks, healer_curves, tuning, paired and knee
sweep_runs    a run of a sweep                  run, adopted, and the columns of sweep.plan.Point
layer_times   a piece of a network on a device  the columns of prediction.layer_times
sensitivity   a layer alone at a level          the columns of sensitivity.run
provenance    a fact                            name, value
notes         something worth knowing           note
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

TABLES = (
    "accuracy", "comparisons", "layers", "totals", "drift", "losses", "block_losses", "healing_drift", "healing_accuracy",
    "healing_spectra", "strip", "healing_strip", "answers", "classes", "class_damage", "thumbnails", "top5", "attention",
    "spectra", "latency", "latency_layers", "sensors", "peak", "hardware", "seconds", "provenance", "notes",
    "cycles", "solver", "permutation", "ledger", "certificates", "certificate_images", "certificate_layers", "merges", "pictures",
    "healers", "healer_blocks", "healer_curves", "tuning", "paired", "knee", "sweep_runs", "layer_times",
    "sensitivity",
)  # fmt: skip

LARGE = ("answers", "class_damage", "thumbnails")  # megabytes where there are many images: whoever needs none of them leaves them out


@dataclass
class Report:
    """Tables of one experiment, each a list of rows; `frame(name)` gives one as a DataFrame."""

    tables: dict[str, list[dict[str, object]]] = field(default_factory=dict)

    def add(self, table: str, rows: list[dict[str, object]] | pd.DataFrame, **constant: object) -> None:
        """Append rows to a table, each with the constant columns in front. What is not finite becomes None: JSON has no such numbers."""
        if table not in TABLES:
            raise KeyError(f"no table '{table}' in a report; known: {TABLES}")
        if isinstance(rows, pd.DataFrame):
            rows = rows.to_dict("records")
        self.tables.setdefault(table, []).extend({**constant, **{name: _plain(value) for name, value in row.items()}} for row in rows)

    def frame(self, table: str) -> pd.DataFrame:
        """One table; an empty frame where the experiment has none."""
        return pd.DataFrame(self.tables.get(table, []))

    def summary(self) -> dict[str, object]:
        """The figures a list of runs shows: one flat row. Missing stages are left out."""
        row: dict[str, object] = {}
        for entry in self.tables.get("accuracy", []):
            row |= {f"{key}_{entry['stage']}": entry[key] for key in ("top1", "low", "high")}
            row["images"] = entry["images"]
        for entry in self.tables.get("totals", []):
            row |= {f"{key}_{entry['stage']}": entry[key] for key in ("parameters_m", "nonzero_parameters_m", "macs_g", "macs_g_effective")}
            if entry["stage"] == "pruned":
                row |= {key: entry[key] for key in ("sparsity_prunable", "sparsity_all")}
        if row.get("top1_dense") and "top1_healed" in row:
            row["recovered"] = row["top1_healed"] / row["top1_dense"]
        row["seconds"] = sum(entry["seconds"] for entry in self.tables.get("seconds", []))
        return row

    def to_json(self) -> str:
        return json.dumps(self.tables)

    @classmethod
    def from_json(cls, text: str) -> Report:
        return cls(json.loads(text))


def _plain(value: object) -> object:
    return None if isinstance(value, float | np.floating) and not math.isfinite(value) else value

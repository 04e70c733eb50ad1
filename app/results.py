"""What pages say about runs: a recipe in short words, figures, points for charts. Rows in, rows out; no Streamlit."""

from __future__ import annotations

import pandas as pd

from app.charts import theme
from starfish_lab import evidence
from starfish_lab.pruning import STARTS
from starfish_lab.recipe import ImagesChoice, PruningChoice, Recipe, TokensChoice


def pattern(choice: PruningChoice) -> str:
    """What goes, in a few words.

    >>> pattern(PruningChoice()), pattern(PruningChoice(pattern="n_m")), pattern(PruningChoice(pattern="structured", sparsity=0.5))
    ('90 % unstructured', '2:4', '50 % structured (mlp, qk)')
    """
    if choice.pattern == "n_m":
        return f"{choice.keep}:{choice.group}"
    if choice.pattern == "kept":
        return "what the start lacks"
    units = f" ({', '.join(choice.units)})" if choice.pattern == "structured" else ""
    return f"{100 * choice.sparsity:g} % {choice.pattern}{units}"


def short(row: pd.Series | dict) -> str:
    """A row of the list of runs in a few words: its name, or what it did.

    >>> short({"id": 7, "name": "", "pattern": "unstructured", "sparsity": 0.9, "method": "starfish"})
    'Run 7 · 90 % unstructured, STARFISH'
    """
    kind = {"n_m": "n:m", "kept": "from its start"}.get(row["pattern"], row["pattern"])
    what = row["name"] or f"{100 * row['sparsity']:.3g} % {kind}, {' + '.join(map(name, row['method'].split('+')))}"
    return f"Run {row['id']} · {what}"


def merged_tokens(tokens: TokensChoice) -> int:
    """The one number of merged tokens a block that pages show; of one number a block the largest.

    >>> merged_tokens(TokensChoice()), merged_tokens(TokensChoice(r=(8,))), merged_tokens(TokensChoice(r=(2, 4, 0)))
    (0, 8, 4)
    """
    return max(tokens.r, default=0)


def before(recipe: Recipe) -> str:
    """What happens before pruning, in a sentence; '' where pruning starts from the dense network as it is.

    >>> before(Recipe())
    ''
    >>> before(Recipe(tokens=TokensChoice(r=(8,)), pruning=PruningChoice(pattern="n_m", permutation="deal")))
    'Before that every block merges 8 tokens, and inputs are reordered (deal).'
    """
    said, start = [], recipe.start
    if start.method == "file":
        said.append(f"the network of {start.path} takes the dense one's place")
    elif STARTS.constant(start.method, "TRAINS", False):
        long = "an epoch" if start.steps is None else f"{start.steps:,} steps"
        grid = "" if start.method == "classical_rmt" else f" in steps of {100 * start.step:g} %, {long} a phase"
        said.append(f"{name(start.method)} cycles prune to {100 * start.sparsity:g} %{grid}, on {_training(recipe.images)}")
    elif start.method != "dense":
        said.append(f"the network goes through the start '{name(start.method)}'")
    if any(recipe.tokens.r):
        same = len(set(recipe.tokens.r)) == 1
        said.append(f"every block merges {'' if same else 'up to '}{count(merged_tokens(recipe.tokens), 'token')}")
    if recipe.pruning.permutation != "none":
        said.append(f"inputs are reordered ({name(recipe.pruning.permutation)})")
    return f"Before that {', and '.join(filter(None, [', '.join(said[:-1]), *said[-1:]]))}." if said else ""


def healing(recipe: Recipe) -> str:
    """What healing will do, in a sentence.

    >>> from starfish_lab.recipe import HealingChoice
    >>> healing(Recipe(healing=HealingChoice(steps=200)))
    'Healed by STARFISH: 200 steps of 32 on 64 calibration images, Adam, learning rate 0.0006 → 1e-06.'
    >>> healing(Recipe(healing=HealingChoice(repair="dense", method="none")))
    'Repaired by dense, nothing trains.'
    >>> healing(Recipe(healing=HealingChoice(method="none")))
    'Not healed.'
    """
    h, images = recipe.healing, recipe.images
    repaired = "" if h.repair == "none" else f"Repaired by {name(h.repair)}, "
    if h.method == "none":
        return f"{repaired}nothing trains." if repaired else "Not healed."
    seen = f"{images.calibration:,} calibration images" if h.images == "calibration" else _training(images)
    falls = f" → {h.final_learning_rate:g}" if h.schedule != "constant" else " throughout"
    said = [
        f"{f'{h.steps:,} steps' if h.steps else count(h.epochs, 'epoch')} of {h.batch_size} on {seen}",
        f"{name(h.optimiser)}, learning rate {h.learning_rate:g}{falls}{' in a line' if h.schedule == 'linear' else ''}"
        + (f" after {h.warmup:,} rising steps" if h.warmup else ""),
        f"weight decay {h.weight_decay:g}" if h.weight_decay else "",
        f"gradients clipped at {h.gradient_clip:g}" if h.gradient_clip else "",
        {"all": "every parameter trains, zeros stay", "affine": "biases and norms train too"}.get(h.trains, ""),
        "images shuffled" if h.order == "shuffled" and h.images == "calibration" else "",
        f"augmentation {h.augmentation}" if h.augmentation != "none" else "",
        f"weights averaged with decay {h.average:g}" if h.average else "",
        "dense answers kept in float16" if h.teacher == "half" else "",
        "bfloat16" if h.precision == "bf16" else "",
        "compiled" if h.compile else "",
        *(f"{name(option)} {value}" for option, value in h.options.items() if isinstance(value, str | int | float)),
    ]
    return f"{repaired or 'Healed by '}{'then healed by ' if repaired else ''}{name(h.method)}: {', '.join(filter(None, said))}."


def name(entry: str) -> str:
    """A registry entry's name as a person reads it."""
    known = {
        "ser": "SER", "cast": "CAST", "sparsegpt": "SparseGPT", "alps": "ALPS", "n_m": "N:M", "classical_rmt": "classical RMT", "mp_edge": "MP edge",
        "starfish": "STARFISH", "starfish_plus": "STARFISH+", "corp": "CORP", "snows": "SNOWS", "snows_adam": "SNOWS with Adam", "lora": "LoRA",
        "sparsegpt_update": "SparseGPT update", "adam": "Adam", "adamw": "AdamW", "sgd": "SGD",
    }  # fmt: skip
    return known.get(entry, entry.replace("_", " "))


def count(number: int, what: str) -> str:
    """'1 epoch', '3 epochs'."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def listing(words: list[str]) -> str:
    """Words in a row.

    >>> listing(["a"]), listing(["a", "b"]), listing(["a", "b", "c"])
    ('a', 'a and b', 'a, b and c')
    """
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def runs(ids: list[int]) -> str:
    """Runs by their numbers, of many the first.

    >>> runs([3]), runs([3, 4])
    ('run 3', '2 runs (3, 4)')
    """
    return f"run {ids[0]}" if len(ids) == 1 else f"{len(ids)} runs ({', '.join(map(str, ids[:8]))}{' …' if len(ids) > 8 else ''})"


def _training(images: ImagesChoice) -> str:
    if images.training == 0:
        return f"the {images.calibration:,} calibration images"
    return "all remaining images" if images.training is None else f"{images.training:,} training images"


def figure_rows(report, *, device: str = "") -> list[dict[str, object]]:
    """The first row of figures of one finished run: a dict a stage, as `frame.figures` takes them."""
    totals = {row["stage"]: row for row in report.tables.get("totals", [])}
    accuracy = {row["stage"]: row for row in report.tables.get("accuracy", [])}
    latency = {row["stage"]: row for row in report.tables.get("latency", []) if row["batch"] == 1}
    rows = []
    for stage in theme.STAGES:
        if stage not in totals:
            continue
        found, timed = accuracy.get(stage, {}), latency.get(stage, {})
        rows.append({
            "stage": stage, "origin": "measured", "top1": found.get("top1"), "low": found.get("low"), "high": found.get("high"),
            "images": found.get("images"),
            "macs_g": totals[stage]["macs_g_effective"], "parameters_m": totals[stage]["nonzero_parameters_m"],
            "latency_ms": timed.get("latency_ms_p50"), "device": timed.get("device", device), "change_latency_ms": paired_speedup(timed),
            "why_top1": "no labels", "why_latency_ms": "not timed" if latency else "not measured",
        })  # fmt: skip
    return rows


def paired_speedup(row: dict[str, object]) -> str:
    """The measured ratio to dense of a latency row, in words; an interval that holds 1 resolves nothing.

    >>> paired_speedup({"speedup": 1.5, "speedup_low": 1.4, "speedup_high": 1.6})
    '1.50× faster'
    >>> paired_speedup({"speedup": 1.05, "speedup_low": 0.9, "speedup_high": 1.3})
    'not resolved'
    """
    if row.get("speedup") is None or row.get("stage") == "dense":
        return ""
    if row["speedup_low"] <= 1 <= row["speedup_high"]:
        return "not resolved"
    ratio = row["speedup"]
    return f"{theme.number(max(ratio, 1 / ratio))}× {'faster' if ratio > 1 else 'slower'}"


def points(runs: pd.DataFrame, *, cost: str, latency: pd.DataFrame, seconds: pd.DataFrame) -> pd.DataFrame:
    """Accuracy and cost of every stage of every run that has both: run, label, model, stage, cost, images, top1, low, high.

    `runs` is the store's list, `latency` and `seconds` its report tables with the column run. Runs of one network on the
    same images share one dense point, except where cost was measured anew for each (latency).
    """
    named = {row["id"]: (short(row), row["model"]) for row in runs.to_dict("records")}
    found = evidence.stages(runs, latency, seconds).rename(columns={cost: "cost"})
    found = found.assign(label=[named[run][0] for run in found["run"]], model=[named[run][1] for run in found["run"]])
    found = found[["run", "label", "model", "stage", "cost", "images", "top1", "low", "high"]]
    found = found.dropna(subset=["cost", "top1"]).astype({"images": int})
    repeated = found["stage"].eq("dense") & found.duplicated(["model", "stage", "cost", "top1", "images"])
    return found[~repeated].reset_index(drop=True)


def duration(seconds: float | None) -> str:
    """Seconds in words a person reads at a glance.

    >>> duration(0.4), duration(42.4), duration(125), duration(7260)
    ('under 1 s', '42 s', '2 min 5 s', '2 h 1 min')
    """
    if seconds is None or seconds != seconds:
        return "–"
    if seconds < 1:
        return "under 1 s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"

"""Measured latency as the page shows it: rows of every age alike, the best dense beside each, accuracy and MACs joined. No Streamlit."""

from __future__ import annotations

import json

import pandas as pd

from app.charts import theme
from app.results import name
from starfish_lab.latency.comparable import covered

LINES = 8  # executions drawn at once
FIGURES = (
    "latency_ms_p50", "latency_ms_p90", "latency_ms_p99", "images_per_s", "images_per_s_low", "images_per_s_high",
    "speedup", "speedup_low", "speedup_high", "speedup_best", "speedup_best_low", "speedup_best_high",
    "tflops", "peak_share", "joules_per_image", "memory_bytes", "largest_difference", "tolerance", "top1_agreement", "macs_g",
)  # fmt: skip
TEXTS = ("stage", "execution", "backend", "precision", "best_dense", "scenario", "device_name", "fingerprint", "energy_method", "note", "dtype")
PRECISIONS = {"float32": "float32", "bfloat16": "bf16", "float16": "fp16"}  # what older rows call dtype
USUAL_REASONS = {"power cap", "sync boost"}  # `latency.sensors.USUAL`, which no page can import without torch; a test holds them equal
PARTS = ("model", "images", "start", "tokens", "pruning", "healing")  # of a recipe: what decides accuracy


def whole(rows: pd.DataFrame) -> pd.DataFrame:
    """Latency rows of any age with FIGURES, TEXTS, `compiled` and `merged`; figures that nobody measured are NaN.

    Older rows name a dtype and no precision, and have one dense network only, which then is the best dense.
    """
    found = rows.copy()
    for column in FIGURES:
        found[column] = pd.to_numeric(found[column], errors="coerce") if column in found else float("nan")
    for column in TEXTS:
        found[column] = found[column].where(found[column].notna(), "").astype(str) if column in found else ""
    for column in ("compiled", "merged"):
        known = found[column].eq(True) if column in found else pd.Series(False, index=found.index)
        found[column] = known | found["execution"].str.contains("compiled" if column == "compiled" else "^merged", regex=True)
    found["backend"] = found["backend"].where(found["backend"].ne(""), found["execution"].str.extract(r"^(?:merged\+)?(\w+)")[0].fillna(""))
    found["precision"] = found["precision"].where(found["precision"].ne(""), found["dtype"].replace(PRECISIONS))
    unsaid = ~found["stage"].isin(theme.STAGES)
    dense = found["backend"].eq("dense") & ~found["merged"]  # the dense network with fewer tokens is no baseline
    found["stage"] = found["stage"].mask(unsaid, "pruned").mask(unsaid & dense, "dense")
    return _best(found.sort_values(["run", "batch"], kind="stable", ignore_index=True) if len(found) else found)


def _best(rows: pd.DataFrame) -> pd.DataFrame:
    """With `speedup_best` where only one dense network was timed: it is the best there is."""
    timed = rows[rows["stage"].eq("dense") & rows["images_per_s"].notna()]
    alone = timed.drop_duplicates(["run", "batch"], keep=False).set_index(["run", "batch"])["execution"].to_dict()
    keys = pd.Series(list(zip(rows["run"], rows["batch"])), index=rows.index, dtype=object)
    old = rows["speedup_best"].isna() & rows["speedup"].notna() & keys.isin(list(alone)) & rows["best_dense"].eq("")
    for end in ("", "_low", "_high"):
        rows[f"speedup_best{end}"] = rows[f"speedup_best{end}"].where(~old, rows[f"speedup{end}"])
    rows["best_dense"] = rows["best_dense"].where(~old, keys.map(alone))
    return rows


def timed(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with figures: what was refused has none."""
    return rows[rows["images_per_s"].notna()]


def refused(rows: pd.DataFrame) -> list[tuple[str, str]]:
    """(execution, reason) of what was not timed, each once."""
    without = rows[rows["images_per_s"].isna() & rows["note"].ne("")]
    return list(dict.fromkeys(zip(without["execution"], without["note"])))


def remarks(rows: pd.DataFrame) -> dict[str, list[str]]:
    """{what a drawn line must be read with: its executions}; how few calls a percentile rests on is left to the table.

    >>> remarks(pd.DataFrame({"execution": ["masked", "masked"], "note": ["mask only", "mask only; p99 from 9 calls"], "images_per_s": 1.0}))
    {'mask only': ['masked']}
    """
    found: dict[str, dict[str, None]] = {}
    for row in timed(rows).itertuples():
        for part in filter(None, row.note.split("; ")):
            if not part.startswith("p99 "):
                found.setdefault(part, {})[spoken(row.execution)] = None
    return {part: list(which) for part, which in found.items()}


def best_dense(rows: pd.DataFrame) -> pd.DataFrame:
    """The fastest dense row of each run and batch size."""
    dense = timed(rows[rows["stage"].eq("dense")]).sort_values("images_per_s", ascending=False)
    return dense.drop_duplicates(["run", "batch"]).sort_values(["run", "batch"])


def usual(rows: pd.DataFrame) -> list[str]:
    """The executions drawn where nothing else was asked for: the fastest against the best dense, and the dense ones that were best somewhere."""
    dense = list(dict.fromkeys(best_dense(rows)["execution"]))
    others = timed(rows[rows["stage"].ne("dense")])
    rank = others.groupby("execution")["speedup_best"].max().fillna(0).sort_values(ascending=False, kind="stable")
    return [*dense, *rank.index][:LINES]


def word(execution: str) -> str:
    """An execution as one word of a list in the address bar.

    >>> word("sliced, bf16, compiled")
    'sliced.bf16.compiled'
    """
    return execution.replace(", ", ".")


def spoken(execution: str) -> str:
    """The label of an execution in the field's words.

    >>> spoken("merged+sliced, bf16"), spoken("im2col(cusparselt), fp16")
    ('merged + sliced, bf16', 'im2col (cuSPARSELt), fp16')
    """
    for known, said in (("semi_structured", "2:4"), ("(cutlass)", " (CUTLASS)"), ("(cusparselt)", " (cuSPARSELt)"), ("(dense)", " (dense)")):
        execution = execution.replace(known, said)
    return name(execution.replace("+", " + "))


def intervals(rows: pd.DataFrame) -> str:
    """What the intervals on show cover, in a sentence; '' where nothing was timed.

    >>> intervals(pd.DataFrame({"run": [4, 3], "images_per_s": 9.0, "starts": [8, None]}))
    'Measured again as quietly, a figure lands in its interval in 95 % of cases: 8 fresh starts (run 4), rounds within one process (run 3).'
    """
    told: dict[str, dict[int, None]] = {}
    for row in timed(rows).to_dict("records") if len(rows) else ():
        told.setdefault(covered(row), {})[int(row["run"])] = None
    if not told:
        return ""
    parts = [f"{what} (run {', '.join(map(str, runs))})" if len(told) > 1 else what for what, runs in told.items()]
    return f"Measured again as quietly, a figure lands in its interval in 95 % of cases: {', '.join(parts)}."


def key(row) -> str:
    """What names a row in the address bar and in a list: its run, execution, stage and batch size."""
    return f"{int(row.run)}.{row.stage}.{row.execution}.{int(row.batch)}"


def title(row) -> str:
    """A row in a list of rows."""
    stage = "healed, " if row.stage == "healed" else ""
    return f"run {int(row.run)} · {stage}{spoken(row.execution)} · batch {int(row.batch)} · {row.device_name}"


def ratios_of_macs(rows: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Rows with a speed-up over dense of the same precision and `macs_ratio`, dense MACs / theirs; `runs` is the store's list, for older rows."""
    found = timed(rows[rows["stage"].ne("dense")]).dropna(subset=["speedup"])
    dense = timed(rows[rows["stage"].eq("dense")]).groupby("run")["macs_g"].max()
    by_id = runs.set_index("id")

    def ratio(row) -> float:
        if row.macs_g == row.macs_g and row.macs_g > 0 and dense.get(row.run, float("nan")) > 0:
            return dense[row.run] / row.macs_g
        if row.run not in by_id.index:
            return float("nan")
        known = by_id.loc[row.run]
        return known["macs_g_effective_dense"] / known[f"macs_g_effective_{row.stage}"]

    found = found.assign(macs_ratio=[ratio(row) for row in found.itertuples()], label=[spoken(label) for label in found["execution"]])
    return found[found["macs_ratio"].notna()]


def same_network(recipe: dict) -> str:
    """What decides the accuracy of a recipe (or of the recipe in a plan) as text: equal for equal networks on equal images."""
    plain = recipe.get("recipe", recipe)
    return json.dumps([plain.get(part) for part in PARTS], sort_keys=True)


def with_accuracy(rows: pd.DataFrame, runs: pd.DataFrame, recipes: dict[int, dict]) -> pd.DataFrame:
    """Timed rows with the accuracy of their network: top1, low, high (fractions), images, `accuracy_run`, cost and its interval (ms a batch).

    A row takes the accuracy of its own run, or of the newest run of the same recipe; what is timed after pruning alone stands for the
    healed network, which has the same zeros. Tokens merged beyond the recipe give another network, whose accuracy nobody measured.
    """
    measured = runs[runs["images"].notna()]
    newest = {same_network(recipes[int(run)]): int(run) for run in reversed(measured["id"].tolist()) if int(run) in recipes}
    by_id = measured.set_index("id")
    found = []
    for row in timed(rows).to_dict("records"):
        own = int(row["run"])
        source = own if own in by_id.index else newest.get(same_network(recipes[own])) if own in recipes else None
        if source is None or (row["merged"] and not _merges(recipes.get(own, {}))):
            continue
        accuracy = by_id.loc[source]
        stage = row["stage"] if row["stage"] == "dense" or own == source else "healed"
        stage = stage if pd.notna(accuracy[f"top1_{stage}"]) else "pruned"
        if pd.isna(accuracy[f"top1_{stage}"]):
            continue
        ms = {f"cost{end}": 1e3 * row["batch"] / row[f"images_per_s{other}"] for end, other in (("", ""), ("_low", "_high"), ("_high", "_low"))}
        facts = {figure: float(accuracy[f"{figure}_{stage}"]) for figure in ("top1", "low", "high")}
        found.append({**row, **ms, **facts, "stage": stage, "images": int(accuracy["images"]), "accuracy_run": source})
    return pd.DataFrame(found)


def _merges(recipe: dict) -> bool:
    return any(recipe.get("recipe", recipe).get("tokens", {}).get("r", ()))


def throttled(sensors: pd.DataFrame) -> list[tuple[int, str, str]]:
    """(run, when, reasons) of every reading in which heat or the hardware held the device back.

    >>> throttled(pd.DataFrame({"run": [3, 3], "batch": [8, 8], "when": ["before", "after"], "throttle": ["power cap", "power cap, heat (driver)"]}))
    [(3, 'after batch 8', 'heat (driver)')]
    """
    if sensors.empty or "throttle" not in sensors:
        return []
    found = []
    for row in sensors.to_dict("records"):
        reasons = held_back(row["throttle"])
        if reasons:
            found.append((int(row["run"]), f"{row['when']} batch {int(row['batch'])}" if row.get("batch") else str(row["when"]), ", ".join(reasons)))
    return found


def held_back(told: object) -> list[str]:
    """The reasons of a reading that slow a device down beyond what is usual under load."""
    words = told.split(", ") if isinstance(told, str) else []
    return [reason for reason in words if reason and reason not in USUAL_REASONS]


def layers(rows: pd.DataFrame) -> pd.DataFrame:
    """Layer times with the columns that per-layer charts need besides: block and depth, read from a layer's name, in order of appearance.

    >>> layers(pd.DataFrame({"layer": ["patch_embed.proj", "blocks.0.attn.qkv", "blocks.1, norm", "head"]}))[["block", "depth"]].values.tolist()
    [['', -1], ['blocks.0', 0], ['blocks.1', 1], ['', -1]]
    """
    blocks = rows["layer"].str.extract(r"^((?:\w+\.)*?\w*\d+(?:\.\w+\.\d+|\.\d+)?)(?:[.,]|$)")[0].fillna("")
    blocks = blocks.where(~rows["layer"].str.startswith(("head", "patch_embed", "stem", "conv1")), "")
    depth = {block: place for place, block in enumerate(dict.fromkeys(block for block in blocks if block))}
    return rows.assign(block=blocks, depth=[depth.get(block, -1) for block in blocks])

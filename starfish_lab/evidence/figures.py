"""The figures by which runs are compared: accuracy and every cost of each stage, one flat table."""

from __future__ import annotations

import pandas as pd

STAGES = ("dense", "pruned", "healed")
COLUMNS = ["run", "stage", "top1", "low", "high", "images", "macs_g", "parameters_m", "latency_ms", "device", "healing_s"]


def stages(runs: pd.DataFrame, latency: pd.DataFrame, seconds: pd.DataFrame) -> pd.DataFrame:
    """A row for each stage of each run, in the order of `runs`: COLUMNS, NaN where something was not measured.

    `runs` is the store's list, `latency` and `seconds` its report tables with the column run. top1 is a fraction on so many `images`, low to
    high its 95 % Wilson interval; `macs_g` are effective multiply-adds, `parameters_m` those other than 0, `latency_ms` the median at
    batch 1 on `device`, `healing_s` what healing took, 0 before it.
    """
    batch_one = latency[latency["batch"] == 1] if len(latency) else latency
    timed = {(row.run, row.stage): row for row in batch_one.itertuples()}
    healing = {row.run: row.seconds for row in seconds.itertuples() if row.stage == "heal"} if len(seconds) else {}
    rows = []
    for run in runs.to_dict("records"):
        for stage in STAGES:
            row = timed.get((run["id"], stage))
            rows.append({
                "run": run["id"], "stage": stage, **{name: run[f"{name}_{stage}"] for name in ("top1", "low", "high")}, "images": run["images"],
                "macs_g": run[f"macs_g_effective_{stage}"], "parameters_m": run[f"nonzero_parameters_m_{stage}"],
                "latency_ms": row.latency_ms_p50 if row else None, "device": row.device_name if row else "",
                "healing_s": healing.get(run["id"]) if stage == "healed" else 0.0,
            })  # fmt: skip
    numbers = [name for name in COLUMNS if name not in ("run", "stage", "device")]
    return pd.DataFrame(rows, columns=COLUMNS).astype(dict.fromkeys(numbers, float))


def last(found: pd.DataFrame) -> pd.DataFrame:
    """Of `stages`, the last measured stage of each run after the dense one: healed, or pruned where nothing was healed."""
    there = found[(found["stage"] != "dense") & found[["top1", "macs_g"]].notna().any(axis=1)]
    return there.drop_duplicates("run", keep="last").reset_index(drop=True)

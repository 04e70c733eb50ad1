"""What pages say about the runs of a sweep: their figures by healer and sparsity, how long the rest may take. Rows in, rows out; no Streamlit."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from app import bakeoff_rows, results
from app.charts import compare
from starfish_lab.healing import healers
from starfish_lab.recipe import Recipe

FIGURES = ("top1", "low", "high")
SUMMARY = ["panel", "healer", "label", "labels", "steps", "sparsity", "seeds", "images", *FIGURES, "share"]
STATUSES = ("running", "queued", "paused", "failed", "cancelled", "deleted")  # as they are told, after done
MOST_COMPARED = 50  # runs that the page Compare takes at once


def figured(rows: pd.DataFrame, accuracy: pd.DataFrame, totals: pd.DataFrame) -> pd.DataFrame:
    """The runs of a sweep (`store.sweep_runs`) with the figures of the last network of each: healed, and pruned where nothing heals.

    `accuracy` and `totals` are these tables of their reports. Adds panel (what is pruned and how, without the sparsity), top1, low, high,
    dense (fractions), images, macs_g and seconds (from claim to end); NaN where a run has not measured them.
    """
    last = _last(accuracy).join(_last(totals)[["macs_g_effective"]] if len(totals) else pd.DataFrame(columns=["macs_g_effective"]))
    before = accuracy[accuracy["stage"] == "dense"].set_index("run")["top1"] if len(accuracy) else pd.Series(dtype=float)
    found = rows.assign(
        panel=_panels(rows), dense=rows["run"].map(before), seconds=pd.to_numeric(rows["finished_at"]) - pd.to_numeric(rows["started_at"]),
        macs_g=rows["run"].map(last["macs_g_effective"]), images=rows["run"].map(last["images"]),
    )  # fmt: skip
    return found.assign(**{name: rows["run"].map(last[name]).astype(float) for name in FIGURES})


def _last(table: pd.DataFrame) -> pd.DataFrame:
    """The row of each run's last stage, by run."""
    return table.drop_duplicates("run", keep="last").set_index("run") if len(table) else pd.DataFrame(columns=[*FIGURES, "images"])


def _panels(rows: pd.DataFrame) -> list[str]:
    """The pattern of each run, and its score and budget where these differ too."""
    several = [name for name in ("score", "budget") if rows[name].nunique() > 1]
    return [", ".join([row["pattern"], *(results.name(row[name]) for name in several)]) for row in rows.to_dict("records")]


def summary(found: pd.DataFrame) -> pd.DataFrame:
    """A row for each panel, healer and sparsity of `figured` runs: the mean of their seeds' accuracies and of their 95 % Wilson intervals.

    Seeds share their evaluation images, so more of them make the interval no narrower. Columns: SUMMARY; share is of the dense accuracy.
    Runs without accuracy are left out.
    """
    rows = []
    for (panel, sparsity, healer), seeds in found.dropna(subset=["top1"]).groupby(["panel", "sparsity", "healer"], sort=False):
        rows.append({
            "panel": panel, "healer": healer, "label": bakeoff_rows.label(healer), "labels": healers.labels(healer),
            "steps": int(healers.trains(healer)), "sparsity": sparsity, "seeds": len(seeds), "images": int(seeds["images"].max()),
            **{name: seeds[name].mean() for name in FIGURES}, "share": (seeds["top1"] / seeds["dense"]).mean(),
        })  # fmt: skip
    return pd.DataFrame(rows, columns=SUMMARY)


def dense(found: pd.DataFrame) -> float | None:
    """Top-1 accuracy before pruning, where all runs agree on it: seeds may draw other images and then do not."""
    known = found["dense"].dropna().unique()
    return float(known[0]) if len(known) == 1 else None


def title(found: pd.DataFrame) -> str:
    """What the sweep found, in words: who is ahead at the highest sparsity of the first pattern, or that it is not resolved."""
    if found.empty:
        return "How much accuracy does each sparsity leave?"
    rows = found[found["panel"] == found["panel"].iloc[0]]
    best = rows[rows["sparsity"] == rows["sparsity"].max()].sort_values("top1", ascending=False)
    where = f"At {100 * best['sparsity'].iloc[0]:.3g} % {best['panel'].iloc[0]}"
    if len(best) == 1:
        return bakeoff_rows.title_over_sparsity(rows)
    first, second = best.iloc[0], best.iloc[1]
    if second["high"] >= first["low"]:
        return f"{where} {first['label']} and {second['label']} are not resolved (n = {first['images']})"
    return f"{where} {first['label']} is {100 * (first['top1'] - second['top1']):.1f} pp ahead of {second['label']}"


def front(found: pd.DataFrame) -> list[int]:
    """The runs that no other beats in multiply-adds without losing accuracy, cheapest first, at most as many as Compare takes."""
    points = found.rename(columns={"macs_g": "cost"}).dropna(subset=["cost", "top1"])
    return [int(run) for run in compare.front(points)["run"]][-MOST_COMPARED:]


def similar(recipe: Recipe | dict) -> tuple[object, ...]:
    """What decides how long a run takes, as far as a recipe tells: equal for runs whose seconds speak for each other."""
    data = recipe.to_dict() if isinstance(recipe, Recipe) else recipe
    model, images, healing = (data.get(part, {}) for part in ("model", "images", "healing"))
    names = ("method", "repair", "steps", "epochs", "batch_size")
    return (
        model.get("name"), images.get("source"), images.get("calibration"), images.get("evaluation"), data.get("start", {}).get("method"),
        *(healing.get(name) for name in names),
    )  # fmt: skip


def seconds_ahead(planned: Iterable[Recipe], done: pd.DataFrame, recipes: dict[int, dict], *, workers: int = 1) -> tuple[float | None, str]:
    """How long planned runs may take on so many workers: seconds, None where nothing is known, and the rule of this estimate.

    Each planned run is taken to last as long as the median of the finished runs of `done` (the store's list) that are `similar`; a kind
    without any lasts as long as the others on average.
    """
    lasted: dict[tuple, list[float]] = {}
    for row in done.dropna(subset=["seconds"]).itertuples():
        lasted.setdefault(similar(recipes[int(row.id)]), []).append(row.seconds)
    kinds = pd.Series([similar(recipe) for recipe in planned], dtype=object).value_counts()
    known = {kind: pd.Series(lasted[kind]).median() for kind in kinds.index if kind in lasted}
    if not known:
        return None, ""
    mean = sum(seconds * kinds[kind] for kind, seconds in known.items()) / sum(kinds[kind] for kind in known)
    runs = sum(len(lasted[kind]) for kind in known)
    rule = f"median of {results.count(runs, 'similar run')} (same network, images, healer and steps)"
    return float(mean * kinds.sum() / max(workers, 1)), rule


def told(rows: pd.DataFrame) -> str:
    """How far the runs of a sweep are, in words.

    >>> told(pd.DataFrame({"status": ["done", "done", "running", "queued"], "adopted": [True, False, False, False]}))
    '2 of 4 done (1 adopted), 1 running, 1 queued'
    """
    counts, adopted = rows["status"].value_counts(), int((rows["adopted"] & (rows["status"] == "done")).sum())
    first = f"{counts.get('done', 0)} of {len(rows)} done" + (f" ({adopted} adopted)" if adopted else "")
    return ", ".join([first, *(f"{counts[status]} {status}" for status in STATUSES if status in counts)])


def asked(plan) -> str:
    """What a sweep varies, in short words.

    >>> from starfish_lab.sweep.plan import Sweep
    >>> asked(Sweep(sparsities=(0.5, 0.75, 0.9), healers=("none", "starfish"), seeds=(0, 1)))
    'unstructured · 50 to 90 % in 3 steps · no healing, STARFISH · 2 seeds'
    """
    points = list(plan.points)
    patterns, sparsities, by, seeds = (
        list(dict.fromkeys(getattr(point, name) for point in points)) for name in ("pattern", "sparsity", "healer", "seed")
    )
    few = len(sparsities) < 3
    grid = " and ".join(f"{100 * s:g}" for s in sorted(sparsities)) if few else f"{100 * min(sparsities):g} to {100 * max(sparsities):g}"
    said = [
        ", ".join(patterns), f"{grid} %{'' if few else f' in {len(sparsities)} steps'}",
        ", ".join(map(bakeoff_rows.label, by)) if len(by) < 4 else results.count(len(by), "healer"),
    ]  # fmt: skip
    return " · ".join([*said, *([results.count(len(seeds), "seed")] if len(seeds) > 1 else [])])

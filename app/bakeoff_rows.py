"""What the page Bake-off says about the cells of a bake-off: seeds together, who is resolved from the best, words for names. No Streamlit."""

from __future__ import annotations

import pandas as pd

from app import results
from app.charts import theme
from starfish_lab.bakeoff.plan import BakeOff

CELL = ["sparsity", "images", "steps", "healer"]
FIGURES = (
    "top1", "low", "high", "share", "share_low", "share_high", "top1_dense", "top1_pruned", "drift", "kl", "healing_seconds",
    "peak_memory_bytes",
)  # fmt: skip
SUMMARY = [*CELL, "label", "labels", "seeds", "evaluated", "note", *FIGURES]


def label(healer: str) -> str:
    """A healer's name as a person reads it.

    >>> label("none"), label("logit_distillation"), label("dense+starfish")
    ('no healing', 'logit distillation', 'dense + STARFISH')
    """
    return "no healing" if healer == "none" else " + ".join(map(results.name, healer.split("+")))


def axis(plan: BakeOff) -> str:
    """The tab that a bake-off belongs to.

    >>> axis(BakeOff()), axis(BakeOff(images=(8, 16))), axis(BakeOff(sparsities=(0.5, 0.9)))
    ('all', 'images', 'sparsity')
    """
    return "images" if len(plan.images) > 1 else "sparsity" if len(plan.sparsities) > 1 else "all"


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """A row for each healer at each sparsity, number of images and of steps: the mean of its seeds, with the columns SUMMARY.

    `rows` has the columns of a bake-off's table 'healers'. low to high are the means of the seeds' 95 % Wilson intervals: seeds
    share their evaluation images, so that more of them make the interval no narrower. A cell that failed has no figures but
    a note; one seed that failed among others is left out of the mean and noted. Columns: SUMMARY.
    """
    if rows.empty:
        return pd.DataFrame(columns=SUMMARY)
    known = rows.reindex(columns=[*dict.fromkeys([*rows.columns, *SUMMARY])])
    known = known.assign(**{name: pd.to_numeric(known[name]) for name in FIGURES})
    found = []
    for cell, of_cell in known.groupby(CELL, sort=False, dropna=False):
        healed = of_cell[of_cell["healing_seconds"].notna()]
        notes = [note for note in dict.fromkeys(of_cell["note"].dropna()) if note]
        figures = healed[list(FIGURES)].mean().to_dict()
        found.append({
            **dict(zip(CELL, cell)), "label": label(cell[-1]), "labels": bool(of_cell["labels"].fillna(False).any()), "seeds": len(healed),
            "evaluated": of_cell["evaluated"].max(), "note": " ".join(notes), **figures,
        })  # fmt: skip
    return pd.DataFrame(found)[SUMMARY]


def against_best(found: pd.DataFrame) -> pd.Series:
    """For each row of a summary how it stands to the best of its sparsity and images, in words; '' where nothing was measured.

    Where two intervals overlap, these images do not tell the two apart.
    """
    words = pd.Series("", index=found.index, dtype=object)
    for _, rows in found.dropna(subset=["top1"]).groupby(["sparsity", "images"]):
        best = rows.loc[rows["top1"].idxmax()]
        for place, row in rows.iterrows():
            gap = f"{100 * (row['top1'] - best['top1']):.1f} pp".replace("-", "−")
            words[place] = "the best" if place == best.name else gap if row["high"] < best["low"] else f"not resolved ({gap})"
    return words


def rivals(found: pd.DataFrame) -> tuple[pd.Series | None, pd.DataFrame]:
    """The best row of a summary, and the other rows whose intervals overlap its own; (None, none) where nothing was measured."""
    there = found.dropna(subset=["top1"])
    if there.empty:
        return None, there
    best = there.loc[there["top1"].idxmax()]
    return best, there[(there["high"] >= best["low"]) & (there.index != best.name)]


def rivals_by_drift(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows that ended, as `measure.agreement` takes them: drift, top1, and as group the cells of one seed, sparsity and number of images."""
    healed = rows[rows["healing_seconds"].notna()] if len(rows) else rows
    figures = {name: pd.to_numeric(healed[name]) for name in ("drift", "top1") if name in healed}
    return healed.assign(group=healed[["seed", "sparsity", "images"]].astype(str).agg(" ".join, axis=1), **figures) if len(healed) else healed


def listed(found: pd.DataFrame, paired: pd.DataFrame) -> pd.DataFrame:
    """The result table, the best first, what failed last: columns in the words and units of the page."""
    ordered = found.assign(standing=against_best(found))
    ordered = ordered.sort_values(["sparsity", "images", "top1"], ascending=[True, True, False], na_position="last")
    compared = verdicts(paired)
    return pd.DataFrame({
        "healer": ordered["label"],
        "accuracy": [_interval(row) for row in ordered.itertuples()],
        "share": 100 * ordered["share"],
        "standing": ordered["standing"],
        "against": [compared.get(tuple(cell), "") for cell in ordered[CELL].to_numpy()],
        "labels": ["yes" if labels else "no" for labels in ordered["labels"]],
        "sparsity": ordered["sparsity"], "images": ordered["images"], "steps": ordered["steps"], "seeds": ordered["seeds"],
        "drift": ordered["drift"], "kl": ordered["kl"], "seconds": ordered["healing_seconds"],
        "memory": ordered["peak_memory_bytes"] / 2**20,
        "note": ordered["note"],
    })  # fmt: skip


def verdicts(paired: pd.DataFrame) -> dict[tuple, str]:
    """{(sparsity, images, steps, healer): how it answers the same images as the reference}, seeds together, in words."""
    if paired.empty:
        return {}
    found = {}
    for cell, rows in paired.groupby(CELL, sort=False):
        if len(rows) == 1:
            found[cell] = rows["verdict"].iloc[0]
            continue
        higher = int((rows["resolved"] & (rows["difference_pp"] > 0)).sum())
        lower = int((rows["resolved"] & (rows["difference_pp"] < 0)).sum())
        counted = [f"{side} in {number} of {len(rows)}" for side, number in (("higher", higher), ("lower", lower)) if number]
        found[cell] = ", ".join(counted) or f"not resolved in any of {len(rows)}"
    return found


def live(finished: pd.DataFrame, labels: dict[str, bool]) -> pd.DataFrame:
    """Finished cells of a bake-off at work (`bakeoff.live.finished`) as rows of its table 'healers'; `labels` says which healers use them."""
    dense = finished["top1_dense"]
    known = finished.assign(labels=finished["healer"].map(labels), share_low=finished["low"] / dense, share_high=finished["high"] / dense)
    return known.assign(note="", evaluated=None)


def curves(found: pd.DataFrame, *, dense: float | None, labels: dict[str, bool], batch_sizes: dict[str, int]) -> pd.DataFrame:
    """Looks during healing with what charts of them need besides: label, labels, share (of `dense`, a fraction) and images_seen."""
    seen = found["step"] * found["healer"].map(batch_sizes).fillna(0)
    return found.assign(
        label=[label(healer) for healer in found["healer"]], labels=found["healer"].map(labels).fillna(False).astype(bool),
        share=pd.to_numeric(found["accuracy"]) / (dense or float("nan")), images_seen=found.get("images_seen", seen),
    )  # fmt: skip


def ended(rows: pd.DataFrame, x: str, batch_sizes: dict[str, int]) -> pd.DataFrame:
    """Rows that ended, each seed by itself, with `label` and in `at` where they stand on the axis `x`: 'seconds' or 'images_seen'."""
    seen = rows["steps"] * rows["healer"].map(batch_sizes).fillna(0) if len(rows) else pd.Series(dtype=float)
    at = rows["healing_seconds"] if x == "seconds" else seen
    return rows.assign(label=[label(healer) for healer in rows["healer"]], labels=rows["labels"].fillna(False).astype(bool), at=at)


def refused(found: pd.DataFrame) -> list[str]:
    """A sentence for each healer that did not run, with its reason."""
    gone = found[found["healing_seconds"].isna() & found["note"].ne("")]
    return [f"**{theme.sentence(name)}** did not run: {note}" for name, note in dict(zip(gone["label"], gone["note"])).items()]


def title(found: pd.DataFrame) -> str:
    """What a bake-off at one sparsity and number of images found, in words."""
    best, others = rivals(found)
    if best is None:
        return "Who recovers most?"
    others = others[others["healer"] != "none"]
    who, share = theme.sentence(best["label"]), theme.percent(best["share"])
    if best["healer"] == "none":
        return f"No healer is better than none: {share} of dense"
    if others.empty:
        return f"{who} recovers {share} of dense, more than all others"
    n = "" if pd.isna(best["evaluated"]) else f" (n = {best['evaluated']:,.0f})"
    return f"{who} recovers {share} of dense; {_names(others['label'])} not resolved from it{n}"


def knees(found: pd.DataFrame) -> pd.DataFrame:
    """Knees by intervals, where the answers themselves are not at hand: the fewest images whose interval overlaps that of the healer's best.

    Columns: healer, knee_images, at_end (nothing fewer than the most tried overlaps). Healers at fewer than three numbers of images have none.
    """
    rows = []
    for healer, curve in found.dropna(subset=["top1"]).sort_values("images").groupby("healer", sort=False):
        if len(curve) > 2:
            knee = curve[curve["high"] >= curve.loc[curve["top1"].idxmax(), "low"]].iloc[0]
            rows.append({"healer": healer, "knee_images": knee["images"], "at_end": knee["images"] == curve["images"].max()})
    return pd.DataFrame(rows, columns=["healer", "knee_images", "at_end"])


def title_course(curves: pd.DataFrame, x: str, *, back: float = 0.9) -> str:
    """Who is back soonest on the axis `x` ('seconds' or 'images_seen'), in words; `curves` as made above."""
    there = curves[curves["share"] >= back]
    if there.empty:
        return f"Nobody is back at {theme.percent(back, 0)} of dense yet"
    first = there.loc[pd.to_numeric(there[x]).idxmin()]
    after = f"{theme.number(first[x])} s" if x == "seconds" else f"{int(first[x]):,} images"
    return f"{theme.sentence(first['label'])} is back at {theme.percent(back, 0)} of dense after {after}, the soonest"


def title_over_images(found: pd.DataFrame, knees: pd.DataFrame) -> str:
    """How much data is enough, in words: for the best healer whose knee is known."""
    best, _ = rivals(found[found["healer"] != "none"])
    of_best = knees[knees["healer"] == best["healer"]] if best is not None and len(knees) else knees
    if of_best.empty:
        return "How little data is enough?"
    row, who = of_best.iloc[-1], theme.sentence(best["label"])
    if row["at_end"]:
        return f"{who} still gains at {int(row['knee_images']):,} images, the most tried"
    return f"{int(row['knee_images']):,} images are enough for {best['label']}: more change nothing resolved"


def title_over_sparsity(found: pd.DataFrame, *, kept: float = 0.9) -> str:
    """Up to which sparsity somebody keeps a share of the dense accuracy, in words."""
    there = found.dropna(subset=["share"])
    if there.empty:
        return "How sparse can it get?"
    enough = there[there["share"] >= kept]
    if enough.empty:
        return f"Nobody keeps {theme.percent(kept, 0)} of dense, even at {theme.percent(there['sparsity'].min(), 0)} sparsity"
    most = enough[enough["sparsity"] == enough["sparsity"].max()]
    if "none" in set(most["healer"]):  # there nothing needs to heal: what is said is where that ends
        further = there["sparsity"].max() > most["sparsity"].iloc[0]
        who = f"Beyond {100 * most['sparsity'].iloc[0]:g} % sparsity nobody keeps" if further else "At every sparsity even no healing keeps"
        return f"{who} {theme.percent(kept, 0)} of dense"
    best = most.loc[most["share"].idxmax()]
    return f"{theme.sentence(best['label'])} keeps {theme.percent(best['share'], 0)} of dense at {100 * best['sparsity']:g} % sparsity"


def _names(labels: pd.Series) -> str:
    """One name, else how many."""
    names = list(dict.fromkeys(labels))
    return f"{names[0]} is" if len(names) == 1 else f"{len(names)} others are"


def _interval(row) -> str:
    if pd.isna(row.top1):
        return "–"
    return f"{100 * row.top1:.1f} ± {50 * (row.high - row.low):.1f} %"

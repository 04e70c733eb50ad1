"""Can drift alone pick the best healer? Every finished run's drift against its accuracy; closed until asked for."""

from __future__ import annotations

import json

import pandas as pd
import streamlit as st

from app import frame, results, state
from app.charts import agreement as charts
from app.charts import drift
from starfish_lab.measure import agreement

RUNS = {"all": "All finished runs", "chosen": "Chosen runs"}
DEPTHS = {"mean": "Mean over blocks", "last": "Last block"}
CAPTION = (
    "A mark is a run, its line the 95 % interval of its accuracy. Rings are the runs of least drift among those of the same images, pattern, "
    "sparsity and budget. Runs differ in what was removed too, so the chart as a whole does not say who heals best: the rings do."
)
CHOICES = {
    "group": "Same images, pattern, sparsity, budget", "n": "Runs", "least_drift": "Least drift: run", "most_accurate": "Most accurate: run",
    "found": st.column_config.NumberColumn("Found", format="%.2g"), "regret_pp": st.column_config.NumberColumn("Lost (pp)", format="%.1f"),
    "found_by_chance": st.column_config.NumberColumn("Found blindly", format="%.2f"),
    "regret_by_chance_pp": st.column_config.NumberColumn("Lost blindly (pp)", format="%.1f"),
}  # fmt: skip


def section(chosen: list[int]) -> None:
    """The question as a headline; below it, once opened, the answer."""
    details = st.expander("Can drift alone, without labels, pick the best healer?", on_change="rerun", key="agreement")
    if not details.open:
        return
    with details, frame.guard():
        with st.container(horizontal=True, vertical_alignment="bottom"):
            which = _one("Runs", "drift_of", RUNS)
            metric = _one("Drift as", "agreement_drift", {name: words for name, (words, _) in drift.METRICS.items()})
            depth = _one("Of", "drift_depth", DEPTHS)
        runs = state.store().runs(status="done", limit=1_000_000)
        runs = runs[runs["id"].isin(chosen)] if which == "chosen" else runs
        rows = _rows(runs, metric, depth)
        if rows.empty:
            st.info("No finished run here has both drift and accuracy: accuracy needs labelled evaluation images.")
            return
        rows = _of_one_network(rows)
        found = agreement.choices(rows.set_index("run"))
        related = agreement.correlation(rows.assign(group=0))
        st.markdown(f"**{agreement.answer(found)}** {_in_words(related)}")
        axis = f"{drift.METRICS[metric][1]}, {DEPTHS[depth].lower()}"
        fig = charts.drift_against_accuracy(
            rows, related, set(found["least_drift"]), x=axis, dark=frame.dark(), keep=f"{which} {metric} {depth} {rows['same'].iloc[0]}"
        )
        frame.chart(fig, key="drift_against_accuracy", caption=CAPTION, data=rows.drop(columns=["same", "group"]))
        if len(found):
            words = rows.set_index("group")["equals"].groupby(level=0).first()
            frame.table(found.assign(group=found["group"].map(words)), key="least_drift", column_config=CHOICES)


def _one(label: str, name: str, options: dict[str, str]) -> str:
    first = next(iter(options))
    tied = state.tie_value(name, first, allowed=options)
    return st.segmented_control(label, list(options), format_func=options.get, required=True, **tied)


def _of_one_network(rows: pd.DataFrame) -> pd.DataFrame:
    """The runs of one network on the same evaluation images, those with most runs unless others are asked for."""
    counts, words = rows["same"].value_counts(), rows.groupby("same")["network"].first()
    options = {same: f"{words[same]} · {results.count(counts[same], 'run')}" for same in counts.index}
    wanted = st.selectbox("Network and images", list(options), format_func=options.get)
    return rows[rows["same"] == wanted].reset_index(drop=True)


def _in_words(related: dict[str, float | int | None]) -> str:
    """The correlation with its interval."""
    if related["rho"] is None:
        return f"For a rank correlation there are not enough different runs: n = {related['n']}, and {agreement.FEWEST} are needed."
    interval = f"95 % bootstrap interval {related['low']:.2f} to {related['high']:.2f}"
    return f"Spearman's rank correlation is {related['rho']:.2f}, {interval}, n = {related['n']}.".replace("-", "−")


def _rows(runs: pd.DataFrame, metric: str, depth: str) -> pd.DataFrame:
    """A row a run that has accuracy: run, label, stage (its last), drift, top1, low, high, images, and what `_terms` says of it."""
    ids = tuple(int(run) for run in runs["id"])
    known = _facts(state.store().url, ids, metric, depth)
    stages = ["healed" if run in known and known[run]["stage"] == "healed" else "pruned" for run in ids]
    figures = {name: [row[f"{name}_{stage}"] for row, stage in zip(runs.to_dict("records"), stages)] for name in ("top1", "low", "high")}
    rows = pd.DataFrame({
        "run": ids, "label": [results.short(row) for row in runs.to_dict("records")], "stage": stages,
        **{name: [known.get(run, {}).get(name) for run in ids] for name in ("drift", "same", "network", "group", "equals")},
        **figures, "images": runs["images"].to_numpy(),
    })  # fmt: skip
    rows = rows[~runs["recipe_hash"].duplicated().to_numpy()]  # a recipe that ran twice says nothing new
    return rows.dropna(subset=["drift", "top1"]).astype({"images": int}).reset_index(drop=True)


@st.cache_data(show_spinner=False, max_entries=8)
def _facts(url: str, ids: tuple[int, ...], metric: str, depth: str) -> dict[int, dict[str, object]]:
    """{run: stage, drift and `_terms`} of finished runs, which never change; `url` is of their store."""
    store = state.store()
    rows = drift.distances(store.table(ids, "drift"), metric=metric, tokens="all")
    if rows.empty:
        return {}
    last = rows.groupby("run")["stage"].transform("last")  # pruned rows stand before healed ones
    rows = rows[rows["stage"] == last]
    if depth == "last":
        rows = rows[rows["depth"] == rows.groupby("run")["depth"].transform("max")]
    found = rows.groupby("run").agg(stage=("stage", "first"), drift=("distance", "mean")).to_dict("index")
    recipes = store.recipes(found)
    return {run: facts | _terms(recipes[run]) for run, facts in found.items()}


def _terms(recipe: dict[str, dict]) -> dict[str, str]:
    """On what terms a run competes.

    `same`: equal for runs of one network on the same evaluation images; `group`: equal where the calibration images and
    what pruning takes are so too, whichever the score and the healing. `network` and `equals` say the two in words.
    """
    model, images, pruning, start = (recipe[part] for part in ("model", "images", "pruning", "start"))
    drawn_apart = images["calibration_path"] or images["calibration_csv"]  # else how many calibrate decides which remain to evaluate
    counts = ("calibration", "drift", "training", *(("seed",) if images["order"] == "first" else ()))
    same = [model, {name: value for name, value in images.items() if not (drawn_apart and name in counts)}]
    kinds = ("pattern", "sparsity", "keep", "group", "units", "multiple", "layers", "budget", "options", "include", "exclude")
    takes = {name: pruning[name] for name in kinds}
    group = [same, images, takes, recipe["tokens"], {name: start[name] for name in ("method", "path", "sparsity")}]
    what = f"{pruning['keep']}:{pruning['group']}" if pruning["pattern"] == "n_m" else f"{100 * pruning['sparsity']:g} % {pruning['pattern']}"
    place = (images["csv"] or images["path"] or images["source"]).rstrip("/").rpartition("/")[2]
    return {
        "same": json.dumps(same, sort_keys=True), "network": f"{model['name']} ({model['weights']}), {place}",
        "group": json.dumps(group, sort_keys=True),
        "equals": f"{what}, {pruning['budget'].replace('_', ' ')} budget, {images['calibration']:,} images of seed {images['seed']}",
    }  # fmt: skip

"""The chosen network's profile, and what is known of it before and after runs: the rows of the four figures."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pandas as pd
import streamlit as st

from app import acts, basis, devices, state
from app.results import paired_speedup
from starfish_lab import settings, whatif
from starfish_lab.errors import LabError
from starfish_lab.execution.choice import Execution
from starfish_lab.jobs import accelerators
from starfish_lab.latency.plan import baseline, usual
from starfish_lab.recipe import ImagesChoice, ModelChoice, Recipe
from starfish_lab.store import Run
from starfish_lab.whatif import Profile

BUNDLED = settings.ASSETS / "starter" / "profile.json"


class _Missing(Exception):
    """There is no such profile yet. Raised, not returned, so that its absence is not cached."""


def find(model: ModelChoice | None = None) -> Profile | None:
    """The profile of a network, by default the chosen one, or None where it has not been made."""
    try:
        model = model or state.recipe(_model_only()).model
        if model.name == "starter" and BUNDLED.exists():
            return _bundled(str(BUNDLED), BUNDLED.stat().st_mtime_ns)
        made = state.store().numbers(kind="profile", status="done", limit=1)  # a profile made anew takes the place of the one in memory
        return _stored(settings.database_url(), whatif.profile_key(model), *made or [0])
    except _Missing:
        return None


def require() -> Profile:
    """The chosen network's profile; where there is none, an invitation to make one, and the page ends here."""
    found = find()
    if found is None:
        _invite()
        st.stop()
    return found


def prediction(profile: Profile) -> whatif.WhatIf | None:
    """What the present choice would take. Where it cannot be had, the reason stands on the page instead and None comes back."""
    try:
        return predict(profile, basis.current())
    except LabError as error:
        st.warning(str(error), icon=":material/rule:")
        return None


def predict(profile: Profile, recipe: Recipe) -> whatif.WhatIf:
    """What a recipe would take. Raises LabError where it cannot be told."""
    return whatif.predict(profile, recipe.pruning, start=recipe.start, tokens=recipe.tokens)


def stage_rows(profile: Profile, predicted: whatif.WhatIf | None = None, *, recipe: Recipe | None = None) -> list[dict[str, object]]:
    """Rows for `frame.figures`: dense, pruned and healed under a recipe, by default the present choice's.

    What the latest run of this very recipe measured stands there as measured; before it, what the profile
    predicts stands as an estimate. Dense accuracy and latency come from the latest run of the same network and images.
    """
    try:
        recipe = recipe or basis.current()
        totals = (predicted or predict(profile, recipe)).totals
    except LabError:
        recipe, totals = None, {}
    dense = {"stage": "dense", "origin": "measured", "macs_g": profile.facts["macs_g"], "parameters_m": profile.facts["parameters"] / 1e6}
    pruned = {"stage": "pruned", "origin": "estimate", "macs_g": totals.get("macs_g_effective"), "parameters_m": totals.get("nonzero_parameters_m")}
    healed = {"stage": "healed", "origin": "estimate", "macs_g": pruned["macs_g"], "parameters_m": pruned["parameters_m"]}
    rows = [dense, pruned, healed]
    for row in rows:
        row["why_top1"] = row["why_latency_ms"] = "not measured yet"
    if recipe is not None and recipe.pruning.pattern != "structured" and not any(recipe.tokens.r):
        pruned["why_latency_ms"] = healed["why_latency_ms"] = "mask only"
    if recipe is None:
        return rows
    if recipe.model.name == "starter" and recipe.images == ImagesChoice(calibration=recipe.images.calibration, drift=recipe.images.drift):
        dense |= _card()
    same = state.store().numbers(kind="experiment", status="done", recipe_hash=recipe.fingerprint(), limit=1)
    if same:
        _fill(rows, _figures(settings.database_url(), same[0]))
    else:
        _dense(dense, recipe)
    _time(rows, recipe)
    return rows


def _dense(dense: dict[str, object], recipe: Recipe) -> None:
    """What the latest of the finished runs measured of the same unpruned network on the same images."""
    for run_id in state.store().numbers(kind="experiment", status="done", model=recipe.model.name, weights=recipe.model.weights, limit=5):
        known = state.store().run(run_id).recipe
        if known.model == recipe.model and known.images == recipe.images:
            _fill([dense], _figures(settings.database_url(), run_id))
            break


def _time(rows: list[dict[str, object]], recipe: Recipe) -> None:
    """Where no run of the recipe timed them: what the latest measurement of latency says of networks so pruned, whatever their weights."""
    if any(row.get("latency_ms") is not None for row in rows[1:]):
        return
    alike = {"model": recipe.model.name, "pattern": recipe.pruning.pattern, "sparsity": recipe.pruning.sparsity}
    for run_id in state.store().numbers(kind="latency", status="done", limit=5, **alike):
        known = state.store().run(run_id).recipe
        if (known.pruning, known.tokens) == (recipe.pruning, recipe.tokens):
            found = _timed(settings.database_url(), run_id, usual(recipe)[-1])
            if found and accelerators.fits(recipe.device, found["dense"]["on"], found["dense"]["device"]):
                for row in rows:
                    row |= found["dense" if row["stage"] == "dense" else "pruned"]
                return


@cache
def _card() -> dict[str, object]:
    """The bundled network's accuracy on the test images of its source, as measured when it was trained."""
    try:
        card = json.loads((settings.ASSETS / "starter" / "card.json").read_text())
    except OSError:
        return {}
    low, high = card["test_interval_95"]
    return {"top1": card["test_top1"], "low": low, "high": high, "images": card["test_images"]}


@st.cache_data(max_entries=64, show_spinner=False)
def _figures(url: str, run_id: int) -> dict[str, dict[str, object]]:
    """{stage: figures} that a finished run measured; a finished run never changes."""
    report = state.store().report(run_id)
    found: dict[str, dict[str, object]] = {}
    for row in report.tables.get("totals", []):
        found.setdefault(row["stage"], {}).update(macs_g=row["macs_g_effective"], parameters_m=row["nonzero_parameters_m"])
    for row in report.tables.get("accuracy", []):
        found.setdefault(row["stage"], {}).update({name: row[name] for name in ("top1", "low", "high", "images")})
    latency = pd.DataFrame(report.tables.get("latency", []))
    if len(latency):
        for row in latency[latency["batch"] == latency["batch"].min()].to_dict("records"):
            timed = dict(latency_ms=row["latency_ms_p50"], device=row.get("device_name") or row.get("device"), change_latency_ms=paired_speedup(row))
            found.setdefault(row["stage"], {}).update(timed)
    return found


@st.cache_data(max_entries=64, show_spinner=False)
def _timed(url: str, run_id: int, execution: str) -> dict[str, dict[str, object]]:
    """{'dense' | 'pruned': latency of one image} of a finished measurement that timed this execution and dense alike; {} of another."""
    timed = state.store().table([run_id], "latency")
    known = timed[timed["batch"] == 1].dropna(subset=["latency_ms_p50"]).set_index("execution")
    labels = {"dense": baseline(Execution.of(execution)).label, "pruned": execution}
    if not set(labels.values()) <= set(known.index):
        return {}
    return {
        stage: {
            "latency_ms": row["latency_ms_p50"], "device": row["device_name"], "on": row["device"], "origin_latency_ms": "measured",
            "change_latency_ms": paired_speedup(row) if stage == "pruned" else "",
        }
        for stage, label in labels.items() for row in [known.loc[label].to_dict()]
    }  # fmt: skip


def _fill(rows: list[dict[str, object]], found: dict[str, dict[str, object]]) -> None:
    for row in rows:
        if row["stage"] in found:
            row |= {"origin": "measured", **found[row["stage"]]}
            row["why_top1"] = "images have no labels"


@st.cache_resource(max_entries=2, show_spinner=False)
def _bundled(path: str, changed: int) -> Profile:
    return Profile.from_json(Path(path).read_text())


@st.cache_resource(max_entries=8, show_spinner="Opening the network's profile")
def _stored(url: str, key: str, newest: int) -> Profile:
    found = state.store().profile(key)
    if found is None:
        raise _Missing
    return found


def _model_only() -> state.Choice:
    """The choice with nothing in it but the network: what its profile depends on."""
    c = state.choice()
    return state.Choice(model=c.model, weights=c.weights, path=c.path)


def _job() -> Run | None:
    """The latest attempt at profiling the chosen network."""
    runs = state.store().runs(kind="profile", limit=50)
    same = runs[runs["recipe_hash"] == state.recipe(_model_only()).fingerprint()]
    return state.store().run(int(same["id"].iloc[0])) if len(same) else None


def _invite() -> None:
    """Empty state: what will be here, and the button that brings it; while a worker makes it, how far it is."""
    c = state.choice()
    job = _job()
    with st.container(border=True):
        st.subheader(f"{c.model} has no profile yet", anchor=False)
        st.markdown(
            "A profile holds the network's layers, their costs and their spectra. A worker makes it once, in seconds to minutes; "
            "from then on this page answers at once."
        )
        if job is not None and job.active:
            _wait(job.id)
            return
        if job is not None and job.error:
            st.error(job.error, icon=":material/error:")
        if acts.button("Profile this network", type="primary", icon=":material/query_stats:", key="make_profile"):
            state.backend().submit(state.recipe(_model_only()), "profile")
            st.rerun()


@st.fragment(run_every="1.5s")
def _wait(run_id: int) -> None:
    """Polls while the profile is being made; then the whole page is drawn again."""
    run = state.store().run(run_id)
    if not run.active:
        st.rerun()
    waiting = run.status == "queued"
    alive, problem = devices.capacity()
    alone = waiting and alive.empty and not problem
    st.status("Waiting for a worker" if waiting else "Reading layers and spectra", state="running", type="compact")
    if alone:
        st.caption("No worker is running. Start one: `python -m starfish_lab worker`")
    st.skeleton(height=220)

"""One bake-off on the page: live while it is at work, and what came of it."""

from __future__ import annotations

import time

import pandas as pd
import streamlit as st

from app import acts, bakeoff_rows, frame, launch, published, results, run_view, state
from app.charts import bakeoff as charts
from starfish_lab.bakeoff import live
from starfish_lab.healing import healers
from starfish_lab.measure import agreement
from starfish_lab.store import Run

_number = st.column_config.NumberColumn
COLUMNS = {
    "healer": "Healer",
    "accuracy": st.column_config.TextColumn("Top-1", help="With half of its 95 % Wilson interval; of several seeds the mean of both."),
    "share": _number("Of dense (%)", format="%.1f"),
    "standing": st.column_config.TextColumn("Against the best", help="Not resolved: both intervals overlap, so these images do not tell them apart."),
    "against": st.column_config.TextColumn("Against STARFISH", help="On the very same images (McNemar's exact test), which tells more apart."),
    "labels": st.column_config.TextColumn("Labels", help="Whether it used the labels of its images."),
    "sparsity": _number("Sparsity", format="percent"), "images": _number("Images"), "steps": _number("Steps"), "seeds": _number("Seeds"),
    "seconds": _number("Seconds", format="%.3g", help="Repair and training, without measuring and without trying learning rates."),
    "memory": _number("Peak memory (MiB)", format="%.0f", help="What the report's table 'healers' counts is said there."),
    "drift": _number("Drift", format="%.3g", help="Mean cosine distance of the blocks from their dense twins, on the drift images."),
    "kl": _number("KL", format="%.3g", help="Mean divergence of the dense answers to the healed ones on the drift images (nats)."),
    "note": "Why not",
}  # fmt: skip
CAPTIONS = {
    "all": "Further right is better; a line is the 95 % interval, a small tick a seed. Teal trains without labels, grey used labels, amber does not "
    "train. It holds for these images and this sparsity alone.",
    "images": "Each line is a healer on the first so many of the same images; a halo marks its knee, the fewest images not resolved from its best. "
    "Other evaluation images or more of them may resolve more.",
    "sparsity": "Each line is a healer at several sparsities with its 95 % interval; marks stand a little aside so as not to hide each other. "
    "It does not say what longer healing would bring.",
    "course": "A line is looked at a few times on at most 256 images; a large mark is the end on all evaluation images, with its 95 % interval. "
    "Seconds are this machine's.",
    "losses": "Every loss is divided by its own first value, for healers minimise different things. A lower line is no better healer.",
}
SCALES = {"seconds": ("Seconds", "Healing time (s)"), "images_seen": ("Images", "Images seen while healing")}
DETAILS = {"While healing": "healer_curves", "Learning rates": "tuning", "Drift by block": "healer_blocks", "Notes": "notes", "Origin": "provenance"}
POLL = "2s"
REPAIR = 20  # steps that a repair counts as in how far a bake-off is


def show(run: Run, axis: str) -> None:
    """The bake-off, in whatever state it is."""
    if run.active:
        st.fragment(_live, run_every=POLL)(run.id, axis)
        return
    _head(run)
    if run.status != "done":
        _why(run)
        _so_far(run, axis)
        with frame.actions():
            if acts.button("Run again", type="primary", icon=":material/replay:", key="bake_again"):
                launch.submit(run.plan, kind=run.kind, name=f"bake_{axis}")
        return
    report = state.store().report(run.id)
    rows, paired, knees = (report.frame(name) for name in ("healers", "paired", "knee"))
    figure(rows, axis, key=f"bake_{run.id}", model=run.recipe.model.name, knees=knees)
    table(rows, paired, key=f"bake_{run.id}_table")
    if len(found := agreement.choices(bakeoff_rows.rivals_by_drift(rows))):
        st.caption(f"Could drift alone, without labels, have picked the best healer? {agreement.answer(found)}")
    there = [name for name, of in DETAILS.items() if report.tables.get(of)]
    wanted = st.segmented_control("Details", there, key="bake_details", label_visibility="collapsed")
    if wanted == "While healing":
        curves = report.frame("healer_curves")
        _courses(run, curves, rows)
    elif wanted:
        frame.table(report.frame(DETAILS[wanted]), key=f"bake_{run.id}_{DETAILS[wanted]}")


def figure(rows: pd.DataFrame, axis: str, *, key: str, model: str, knees: pd.DataFrame | None = None) -> None:
    """The main figure of rows of a table 'healers', and under it who did not run; nothing but words where the images have no labels."""
    found = bakeoff_rows.summary(rows)
    if found["share"].notna().any():
        _drawn(found, rows, axis, key=key, model=model, knees=knees)
    elif len(found):
        st.info("There is no accuracy to show: these images have no labels, or nothing ran. Drift and KL stand in the table.")
    for sentence in bakeoff_rows.refused(found):
        st.caption(f":material/block: {sentence}")


def _drawn(found: pd.DataFrame, rows: pd.DataFrame, axis: str, *, key: str, model: str, knees: pd.DataFrame | None) -> None:
    dark = frame.dark()
    knees = pd.DataFrame(columns=["healer", "knee_images"]) if knees is None or knees.empty else knees
    hollow = published.recoveries(model)
    if axis == "images":
        fig = charts.over(found, "images", title=bakeoff_rows.title_over_images(found, knees), knees=knees, dark=dark, keep=key)
    elif axis == "sparsity":
        fig = charts.over(found, "sparsity", title=bakeoff_rows.title_over_sparsity(found), literature=hollow, dark=dark, keep=key)
    else:
        hollow = hollow[hollow["sparsity"].isin(found["sparsity"])]
        fig = charts.by_healer(found, rows, title=bakeoff_rows.title(found), literature=hollow, dark=dark, keep=key)
    frame.chart(fig, key=key, caption=CAPTIONS[axis] + (literature_said(model) if axis != "images" else ""), data=found)


def literature_said(model: str) -> str:
    """How the published claim stands beside this network's figures."""
    rows = published.recoveries()
    if rows.empty:
        return ""
    if len(published.recoveries(model)):
        return f" Hollow marks are published ({rows['source'].iloc[0]}), with other images and settings."
    claims = " and ".join(f"{100 * row.share:.0f} % for {row.label.removesuffix(', published')}" for row in rows.itertuples())
    return f" Published for {rows['model'].iloc[0]} at {100 * rows['sparsity'].iloc[0]:g} % sparsity: {claims} ({rows['source'].iloc[0]})."


def table(rows: pd.DataFrame, paired: pd.DataFrame, *, key: str) -> None:
    """The result table; columns that say nothing here are left out."""
    shown = bakeoff_rows.listed(bakeoff_rows.summary(rows), paired)
    alike = [name for name in ("sparsity", "images", "seeds") if shown.loc[shown["seeds"] > 0, name].nunique() < 2]
    empty = [name for name in ("note", "against", "memory") if not shown[name].replace("", None).notna().any()]
    frame.table(shown.drop(columns=[*alike, *empty]), key=key, column_config=COLUMNS, placeholder="–", height=min(560, 38 + 35 * max(len(shown), 2)))


def _head(run: Run) -> None:
    plan = run.plan
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.subheader(f"Bake-off {run.id}{': ' + run.name if run.name else ''}", anchor=False, width="content")
        st.badge(run.status, color=run_view.COLOURS[run.status])
        tuned = ", learning rates tuned" if plan.rates else ""
        what = results.pattern(plan.recipe.pruning) if not plan.sparsities else plan.recipe.pruning.pattern
        st.caption(f"{plan.recipe.model.name} · {what} · {results.count(len(plan.seeds), 'seed')}{tuned}", width="content")


def _live(run_id: int, axis: str) -> None:
    with frame.guard():
        run = state.store().run(run_id)
        if not run.active:
            st.rerun()
        _head(run)
        if run.status == "queued":
            run_view.queued(run)
        else:
            finished = live.finished(state.store().events(run_id))
            st.progress(_share(run, finished), text=_where(run, len(finished)))
        _so_far(run, axis)
        with frame.actions():
            st.caption("Close the browser if you like: the bake-off goes on.", width="content")
            if acts.button("Stopping" if run.cancel else "Cancel", icon=":material/stop_circle:", disabled=run.cancel, key="cancel_bake"):
                state.backend().cancel(run_id)
                st.rerun()


def _why(run: Run) -> None:
    """What ended a bake-off before its time, and what is left of it."""
    kept = "Healings that were finished are kept: Run again goes on where this one ended."
    if run.status == "failed":
        st.error(f"Bake-off {run.id} stopped: {run.error} {kept}", icon=":material/error:")
        return
    number, _, healer = (run.stage or "").partition(": ")
    where = f" at healing {number}, {bakeoff_rows.label(healer)}" if healer else " before the first healing"
    st.warning(f"Bake-off {run.id} was cancelled{where}. {kept}", icon=":material/stop_circle:")


def _share(run: Run, finished: pd.DataFrame) -> float:
    """How much of the work is done, counted in steps: a repair counts as a few."""
    work = [cell.steps or REPAIR for cell in run.plan.cells()]
    done = finished["steps"].replace(0, REPAIR).sum() if len(finished) else 0
    within = 0.0
    if run.step and run.steps and ":" in (run.stage or "") and len(finished) < len(work):
        within = work[len(finished)] * min(1.0, run.step / run.steps)
    return min(1.0, float(done + within) / sum(work))


def _where(run: Run, done: int) -> str:
    number, _, healer = (run.stage or "").partition(": ")
    now = f"Healing {number}: {bakeoff_rows.label(healer)}" if healer else run_view.STAGES.get(run.stage or "load", "Starting")
    left = f", {results.duration(run.seconds_left)} left of it" if healer and run.seconds_left is not None else ""
    so_far = f" · {results.duration(time.time() - run.started_at)} so far" if run.started_at else ""
    return f"{now}{left} · {done} of {len(run.plan.cells())} finished{so_far}{' · stopping' if run.cancel else ''}"


def _so_far(run: Run, axis: str) -> None:
    """What a bake-off that has not ended, or ended early, has found."""
    events = state.store().events(run.id)
    rows = bakeoff_rows.live(live.finished(events), _labels(run))
    curves = live.curves(events)
    if len(rows) and axis != "all":
        figure(rows, axis, key=f"bake_{run.id}_live", model=run.recipe.model.name)
    elif len(curves) or len(rows):
        _courses(run, curves, rows)
    elif run.active:
        st.skeleton(height=340)
    if len(rows):
        table(rows, pd.DataFrame(), key=f"bake_{run.id}_so_far")
    run_view.notes(state.store().notes(run.id))


def _courses(run: Run, curves: pd.DataFrame, rows: pd.DataFrame) -> None:
    """Recovered accuracy and losses over the healing."""
    plan, dark = run.plan, frame.dark()
    dense = rows["top1_dense"].max() if len(rows) else None
    sizes = {name: plan.choice(name).batch_size for name in plan.healers}
    shown = bakeoff_rows.curves(curves, dense=dense, labels=_labels(run), batch_sizes=sizes)
    x = state.get("bake_x", "seconds", allowed=list(SCALES))
    ended = bakeoff_rows.ended(rows, x, sizes)
    falling = bool((shown["loss"] > 0).any())
    with st.container(key="pair"):
        left, right = st.columns(2) if falling else (st.container(), st.empty())
        with left:
            if dense == dense and dense:
                title = bakeoff_rows.title_course(shown, x)
                fig = charts.course(shown, ended, x=x, title=title, unit=SCALES[x][1], dark=dark, keep=f"{run.id} {x}")
                frame.chart(fig, key=f"bake_{run.id}_course", caption=CAPTIONS["course"], data=shown, controls=_scale)
            else:
                st.caption("Recovered accuracy appears with the first healing that ends.")
                st.skeleton(height=300)
        if falling:
            with right:
                fig = charts.losses(shown, dark=dark, keep=f"losses {run.id}")
                frame.chart(fig, key=f"bake_{run.id}_losses", caption=CAPTIONS["losses"], data=shown)


def _scale() -> None:
    """What the chart of the course counts."""
    names = {key: words for key, (words, _) in SCALES.items()}
    tied = state.tie_value("bake_x", "seconds", allowed=list(SCALES))
    st.segmented_control("Against", list(SCALES), required=True, format_func=names.get, label_visibility="collapsed", **tied)


def _labels(run: Run) -> dict[str, bool]:
    plan = run.plan
    return {name: healers.labels(plan.healer_of(name)) for name in plan.healers}

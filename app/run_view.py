"""One run on the page: live while it is queued or running, and what came of it once it ended."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from app import (
    acts,
    bakeoff_rows,
    before_view,
    certificate_view,
    decisions_view,
    devices,
    drift_view,
    faster_card,
    frame,
    launch,
    results,
    run_files,
    state,
    three_way_view,
)
from app.charts import drift, healing
from starfish_lab import artefacts
from starfish_lab.healing import healers
from starfish_lab.report import LARGE, Report
from starfish_lab.store import Run

STAGES = {
    "load": "Opening network and images", "prune": "Pruning", "measure pruned": "Measuring the pruned network", "heal": "Healing",
    "measure healed": "Measuring the healed network", "gallery": "Keeping answers for the gallery",
    "certificates": "Certificates", "spectra": "Spectra", "latency": "Timing", "save": "Saving",
}  # fmt: skip
COLOURS = {"queued": "gray", "paused": "orange", "running": "blue", "done": "green", "failed": "red", "cancelled": "orange"}
CAPTIONS = {
    "loss": "Lower is closer to the dense network on the calibration images. It does not say how unseen images are answered.",
    "blocks": "Each row of colour is a healing step, the background's colour is no drift. It shows calibration images, not the ones that evaluate.",
    "accuracy": "A mark is the share of evaluation images answered right, its line the 95 % Wilson interval. It speaks for these images alone.",
    "drift": "How far each block's output is from its dense twin on images that neither heal nor evaluate. Little drift is no promise of accuracy.",
}


def follow(run: Run) -> None:
    """A queued, paused or running run, drawn again every second; when it ends the whole page is drawn once more."""
    st.fragment(_live, run_every="1s")(run.id)


def ended(run: Run) -> None:
    """A run that is done, failed or cancelled."""
    if run.status == "done" and run.kind == "experiment":
        _done(run)
        return
    _head(run)
    _why(run)
    notes(state.store().notes(run.id))
    with frame.actions():
        _new()
        if acts.button("Run again", type="primary", icon=":material/replay:", key="again"):
            launch.submit(run.plan, kind=run.kind, parent=run.id)
    with st.container(key="pair"):
        _healing(run, *_losses(state.store().events(run.id)))


def _head(run: Run) -> None:
    """Number, name, status and recipe of a run."""
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.subheader(f"Run {run.id}{': ' + run.name if run.name else ''}", anchor=False, width="content")
        st.badge(run.status, color=COLOURS[run.status])
        recipe = run.recipe
        what = f"{recipe.model.name} · {results.pattern(recipe.pruning)} · {bakeoff_rows.label(healers.name(recipe.healing))}"
        st.caption(what, width="content")
        if run.parent:
            st.caption(f"from run {run.parent}", width="content")
    if before := results.before(run.recipe):
        st.caption(before)


def _live(run_id: int) -> None:
    with frame.guard():
        store = state.store()
        run = store.run(run_id)
        if not run.active:
            st.rerun()
        _head(run)
        if text := st.session_state.pop("said", None):
            st.info(text, icon=":material/info:")
        if run.status == "paused":
            st.info(f"Run {run.id} is paused: it waits until it, or the sweep that it belongs to, is resumed.", icon=":material/pause_circle:")
        elif run.status == "queued":
            queued(run)
        else:
            st.progress(_share(run), text=_progress_text(run))
        if (run.recipe.healing.repair, run.recipe.healing.method) != ("none", "none"):
            events = store.events(run_id)
            with st.container(key="pair"):
                _healing(run, *_losses(events))
            if seen := drift_view.live(events):
                st.caption(seen)
        notes(store.notes(run_id))
        with frame.actions():
            st.caption("Close the browser if you like: the run goes on, and stands under Runs.", width="content")
            _new()
            if run.status == "paused" and acts.button("Resume", icon=":material/play_circle:", key="resume"):
                state.store().resume(run_id)
                st.rerun()
            if acts.button("Stopping" if run.cancel else "Cancel", icon=":material/stop_circle:", disabled=run.cancel, key="cancel"):
                state.backend().cancel(run_id)
                st.rerun()


def queued(run: Run) -> None:
    """Why the run waits, and what would start it."""
    alive, problem = devices.capacity()
    if problem:
        st.status("Waiting: who could take it cannot be told just now", state="running", type="compact")
    elif waits := devices.waits(run.wants, alive):
        there = f"The workers have {', '.join(sorted(set(alive['device'])))}" if len(alive) else "No worker is running"
        wish = "" if run.wants == devices.AUTO else f" (on {devices.label(run.wants)})"
        st.warning(f"{there}: run {run.id}{wish} {waits}.", icon=":material/power_off:")
    else:
        queue = state.store().runs(kind=None, status="queued")
        ahead = int((queue["id"] < run.id).sum())
        st.status(f"Waiting for a worker, {ahead} before it" if ahead else "A worker takes it next", state="running", type="compact")


def _share(run: Run) -> float:
    return min(1.0, run.step / run.steps) if run.step and run.steps else 0.0


def _progress_text(run: Run) -> str:
    text = STAGES.get(run.stage or "load", (run.stage or "").capitalize())
    if run.stage in STAGES:
        text += f" · part {list(STAGES).index(run.stage) + 1} of {len(STAGES)}"
    if run.steps:
        text += f" · {run.step} of {run.steps}"
    if run.seconds_left is not None:
        text += f" · {results.duration(run.seconds_left)} left"
    return text + (" · stopping" if run.cancel else "")


def _losses(events: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Losses (step, loss) and losses of blocks (step, depth, loss) among the figures that a run has reported so far."""
    losses = events[events["name"] == "loss"].rename(columns={"value": "loss"})[["step", "loss"]]
    of_blocks = events[events["name"].str.fullmatch(r"block\.\d+")]
    depths = of_blocks["name"].str.removeprefix("block.").astype(int)
    return losses, of_blocks.assign(depth=depths).rename(columns={"value": "loss"})[["step", "depth", "loss"]]


def _healing(run: Run, losses: pd.DataFrame, blocks: pd.DataFrame) -> None:
    """Loss and drift of blocks over the steps. Until the first figures come, their places are kept."""
    if losses.empty:
        if run.active:
            st.skeleton(height=340)
        return
    left, right = st.columns(2)
    with left:
        fig = healing.loss_curve(losses, dark=frame.dark(), keep=f"loss {run.id}")
        frame.chart(fig, key=f"run_{run.id}_loss", caption=CAPTIONS["loss"], data=losses)
    if len(blocks):
        with right:
            fig = healing.block_losses(blocks, dark=frame.dark(), keep=f"blocks {run.id}")
            frame.chart(fig, key=f"run_{run.id}_blocks", caption=CAPTIONS["blocks"], data=blocks)


def _why(run: Run) -> None:
    """What ended a run before its time."""
    if run.status == "failed":
        st.error(f"Run {run.id} stopped: {run.error}", icon=":material/error:")
    elif run.status == "cancelled":
        where = f" during '{STAGES.get(run.stage, run.stage).lower()}'" if run.stage else " before it began"
        how_far = f", at {run.step} of {run.steps}" if run.steps else ""
        st.warning(f"Run {run.id} was cancelled{where}{how_far}. Nothing of it is kept but its figures.", icon=":material/stop_circle:")
    elif run.kind == "merging":
        st.info(f"Run {run.id} merged the tokens of a few pictures; they are shown under Tokens.", icon=":material/grid_view:")
    elif run.kind == "picture":
        st.info(f"Run {run.id} showed a picture to the networks of run {run.parent}; the answers are under Gallery.", icon=":material/image:")
    elif run.kind == "sensitivity":
        st.info(f"Run {run.id} pruned the layers of a network one by one; its curves are on Explore.", icon=":material/ssid_chart:")
    elif run.kind == "layer_times":
        st.info(f"Run {run.id} timed the layers of a network: 'Will it be faster?' on Explore answers from them.", icon=":material/timer:")
    elif run.kind == "latency":
        st.info(f"Run {run.id} timed a network; its figures are under Latency.", icon=":material/timer:")
    else:
        st.info(f"Run {run.id} was a job of the kind '{run.kind}'; it leaves no figures to show here.", icon=":material/info:")


def notes(said: list[str]) -> None:
    """Remarks of a run, closed until asked for."""
    if said:
        with st.expander(f"{len(said)} notes" if len(said) > 1 else "1 note"):
            for note in said:
                st.markdown(f"- {note}")


def _new() -> None:
    if st.button("New run", type="tertiary", icon=":material/add:", key="new_run"):
        state.put("run", None)
        state.put("new", True)
        st.rerun()


def _done(run: Run) -> None:
    """Dense, pruned and healed side by side."""
    report = state.store().report(run.id, without=LARGE)
    frame.figures(results.figure_rows(report, device=run.device or ""))
    _head(run)
    with st.container(key="pair"):
        if drift_view.there(report):
            three_way_view.draw(run, report, lambda: _accuracy(run, report))
        else:
            _two_ends(run, report)
        faster_card.measured(run, report)
        _downloads(run, report)
        before_view.section(run, report)
        certificate_view.section(run, report)
        decisions_view.section(run)
        _details(run, report)


def _two_ends(run: Run, report: Report) -> None:
    """Accuracy and drift of a run that nobody looked at while it healed, or that was not healed."""
    drifted = report.frame("drift")
    left, right = st.columns(2)
    with left:
        _accuracy(run, report)
    with right:
        fig = drift.over_depth(drifted, dark=frame.dark(), keep=run.id)
        frame.chart(fig, key=f"run_{run.id}_drift", caption=CAPTIONS["drift"], data=drifted)
        if "healed" in set(drifted.get("stage", ())):
            st.caption("Nobody looked at this network while it healed, so there is no view step by step: measure.snapshots says how often to look.")


def _accuracy(run: Run, report: Report) -> None:
    """Accuracy of every stage, and what the paired tests say of it."""
    accuracy = report.frame("accuracy")
    if accuracy.empty:
        st.info("These images have no labels, so there is no accuracy. The drift of the blocks says how much changed.")
        return
    fig = healing.accuracy_by_stage(accuracy, dark=frame.dark(), keep=run.id)
    frame.chart(fig, key=f"run_{run.id}_accuracy", caption=CAPTIONS["accuracy"], data=accuracy)
    st.markdown(_verdicts(report.frame("comparisons")))


def _verdicts(comparisons: pd.DataFrame) -> str:
    """The paired test of each two stages, in words."""
    rows = comparisons.to_dict("records")
    return "\n".join(f"- {row['second'].capitalize()} against {row['first']}: {row['verdict']}" for row in rows)


def _details(run: Run, report: Report) -> None:
    """Closed until asked for, and only then computed."""
    tables = {"Healing": "losses", "Layers": "layers", "Latency": "latency", "Time spent": "seconds", "Notes": "notes", "Origin": "provenance"}
    there = [name for name, table in tables.items() if report.tables.get(table)]
    wanted = st.segmented_control("Details", [*there, "Recipe"], key="details", label_visibility="collapsed")
    if wanted == "Healing":
        _healing(run, report.frame("losses"), report.frame("block_losses"))
    elif wanted == "Recipe":
        st.code(run.recipe.to_json(), language="json", height=400)
    elif wanted:
        frame.table(report.frame(tables[wanted]), key=f"run_{run.id}_{tables[wanted]}")


def _downloads(run: Run, report: Report) -> None:
    """Everything the run left, and where to go from here."""
    store = state.store()
    with frame.actions():
        with st.popover("Download", icon=":material/download:"):
            name, quiet = f"run-{run.id}", {"on_click": "ignore", "type": "tertiary"}
            st.download_button("Tables (CSV)", lambda: run_files.tables(store.report(run.id)), f"{name}-tables.zip", "application/zip", **quiet)
            st.download_button("Charts (HTML)", lambda: run_files.charts(run, report), f"{name}-charts.html", "text/html", **quiet)
            st.download_button("Recipe (JSON)", run.recipe.to_json(), f"{name}-recipe.json", "application/json", **quiet)
            if run.artefact and artefacts.reachable(run.artefact):
                st.download_button(
                    "Network (safetensors)", lambda: run_files.network(run.artefact), f"{name}-network.zip", "application/zip", **quiet,
                    help="starfish_lab.export.load_pruned opens it with one call; no pickle inside.",
                )  # fmt: skip
            else:
                st.caption("The network of this run is not on this machine.")
        if st.button(
            "Clone", type="tertiary", icon=":material/content_copy:", key="clone", help="Open its recipe in the form, to change and launch."
        ):
            launch.clone(run)
        _new()
        hint = "Images whose answer changed, class by class, and a picture of your own."
        if st.button("Gallery", type="tertiary", icon=":material/photo_library:", key="gallery", help=hint):
            state.put("run", run.id)
            st.switch_page("views/gallery.py")
        if st.button("Compare", type="primary", icon=":material/compare_arrows:", key="compare"):
            chosen = state.ids("runs")
            state.put("runs", chosen if run.id in chosen else (*chosen, run.id))
            st.switch_page("views/compare.py")

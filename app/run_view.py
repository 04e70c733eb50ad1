"""One run on the page: live while it is queued or running, and what came of it once it ended."""

from __future__ import annotations

import io
import shutil
import tempfile
import zipfile
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from app import bakeoff_rows, before_view, certificate_view, devices, drift_view, faster_card, frame, launch, results, state
from app.charts import drift, healing, theme
from starfish_lab import artefacts
from starfish_lab.healing import healers
from starfish_lab.report import Report
from starfish_lab.store import Run

STAGES = {
    "load": "Opening network and images", "prune": "Pruning", "measure pruned": "Measuring the pruned network", "heal": "Healing",
    "measure healed": "Measuring the healed network", "certificates": "Certificates", "spectra": "Spectra", "latency": "Timing", "save": "Saving",
}  # fmt: skip
COLOURS = {"queued": "gray", "paused": "orange", "running": "blue", "done": "green", "failed": "red", "cancelled": "orange"}
CAPTIONS = {
    "loss": "Lower is closer to the dense network on the calibration images. It does not say how unseen images are answered.",
    "blocks": "Each row of colour is a healing step, white is no distance from dense. It shows calibration images, not the ones that evaluate.",
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
        if st.button("Run again", type="primary", icon=":material/replay:", key="again"):
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
            if run.status == "paused" and st.button("Resume", icon=":material/play_circle:", key="resume"):
                state.store().resume(run_id)
                st.rerun()
            if st.button("Stopping" if run.cancel else "Cancel", icon=":material/stop_circle:", disabled=run.cancel, key="cancel"):
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
    report = state.store().report(run.id)
    frame.figures(results.figure_rows(report, device=run.device or ""))
    _head(run)
    dark = frame.dark()
    accuracy, drifted = report.frame("accuracy"), report.frame("drift")
    with st.container(key="pair"):
        left, right = st.columns(2)
        with left:
            if accuracy.empty:
                st.info("These images have no labels, so there is no accuracy. The drift of the blocks says how much changed.")
            else:
                fig = healing.accuracy_by_stage(accuracy, dark=dark, keep=run.id)
                frame.chart(fig, key=f"run_{run.id}_accuracy", caption=CAPTIONS["accuracy"], data=accuracy)
                st.markdown(_verdicts(report.frame("comparisons")))
        with right:
            if drift_view.there(report):
                drift_view.which_blocks(run, report)
            else:
                shown = drift.over_depth(drifted, dark=dark, keep=run.id)
                frame.chart(shown, key=f"run_{run.id}_drift", caption=CAPTIONS["drift"], data=drifted)
        faster_card.measured(run, report)
        _downloads(run, report)
        drift_view.section(run, report)
        before_view.section(run, report)
        certificate_view.section(run, report)
        _details(run, report)


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
    with frame.actions():
        with st.popover("Download", icon=":material/download:"):
            name = f"run-{run.id}"
            st.download_button("Tables (CSV)", lambda: _tables(report), f"{name}-tables.zip", "application/zip", on_click="ignore", type="tertiary")
            st.download_button("Charts (HTML)", lambda: _charts(run, report), f"{name}-charts.html", "text/html", on_click="ignore", type="tertiary")
            st.download_button("Recipe (JSON)", run.recipe.to_json(), f"{name}-recipe.json", "application/json", on_click="ignore", type="tertiary")
            if run.artefact and artefacts.reachable(run.artefact):
                st.download_button(
                    "Network (safetensors)", lambda: _network(run.artefact), f"{name}-network.zip", "application/zip", on_click="ignore",
                    type="tertiary", help="starfish_lab.export.load_pruned opens it with one call; no pickle inside.",
                )  # fmt: skip
            else:
                st.caption("The network of this run is not on this machine.")
        if st.button(
            "Clone", type="tertiary", icon=":material/content_copy:", key="clone", help="Open its recipe in the form, to change and launch."
        ):
            launch.clone(run)
        _new()
        if st.button("Compare", type="primary", icon=":material/compare_arrows:", key="compare"):
            chosen = state.ids("runs")
            state.put("runs", chosen if run.id in chosen else (*chosen, run.id))
            st.switch_page("views/compare.py")


def _tables(report: Report) -> bytes:
    """Every table of a report as CSV, in a zip."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in report.tables:
            archive.writestr(f"{name}.csv", frame.plain(report.frame(name)).to_csv(index=False))
    return packed.getvalue()


def _charts(run: Run, report: Report) -> str:
    """All charts of a run as one page that needs no network; on white, whatever the app's theme."""
    figures: list[go.Figure] = []
    if len(report.frame("accuracy")):
        figures.append(healing.accuracy_by_stage(report.frame("accuracy")))
    figures.append(drift.over_depth(report.frame("drift")))
    if len(report.frame("losses")):
        figures.append(healing.loss_curve(report.frame("losses")))
    if len(report.frame("block_losses")):
        figures.append(healing.block_losses(report.frame("block_losses")))
    figures += drift_view.figures(report)
    figures += before_view.figures(report)
    figures += certificate_view.figures(report)
    parts = [fig.to_html(full_html=False, include_plotlyjs=i == 0, config=theme.CONFIG) for i, fig in enumerate(figures)]
    title = f"STARFISH Lab, run {run.id}"
    return f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><body>{"".join(parts)}</body></html>'


def _network(artefact: str) -> bytes:
    """The healed network's folder as a zip, from wherever it is kept."""
    with tempfile.TemporaryDirectory() as place:
        return Path(shutil.make_archive(f"{place}/network", "zip", artefacts.fetch(artefact))).read_bytes()

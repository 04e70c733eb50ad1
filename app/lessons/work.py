"""What a lesson needs a network for: a job that one person starts and everybody who opens the lesson shares.

A job is known by its plan's fingerprint, so a finished one is found and never repeated. Experiments are asked for as a sweep: in one
transaction it takes over runs that are done or under way, from whichever page they came, and queues the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
import streamlit as st

from app import acts, frame, results, run_view, state
from starfish_lab import settings
from starfish_lab.errors import LabError
from starfish_lab.plain_data import Plan
from starfish_lab.store import Run

KNOWN = 100  # newest jobs of a kind that are looked through
HOPES = ("done", "running", "queued", "paused")  # in which order one is taken of several


class _NotDone(Exception):
    """Raised, not returned, so that it is not cached."""


@dataclass(frozen=True)
class Work:
    """`plan` is a sweep of experiments, or of another kind a run's plan. `does` says in a few words what a worker will do."""

    plan: Plan
    kind: str
    does: str


def known(work: Work) -> pd.DataFrame:
    """The finished runs of a job, in its plan's order: run, and of a sweep `sparsity`. Empty until all of them are done."""
    try:
        return _done(settings.database_url(), work.kind, work.plan.fingerprint(), work)
    except _NotDone:
        return pd.DataFrame()


def way(work: Work) -> None:
    """For a job that is not done: how far it is, or the button that starts it."""
    job = _job(work)
    if job is not None and job.active:
        _wait(job.id)
    else:
        _offer(work, job)


def measured(work: Work, name: str) -> pd.DataFrame:
    """A table of a job's runs, of a sweep with a column `sparsity`; empty until all of them are done."""
    runs = known(work)
    if runs.empty:
        return runs
    table = _table(settings.database_url(), tuple(int(run) for run in runs["run"]), name)
    return table.assign(sparsity=table["run"].map(dict(zip(runs["run"], runs["sparsity"])))) if "sparsity" in runs else table


@st.cache_data(max_entries=64, show_spinner=False)
def _table(url: str, run_ids: tuple[int, ...], name: str) -> pd.DataFrame:
    """A table of finished runs, which never change; `url` keeps stores apart."""
    return state.store().table(run_ids, name)


@st.cache_data(ttl=5, max_entries=64, show_spinner=False)
def _done(url: str, kind: str, fingerprint: str, _work: Work) -> pd.DataFrame:
    """What `known` says, asked for once and not by every figure and answer of a lesson. Raises _NotDone, which is not kept."""
    job = _job(_work)
    if job is None or job.status != "done":
        raise _NotDone
    found = _parts(job)
    if not found["status"].eq("done").all():
        raise _NotDone  # one was deleted since
    return found


def _job(work: Work) -> Run | None:
    """The furthest job with this very plan, or the newest that failed."""
    listed = state.store().runs(kind=work.kind, limit=KNOWN)
    same = listed[listed["recipe_hash"] == work.plan.fingerprint()]
    if same.empty:
        return None
    rank = same["status"].map({status: place for place, status in enumerate(HOPES)}).fillna(len(HOPES))
    return state.store().run(int(same.loc[rank.idxmin(), "id"]))  # newest first: of equals the newest


def _parts(job: Run) -> pd.DataFrame:
    """The runs of a sweep, or the one run that a job is: run, status."""
    return state.store().sweep_runs(job.id) if job.kind == "sweep" else pd.DataFrame([{"run": job.id, "status": job.status}])


def _offer(work: Work, before: Run | None) -> None:
    """The button that starts it, and why it has not come to its end before."""
    with st.container(border=True):
        st.markdown(f"**Nobody has run this here yet.** {work.does} It runs once; everybody who opens this lesson then sees it.")
        if before is not None and before.status in ("failed", "cancelled"):
            st.warning(f"Run {before.id} {before.status}{f': {before.error}' if before.error else '.'}", icon=":material/error:")
        if acts.button("Run it", type="primary", icon=":material/play_arrow:", key="lesson_run"):
            try:
                state.backend().submit(work.plan, work.kind)
            except LabError as error:
                st.warning(f"{error} Once somebody who may has run it, everybody sees it here.", icon=":material/lock:")
                return
            st.rerun()


@st.fragment(run_every="1s")
def _wait(job: int) -> None:
    """How far the job is; once it ends the whole page is drawn again."""
    with frame.guard():
        store = state.store()
        run = store.run(job)
        if not run.active:
            st.rerun()
        parts = _parts(run)
        at_work = parts[parts["status"] == "running"]
        if at_work.empty:
            waiting = parts[parts["status"] == "queued"]
            run_view.queued(store.run(int(waiting["run"].iloc[0])) if len(waiting) else run)
            return
        now = store.run(int(at_work["run"].iloc[0]))
        done = int(parts["status"].eq("done").sum())
        within = min(1.0, now.step / now.steps) if now.step and now.steps else 0.0
        text = run_view.STAGES.get(now.stage or "load", (now.stage or "").capitalize())
        which = f"run {done + 1} of {len(parts)} · " if len(parts) > 1 else ""
        left = f" · {results.duration(now.seconds_left)} left" if now.seconds_left is not None and len(parts) == 1 else ""
        st.progress((done + within) / len(parts), text=f"{which}{text}{left}")

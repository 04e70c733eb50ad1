"""A job that a section of a page waits for: what it waits for itself, or how far it is."""

from __future__ import annotations

import streamlit as st

from app import acts, devices, frame, state


def line(run_id: int, *, will: str, does: str, cancel: str = "") -> None:
    """Polled while a job is queued or running, said in two forms, what it will do and does; then the whole page is drawn again.

    `cancel` is the key of a button that stops it; without, there is none.
    """
    with frame.guard():
        run = state.store().run(run_id)
        if not run.active:
            st.rerun()
        alive, _ = devices.capacity()
        if run.status == "queued" and (waits := devices.waits(run.wants, alive)):
            st.caption(f"Run {run_id} will {will}: it {waits}.")
        else:
            share = min(1.0, run.step / run.steps) if run.step and run.steps else 0.0
            left = f", about {run.seconds_left:.0f} s left" if run.seconds_left else ""
            st.progress(share, text=f"Run {run_id} {does}{': waiting' if run.status == 'queued' else left}")
        if cancel and acts.button("Cancel", key=cancel, icon=":material/stop_circle:"):
            state.backend().cancel(run_id)
            st.rerun()


def picture(run_id: int, *, does: str, height: int) -> None:
    """Polled while a worker makes what will stand here, `height` pixels of it; then the whole page is drawn again."""
    with frame.guard():
        run = state.store().run(run_id)
        if not run.active:
            st.rerun()
        queued = run.status == "queued"
        st.status("Waiting for a worker" if queued else does, state="running", type="compact")
        if queued and devices.capacity()[0].empty:
            st.caption("No worker is running. Start one: `python -m starfish_lab worker`")
        st.skeleton(height=height)

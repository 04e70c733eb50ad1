"""The sidebar: what every page is about, and who looks. Model, weights' origin, images, device, worker, person. Nothing else."""

from __future__ import annotations

import time

import pandas as pd
import streamlit as st

from app import acts, devices, signing, state
from starfish_lab.jobs import accelerators
from starfish_lab.models import PAPER_MODELS
from starfish_lab.pruning import STARTS
from starfish_lab.store.service import MAY

WEIGHTS_HELP = "Pretrained: timm downloads them once. File: .safetensors, or .pt/.pth that holds tensors only. Random: untrained, to try things out."
DEVICE_HELP = "Where runs go: any free worker, a device of one of them, or a GPU by name on any node that has one. Type in a name such as H100."
STARTS_SECONDS = 60.0  # the lab's own worker imports torch before it reports
SOURCES = {
    "starter": "Handwritten digits (bundled)",
    "folder": "Folder, one sub-folder a class",
    "csv": "Folder or zip with a CSV",
    "imagenet": "ImageNet validation folder",
    "imagenette": "Imagenette (downloaded)",
}
_FIRST_OPENED = time.monotonic()


def draw() -> str:
    """All of it; '' or why the workers cannot be asked."""
    with st.sidebar:
        _model()
        _images()
        problem = _device()
        _person()
        return problem


def _person() -> None:
    """Who is signed in, with which role, and the way out; nothing where nobody signs in."""
    if not signing.on():
        return
    person = state.person()
    with st.container(horizontal=True, vertical_alignment="center", key="person"):
        st.text(person.who, width="stretch")
        st.badge(person.role, icon=":material/person:", color="gray", help=f"A person of this role {MAY[person.role]}.")
        if st.button("Sign out", type="tertiary", icon=":material/logout:"):
            st.logout()
    if not person.may("runner"):
        st.caption(acts.LOOKS)


def _model() -> None:
    chosen = state.choice()
    known = ["starter", *PAPER_MODELS]
    st.selectbox(
        "Model", known if chosen.model in known else [*known, chosen.model], accept_new_options=True,
        format_func=lambda name: "Starter, a small ViT" if name == "starter" else name,
        help="The bundled starter, a network of the papers, or any timm name typed in: vit_*, deit_*, deit3_*, swin_*, hiera_*, convnext_*, "
        "convnextv2_*, resnet*.",
        **state.tie("model"),
    )  # fmt: skip
    if chosen.model == "starter":
        st.caption("Bundled weights")
        return
    st.segmented_control("Weights", ["pretrained", "file", "random"], format_func=str.capitalize, help=WEIGHTS_HELP, **state.tie("weights"))
    if chosen.weights == "file":
        st.text_input("Weights file", placeholder="/path/to/weights.safetensors", **state.tie("path"))


def _images() -> None:
    chosen = state.choice()
    st.selectbox("Images", list(SOURCES), format_func=SOURCES.get, **state.tie("images"))
    if chosen.images == "starter" and chosen.model != "starter":
        st.caption("These are 8×8 digits. Choose images this network was trained for to see its real accuracy.")
    if chosen.images != "starter":
        _own_images(tables=chosen.images == "csv")
    st.number_input(
        "Calibration images", min_value=1, max_value=1_000_000, step=16,
        help="How many unlabelled images healing sees. They are kept apart from the images that evaluate.", **state.tie("calibration"),
    )  # fmt: skip
    if chosen.training or STARTS.constant(chosen.start, "TRAINS", False) or state.get("on", "calibration") == "training":
        st.number_input(
            "Training images", min_value=-1, max_value=10_000_000, step=500,
            help="Labelled images for what trains longer: cycles and distillation. 0: the calibration images; −1: all that remain.",
            **state.tie("training"),
        )  # fmt: skip


def _own_images(*, tables: bool) -> None:
    """Where a person's own images lie; `tables` where a CSV says which is which."""
    st.text_input("Folder or zip", placeholder="/path/to/images", **state.tie("images_path"))
    if tables:
        st.text_input("CSV of file and label", placeholder="/path/to/labels.csv", **state.tie("images_csv"))
        st.text_input("Label column", help="Column of the class: a name, an id or a place in the network's output.", **state.tie("label_column"))
    st.text_input(
        "Calibration folder or zip", placeholder="same as above",
        help="Images to heal with; labels are not used. Never overlaps the evaluation images.", **state.tie("calibration_path"),
    )  # fmt: skip
    if tables:
        st.text_input("Calibration CSV", placeholder="only with a calibration folder", **state.tie("calibration_csv"))
    st.number_input(
        "Evaluation images", min_value=0, max_value=10_000_000, step=500, help="How many images accuracy is measured on. 0: all that remain.",
        **state.tie("evaluation"),
    )  # fmt: skip


def _device() -> str:
    """Where runs go, and who could take them; '' or why that cannot be told."""
    alive, problem = devices.capacity()
    tied = state.tie("device")
    keep, before = tied.pop("on_change"), state.choice().device

    def changed() -> None:
        typed = st.session_state[tied["key"]] or ""
        st.session_state[tied["key"]] = devices.asked(typed) or before
        if not devices.asked(typed):
            st.session_state["device_unknown"] = typed[:40]
        keep()

    st.selectbox(
        "Device", devices.offered(alive, before), format_func=devices.label, accept_new_options=True, on_change=changed, help=DEVICE_HELP, **tied
    )  # fmt: skip
    if typed := st.session_state.pop("device_unknown", None):
        st.caption(f"'{typed}' is no device: choose one, or type a GPU's name such as H100. {devices.label(before)} stays chosen.")
    if not problem and state.choice().device != devices.AUTO and (waits := devices.waits(state.choice().device, alive)):
        st.caption(f"A run {waits}.")
    if (now := _situation(alive, problem)) == "idle":  # there is nothing to wait for
        _workers(alive, now)
    else:
        st.fragment(_poll, run_every="3s")(now)
    return problem


def _situation(alive: pd.DataFrame, problem: str) -> str:
    """'away', 'none', 'idle', or 'busy': a living worker has a run, or will have one in a moment."""
    if problem:
        return "away"
    if alive.empty:
        return "none"
    return "busy" if alive["run"].notna().any() or state.store().numbers(status="queued", limit=1) else "idle"


def _poll(before: str) -> None:
    """The workers while one is busy or the first is still starting; once the situation is another one, the page is drawn again."""
    alive, problem = devices.capacity()
    now = _situation(alive, problem)
    _workers(alive, now)
    if now != before:
        st.rerun()


def _workers(alive: pd.DataFrame, now: str) -> None:
    """A line for each worker and each node of a cluster."""
    if now == "away":
        st.badge("Workers out of reach", icon=":material/cloud_off:", color="orange")
    elif alive.empty and time.monotonic() - _FIRST_OPENED < STARTS_SECONDS:
        st.badge("Worker starting", icon=":material/hourglass_top:", color="gray")
    elif alive.empty:
        st.badge("No worker", icon=":material/power_off:", color="gray")
        st.caption("Runs wait until one is started: `python -m starfish_lab worker`")
    for row in alive.itertuples():
        idle, name = pd.isna(row.run), accelerators.short(row.title or "")
        text = f"{row.device}{f' ({name})' if name else ''}: {'idle' if idle else f'busy with run {row.run}'}"
        st.badge(text, icon=":material/memory:", color="gray" if idle else "green", help=row.title or None)

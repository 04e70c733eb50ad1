"""What a finished run provably keeps: labels, cross-entropy, and each layer's budget. Closed until asked for, drawn only then."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from app import frame, state
from app.charts import certificates, theme
from starfish_lab import certificate_bounds as bounds
from starfish_lab.report import Report
from starfish_lab.store import Run

USUAL_LAMBDA = 5e-6  # of both penalties in arXiv 2310.03165; arXiv 2606.02608 never gives its own
LIMITS = {"lambda_one": (0.0, 1e3), "lambda_two": (0.0, 1e3), "delta": (1e-6, 0.5)}
CAPTIONS = {
    "margins": "Bound: an image above the diagonal keeps its label for certain, by its own two margins. Of images not measured it says nothing, "
    "and below the diagonal a label may stay all the same.",
    "shares": "Bound: full colour is certain, pale stayed without being certain, hollow changed. The head alone is a question of its own: "
    "it is put into the otherwise dense network.",
    "layers": "Bound per unit L: a mark is the mean over images of the largest change in the layer's output, its line reaches the maximum. What the "
    "layers behind make of it, the factor L, is not known. The dashed line is what Gaussian noise as strong as the layer's bulk would stay under; "
    "pruned weights are chosen by size and need not.",
    "slack": "Above 0 the penalised objective, cross-entropy + λ₂‖·‖² + λ₁‖·‖₁, provably does not rise when this layer's weights go. "
    "It says nothing of cross-entropy alone.",
}


def section(run: Run, report: Report) -> None:
    """The certificate of a finished run; nothing for runs that measured none."""
    summary = report.frame("certificates")
    if summary.empty:
        return
    details = st.expander(f"Certificate: {certificates.finding(summary)}", on_change="rerun", key="certificate")
    if not details.open:
        return
    with details, frame.guard():
        _warn(summary)
        st.markdown(_in_words(summary))
        _images(run, report, summary)
        rows = report.frame("certificate_layers")
        if len(rows):
            _layers(run, rows)


def figures(report: Report) -> list[go.Figure]:
    """The charts of images, for a page without inputs; none where nothing was certified."""
    summary = report.frame("certificates")
    return [] if summary.empty else [certificates.margins(report.frame("certificate_images"), summary), certificates.shares(summary)]


def _warn(summary: pd.DataFrame) -> None:
    """A certificate that failed is worth more than all that held."""
    wrong = int(summary["flipped"].sum())
    if wrong:
        st.error(f"{wrong} certified labels changed, which must not be. Trust none of these certificates.", icon=":material/error:")


def _in_words(summary: pd.DataFrame) -> str:
    """What each row promises, and what was found."""
    lines = []
    for row in summary.to_dict("records"):
        text = f"- **{row['stage'].capitalize()}, {row['what']}** ({row['label']}, n = {theme.count(row['images'])}): "
        text += f"cross-entropy moves by {theme.number(row['budget'])} nats at most, on average over these images"
        if pd.notna(row["ce_change"]):
            text += (
                f", and moved by {theme.number(row['ce_change'])}; top-1 by {theme.number(100 * row['accuracy_change_bound'])} pp at most, "
                f"and moved by {theme.number(100 * abs(row['accuracy_change']))} pp"
            )
        lines.append(text + ".")
    return "\n".join(lines)


def _images(run: Run, report: Report, summary: pd.DataFrame) -> None:
    images = report.frame("certificate_images")
    left, right = st.columns(2)
    with left:
        fig = certificates.margins(images, summary, dark=frame.dark(), keep=run.id)
        frame.chart(fig, key=f"run_{run.id}_margins", caption=CAPTIONS["margins"], data=images)
    with right:
        fig = certificates.shares(summary, dark=frame.dark(), keep=run.id)
        frame.chart(fig, key=f"run_{run.id}_shares", caption=CAPTIONS["shares"], data=summary)


def _layers(run: Run, rows: pd.DataFrame) -> None:
    """Budget over depth, and for one layer when a penalty pays for it."""
    stages = [stage for stage in theme.STAGES if stage in set(rows["stage"])]
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        stage = stages[0]
        if len(stages) > 1:
            stage = state.get("certified", stages[0], allowed=stages)
            st.segmented_control("Layers of", stages, format_func=str.capitalize, required=True, **state.tie_value("certified", stages[0]))
        rows = rows[rows["stage"] == stage].reset_index(drop=True)
        names = list(rows["layer"])
        usual = next(iter(rows.loc[rows["label"] == bounds.BOUND, "layer"]), names[0])  # where L is known
        layer = state.get("certified_layer", usual)
        if layer not in names:
            state.put("certified_layer", None)
            layer = usual
        st.selectbox("Layer", names, width=260, **state.tie_value("certified_layer", usual))
        lambda1 = _number("λ₁, of ‖·‖₁", "lambda_one", USUAL_LAMBDA)
        lambda2 = _number("λ₂, of ‖·‖²", "lambda_two", USUAL_LAMBDA)
        delta = _number("δ, chance to fail", "delta", 0.05, form="%.3g")
    left, right = st.columns(2)
    with left:
        pruned = rows[rows["label"] != bounds.BOUND]  # the head is another kind of statement, and often a what-if
        fig = certificates.layers(pruned, stage=stage, delta=delta, dark=frame.dark(), keep=run.id)
        frame.chart(fig, key=f"run_{run.id}_certified_layers", caption=CAPTIONS["layers"], data=_with_bounds(rows, lambda1, lambda2, delta))
    with right:
        chosen = rows[rows["layer"] == layer].iloc[-1]
        fig = certificates.slack(chosen, lambda1=lambda1, lambda2=lambda2, dark=frame.dark(), keep=run.id)
        frame.chart(fig, key=f"run_{run.id}_slack", caption=f"{_which(chosen)} {CAPTIONS['slack']}")


def _which(row: pd.Series) -> str:
    """What kind of statement one layer's curve is."""
    if row["label"] == bounds.BOUND:
        return f"Bound, L = 1: {row['what']}."
    return "Bound per unit L: L is not known here, and the curve is the one for L = 1; a larger L moves it to the right."


def _with_bounds(rows: pd.DataFrame, lambda1: float, lambda2: float, delta: float) -> pd.DataFrame:
    """The rows with what follows from the inputs, for the download."""
    slack = pd.Series(bounds.elastic_net_slack(rows["budget"], rows["frobenius2"], rows["l1"], lambda1, lambda2))
    slack = slack.where(rows["disjoint"].astype(bool))
    noise = bounds.gaussian_budget(rows["sigma"], rows["rows"], rows["images"], rows["mean_norm"], delta, positions=rows["positions"])
    return rows.assign(lambda1=lambda1, lambda2=lambda2, slack=slack, delta=delta, gaussian_budget=noise)


def _number(label: str, name: str, usual: float, *, form: str = "%.2g") -> float:
    """A number a person enters, kept in the link."""
    low, high = LIMITS[name]
    step = usual if usual < 0.01 else 0.01
    st.number_input(label, low, high, format=form, step=step, width=150, **state.tie_value(name, usual, limits=LIMITS[name]))
    return float(state.get(name, usual, limits=LIMITS[name]))

"""What a run offers to take away: its tables as CSV, its charts as one page, its network."""

from __future__ import annotations

import io
import shutil
import tempfile
import zipfile
from pathlib import Path

import plotly.graph_objects as go

from app import before_view, certificate_view, drift_view, frame
from app.charts import drift, healing, theme
from starfish_lab import artefacts
from starfish_lab.report import Report
from starfish_lab.store import Run


def tables(report: Report) -> bytes:
    """Every table of a report as CSV, in a zip."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in report.tables:
            archive.writestr(f"{name}.csv", frame.plain(report.frame(name)).to_csv(index=False))
    return packed.getvalue()


def charts(run: Run, report: Report) -> str:
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


def network(artefact: str) -> bytes:
    """The healed network's folder as a zip, from wherever it is kept."""
    with tempfile.TemporaryDirectory() as place:
        return Path(shutil.make_archive(f"{place}/network", "zip", artefacts.fetch(artefact))).read_bytes()

"""Runs that never ran: reports with the columns of real ones and figures that a test can recompute by hand."""

from __future__ import annotations

import base64
import json
import math
import statistics
import time
from dataclasses import replace

import numpy as np

from starfish_lab.latency.plan import LatencyPlan
from starfish_lab.measure.accuracy import wilson
from starfish_lab.recipe import HealingChoice, PruningChoice, Recipe
from starfish_lab.report import Report
from starfish_lab.store import Store

IMAGES = 540
TOP1 = {"dense": 0.99, "pruned": 0.30, "healed": 0.97}
DEPTH = 6
NONZERO_M = {"dense": 2.0, "pruned": 0.3, "healed": 0.3}
MACS_G = {"dense": 0.04, "pruned": 0.006, "healed": 0.006}


def recipe(*, sparsity: float = 0.9, method: str = "starfish", name: str = "", seed: int = 0) -> Recipe:
    return Recipe(name=name, pruning=PruningChoice(sparsity=sparsity), healing=HealingChoice(method=method, steps=200, seed=seed))


def report(*, healed: float = TOP1["healed"], device: str = "Test CPU", speedup: float = 1.02, sliced: bool = False) -> Report:
    """A report of a run on 540 images; `healed` is its healed accuracy."""
    found = Report()
    for stage, top1 in (TOP1 | {"healed": healed}).items():
        correct = round(top1 * IMAGES)
        low, high = wilson(correct, IMAGES)
        found.add("accuracy", [dict(stage=stage, top1=correct / IMAGES, top5=1.0, low=low, high=high, correct=correct, images=IMAGES)])
        gone = 0.0 if stage == "dense" else 0.9
        found.add("totals", [dict(
            stage=stage, parameters_m=2.0, nonzero_parameters_m=NONZERO_M[stage], sparsity_prunable=gone, sparsity_all=0.85 if gone else 0.0,
            macs_g=MACS_G["dense"], macs_g_effective=MACS_G[stage],
        )])  # fmt: skip
    found.add("comparisons", [
        dict(first="dense", second="healed", difference_pp=-0.4, p_value=0.5, resolved=False, images=IMAGES, verdict="not resolved with n = 540"),
        dict(first="pruned", second="healed", difference_pp=67.0, p_value=1e-9, resolved=True, images=IMAGES, verdict="67.0 pp higher (n = 540)"),
    ])  # fmt: skip
    for stage, scale in (("pruned", 0.4), ("healed", 0.02)):
        for depth in range(DEPTH):
            for tokens in ("all", "class", "patch"):
                d = scale * (depth + 1) / DEPTH
                found.add(
                    "drift", [dict(stage=stage, block=f"blocks.{depth}", depth=depth, tokens=tokens, cosine_distance=d, relative_l2=2 * d, cka=1 - d)]
                )
    for step in range(0, 200, 10):
        found.add("losses", [dict(step=step, loss=0.3 * math.exp(-step / 50))])
        found.add("block_losses", [dict(step=step, depth=depth, loss=0.1 * (depth + 1) * math.exp(-step / 50)) for depth in range(DEPTH)])
    found.add("layers", [
        dict(layer=f"blocks.{d}.mlp.fc1", block=f"blocks.{d}", depth=d, kind="mlp", weights=1000, removed=900, sparsity=0.9,
             macs_g=0.001, macs_g_effective=0.0001, note="") for d in range(DEPTH)
    ])  # fmt: skip
    for stage, factor in (("dense", 1.0), ("healed", speedup)):
        for batch, ms in ((1, 4.0), (8, 20.0)):
            rate = 1000 * batch / ms * factor
            known = (
                dict(speedup=factor, speedup_low=factor - 0.05, speedup_high=factor + 0.05)
                if stage != "dense"
                else dict.fromkeys(("speedup", "speedup_low", "speedup_high"))
            )
            found.add("latency", [dict(
                stage=stage, batch=batch, scenario="single" if batch == 1 else "offline",
                latency_ms_p50=ms / factor, latency_ms_p90=1.1 * ms, latency_ms_p99=1.3 * ms,
                images_per_s=rate, images_per_s_low=0.98 * rate, images_per_s_high=1.02 * rate, **known, iterations=200,
                execution="dense" if stage == "dense" else "sliced" if sliced else "masked", dtype="float32", device="cpu", device_name=device,
                fingerprint="0123456789ab", threads=2, note="" if stage == "dense" or sliced else "mask only: no speed-up expected",
            )])  # fmt: skip
    found.add("seconds", [dict(stage="load", seconds=1.0), dict(stage="heal", seconds=30.0 + 100 * healed)])
    found.add("provenance", [dict(name="device", value="cpu")])
    found.add("notes", [dict(note="one image could not be read")])
    return found


def done(
    store: Store, *, healed: float = TOP1["healed"], parent: int | None = None, owner: str = "", speedup: float = 1.02, **options: object
) -> int:
    """A finished run; options go to `recipe`."""
    run = store.submit(recipe(**options), parent=parent, owner=owner)
    store.finish(run, report(healed=healed, speedup=speedup))
    return run


def running(store: Store, *, step: int = 30, steps: int = 200, **options: object) -> int:
    """A run at work in the middle of healing, with the figures it has reported so far."""
    run = store.submit(recipe(**options))
    store.announce("worker-1", "cpu", "Test CPU")
    claimed = store.claim("worker-1", "cpu")
    assert claimed is not None and claimed.id == run
    store.heartbeat("worker-1", run)
    store.set_progress(run, stage="heal", step=step, steps=steps, seconds_left=12.0)
    store.add_events(run, [(float(s), "loss", s, 0.3 * math.exp(-s / 50)) for s in range(0, step + 1, 10)])
    store.add_events(run, [(float(s), f"block.{d}", s, 0.1 * (d + 1) * math.exp(-s / 50)) for s in range(0, step + 1, 10) for d in range(DEPTH)])
    return run


def latency_run(store: Store, **options: object) -> int:
    """A finished measurement of latency alone."""
    run = store.submit(LatencyPlan.of(replace(recipe(), name="timing")), "latency")
    found = report(**options)
    store.finish(run, Report({name: found.tables[name] for name in ("totals", "latency", "layers", "seconds")}))
    return run


def open_page(page: str, **query: object):
    """A page in a browser without a browser, after its first run with this address."""
    from conftest import ROOT
    from streamlit.testing.v1 import AppTest

    app = AppTest.from_file(str(ROOT / "app" / "main.py"), default_timeout=30)
    for name, value in query.items():
        app.query_params[name] = str(value)
    app.switch_page(f"views/{page}.py")
    return app.run()


def charts(app) -> dict[str, dict]:
    """{title: figure} of every chart on a page, as the browser gets them; arrays decoded."""
    found = [_decoded(json.loads(chart.proto.spec)) for chart in app.get("plotly_chart")]
    for spec in found:  # long titles stand on several lines
        spec["layout"]["title"]["text"] = spec["layout"]["title"]["text"].replace("<br>", " ").replace("\u00a0", " ")
    return {spec["layout"]["title"]["text"]: spec for spec in found}


def traces(figure: dict) -> dict[str, dict]:
    """{name: trace} of a figure."""
    return {trace.get("name", ""): trace for trace in figure["data"]}


def said(app) -> str:
    """All the words on a page outside tables, charts and buttons."""
    kinds = ("markdown", "caption", "info", "warning", "error", "subheader")
    return "\n".join(str(element.value) for kind in kinds for element in getattr(app, kind))


def button(app, label: str):
    """The button with this label; fails where there is none."""
    return next(found for found in app.button if found.label == label)


def labels(app) -> list[str]:
    """Labels of the buttons on a page."""
    return [found.label for found in app.button]


def unharmed(app) -> bool:
    """No traceback and no unexpected error."""
    return not app.exception and not any("did not expect" in error.value for error in app.error)


def seconds_of_a_rerun(app, *, times: int = 5) -> float:
    """Median processor time of drawing a page again: what the page costs, whatever else the machine is doing."""
    found = []
    for _ in range(times):
        started = time.process_time()
        app.run()
        found.append(time.process_time() - started)
    return statistics.median(found)


def _decoded(value):
    """Plotly sends numpy arrays as base64: back to lists."""
    if isinstance(value, dict) and "bdata" in value:
        array = np.frombuffer(base64.b64decode(value["bdata"]), dtype=value["dtype"])
        return array.reshape([int(n) for n in str(value["shape"]).split(",")]).tolist() if "shape" in value else array.tolist()
    if isinstance(value, dict):
        return {key: _decoded(item) for key, item in value.items()}
    return [_decoded(item) for item in value] if isinstance(value, list) else value

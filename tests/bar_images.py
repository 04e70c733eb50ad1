"""Bars of the three-way view and the gallery: what a step of the scrubber and a page cost at DeiT-B's and ImageNet's size, and how much is kept.

Called by bars.py. Nothing is healed here: the reports have the shape and size of real ones.
"""

from __future__ import annotations

import json
import statistics
import time

import numpy as np
import synthetic
from synthetic_gallery import jpeg, predictions

from starfish_lab.gallery.answers import answer_rows
from starfish_lab.gallery.damage import damage_rows
from starfish_lab.gallery.pictures import MOST_BYTES, MOST_IMAGES
from starfish_lab.healing.watching import look_at
from starfish_lab.report import Report
from starfish_lab.store import Store

LAYERS = [f"blocks.{block}.{part}" for block in (0, 3, 6, 8, 11) for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]
STEPS = look_at(1570, 8)
FOLLOWED = ("healing_drift", "healing_accuracy", "healing_spectra", "strip", "healing_strip")


def deit_b() -> Report:
    """What the looks at a DeiT-B leave: eight looks at 12 blocks, 20 layers and 12 images."""
    report, random = synthetic.report(), np.random.default_rng(0)
    for step in STEPS:
        when = {"step": step, "seconds": step / 10}
        report.add("healing_drift", [when | dict(block=f"blocks.{d}", depth=d, cosine_distance=0.1, relative_l2=0.2, cka=0.9) for d in range(12)])
        report.add("healing_accuracy", [when | dict(top1=0.8, low=0.75, high=0.85, images=256, top1_dense=0.82, top1_pruned=0.1, images_seen=step)])
        report.add("healing_strip", [dict(step=step, image=image, answer=3, confidence=0.5) for image in range(12)])
    for stage, step in (("dense", None), ("pruned", None), *(("healing", step) for step in STEPS)):
        for layer in LAYERS:
            place = dict(stage=stage, step=step, layer=layer, block=layer[:8], depth=int(layer.split(".")[1]), kind="mlp", rows=768, cols=3072)
            counts = random.multinomial(768, [1 / 32] * 32).tolist()
            fit = dict(low=1.23456789e-5, high=1.23456789, counts=counts, sigma=0.0123456, sigma_plus=1.2345, lower_edge=0.3, spikes=40, applies=True)
            report.add("healing_spectra", [place | fit])
    picture = jpeg(96)
    for image in range(12):
        row = dict(image=image, name=f"ILSVRC2012_val_{image:08d}.JPEG", label=image, dense=image, dense_confidence=0.9, pruned=1)
        report.add("strip", [row | dict(pruned_confidence=0.1, jpeg=picture)])
    return report


def imagenet(report: Report) -> Report:
    """With it the answers of three networks to 50,000 images of 1,000 classes, and as many thumbnails as are kept."""
    random = np.random.default_rng(0)
    truth, stages = random.integers(0, 1000, 50_000), {}
    for stage, top1 in (("dense", 0.81), ("pruned", 0.3), ("healed", 0.76)):
        answers = np.where(random.random(len(truth)) < top1, truth, random.integers(0, 1000, len(truth)))
        stages[stage] = predictions(answers, truth, confidence=0.1234)
    report.add("answers", answer_rows(stages))
    report.add("class_damage", damage_rows(stages))
    report.add("classes", [{"place": place, "name": f"class {place}"} for place in range(1000)])
    picture = jpeg(96)
    kept = min(MOST_IMAGES, MOST_BYTES // len(picture))
    report.add("thumbnails", [{"image": 100 * i, "name": f"{i}.JPEG", "jpeg": picture} for i in range(kept)])
    return report


def measure(store: Store) -> dict[str, float]:
    """{what: kilobytes or milliseconds} on the store given; milliseconds are medians of the processor's time at the server."""
    followed, whole = deit_b(), imagenet(deit_b())
    run = store.submit(synthetic.recipe())
    store.finish(run, whole)
    found = {"looks kB": sum(len(json.dumps(followed.tables[name])) for name in FOLLOWED) / 1e3}
    found |= {f"{name} kB": len(json.dumps(whole.tables[name])) / 1e3 for name in ("answers", "class_damage", "thumbnails")}
    app = synthetic.open_page("prune_and_heal", run=run)
    taken = []
    for step in (*STEPS[1:-1], STEPS[0]):
        started = time.process_time()
        app.select_slider(key="value.at_step").set_value(step).run()
        taken.append(time.process_time() - started)
    assert synthetic.unharmed(app)
    found["a step of the scrubber, whole page ms"] = 1e3 * statistics.median(taken)  # AppTest draws the whole page, a browser the fragment alone
    for part in ("images", "classes"):
        app = synthetic.open_page("gallery", run=run, gallery=part)
        assert synthetic.unharmed(app)
        found[f"gallery, {part} ms"] = 1e3 * synthetic.seconds_of_a_rerun(app)
    return found

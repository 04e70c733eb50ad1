"""run(recipe) → Report: the one place where all stages meet."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from pathlib import Path

from starfish_lab import data, export
from starfish_lab.errors import LabError
from starfish_lab.execution import proof, slicing
from starfish_lab.gallery.answers import answer_rows, class_rows, common
from starfish_lab.gallery.damage import damage_rows
from starfish_lab.gallery.groups import images as images_of
from starfish_lab.gallery.pictures import thumbnail_rows
from starfish_lab.healing.followed_spectra import followed
from starfish_lab.healing.heal import heal
from starfish_lab.healing.watching import Watch, images_seen, look_at
from starfish_lab.measure import accuracy, certificate_layers, certificates, hardware, latency
from starfish_lab.measure.costs import totals_row
from starfish_lab.measure.drift import drift
from starfish_lab.models.loading import load
from starfish_lab.models.network import Network
from starfish_lab.preparation import Prepared, begin, prepare
from starfish_lab.progress import Reporter
from starfish_lab.pruning import cycles
from starfish_lab.pruning import masks as masking
from starfish_lab.pruning.prune import MaskResult
from starfish_lab.recipe import Recipe
from starfish_lab.report import Report
from starfish_lab.spectra.layers import spectra_table
from starfish_lab.stages import about_pruned, note, provenance, staged

CHECKPOINT, SNAPSHOTS = "healing.ckpt", "healing.json"


def run(recipe: Recipe, *, reporter: Reporter | None = None, folder: Path | None = None, device: str = "auto") -> Report:
    """Prune, heal and measure what the recipe says.

    `folder` receives the checkpoints of cycles and healing (from which an interrupted run goes on) and, under `healed`,
    the healed network. Raises LabError for what the person can mend and Cancelled when asked to stop.
    """
    reporter = reporter or Reporter()
    device = hardware.choose_device(device)
    report = Report()

    with staged(report, reporter, "load"):
        dense = load(recipe.model)
        splits = data.open_images(recipe.images, dense)
        splits.calibration.tensor()  # an image that cannot be read stops the run here, not after pruning
        drift_images = splits.drift.tensor()
        note(report, reporter, splits.notes)

    with staged(report, reporter, "start") if recipe.start.method != "dense" else nullcontext():
        begun = begin(dense, recipe, splits, device=device, reporter=reporter, folder=folder)
    with staged(report, reporter, "prune"):
        prepared = prepare(dense, begun, recipe, splits, device=device, reporter=reporter)
        about_pruned(report, reporter, dense, prepared, recipe)
    result, student = prepared.result, prepared.network

    stages = {"dense": dense, "pruned": student}
    with staged(report, reporter, "measure pruned"):
        answers = {name: _measure(report, reporter, name, dense, network, splits, drift_images, device) for name, network in stages.items()}

    if (recipe.healing.repair, recipe.healing.method) != ("none", "none"):
        with staged(report, reporter, "heal") as apart:
            stages["healed"] = _heal(report, reporter, prepared, recipe, splits, answers, folder, device, apart)
        with staged(report, reporter, "measure healed"):
            answers["healed"] = _measure(report, reporter, "healed", dense, stages["healed"], splits, drift_images, device)

    final_stage, final = list(stages.items())[-1]
    for skipped in splits.evaluation.skipped:
        note(report, reporter, [f"Image {skipped} cannot be read and was left out."])
    _compare(report, answers)
    with staged(report, reporter, "gallery"):
        _gallery(report, answers, splits.evaluation, dense)
    small = _sliced(report, reporter, final, result, recipe, drift_images)
    for name, network in stages.items():
        report.add("totals", [totals_row(name, network, result, small if name != "dense" else None)])

    if recipe.measure.spectra:
        with staged(report, reporter, "spectra"):
            for name, network in stages.items():
                report.add("spectra", spectra_table(network, layers=list(result.masks), device=device), stage=name)
                reporter.check()

    if recipe.measure.certificates:
        with staged(report, reporter, "certificates"):
            _certify(report, reporter, stages, answers, prepared, splits, device)

    if recipe.measure.latency:
        with staged(report, reporter, "latency"):
            report.add("latency", _latency(recipe, dense, final_stage, small or final, bool(small), reporter, device))

    if folder is not None:
        with staged(report, reporter, "save"):
            _save(report, reporter, folder / "healed", small or final, recipe, result)
            for file in (CHECKPOINT, SNAPSHOTS):
                (folder / file).unlink(missing_ok=True)
            shutil.rmtree(folder / cycles.FOLDER, ignore_errors=True)
    provenance(report, recipe, dense, device)
    return report


def _heal(
    report: Report, reporter: Reporter, prepared: Prepared, recipe: Recipe, splits: data.Splits,
    answers: dict[str, accuracy.Predictions | None], folder: Path | None, device: str, apart: dict[str, float],
) -> Network:  # fmt: skip
    """A healed copy of the pruned network, looked at while it heals as often as the recipe asks; the looks are timed apart."""
    choice, healed, watch = recipe.healing, prepared.network.copy(), None
    images = splits.training if choice.images == "training" and splits.training is not None else splits.calibration
    steps = choice.total_steps(len(images)) if choice.method != "none" else 0
    if recipe.measure.snapshots:
        watch = Watch(
            prepared.reference, healed, splits.drift.tensor(), splits.evaluation,
            layers=followed(healed, list(prepared.result.masks)), answers=_known(answers),
            device=device, reporter=reporter, file=folder / SNAPSHOTS if folder else None,
        )  # fmt: skip
    healing = heal(
        prepared.reference, healed, prepared.result.masks, splits.calibration, choice, training=splits.training,
        device=device, reporter=reporter, checkpoint=folder / CHECKPOINT if folder else None,
        watch=look_at(steps, recipe.measure.snapshots), observer=watch,
    )  # fmt: skip
    report.add("losses", [{"step": step, "loss": loss} for step, loss in healing.losses])
    report.add("block_losses", [{"step": step, "depth": d, "loss": v} for step, values in healing.block_losses for d, v in enumerate(values)])
    if watch is not None:
        looks = watch.finish(healing)
        for row in looks["healing_accuracy"]:
            row["images_seen"] = images_seen(row["step"], len(images), choice.batch_size)
        for table, rows in looks.items():
            report.add(table, rows)
        apart["snapshots"] = watch.seconds
    return healed


def _measure(report: Report, reporter: Reporter, stage: str, dense: Network, network: Network, splits: data.Splits, images, device: str):
    """Drift and, where the images have labels, accuracy of one stage. Returns the predictions or None."""
    reporter.check()
    if stage != "dense":
        report.add("drift", drift(dense, network, images, device=device), stage=stage)
    if splits.evaluation.labels is None:
        return None
    answers = accuracy.predict(network, splits.evaluation, device=device, reporter=reporter)
    report.add("accuracy", [accuracy.accuracy_row(answers)], stage=stage)
    return answers


def _known(answers: dict[str, accuracy.Predictions | None]) -> dict[str, accuracy.Predictions]:
    """The answers there are: none where the images have no labels."""
    return {name: found for name, found in answers.items() if found is not None}


def _gallery(report: Report, answers: dict[str, accuracy.Predictions | None], evaluation: data.ImageSet, dense: Network) -> None:
    """What each network answered to every evaluation image, what that did to each class, and some of the images."""
    if not (known := _known(answers)):
        return
    known = common(known)
    report.add("answers", answer_rows(known))
    report.add("classes", class_rows(dense, known))
    report.add("class_damage", damage_rows(known))
    report.add("thumbnails", thumbnail_rows(images_of(report.frame("answers")), evaluation, dense))


def _compare(report: Report, answers: dict[str, accuracy.Predictions | None]) -> None:
    known = list(_known(answers))
    for i, first in enumerate(known):
        for second in known[i + 1 :]:
            report.add("comparisons", [accuracy.compare(answers[first], answers[second])], first=first, second=second)


def _certify(
    report: Report, reporter: Reporter, stages: dict[str, Network], answers: dict[str, accuracy.Predictions | None],
    prepared: Prepared, splits: data.Splits, device: str,
) -> None:  # fmt: skip
    """What provably cannot have changed, at every stage but dense: labels of evaluation images, and layers on the drift images."""
    images, masks = splits.drift.tensor(), prepared.result.masks
    head = certificate_layers.find_head(prepared.reference, images[:1], device=device)
    layers = [layer for layer in masks if layer != head]
    fits = report.frame("spectra")  # reordered inputs leave a spectrum as it is; whatever was not fitted above is fitted once, here
    fits = fits[fits["stage"] == "dense"] if len(fits) else spectra_table(prepared.reference, layers=layers, split_qkv=False, device=device)
    sparsity = masking.sparsity(prepared.network.module, masks).of_prunable
    others = {stage: network for stage, network in stages.items() if stage != "dense"}
    if answers["dense"] is None:
        certified = certificates.certify_stages(stages["dense"], others, splits.evaluation, device=device, reporter=reporter)
    else:
        certified = {stage: certificates.certify_answers(answers["dense"], answers[stage]) for stage in others}
    for stage, network in others.items():
        reporter.check()
        found = certified[stage]
        found.layers += certificate_layers.layer_rows(prepared.reference, network, layers, images, device=device, spectra=fits)
        if sparsity > 0 and (stage == "pruned" or head in masks):
            found.extend(certificate_layers.head_rows(
                prepared.reference, network, splits.evaluation, layers=list(masks), sparsity=sparsity, device=device, spectra=fits,
            ))  # fmt: skip
        report.add("certificates", found.summary, stage=stage)
        report.add("certificate_images", found.images, stage=stage)
        report.add("certificate_layers", found.layers, stage=stage)
        note(report, reporter, found.notes)


def _sliced(report: Report, reporter: Reporter, final: Network, result: MaskResult, recipe: Recipe, images) -> Network | None:
    """The really smaller network, once it has answered as the masked one does. Zeros of the start may stay in what is left of it."""
    if not slicing.is_sliceable(result.masks, final, wholly=recipe.pruning.pattern != "structured"):
        return None
    small = slicing.slice_network(final, result.masks)
    proven = proof.prove(final, small, images[:16])
    found = f"Sliced and masked network {proven}"
    if not proven.equal:
        note(report, reporter, [f"{found}: more than {proven.tolerance:g}, so the sliced one is neither timed nor saved."])
        return None
    note(report, reporter, [f"{found}."])
    return small


def _latency(recipe: Recipe, dense: Network, stage: str, final: Network, sliced: bool, reporter: Reporter, device: str) -> list[dict[str, object]]:
    execution = "merged" if any(recipe.tokens.r) else "masked"
    return latency.measure(
        {"dense": dense.module, stage: final.module}, dense.preprocessing.input_size,
        device=device, batch_sizes=recipe.measure.batch_sizes, seconds=recipe.measure.seconds, reporter=reporter,
        execution={"dense": "dense", stage: "sliced" if sliced else execution},
    )  # fmt: skip


def _save(report: Report, reporter: Reporter, folder: Path, network: Network, recipe: Recipe, result: MaskResult) -> None:
    """Losing the copy of a network must not lose the run that made it."""
    try:
        export.save(folder, network, recipe, masks=result.masks, facts=report.summary())
    except LabError as error:
        note(report, reporter, [f"The network of this run was not saved: {error}"])

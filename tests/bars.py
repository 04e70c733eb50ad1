"""The figures the project promises, each measured by one call: python tests/bars.py [starter|spectra|step|tokens|pages|… any of BARS].

Run it on a quiet machine; it asserts nothing and prints what it finds.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def starter() -> None:
    """Recovered accuracy on the starter, 64 images, unstructured uniform magnitude; three seeds of images, three healers."""
    from starfish_lab import experiment
    from starfish_lab.recipe import HealingChoice, ImagesChoice, MeasureChoice, PruningChoice, Recipe

    for sparsity in (0.75, 0.9):
        for method in ("starfish", "logit_distillation", "cross_entropy"):
            for seed in (0, 1, 2):
                recipe = Recipe(
                    images=ImagesChoice(seed=seed),
                    pruning=PruningChoice(sparsity=sparsity),
                    healing=HealingChoice(method=method, steps=200),
                    measure=MeasureChoice(latency=False, spectra=False),
                )
                started = time.perf_counter()
                report = experiment.run(recipe, device="cpu")
                found = report.frame("accuracy").set_index("stage")
                row = found.loc["healed"]
                print(
                    f"{sparsity:.0%} {method:20s} seed {seed}: dense {found.loc['dense', 'top1']:.1%} pruned {found.loc['pruned', 'top1']:.1%} "
                    f"healed {row['top1']:.1%} [{row['low']:.1%}, {row['high']:.1%}] n = {row['images']:.0f}, "
                    f"{row['top1'] / found.loc['dense', 'top1']:.1%} of dense, {time.perf_counter() - started:.0f} s",
                    flush=True,
                )


def spectra() -> None:
    """Seconds for everything the table of a DeiT-S shows."""
    import timm

    from starfish_lab.models.loading import wrap
    from starfish_lab.spectra.layers import spectra_table

    network = wrap(timm.create_model("deit_small_patch16_224"), name="deit_small_patch16_224")
    for _ in range(3):
        started = time.perf_counter()
        table = spectra_table(network)
        print(f"DeiT-S: {len(table)} matrices in {time.perf_counter() - started:.2f} s")


def step() -> None:
    """One STARFISH step beside the student's own forward, backward and optimiser step."""
    import bench_step

    for arguments in (("deit_tiny_patch16_224", "8", "12"), ("deit_tiny_patch16_224", "32", "5"), ("deit_small_patch16_224", "8", "6")):
        bench_step.main(*arguments)


def structured() -> None:
    """Speed-up of the sliced DeiT-S at 50 % (MLP units and Q/K dimensions), batch 8, against what its MACs promise."""
    from starfish_lab.latency.plan import LatencyPlan
    from starfish_lab.latency.run import run
    from starfish_lab.recipe import ModelChoice, PruningChoice, Recipe

    model = ModelChoice(name="deit_small_patch16_224.fb_in1k", weights="random")
    recipe = Recipe(model=model, pruning=PruningChoice(pattern="structured", sparsity=0.5))
    report = run(LatencyPlan(recipe=recipe, executions=("sliced",), batches=(8,), seconds=20, layers=False), device="cpu")
    totals = report.frame("totals").set_index("stage")
    promised = totals.loc["dense", "macs_g"] / totals.loc["pruned", "macs_g"]
    row = report.frame("latency").set_index("stage").loc["pruned"]
    print(f"MACs {totals.loc['dense', 'macs_g']:.3f} G -> {totals.loc['pruned', 'macs_g']:.3f} G: {promised:.3f} x promised")
    print(f"measured {row['speedup']:.3f} x [{row['speedup_low']:.3f}, {row['speedup_high']:.3f}]: {row['speedup'] / promised:.1%} of it")


def tokens(images: int = 1000, *, r: str = "") -> None:
    """Accuracy of the kit's ViT when tokens merge, without healing: r, and the smallest r that saves 25 % of the MACs. tokens=500 r=0,8: fewer."""
    from starfish_lab import settings
    from starfish_lab import tokens as merging
    from starfish_lab.data import open_images
    from starfish_lab.measure import accuracy, macs
    from starfish_lab.models.loading import load
    from starfish_lab.recipe import ImagesChoice, ModelChoice, TokensChoice

    kit = (settings.ROOT / Path(settings.KIT()).expanduser()).resolve()
    preprocessing = {"interpolation": "bilinear", "crop_pct": 0.875}
    weights = str(kit / "vit_tiny_tinyimagenet200" / "model.safetensors")
    network = load(ModelChoice(name="deit_tiny_patch16_224", weights="file", path=weights, preprocessing=preprocessing))
    folder = kit / "tiny_imagenet"
    evaluation = open_images(ImagesChoice(
        source="csv", path=str(folder / "val_first_5000.zip"), csv=str(folder / "val_labels.csv"), label_column="wnid",
        calibration_path=str(folder / "train_50_per_class.zip"), calibration_csv=str(folder / "train_labels.csv"),
        calibration=4, drift=4, evaluation=images, order="first",
    ), network).evaluation  # fmt: skip

    def merged(count: int, proportional: bool = True):
        student = network.copy()
        merging.merge(student, TokensChoice(r=(count,), proportional=proportional))
        return student

    whole = macs.total_macs(network)
    quarter = next(count for count in range(1, 99) if macs.total_macs(merged(count)) <= 0.75 * whole)
    dense = accuracy.predict(network, evaluation)
    for count in map(int, r.split(",")) if r else sorted({0, 4, 8, 13, 16, 20, quarter}):
        for proportional in (True, False) if count else (True,):
            student = merged(count, proportional)
            answers = accuracy.predict(student, evaluation) if count else dense
            row, share = accuracy.accuracy_row(answers), macs.total_macs(student) / whole - 1
            print(
                f"r = {count:2d}{' (25 % fewer MACs)' if count == quarter else ''}, proportional {proportional}: MACs {share:+.1%}, "
                f"top-1 {row['top1']:.1%} [{row['low']:.1%}, {row['high']:.1%}], "
                f"against dense {accuracy.compare(dense, answers)['difference_pp']:+.1f} pp: {accuracy.compare(dense, answers)['verdict']}",
                flush=True,
            )


def pages() -> None:
    """Server milliseconds of a rerun of every page with 1,000 runs in the store, and of Compare with 20 chosen."""
    with tempfile.TemporaryDirectory() as home:
        os.environ["STARFISH_LAB_HOME"] = home
        import synthetic

        from starfish_lab.store import Store

        store = Store()
        ids = [synthetic.done(store, healed=0.5 + 0.0004 * i, name=f"run {i}", sparsity=0.5 + 0.0004 * i) for i in range(1000)]
        for page in ("explore", "spectra", "tokens", "prune_and_heal", "runs", "compare", "latency"):
            app = synthetic.open_page(page, **({"runs": ",".join(map(str, ids[:20]))} if page == "compare" else {}))
            times = []
            for _ in range(10):
                started = time.perf_counter()
                app.run()
                times.append(1e3 * (time.perf_counter() - started))
            assert not app.exception, page
            print(f"{page:15s} median {statistics.median(times):.0f} ms, worst {max(times):.0f} ms")


def certificates(images: int = 1000) -> None:
    """Labels that provably stay on the kit's ViT, magnitude pruned, unstructured, without healing; images as an argument: certificates=300."""
    import test_kit as kit

    from starfish_lab.data import open_images
    from starfish_lab.measure.certificates import certify
    from starfish_lab.models.loading import load
    from starfish_lab.pruning.prune import make_masks, pruned
    from starfish_lab.recipe import ImagesChoice, ModelChoice, PruningChoice

    folder = kit.KIT / "tiny_imagenet"
    preprocessing = {"interpolation": "bilinear", "crop_pct": 0.875}
    weights = str(kit.KIT / "vit_tiny_tinyimagenet200" / "model.safetensors")
    dense = load(ModelChoice(name="deit_tiny_patch16_224", weights="file", path=weights, preprocessing=preprocessing))
    splits = open_images(ImagesChoice(
        source="csv", path=str(folder / "val_first_5000.zip"), csv=str(folder / "val_labels.csv"), label_column="wnid",
        calibration_path=str(folder / "train_50_per_class.zip"), calibration_csv=str(folder / "train_labels.csv"),
        evaluation=images, order="first",
    ), dense)  # fmt: skip
    for sparsity in (0.02, 0.05, 0.1, 0.2, 0.3, 0.5):
        started = time.perf_counter()
        student = pruned(dense, make_masks(dense, PruningChoice(sparsity=sparsity)).masks)
        (row,) = certify(dense, student, splits.evaluation).summary
        print(
            f"{sparsity:.0%}: {row['certified']} of {row['images']} certified ({row['certified_share']:.1%}), {row['flipped']} of them flipped, "
            f"{row['changed']} labels changed; mean |CE change| {row['ce_change']:.4f}, bound {row['budget']:.3f}; "
            f"top-1 {100 * row['accuracy_change']:+.1f} pp, bound {100 * row['accuracy_change_bound']:.1f} pp; {time.perf_counter() - started:.0f} s",
            flush=True,
        )


def ledger() -> None:
    """Published reductions of multiply-adds beside the lab's, by the published way of counting and by the true one."""
    import timm
    import torch

    from starfish_lab import ledger as counting
    from starfish_lab.measure import ledger_rows
    from starfish_lab.models.loading import wrap
    from starfish_lab.models.network import Preprocessing
    from starfish_lab.recipe import PruningChoice, TokensChoice

    sizes = {
        "ViT-B/16": ("vit_base_patch16_224", 224), "ViT-L/16": ("vit_large_patch16_224", 224), "DeiT-B": ("deit_base_patch16_224", 224),
        "DeiT-S": ("deit_small_patch16_224", 224), "DeiT-T": ("deit_tiny_patch16_224", 224), "ConvNeXtV2-Base": ("convnextv2_base", 224),
        "ResNet50": ("resnet50", 224), "ResNet50d": ("resnet50d", 224), "ResNet101d": ("resnet101d", 256), "ResNet152d": ("resnet152d", 256),
    }  # fmt: skip
    works = {}
    for model, (name, size) in sizes.items():
        with torch.device("meta"):
            works[model] = ledger_rows.work(wrap(timm.create_model(name), name=name, preprocessing=Preprocessing(input_size=(3, size, size))))
    print(counting.paper_table(works).round(2).to_string(index=False))
    vit, pruning, tokens = works["ViT-B/16"], PruningChoice(pattern="n_m"), TokensChoice(r=(8,))
    print(counting.totals(counting.table(vit, pruning, tokens, counting.published_zeros(vit, 2, 4)), pruning).to_string(index=False))


def masks(**options: str) -> None:
    """Accuracy right after pruning, without healing, by every way to choose masks, on the kit's ViT-Tiny: csv=, images=, seeds=, device=, only=."""
    import bar_masks

    bar_masks.main(**options)


def cast() -> None:
    """CAST at 8:16 on the layers of a DeiT-B: time and memory, beside a plain loop over the patterns."""
    import bench_cast

    bench_cast.main()


def permutation(only: str = "") -> None:
    """Importance an n:m mask keeps, and top-1 without healing, by the order of the inputs: starter and the kit's ViT; only=starter or only=kit."""
    import pandas as pd
    import test_kit as kit

    from starfish_lab.data import open_images
    from starfish_lab.measure.accuracy import predict
    from starfish_lab.models.loading import load
    from starfish_lab.pruning.permutation import find, permuted
    from starfish_lab.pruning.prune import make_masks, pruned
    from starfish_lab.recipe import ImagesChoice, ModelChoice, PruningChoice

    chosen = {"starter": (ModelChoice(), ImagesChoice())}
    if kit.KIT.is_dir():
        weights, folder = kit.KIT / "vit_tiny_tinyimagenet200" / "model.safetensors", kit.KIT / "tiny_imagenet"
        preprocessing = {"interpolation": "bilinear", "crop_pct": 0.875}
        chosen["kit"] = (
            ModelChoice(name="deit_tiny_patch16_224", weights="file", path=str(weights), preprocessing=preprocessing),
            ImagesChoice(
                source="csv", path=str(folder / "val_first_5000.zip"), csv=str(folder / "val_labels.csv"), label_column="wnid", order="first",
                calibration_path=str(folder / "train_50_per_class.zip"), calibration_csv=str(folder / "train_labels.csv"), evaluation=500,
            ),
        )  # fmt: skip
    for name, (model, images) in chosen.items():
        if only not in ("", name):
            continue
        network = load(model)
        splits = open_images(images, network)
        calibration = splits.calibration.tensor()
        for keep, group in ((2, 4), (8, 16)):
            rows = []
            for rule in ("none", "deal", "snake", "search"):
                choice = PruningChoice(pattern="n_m", keep=keep, group=group, score="wanda", permutation=rule)
                started = time.perf_counter()
                result = find(network, choice, calibration)
                seconds = time.perf_counter() - started
                student = permuted(network, result.orders)
                found = predict(pruned(student, make_masks(student, choice, calibration=calibration).masks), splits.evaluation)
                rows += [{"kind": row["layer"].rpartition(".")[2], "rule": rule, "kept": row["kept_after"]} for row in result.rows]
                if rule == "deal":
                    rows += [{"kind": row["layer"].rpartition(".")[2], "rule": "none", "kept": row["kept_before"]} for row in result.rows]
                accuracy = f"wanda top-1 {found.correct.sum()} of {len(found.labels)}"
                print(f"{name} {keep}:{group} {rule:6s} {seconds:6.1f} s for {len(result.rows)} layers, {accuracy}")
            table = pd.DataFrame(rows).pivot_table(index="kind", columns="rule", values="kept", sort=False)
            print((100 * table[["none", "deal", "snake", "search"]]).round(2).to_string(), flush=True)


def structured_healing(**options: str) -> None:
    """Units removed, healed while masked, then sliced: accuracy and speed on the starter and the kit's ViT; only=starter seeds=0,1 steps=50 …"""
    import bar_structured

    bar_structured.main(**options)


def repeat(**options: str) -> None:
    """The same latencies measured several times, each in a process of its own: how far ratios are apart, what intervals hold; runs=6 seconds=10."""
    import bar_latency

    bar_latency.repeat(**options)


def prediction(**options: str) -> None:
    """'Will it be faster?' beside what was then measured, on the starter and DeiT-S; names=starter batches=1,8 shares=0.5 …"""
    import bar_prediction

    bar_prediction.main(**options)


def healing_speed(**options: str) -> None:
    """Seconds until the speed-ups reach plain STARFISH's final loss on the kit's ViT; steps=130 images=400 …"""
    import bar_healing_speed

    bar_healing_speed.main(**options)


def healing(**options: str) -> None:
    """Every healer under one protocol on the starter and the kit's networks; network=vit sparsities=.75 … see bar_healing."""
    import bar_healing

    bar_healing.main(**options)


def linked(**options: str) -> None:
    """Server milliseconds of a move of Explore's sliders, for the 48 layers of DeiT-B; moves=50."""
    import bar_explore

    bar_explore.linked(**options)


def predicted_drift(**options: str) -> None:
    """Rank correlation of predicted with measured drift, on the starter and the kit's ViT."""
    import bar_explore

    bar_explore.predicted_drift(**options)


def sensitivity(**options: str) -> None:
    """Budgets along sensitivity curves against uniform and global, pruned only; sparsities=.8,.9 network=starter …"""
    import bar_sens

    bar_sens.budgets(**options)


def trade_offs(**options: str) -> None:
    """Trade-offs with 10,000 runs: first paint and reruns; runs=10000."""
    import bar_sens

    bar_sens.trade_offs(**options)


def learn(**options: str) -> None:
    """Seconds of computing of every lesson; threads=2."""
    import bar_learn

    bar_learn.main(**options)


def review(**options: str) -> None:
    """Compare with 50 of 10,000 runs chosen, and an evidence pack of 20 runs."""
    import bar_review

    bar_review.main(**options)


def thousands(**options: str) -> None:
    """Reruns of every page with 10,000 runs in the store, and Compare's first paint with 50 chosen; runs= reports= times=."""
    import bar_pages

    bar_pages.thousands(**options)


def crowd(**options: str) -> None:
    """Ten browsers at once clicking through all pages; minutes= browsers=."""
    import bar_pages

    bar_pages.crowd(**options)


def drift_picks(**options: str) -> None:
    """Could drift alone have picked the best healer? Asked of the rows of assets/measured/healing.csv."""
    import bar_drift_picks

    bar_drift_picks.main(**options)


_ALL = (
    starter, spectra, step, structured, tokens, pages, certificates, ledger, masks, cast, permutation, structured_healing, healing, healing_speed,
    drift_picks, repeat, prediction, linked, predicted_drift, sensitivity, trade_offs, learn, review, thousands, crowd,
)  # fmt: skip
BARS: dict[str, Callable[..., None]] = {f.__name__: f for f in _ALL}

if __name__ == "__main__":
    asked: list[tuple[str, list[int], dict[str, str]]] = []
    for word in sys.argv[1:] or BARS:
        name, _, value = word.partition("=")
        if name in BARS:
            asked.append((name, [int(value)] if value else [], {}))
        elif asked:  # an option of the bar before it
            asked[-1][2][name] = value
        else:
            sys.exit(f"There is no bar '{word}'. Choose from: {', '.join(BARS)}.")
    for name, arguments, options in asked:
        print(f"-- {BARS[name].__doc__}")
        BARS[name](*arguments, **options)

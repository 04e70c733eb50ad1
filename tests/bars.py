"""The figures the project promises, each measured by one call: python tests/bars.py [starter|spectra|step|structured|pages …].

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
    from starfish_lab import experiment
    from starfish_lab.recipe import HealingChoice, MeasureChoice, ModelChoice, PruningChoice, Recipe

    recipe = Recipe(
        model=ModelChoice(name="deit_small_patch16_224.fb_in1k", weights="random"),
        pruning=PruningChoice(pattern="structured", sparsity=0.5),
        healing=HealingChoice(method="none"),
        measure=MeasureChoice(batch_sizes=(8,), seconds=20),
    )
    report = experiment.measure_latency(recipe, device="cpu")
    totals = report.frame("totals").set_index("stage")
    promised = totals.loc["dense", "macs_g"] / totals.loc["pruned", "macs_g"]
    row = report.frame("latency").set_index("stage").loc["pruned"]
    print(f"MACs {totals.loc['dense', 'macs_g']:.3f} G -> {totals.loc['pruned', 'macs_g']:.3f} G: {promised:.3f} x promised")
    print(f"measured {row['speedup']:.3f} x [{row['speedup_low']:.3f}, {row['speedup_high']:.3f}]: {row['speedup'] / promised:.1%} of it")


def pages() -> None:
    """Server milliseconds of a rerun of every page with 1,000 runs in the store, and of Compare with 20 chosen."""
    with tempfile.TemporaryDirectory() as home:
        os.environ["STARFISH_LAB_HOME"] = home
        import synthetic

        from starfish_lab.store import Store

        store = Store()
        ids = [synthetic.done(store, healed=0.5 + 0.0004 * i, name=f"run {i}", sparsity=0.5 + 0.0004 * i) for i in range(1000)]
        for page in ("explore", "spectra", "prune_and_heal", "runs", "compare", "latency"):
            app = synthetic.open_page(page, **({"runs": ",".join(map(str, ids[:20]))} if page == "compare" else {}))
            times = []
            for _ in range(10):
                started = time.perf_counter()
                app.run()
                times.append(1e3 * (time.perf_counter() - started))
            assert not app.exception, page
            print(f"{page:15s} median {statistics.median(times):.0f} ms, worst {max(times):.0f} ms")


BARS: dict[str, Callable[[], None]] = {f.__name__: f for f in (starter, spectra, step, structured, pages)}

if __name__ == "__main__":
    for name in sys.argv[1:] or BARS:
        print(f"-- {BARS[name].__doc__}")
        BARS[name]()

"""The command line: python -m starfish_lab COMMAND. Every command takes --json and then prints what its table shows."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from starfish_lab import artefacts, settings
from starfish_lab.arguments import recipe_of
from starfish_lab.bakeoff import flags as baking
from starfish_lab.errors import Cancelled, LabError
from starfish_lab.evidence import flags as packing
from starfish_lab.exporting import flags as tracking
from starfish_lab.latency import flags as timing
from starfish_lab.plain_data import Plan
from starfish_lab.sensitivity import flags as sensing
from starfish_lab.sweep import flags as sweeping
from starfish_lab.terminal import TerminalBars


def models(arguments: argparse.Namespace) -> pd.DataFrame:
    """Networks the lab knows by name; the paper's six first."""
    from starfish_lab.models import PAPER_MODELS
    from starfish_lab.models.loading import supported_names

    first = pd.DataFrame({"model": ["starter", *PAPER_MODELS]})
    first["weights"] = ["bundled"] + ["pretrained, file or random"] * len(PAPER_MODELS)
    rest = pd.DataFrame({"model": [n for n in supported_names(arguments.filter) if n not in PAPER_MODELS], "weights": "pretrained, file or random"})
    return pd.concat([first, rest]) if arguments.filter else first


def spectra(arguments: argparse.Namespace) -> pd.DataFrame:
    """Each layer's eigenvalues against the Marchenko–Pastur bulk."""
    from starfish_lab.measure.hardware import choose_device
    from starfish_lab.models.loading import load
    from starfish_lab.spectra.layers import spectra_table

    recipe = recipe_of(arguments)
    table = spectra_table(load(recipe.model), randomised=arguments.control, device=choose_device(recipe.device))
    return table if arguments.json else table.drop(columns=[c for c in table if table[c].map(lambda v: isinstance(v, list)).any()])


def run(arguments: argparse.Namespace) -> pd.DataFrame:
    """Prune, heal and measure what the recipe says, here or (--queue) by a worker."""
    return _launched(arguments, recipe_of(arguments), "experiment", lambda report: report.frame("accuracy"))


def latency(arguments: argparse.Namespace) -> pd.DataFrame | str:
    """Time executions of a network against each other on this machine, or take in what was timed on another."""
    if arguments.imported:
        from starfish_lab.latency.importing import import_file
        from starfish_lab.store import Store

        return pd.DataFrame([{"run": import_file(Store(), Path(arguments.imported)), "status": "imported"}])
    return _planned(arguments, timing.plan(arguments), "latency", timing.measure, timing.shown)


def layer_times(arguments: argparse.Namespace) -> pd.DataFrame:
    """Time every layer of a network on this machine, dense, cut and merged: the table that 'will it be faster?' is answered from."""
    left_out = [] if arguments.json else ["rounds", "model", "device", "device_name", "fingerprint", "threads", "measured_on"]
    return _launched(arguments, recipe_of(arguments), "layer_times", lambda report: report.frame("layer_times").drop(columns=left_out))


def sensitivity(arguments: argparse.Namespace) -> pd.DataFrame | str:
    """Prune each layer alone at a few levels and see what that does to the network's end; what the store has is not measured again."""
    plan = sensing.plan(arguments)
    if (known := sensing.known(arguments, plan)) is not None:
        return sensing.shown(arguments, known)
    return _planned(arguments, plan, "sensitivity", sensing.measure, lambda report, _: sensing.shown(arguments, report))


def bakeoff(arguments: argparse.Namespace) -> pd.DataFrame | str:
    """Heal the same pruned networks by many healers under one protocol; finished cells are never repeated."""
    return _planned(arguments, baking.plan(arguments), "bakeoff", baking.bake, baking.shown)


def sweep(arguments: argparse.Namespace) -> pd.DataFrame | str:
    """Prune and heal a recipe at every combination of the lists; what the store has done or has in its queue is not done again."""
    return sweeping.main(arguments)


def speed(arguments: argparse.Namespace) -> pd.DataFrame:
    """Images a second of healing steps on this machine, by batch size, precision and torch.compile, and which of them pays."""
    from starfish_lab.healing.speed import main

    return main(recipe_of(arguments), batch_sizes=tuple(arguments.batch_sizes), steps=arguments.steps, reporter=TerminalBars())


def runs(arguments: argparse.Namespace) -> pd.DataFrame:
    """Runs in the store, newest first; with --table, one table of one run."""
    from starfish_lab.store import Store

    store = Store()
    if arguments.cancel:
        store.request_cancel(arguments.cancel)
    if arguments.table:
        if arguments.run is None:
            raise LabError("--table shows a table of one run: add its number, as in `runs 3 --table drift`.")
        return store.report(arguments.run).frame(arguments.table)
    table = store.runs(kind=None, limit=arguments.limit)
    if arguments.run is not None:
        return table[table["id"] == arguments.run].T.rename_axis("field").reset_index()
    columns = ["id", "name", "kind", "status", "model", "pattern", "sparsity", "method", "top1_dense", "top1_pruned", "top1_healed", "seconds"]
    return table if arguments.json else table.reindex(columns=columns)


def export(arguments: argparse.Namespace) -> pd.DataFrame:
    """Write a run's tables (CSV), recipe (JSON) and network (safetensors) to a folder."""
    import shutil

    from starfish_lab.store import Store

    store = Store()
    run = store.run(arguments.run)
    folder = Path(arguments.to)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.json").write_text(run.recipe.to_json())
    written = ["recipe.json"]
    for name, rows in store.report(arguments.run).tables.items():
        pd.DataFrame(rows).to_csv(folder / f"{name}.csv", index=False)
        written.append(f"{name}.csv")
    network = artefacts.fetch(run.artefact) if run.artefact else None
    if network and network.exists():
        shutil.copytree(network, folder / "network", dirs_exist_ok=True)
        written.append("network")
    elif network:
        print(f"The network of run {run.id} lies in {network}, which is not on this machine; it was left out.", file=sys.stderr)
    return pd.DataFrame({"written": [str(folder / name) for name in written]})


def export_runs(arguments: argparse.Namespace) -> pd.DataFrame:
    """Send runs to MLflow or Weights & Biases; a run sent before is brought up to date."""
    from starfish_lab.exporting import export_runs
    from starfish_lab.store import Store

    return export_runs(Store(), arguments.runs, to=arguments.to, uri=arguments.uri, project=arguments.project)


def evidence(arguments: argparse.Namespace) -> pd.DataFrame:
    """Write finished runs as a frozen pack: charts (HTML) that work offline, tables (CSV), recipes, notes, decisions and hashes, in a .zip."""
    return packing.main(arguments)


def evaluate(arguments: argparse.Namespace) -> pd.DataFrame:
    """Accuracy of an exported network on the recipe's evaluation images."""
    from starfish_lab import data
    from starfish_lab.export import load_pruned
    from starfish_lab.measure import accuracy
    from starfish_lab.measure.hardware import choose_device

    recipe, network = recipe_of(arguments), load_pruned(artefacts.fetch(arguments.network))
    answers = accuracy.predict(network, data.open_images(recipe.images, network).evaluation, device=choose_device(recipe.device))
    return pd.DataFrame([{"network": arguments.network, **accuracy.accuracy_row(answers)}])


def recipe(arguments: argparse.Namespace) -> str:
    """Print the recipe that --set describes, complete, as a file for `run`."""
    return recipe_of(arguments).to_json()


def presets(arguments: argparse.Namespace) -> pd.DataFrame:
    """The published rows that recipes exist for, with their figures (%); their keys stand for a recipe in every command."""
    from fnmatch import fnmatchcase

    from starfish_lab.presets import note, presets

    table = presets()
    table = table[[fnmatchcase(key, arguments.filter or "*") for key in table["key"]]].reset_index(drop=True)
    if arguments.json:
        return table.assign(note=[note(key) for key in table["key"]])
    return table[["key", "timm_name", "method", "top1", "dense_top1"]]


def train_starter(arguments: argparse.Namespace) -> pd.DataFrame:
    """Train the bundled starter again, and profile it."""
    from starfish_lab import profile
    from starfish_lab.models.loading import bundled
    from starfish_lab.models.starter import train_starter

    folder, bars = Path(arguments.to), TerminalBars()
    card = train_starter(folder, epochs=arguments.epochs, reporter=bars)
    bars.close()
    (folder / "profile.json").write_text(profile.compute(bundled(folder)).to_json() + "\n")
    return pd.DataFrame([card]).drop(columns="split", errors="ignore")


def worker(arguments: argparse.Namespace) -> None:
    """Run jobs from the store until stopped."""
    from starfish_lab.jobs.worker import main

    main(["--device", arguments.device])


def app(arguments: argparse.Namespace) -> int:
    """The browser app and its workers; Ctrl-C stops both."""
    from starfish_lab.jobs.launcher import launch

    return launch(port=arguments.port)


def _planned(arguments: argparse.Namespace, plan: Plan, kind: str, write: Callable, shown: Callable) -> pd.DataFrame | str:
    """What --show, --out and --queue say is done with a plan: print it, do it beside the store, leave it to a worker; or do it here."""
    if arguments.show:
        return plan.to_json()
    if arguments.out:
        return shown(write(plan, Path(arguments.out), TerminalBars()), arguments.json)
    return _launched(arguments, plan, kind, lambda report: shown(report, arguments.json))


def _launched(arguments: argparse.Namespace, task: Plan, kind: str, table: Callable) -> pd.DataFrame:
    """Left to a worker, or run here, in the same store as every other run, with bars on the terminal."""
    from starfish_lab.store import Store

    store = Store()
    if arguments.queue:
        return pd.DataFrame([{"run": store.submit(task, kind), "status": "queued"}])
    from starfish_lab.jobs.worker import run_here

    run = run_here(store, task, kind=kind, watch=TerminalBars())
    if run.status == "cancelled":
        raise Cancelled
    if run.status != "done":
        raise LabError(run.error or f"Run {run.id} ended as {run.status}.")
    print(f"run {run.id}", file=sys.stderr)
    return table(store.report(run.id))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m starfish_lab", description="Prune vision networks, heal them, and see what it costs.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(function: Callable, *, takes_recipe: bool = False) -> argparse.ArgumentParser:
        name = function.__name__.replace("_", "-")
        sub = commands.add_parser(name, help=function.__doc__.partition("\n")[0].replace("%", "%%"), description=function.__doc__)
        sub.add_argument("--json", action="store_true", help="print the table as JSON")
        if takes_recipe:
            sub.add_argument("recipe", nargs="?", help="a recipe JSON file or a key of presets; without it, the default recipe")
            sub.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="change a field, e.g. pruning.sparsity=0.75")
        sub.set_defaults(function=function)
        return sub

    command(models).add_argument("filter", nargs="?", help="a glob over timm's names, e.g. 'deit*'")
    command(spectra, takes_recipe=True).add_argument("--control", action="store_true", help="also fit each matrix with its entries permuted")
    command(run, takes_recipe=True).add_argument("--queue", action="store_true", help="leave it to a worker")
    baking.add(command(bakeoff))
    sweeping.add(command(sweep, takes_recipe=True))
    speeding = command(speed, takes_recipe=True)
    speeding.add_argument("--batch-sizes", type=int, nargs="+", default=[], metavar="N", help="without them, 1, 2 and 4 times the recipe's")
    speeding.add_argument("--steps", type=int, default=5, help="timed steps of each candidate")
    listing = command(runs)
    listing.add_argument("run", nargs="?", type=int, help="one run by its number")
    listing.add_argument("--table", help="a table of that run: accuracy, layers, drift, latency …")
    listing.add_argument("--limit", type=int, default=50)
    listing.add_argument("--cancel", type=int, metavar="RUN", help="ask a run to stop")
    timing.add(command(latency, takes_recipe=True))
    sensing.add(command(sensitivity, takes_recipe=True))
    command(layer_times, takes_recipe=True).add_argument("--queue", action="store_true", help="leave it to a worker")
    exporting = command(export)
    exporting.add_argument("run", type=int)
    exporting.add_argument("--to", default="export", help="folder to write to")
    tracking.add(command(export_runs))
    packing.add(command(evidence))
    evaluating = command(evaluate, takes_recipe=True)
    evaluating.add_argument("--network", required=True, help="folder or zip written by export, or the address of a healed network")
    command(recipe, takes_recipe=True)
    command(presets).add_argument("filter", nargs="?", help="a glob over keys, e.g. 'deit-b.*'")
    training = command(train_starter)
    training.add_argument("--to", default=str(settings.ASSETS / "starter"), help="folder to write to")
    training.add_argument("--epochs", type=int, default=120)
    command(worker).add_argument("--device", default="auto")
    command(app).add_argument("--port", type=int, help="port of the pages; without it, the setting")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 0, 1 for an error said in words, 130 when stopped."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        result = arguments.function(arguments)
    except LabError as error:
        print(error, file=sys.stderr)
        return 1
    except (Cancelled, KeyboardInterrupt):
        print("Stopped.", file=sys.stderr)
        return 130
    if isinstance(result, pd.DataFrame):
        # through pandas, so that NaN becomes null and arrays become lists
        print(json.dumps(json.loads(result.to_json(orient="records")), indent=2) if arguments.json else result.to_string(index=False))
    elif isinstance(result, str):
        print(result)
    return result if isinstance(result, int) else 0


if __name__ == "__main__":
    sys.exit(main())

"""Into Weights & Biases: a run there for every run here, with its fingerprint as id."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import wandb

from starfish_lab import settings
from starfish_lab.errors import LabError
from starfish_lab.exporting.contents import Contents


def send(found: list[Contents], *, uri: str, project: str) -> Iterator[dict[str, str]]:
    """One row a run: id, state, where. Raises LabError in the client's words."""
    for run in found:
        try:
            yield _sent(run, uri=uri, project=project)
        except (wandb.Error, ValueError) as error:
            raise LabError(
                f"Weights & Biases refused run {run.number}: {' '.join(str(error).split())[:300]} Sign in once with `wandb login`, "
                "or set WANDB_MODE=offline to keep it on this machine."
            ) from error


def _sent(run: Contents, *, uri: str, project: str) -> dict[str, str]:
    address = {"base_url": uri} if uri else {}
    options = wandb.Settings(silent=True, console="off", disable_git=True, disable_code=True, x_disable_stats=True, **address)
    here = wandb.init(
        project=project, id=run.fingerprint, name=run.name, resume="allow", config={**run.parameters, **run.tags}, notes=run.note,
        tags=["starfish-lab", run.status], dir=settings.home(), settings=options,
    )  # fmt: skip
    steps: dict[int, dict[str, float]] = {}
    for name, step, value, _ in run.series:
        steps.setdefault(step, {})[name] = value
    for step in sorted(steps):
        if step >= here.step:  # what was sent before is there: W&B takes steps in their order, each once
            here.log(steps[step], step=step)
    here.summary.update(run.figures)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "recipe.json").write_text(run.recipe, encoding="utf-8")
        for name, table in run.tables.items():
            table.to_csv(Path(folder) / f"{name}.csv", index=False)
        files = wandb.Artifact(f"run-{run.fingerprint}", type="run-tables", description=f"Tables and recipe of run {run.number}")
        for file in sorted(Path(folder).iterdir()):
            files.add_file(str(file))  # the same content again makes no new version
        here.log_artifact(files)
    where = here.dir if here.offline else here.url
    state = "sent" if here.offline else "updated" if here.resumed else "new"
    here.finish(exit_code=1 if run.status == "failed" else 0)
    return {"id": run.fingerprint, "state": state, "where": where}

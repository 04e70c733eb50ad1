"""Into MLflow: a run there for every run here, found again by its tag."""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from starfish_lab.errors import LabError
from starfish_lab.exporting.contents import TAG, Contents

AT_ONCE = {"metrics": 1000, "params": 100, "tags": 100}  # what MLflow takes in one request
LONGEST = 5000  # of a tag or a parameter, characters
ENDED = {"done": "FINISHED", "failed": "FAILED", "cancelled": "KILLED"}


def send(found: list[Contents], *, uri: str, project: str) -> Iterator[dict[str, str]]:
    """One row a run: id, state, where. Raises LabError in MLflow's words."""
    try:
        client = MlflowClient(tracking_uri=uri or None)
        known = client.get_experiment_by_name(project)
        experiment = known.experiment_id if known else client.create_experiment(project)
        for run in found:
            yield _sent(client, experiment, run)
    except MlflowException as error:
        raise LabError(f"MLflow at {uri or 'its usual address'} refused: {' '.join(str(error).split())[:300]} Check --uri and --project.") from error


def _sent(client: MlflowClient, experiment: str, run: Contents) -> dict[str, str]:
    earlier = client.search_runs([experiment], filter_string=f"tags.`{TAG}` = '{run.fingerprint}'", max_results=1)
    if earlier:
        here, there = earlier[0].info.run_id, set(earlier[0].data.params)
    else:
        here, there = client.create_run(experiment, start_time=_ms(run.began), run_name=run.name).info.run_id, set()
    tags = run.tags | {"mlflow.runName": run.name, "mlflow.note.content": run.note}
    _log(client, here, tags=[RunTag(_key(name), value[:LONGEST]) for name, value in tags.items()])
    parameters = {_key(name): str(value)[:LONGEST] for name, value in run.parameters.items()}
    _log(client, here, params=[Param(name, value) for name, value in parameters.items() if name not in there])  # a parameter is written once
    _log(client, here, metrics=list(_new(client, here, run, set(earlier[0].data.metrics) if earlier else set())))
    with tempfile.TemporaryDirectory() as folder:
        for name, table in run.tables.items():
            table.to_csv(Path(folder) / f"{name}.csv", index=False)
        (Path(folder) / "recipe.json").write_text(run.recipe, encoding="utf-8")
        client.log_artifacts(here, folder)  # over those of the same names
    if run.status in ENDED:
        client.set_terminated(here, ENDED[run.status], end_time=_ms(run.ended or run.began))
    return {"id": here, "state": "updated" if earlier else "new", "where": client.get_run(here).info.artifact_uri}


def _new(client: MlflowClient, here: str, run: Contents, known: set[str]) -> Iterator[Metric]:
    """The figures and steps that MLflow does not have yet: it would keep what is sent twice beside the first."""
    figures = [(name, 0, value, run.ended or run.began) for name, value in run.figures.items()]
    rows = [(_key(name), step, value, at) for name, step, value, at in [*figures, *run.series]]
    kept = {name: {(row.step, row.value) for row in client.get_metric_history(here, name)} for name in {row[0] for row in rows} & known}
    for name, step, value, at in rows:
        if not any(step == there and math.isclose(value, was, rel_tol=1e-9) for there, was in kept.get(name, ())):
            yield Metric(name, value, _ms(at), step)


def _log(client: MlflowClient, here: str, **entries: list) -> None:
    for kind, rows in entries.items():
        for first in range(0, len(rows), AT_ONCE[kind]):
            client.log_batch(here, **{kind: rows[first : first + AT_ONCE[kind]]})


def _key(name: str) -> str:
    """A name that MLflow takes."""
    return re.sub(r"[^\w\-. :/]", "_", name)[:250]


def _ms(seconds: float) -> int:
    return round(1000 * seconds)

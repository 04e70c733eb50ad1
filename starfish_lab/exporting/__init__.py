"""Runs of the store into other people's trackers, MLflow and Weights & Biases, each by its own client, which is installed only where wanted."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING

import pandas as pd

from starfish_lab.errors import LabError

if TYPE_CHECKING:
    from starfish_lab.store import Store

TARGETS = {"mlflow": "mlflow-skinny (the whole mlflow for an address sqlite:///…)", "wandb": "wandb"}  # the package of each client
PROJECT = "starfish-lab"  # the experiment of MLflow, the project of Weights & Biases


def export_runs(store: Store, run_ids: Iterable[int], *, to: str, uri: str = "", project: str = PROJECT) -> pd.DataFrame:
    """Send runs to a tracker: parameters from the recipe, figures with their steps, tags, tables and the recipe as files.

    A run that was sent before is brought up to date, not doubled: its fingerprint is kept as a tag (MLflow) or is its id there (W&B).

    to : one of TARGETS
    uri : of MLflow the tracking server, a folder or sqlite:///file; of W&B the server, e.g. https://api.wandb.ai. Empty: as their client says,
        which for W&B is where WANDB_MODE=offline keeps everything on this machine
    Returns columns run, to, id (there), state ('new', 'updated', or 'sent' where the client does not say) and where.
    Raises LabError where a run or the client is missing, or the tracker refuses.
    """
    if to not in TARGETS:
        raise LabError(f"There is no export to '{to}'. Choose one of: {', '.join(TARGETS)}.")
    from starfish_lab.exporting import contents

    found = [contents.of(store, run_id) for run_id in run_ids]  # all that is asked for exists before the first is sent
    if not found:
        raise LabError("No run was named to export. Give numbers as the page Runs lists them, such as 3,4.")
    try:
        sent = list(import_module(f"starfish_lab.exporting.to_{to}").send(found, uri=uri, project=project))
    except ImportError as error:
        raise LabError(f"Exporting to {to} needs its client, which is not here ({error}). Install it: pip install {TARGETS[to]}") from None
    return pd.DataFrame([{"run": run.number, "to": to, **row} for run, row in zip(found, sent)])

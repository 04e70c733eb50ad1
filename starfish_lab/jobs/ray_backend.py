"""Runs done by a Ray cluster.

The app never talks to Ray. It writes rows, as it does for local workers, and reads them; a process beside it, the
dispatcher, hands waiting runs to Ray and writes down which nodes there are. Ray ends every process that it is connected
to when its cluster goes, and the app must not be that process.
"""

from __future__ import annotations

import pandas as pd

from starfish_lab import settings
from starfish_lab.errors import LabError
from starfish_lab.jobs.protocol import LocalBackend

DISPATCHER, NODE, TASK = "ray", "ray-node", "ray-task"  # who a row among the workers is: the first part of its name, as in ray-task/NODE/…
AWAY = (
    f"Nobody hands runs to Ray just now, so they wait: the process that does so is starting, or was not started. `python -m starfish_lab app` "
    f"starts it where {settings.BACKEND.name} names a Ray cluster."
)


class RayBackend(LocalBackend):
    """The same rows as the local backend's, done on the nodes of a Ray cluster by GPU name."""

    def capacity(self) -> pd.DataFrame:
        """The cluster's nodes, one row for each of a node's runs or one where it is idle, and living workers beside it.

        `device` is cuda or cpu, `title` begins with the name of the node's GPU. Raises LabError where Ray cannot be reached.
        """
        alive = super().capacity()
        parts = [name.split("/") for name in alive["worker"]]
        alive = alive.assign(role=[part[0] for part in parts], node=[part[1] if len(part) > 1 else "" for part in parts])
        dispatchers = alive[alive["role"] == DISPATCHER].sort_values("started_at")
        if dispatchers.empty or (problem := dispatchers["title"].iloc[-1]):
            raise LabError(AWAY if dispatchers.empty else problem)
        busy = alive.loc[(alive["role"] == TASK) & alive["run"].notna(), ["node", "run"]]
        nodes = alive[alive["role"] == NODE].drop_duplicates("node").drop(columns="run").merge(busy, on="node", how="left")
        others = alive[~alive["role"].isin((DISPATCHER, NODE, TASK))]
        return pd.concat([nodes[alive.columns], others], ignore_index=True).drop(columns=["role", "node"])

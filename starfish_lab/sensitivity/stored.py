"""Curves that stand in the store: which run has them, and what they are as numbers of a recipe. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from starfish_lab.sensitivity.plan import Sensitivity

if TYPE_CHECKING:
    from starfish_lab.store import Store

KIND = "sensitivity"
LOOKED = 200  # newest runs
# What counts as damage: title, column of the table, unit.
DAMAGES = {
    "kl": ("Change of answers", "kl", "mean KL divergence of the answers from the dense network's, in nats"),
    "cosine_distance": ("Drift", "cosine_distance", "mean cosine distance of the last block's states from the dense network's"),
    "top1": ("Accuracy lost", "lost", "top-1 accuracy of the dense network less that of the pruned one"),
}


def find(store: Store, plan: Sensitivity, *, status: str = "done") -> int | None:
    """Number of the newest run in this state that measured exactly this plan, whatever its device; None where there is none."""
    runs = store.runs(kind=KIND, status=status, limit=LOOKED)
    same = runs.loc[runs["recipe_hash"] == plan.fingerprint(), "id"]
    return int(same.iloc[0]) if len(same) else None


def with_loss(rows: pd.DataFrame) -> pd.DataFrame:
    """The table `sensitivity` with the column `lost`, top-1 of dense less that of the pruned network, where it has accuracy."""
    return rows.assign(lost=rows["top1_dense"] - rows["top1"]) if "top1" in rows else rows


def damages(rows: pd.DataFrame) -> list[str]:
    """The names of DAMAGES that a table has figures of; the best first."""
    return [name for name, (_, column, _) in DAMAGES.items() if column in with_loss(rows)]


def curves(rows: pd.DataFrame, damage: str) -> tuple[list[float], dict[str, list[float]]]:
    """(levels, {layer: damage at every level}) of a table `sensitivity`, as the budget `sensitivity` takes them: no damage is below 0.

    A layer that no group of an n:m pattern fits stays dense, and shows no damage at any level.
    """
    table = with_loss(rows).pivot(index="layer", columns="level", values=DAMAGES[damage][1]).loc[rows["layer"].drop_duplicates()].clip(lower=0)
    found = {str(layer): [float(f"{value:.6g}") for value in values] for layer, values in zip(table.index, table.to_numpy())}
    return [float(level) for level in table], found

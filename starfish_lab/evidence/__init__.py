"""A frozen evidence pack: what a team needs to judge runs without access to the lab. Tables, recipes and hashes here, free of charts.

>>> pack = collect(Store(), [3, 4])                               # doctest: +SKIP
>>> written = archive.packed(archive.files(pack), runs=pack.ids)  # doctest: +SKIP

The pages add charts and one HTML file (`app.review.evidence`); the command line asks them to.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pandas as pd

from starfish_lab.errors import StoreError
from starfish_lab.evidence.figures import stages
from starfish_lab.recipe import Recipe

if TYPE_CHECKING:
    from starfish_lab.store import Store

__all__ = ["MOST", "TABLES", "Evidence", "collect", "stages"]

MOST = 50  # runs of a pack, as many as the page Compare takes
TABLES = (  # of each run's report; spectra, pictures and single images stay in the lab, for their size
    "accuracy", "comparisons", "totals", "layers", "drift", "losses", "block_losses", "healing_drift", "healing_accuracy", "latency", "seconds",
    "cycles", "solver", "permutation", "certificates", "provenance", "notes",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Everything a pack says.

    `runs` are rows of the store's list in the order asked for, `tables` the report tables of all of them, each with the column run;
    `decisions` (run, decision, why, who, t) and `remarks` (run, text, who, t) are newest first.
    """

    runs: pd.DataFrame
    recipes: dict[int, Recipe]
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    decisions: pd.DataFrame = field(default_factory=pd.DataFrame)
    remarks: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def ids(self) -> list[int]:
        return [int(run) for run in self.runs["id"]]

    def table(self, name: str) -> pd.DataFrame:
        """One table of all runs; an empty frame where none of them has it."""
        return self.tables.get(name, pd.DataFrame())

    def stages(self) -> pd.DataFrame:
        """What `figures.stages` finds in these runs."""
        return stages(self.runs, self.table("latency"), self.table("seconds"))


def collect(store: Store, run_ids: Iterable[int]) -> Evidence:
    """What the store knows of these finished experiments. Raises StoreError naming those that are none, and where there are too many."""
    wanted = list(dict.fromkeys(int(run) for run in run_ids))
    if not 1 <= len(wanted) <= MOST:
        raise StoreError(f"A pack holds 1 to {MOST} runs, and {len(wanted)} were asked for. Give the numbers of finished runs, such as 3,4.")
    found = store.runs(status="done", ids=wanted, limit=len(wanted)).set_index("id", drop=False)
    if missing := [run for run in wanted if run not in found.index]:
        raise StoreError(
            f"No finished experiment has the number {', '.join(map(str, missing))}, and a pack holds runs that are done. "
            "Leave these out, or wait for them."
        )
    runs, plans = found.loc[wanted].reset_index(drop=True), store.recipes(wanted)
    tables = {name: store.table(wanted, name) for name in TABLES}
    return Evidence(
        runs=runs, recipes={run: Recipe.from_dict(plans[run]) for run in wanted}, tables={name: rows for name, rows in tables.items() if len(rows)},
        decisions=store.decisions(wanted), remarks=store.remarks(wanted),
    )  # fmt: skip

"""Which finished runs measure a published row. Rows in, rows out; no Streamlit."""

from __future__ import annotations

from functools import cache

import pandas as pd

from app.review.differs import between
from starfish_lab import presets
from starfish_lab.recipe import Recipe

COLUMNS = ("key", "run", "stage", "sparsity", "top1", "low", "high", "images", "differs")
PARTS = ("start.", "tokens.", "pruning.", "healing.")


def identity(recipe: Recipe) -> tuple[str, str]:
    """(key, what differs) of the published row that a recipe is of: equal in all that counts, or at least in name and network; ('', '')."""
    by_parts, by_name = _known()
    if key := by_parts.get(presets.same_parts(recipe)):
        return key, ""
    key = by_name.get((recipe.name, recipe.model.name), "")
    return (key, ", ".join(differing(presets.recipe_of(key), recipe))) if key else ("", "")


def networks() -> set[str]:
    """Names of the networks that have published rows: runs of others need no look."""
    return {network for _, network in _known()[1]}


def differing(wanted: Recipe, recipe: Recipe) -> list[str]:
    """Fields of start, tokens, pruning and healing in which two recipes differ.

    >>> from dataclasses import replace
    >>> row = presets.recipe_of("vit-b-16.hybrid.0.35")
    >>> differing(row, replace(row, start=replace(row.start, steps=20)))
    ['start.steps']
    """
    return [field for field in between(wanted.to_dict(), recipe.to_dict()) if field.startswith(PARTS)]


@cache
def _known() -> tuple[dict[str, str], dict[tuple[str, str], str]]:
    recipes = {key: presets.recipe_of(key) for key in presets.presets()["key"]}
    return (
        {presets.same_parts(recipe): key for key, recipe in recipes.items()},
        {(recipe.name, recipe.model.name): key for key, recipe in recipes.items()},
    )


def measured(runs: pd.DataFrame, identities: dict[int, tuple[str, str]]) -> pd.DataFrame:
    """The newest run of each published row, with COLUMNS: its last stage's accuracy; a run equal in all that counts goes before others.

    `runs` is the store's list of finished runs, newest first; `identities` what `identity` says of each.
    """
    sparsity = presets.presets().set_index("key")["sparsity"]
    rows = []
    for run in runs.to_dict("records"):
        key, differs = identities.get(int(run["id"]), ("", ""))
        stage = next((stage for stage in ("healed", "pruned") if pd.notna(run[f"top1_{stage}"])), "")
        if key and stage:
            figures = [float(run[f"{name}_{stage}"]) for name in ("top1", "low", "high")]
            rows.append((key, int(run["id"]), stage, float(sparsity[key]), *figures, int(run["images"]), differs))
    found = pd.DataFrame(rows, columns=list(COLUMNS))
    found = found.assign(other=found["differs"].ne("")).sort_values(["other", "run"], ascending=[True, False], kind="stable")
    return found.drop_duplicates("key").drop(columns="other").reset_index(drop=True)

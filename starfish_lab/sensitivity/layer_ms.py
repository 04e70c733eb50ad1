"""What each layer takes in a dense forward pass on a device, from its table of layer times. No torch."""

from __future__ import annotations

from collections.abc import Collection

import pandas as pd

from starfish_lab.prediction.times import Times
from starfish_lab.whatif import Profile


def layer_ms(profile: Profile, table: pd.DataFrame, layers: Collection[str]) -> dict[str, float]:
    """{layer: ms of the largest batch that was timed}; {} where one of the layers, or anything of its kind, was never timed.

    table : rows of `layer_times` of one device; those of its first precision count
    """
    if table.empty or profile.pieces.empty:
        return {}
    rows = table[table["precision"] == table["precision"].iloc[0]]
    batch, times, found = int(rows["batch"].max()), Times(rows), {}
    for piece in profile.pieces[profile.pieces["name"].isin(list(layers))].itertuples():
        total = times.total({(piece.kind, piece.variant, piece.kernel, piece.m * batch, piece.n, piece.k): 1})
        if total.unknown or total.ms <= 0:
            return {}
        found[piece.name] = found.get(piece.name, 0.0) + total.ms
    return found if set(layers) <= set(found) else {}

"""What became of an image's answer on the way from dense to pruned to healed. NumPy and pandas only.

>>> import numpy as np
>>> groups(np.array([1, 1, 1, 1]), np.array([1, 2, 2, 1]), np.array([1, 1, 3, 2])).tolist()
['kept', 'back', 'never', 'broken']
>>> groups(np.array([1, 1]), np.array([1, 2])).tolist()
['kept', 'flipped']
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

STAGES = ("dense", "pruned", "healed")
GROUPS = {
    "back": "Came back",  # pruning flipped the dense answer, healing brought it back
    "never": "Never came back",  # pruning flipped it, and healing did not bring it back
    "broken": "Broken by healing",  # pruning kept it, healing flipped it
    "flipped": "Flipped by pruning",  # of a run that was not healed
    "kept": "Kept throughout",
}


def groups(dense: NDArray, pruned: NDArray, healed: NDArray | None = None) -> NDArray[np.str_]:
    """(n,) names of groups, from the answers (n,) of each network. Whether an answer is right plays no part."""
    flipped = dense != pruned
    if healed is None:
        return np.where(flipped, "flipped", "kept")
    same = dense == healed
    return np.select([flipped & same, flipped, ~same], ["back", "never", "broken"], "kept")


def images(answers: pd.DataFrame) -> pd.DataFrame:
    """The table 'answers' of a report, a row a class, as a row an image in the order of the set: its columns, and `group`."""
    if answers.empty:
        return pd.DataFrame(columns=["image", "label", "group"])
    lists = [name for name in answers if name != "label"]
    found = answers.explode(lists, ignore_index=True)
    found = found.astype({name: float if name.endswith("_confidence") else int for name in lists}).sort_values("image", ignore_index=True)
    return found.assign(group=groups(*(found[stage].to_numpy() for stage in STAGES if stage in found)))

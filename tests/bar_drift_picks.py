"""Could drift alone, without labels, have picked the best healer? Asked of the rows of assets/measured/healing.csv.

    python tests/bars.py drift_picks [csv=assets/measured/healing.csv]

Rows compete that heal the same network: equal masks, sparsity, calibration images and seed, whatever their steps.
"""

from __future__ import annotations

import pandas as pd

from starfish_lab import settings
from starfish_lab.measure import agreement

EQUAL = ["network", "masks", "sparsity", "images", "seed"]


def main(*, csv: str = str(settings.ASSETS / "measured" / "healing.csv")) -> None:
    rows = pd.read_csv(csv)
    rows["group"] = rows[EQUAL].astype(str).agg(", ".join, axis=1)
    for network, part in rows.groupby("network"):
        found = agreement.correlation(part)
        rho = "too few" if found["rho"] is None else f"{found['rho']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"
        print(f"{network}: Spearman's ρ of drift and accuracy {rho} over {found['n']} healed networks in {found['groups']} groups.")
        chosen = agreement.choices(part)
        print(f"  {agreement.answer(chosen)}")
        for row in chosen.itertuples():
            print(f"  {row.group}: least drift {part['healer'][row.least_drift]}, most accurate {part['healer'][row.most_accurate]}")
